"""Findings that count no longer, each by an entry of a file with a reason, an owner and a last day.

A suppressed finding is kept and marked: it adds to no score, type list, alert, metric of severity or exit code, and is still masked where
redaction is asked for. An entry whose last day is over does nothing, which is said when a run begins.
"""

from __future__ import annotations

import datetime as dt
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import msgspec
import re2  # type: ignore[import-untyped]

from llmsec_analyzer.expressions import Expression, ExpressionError, compile_expression
from llmsec_analyzer.judge.exchange_parts import Report, TextPart
from llmsec_analyzer.judge.facts import FACT_KINDS, FINDING_KINDS, Facts, values_of
from llmsec_analyzer.risk import risk
from llmsec_analyzer.typed_files import FileError, Problem, key, read_struct
from llmsec_analyzer.yaml_files import parse_yaml, read_text, yaml_lines
from llmsec_tap.errors import ConfigError
from llmsec_tap.model import Finding, Suppressed

# Entries by fingerprint are looked up; each of the others is tried on each finding.
MAX_ENTRIES: Final = 10_000
MAX_TRIED: Final = 1_000
MAX_WORDS: Final = 1_000  # characters of a reason or an owner: they go onto every record that they concern
MAX_PATTERN: Final = 256
_DAY_S: Final = 86_400


