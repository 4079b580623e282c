"""Silences: alerts that nobody is told of until a time, by the name of a rule or the key of an alert. A file in the store's folder.

    silences:
      - match: pii_detected/tenant=acme
        until: "2026-12-01T08:00:00Z"
        reason: load test with made-up customers
        by: anna

What is silenced is still counted and stands on its exchanges.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Final, NamedTuple

import msgspec

from llmsec_analyzer.alerts.rules import wildcards
from llmsec_analyzer.typed_files import FileError, Problem, key, read_struct
from llmsec_analyzer.yaml_files import parse_yaml, yaml_lines

# A list that a person can read is far below these.
MAX_SILENCES: Final = 1_000
MAX_WORDS: Final = 500
_DAY: Final = re.compile(r"\d{4}-\d\d-\d\d")


class Silence(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    match: Annotated[str, key("name of a rule, or key of an alert; * and ? are wildcards", filled=True)]
    until: Annotated[str, key("when it ends, UTC: `2026-12-01T08:00:00Z`, or the last day", filled=True)]
    reason: Annotated[str, key("why", filled=True)]
    by: Annotated[str, key("who says so")] = ""


class File(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    silences: Annotated[tuple[Silence, ...], key("what is silenced")] = ()


class _Held(NamedTuple):
    silence: Silence
    pattern: re.Pattern[str]
    until_ns: int


class Silences:
    def __init__(self, entries: Iterable[Silence] = ()) -> None:
        self._held = [_Held(entry, wildcards([entry.match])[0], end_ns(entry.until) or 0) for entry in entries]

    def of(self, rule: str, dedup_key: str, now_ns: int) -> Silence | None:
        """The first that holds now."""
        for held in self._held:
            if now_ns < held.until_ns and (held.pattern.fullmatch(rule) or held.pattern.fullmatch(dedup_key)):
                return held.silence
        return None


def end_ns(text: str) -> int | None:
    """When it is over, epoch nanoseconds; a day is over with its last second. None for what is no time."""
    try:
        if _DAY.fullmatch(text):
            found = dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC) + dt.timedelta(days=1)
        else:
            found = dt.datetime.fromisoformat(text)
            found = found.replace(tzinfo=dt.UTC) if found.tzinfo is None else found
        return int(found.timestamp()) * 1_000_000_000
    except (ValueError, OverflowError):
        return None


def parse_silences(text: str, name: str) -> list[Silence]:
    """Raises FileError with `name`, all faults and their lines."""
    value, node = parse_yaml(text, name)
    lines = yaml_lines(node)
    read, problems, more = read_struct(None if value is None else _as_text(value), node, File)
    entries = read.silences if read is not None else ()
    for number, entry in enumerate(entries):
        where = ("silences", number)
        if end_ns(entry.until) is None:
            at = (*where, "until")
            problems.append(Problem(at, "must be a time or a day", "for example 2026-12-01T08:00:00Z or 2026-12-01", lines(at)))
        problems += [
            Problem((*where, field), f"is longer than {MAX_WORDS} characters", "", lines((*where, field)))
            for field in ("match", "reason", "by")
            if len(getattr(entry, field)) > MAX_WORDS
        ]
    if len(entries) > MAX_SILENCES:
        problems.append(
            Problem(("silences",), f"has more than {MAX_SILENCES:,} entries", "delete those that are over", lines(("silences",)))
        )
    if problems:
        raise FileError(name, problems, more)
    return list(entries)


def written(entries: Sequence[Silence]) -> str:
    """The file of these."""
    return "silences:\n" + "".join(map(item, entries)) if entries else "silences: []\n"


def item(entry: Silence) -> str:
    """One, as lines of the file."""
    quoted = msgspec.json.Encoder()  # JSON's quotation marks are YAML's, and its escapes too
    given = [f"{name}: {quoted.encode(value).decode()}" for name, value in msgspec.structs.asdict(entry).items() if value]
    return f"  - {given[0]}\n" + "".join(f"    {more}\n" for more in given[1:])


def _as_text(value: Any) -> Any:
    """YAML reads an unquoted time as one."""
    if isinstance(value, dict):
        return {name: _as_text(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_as_text(item) for item in value]
    return value.isoformat() if isinstance(value, dt.date | dt.datetime) else value
