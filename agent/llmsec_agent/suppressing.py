"""Suppressions as commands have them: of the configuration and of options, told where they have ended, and new ones added to their file."""

from __future__ import annotations

import datetime as dt
import fcntl
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from llmsec_analyzer.judge.exchange_parts import text_parts
from llmsec_analyzer.judge.facts import Facts, facts_of
from llmsec_analyzer.judge.suppressions import Entry, Suppressions, end_of, load_suppressions, parse_suppressions
from llmsec_analyzer.settings import DetectionSettings
from llmsec_analyzer.yaml_files import MAX_FILE_BYTES, read_yaml
from llmsec_tap.errors import ConfigError
from llmsec_tap.journal import Journal
from llmsec_tap.model import Exchange, Finding
from llmsec_tap.storage.publish import write_all

_KEY = "suppressions:"


def with_suppressions(settings: DetectionSettings, files: Sequence[str] | None) -> DetectionSettings:
    """The settings with more files of them, of options."""
    return msgspec.structs.replace(settings, suppressions=(*settings.suppressions, *files)) if files else settings


def suppressions_of(settings: DetectionSettings, journal: Journal) -> Suppressions:
    """Raises ConfigError for what is wrong; those that have ended are warnings."""
    suppressions = Suppressions(load_suppressions(settings.suppressions))
    for sentence in suppressions.expired():
        journal.warning("suppression_ended", sentence)
    return suppressions


def marking(suppressions: Suppressions) -> Callable[[Finding, dict[str, Any]], Finding] | None:
    """Marks stored findings, given what is known of their exchange; None where there is nothing to mark. Roles of texts are not known there."""
    return (lambda finding, facts: suppressions.marked(finding, Facts(**facts))) if suppressions else None


def marked(exchange: Exchange, suppressions: Suppressions) -> list[Finding]:
    """The exchange's findings, with what suppresses them now."""
    if not suppressions or not exchange.findings:
        return exchange.findings
    facts, places = facts_of(exchange), {finding.location.part for finding in exchange.findings}
    roles = {place: part.role for part in text_parts(exchange) if (place := str(part.place)) in places}
    return [suppressions.marked(finding, facts, roles.get(finding.location.part)) for finding in exchange.findings]


def day_of(text: str) -> str:
    """`2027-01-31`, or so many days from today: `90d`. Raises ConfigError."""
    days = re.fullmatch(r"(\d{1,4})d", text.strip())
    if days:
        return (dt.datetime.now(dt.UTC).date() + dt.timedelta(days=int(days[1]))).isoformat()
    day = end_of(text.strip())
    if day is None or day < dt.datetime.now(dt.UTC).date():
        raise ConfigError(f"--until: {text!r} is not a day to come", "for example 2027-01-31, or 90d")
    return day.isoformat()


def entry_of(finding: Finding, exchange: Exchange, *, reason: str, owner: str, until: str, by: Sequence[str]) -> Entry:
    """What suppresses this finding and those that have the same of `by`: fingerprint, rule, tenant, place. Raises ConfigError."""
    values = {"fingerprint": finding.fingerprint, "rule": finding.rule_id, "tenant": exchange.tenant, "place": finding.location.part}
    wanted = by or ("fingerprint", "rule")
    for name in wanted:
        if not values[name]:
            raise ConfigError(f"this finding has no {name}", "choose others with --by")
    return Entry(reason=reason, owner=owner, until=until, **{name: values[name] for name in wanted})


def written(entry: Entry, indent: str = "  ") -> str:
    """The entry as lines of its file."""
    given: dict[str, Any] = {name: value for name, value in msgspec.structs.asdict(entry).items() if value is not None}
    # JSON's quotation marks are YAML's, and its escapes too.
    lines = [f"{name}: {value if name == 'until' else json.dumps(value, ensure_ascii=False)}" for name, value in given.items()]
    return f"{indent}- {lines[0]}\n" + "".join(f"{indent}  {line}\n" for line in lines[1:])


def append(path: Path, entry: Entry) -> None:
    """Write the entry behind what the file has, which stays as it is, and onto the disk. A file that is not there is made.

    Raises ConfigError where it cannot be written, or where what stands there does not end with a list of suppressions.
    """
    is_new = not path.exists()
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
    except OSError as fault:
        raise ConfigError(f"{path}: cannot be written: {fault.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        more = _more(path, entry)
        size = os.fstat(descriptor).st_size
        try:
            write_all(descriptor, more)
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, size)  # half an entry would spoil the whole file for whoever reads it
            raise
        if is_new:
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as fault:
        raise ConfigError(f"{path}: cannot be written: {fault.strerror}", "nothing was suppressed") from None
    finally:
        os.close(descriptor)


def _more(path: Path, entry: Entry) -> bytes:
    """What is to be appended. It is read with the rest before it is written."""
    before = load_suppressions([str(path)])  # whatever is wrong with it is told first
    text = path.read_text(encoding="utf-8")
    _, node = read_yaml(path)
    indent = "  "
    if node is None:
        more = f"{_KEY}\n"
    else:
        more = ""
        items = next((item for name, item in node.value if name.value == "suppressions"), None)
        if items is not None and items.value:
            indent = " " * (items.start_mark.column)
    more = ("\n" if text and not text.endswith("\n") else "") + more + written(entry, indent)
    if len(text.encode()) + len(more.encode()) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: would be larger than {MAX_FILE_BYTES >> 20} MiB", "delete suppressions that have ended")
    try:
        after = [given.entry for given in parse_suppressions(text + more, str(path))]
    except ConfigError:
        after = []
    if after != [*(given.entry for given in before), entry]:
        raise ConfigError(
            f"{path}: nothing can be added behind its last line",
            "its list of suppressions must stand at its end, an entry a line with `- `; without --file the entry is printed",
        )
    return more.encode()