class Entry(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What has to hold: all that is given of `fingerprint`, `rule`, `tenant`, `place` and `when`; at least one is."""

    reason: Annotated[str, key("why these findings count no longer", filled=True)]
    owner: Annotated[str, key("who says so, and is asked again", filled=True)]
    until: Annotated[str, key("last day on which it holds, `YYYY-MM-DD`, UTC", filled=True)]
    fingerprint: Annotated[str | None, key("of the finding: this very match, wherever it stands", filled=True)] = None
    rule: Annotated[str | None, key("id of a rule; * and ? are wildcards", filled=True)] = None
    tenant: Annotated[str | None, key("tenant of the exchange; * and ? are wildcards", filled=True)] = None
    place: Annotated[str | None, key("part of the exchange, as findings have it; * and ? are wildcards", filled=True)] = None
    when: Annotated[str | None, key("a condition over the finding and its exchange", filled=True)] = None


class File(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    suppressions: tuple[Entry, ...] = ()


class Given(NamedTuple):
    """An entry as it was read, where it stands, and what its words became."""

    entry: Entry
    file: str
    line: int
    last_day: dt.date
    when: Expression | None

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}"


class _Tried(NamedTuple):
    given: Given
    mark: Suppressed
    ends_s: float  # the first second after it
    patterns: tuple[tuple[str, Any], ...]  # field, and what its value matches
    asks_exchange: bool
    asks_role: bool

    def holds(self, values: Mapping[str, Any], *, is_known: bool) -> bool:
        """`is_known`: the exchange's own fields are. What asks for something that is not known does not hold, whatever it asks."""
        if (self.asks_exchange and not is_known) or (self.asks_role and values["role"] is None):
            return False
        entry, when = self.given.entry, self.given.when
        if entry.fingerprint is not None and entry.fingerprint != values["fingerprint"]:
            return False
        for field, pattern in self.patterns:
            if pattern.fullmatch((values.get(field) or "").encode("utf-8", "replace").decode()) is None:
                return False
        return when is None or when(values)


def load_suppressions(paths: Iterable[str]) -> list[Given]:
    """The entries of all files. Raises ConfigError with file and line."""
    found = [given for path in paths for given in parse_suppressions(read_text(Path(path)), path)]
    if len(found) > MAX_ENTRIES:
        raise ConfigError(f"{found[MAX_ENTRIES].place}: more than {MAX_ENTRIES:,} suppressions", "delete those that are over")
    tried = [given for given in found if given.entry.fingerprint is None]
    if len(tried) > MAX_TRIED:
        raise ConfigError(
            f"{tried[MAX_TRIED].place}: more than {MAX_TRIED:,} suppressions without a fingerprint", "join some with wildcards or `or`"
        )
    return found


class Suppressions:
    """What is suppressed, for a run. `clock`: seconds since 1970; an entry ends while a run goes on."""

    def __init__(self, entries: Sequence[Given] = (), clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.entries = tuple(entries)
        self._by_print: dict[str, list[_Tried]] = {}
        self._others: list[_Tried] = []
        for given in entries:
            line = self._others if given.entry.fingerprint is None else self._by_print.setdefault(given.entry.fingerprint, [])
            line.append(_tried(given))

    def __bool__(self) -> bool:
        return bool(self.entries)

    def expired(self) -> list[str]:
        """A sentence for each entry whose last day is over."""
        today = dt.datetime.fromtimestamp(self._clock(), dt.UTC).date()
        return [
            f"{given.place}: this suppression ended on {given.entry.until} and does nothing any longer: ask {given.entry.owner}, or delete it"
            for given in self.entries
            if given.last_day < today
        ]

    def marked(self, finding: Finding, facts: Facts | None, role: str | None = None) -> Finding:
        """The finding, with the mark of the first entry that holds for it. `facts`: None while they are not known."""
        if not self._by_print and not self._others:
            return finding
        values = values_of(finding, facts, role)
        now = self._clock()
        for tried in (*self._by_print.get(finding.fingerprint, ()), *self._others):
            if now < tried.ends_s and tried.holds(values, is_known=facts is not None):
                return msgspec.structs.replace(finding, suppressed=tried.mark)
        return finding

    def apply(self, report: Report, facts: Facts | None, parts: Sequence[TextPart]) -> None:
        """Mark what is suppressed of a report, and score the rest anew."""
        if not self.entries or not report.findings:
            return
        roles = {str(part.place): part.role for part in parts}
        report.findings = [self.marked(finding, facts, roles.get(finding.location.part)) for finding in report.findings]
        if any(finding.suppressed is not None for finding in report.findings):
            score, report.risk_reasons = risk(report.findings)
            report.risk_score = score if report.risk_score is not None else None


def end_of(day: str) -> dt.date | None:
    """None for what is no `YYYY-MM-DD`."""
    try:
        return dt.date.fromisoformat(day) if re.fullmatch(r"\d{4}-\d\d-\d\d", day) else None
    except ValueError:
        return None


def _tried(given: Given) -> _Tried:
    entry = given.entry
    fields = (("rule_id", entry.rule), ("tenant", entry.tenant), ("part", entry.place))
    patterns = tuple((field, _wildcards(text)) for field, text in fields if text is not None)
    asked = given.when.fields if given.when is not None else frozenset()
    asks = entry.tenant is not None or not asked.isdisjoint(FACT_KINDS)
    ends_s = (given.last_day - dt.date(1970, 1, 1)).days * _DAY_S + _DAY_S
    return _Tried(given, Suppressed(reason=entry.reason, owner=entry.owner, until=entry.until), ends_s, patterns, asks, "role" in asked)


def _wildcards(text: str) -> Any:
    """Brackets mean themselves: parts have them."""
    pieces = (".*" if piece.startswith("*") else "." if piece == "?" else re2.escape(piece) for piece in re.findall(r"\*+|\?|[^*?]+", text))
    return re2.compile("(?s)" + "".join(pieces))


def parse_suppressions(text: str, name: str) -> list[Given]:
    """The entries of a file's text. Raises ConfigError with its `name` and the line."""
    value, node = parse_yaml(text, name)
    lines = yaml_lines(node)
    read, problems, more = read_struct(None if value is None else _dates(value), node, File)
    found: list[Given] = []
    for number, entry in enumerate(read.suppressions if read is not None else ()):
        where = ("suppressions", number)
        made = _given(entry, name, lines(where) or 1)
        if isinstance(made, Problem):
            problems.append(made._replace(where=(*where, *made.where), line=lines((*where, *made.where))))
        else:
            found.append(made)
    if problems:
        raise FileError(name, problems, more)
    return found


def _given(entry: Entry, file: str, line: int) -> Given | Problem:
    last_day = end_of(entry.until)
    if last_day is None:
        return Problem(("until",), "must be a day", "for example 2027-01-31")
    for name in ("reason", "owner"):
        if len(getattr(entry, name)) > MAX_WORDS:
            return Problem((name,), f"is longer than {MAX_WORDS:,} characters")
    if not (entry.fingerprint or entry.rule or entry.tenant or entry.place or entry.when):
        return Problem((), "would suppress everything", "give fingerprint, rule, tenant, place or when")
    for name in ("rule", "tenant", "place"):
        if len(getattr(entry, name) or "") > MAX_PATTERN:
            return Problem((name,), f"is longer than {MAX_PATTERN} characters")
    try:
        when = compile_expression(entry.when, {**FACT_KINDS, **FINDING_KINDS}) if entry.when is not None else None
    except ExpressionError as fault:
        return Problem(("when",), str(fault), fault.hint)
    return Given(entry, file, line, last_day, when)


def _dates(value: Any) -> Any:
    """YAML reads an unquoted day as a date."""
    if isinstance(value, dict):
        return {name: _dates(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_dates(item) for item in value]
    return value.isoformat() if isinstance(value, dt.date) and not isinstance(value, dt.datetime) else value
