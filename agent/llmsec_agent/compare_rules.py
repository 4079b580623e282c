"""`llmsec-analyze rules test`: what a change of rules would add to and remove from what is found in a store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from llmsec_agent.analyze import has_texts
from llmsec_analyzer.judge.budget import FULL, WITHOUT_MODEL
from llmsec_analyzer.judge.exchange import ExchangeDetector
from llmsec_analyzer.judge.exchange_parts import text_parts, unread
from llmsec_analyzer.judge.facts import facts_of
from llmsec_analyzer.judge.rule_set import RuleSet, rule_set
from llmsec_analyzer.judge.scanner import Fingerprint, Scanner
from llmsec_analyzer.judge.suppressions import Suppressions
from llmsec_analyzer.risk import rank
from llmsec_analyzer.settings import DetectionSettings
from llmsec_analyzer.stored.exchanges import of_anomalies
from llmsec_analyzer.stored.session import QuerySession
from llmsec_tap.errors import ConfigError
from llmsec_tap.model import Exchange, Finding, Severity

# Examples that are kept of each rule and kind of difference.
EXAMPLES: Final = 3


class Difference(msgspec.Struct, kw_only=True):
    """Of one rule: findings that only the change makes, that it no longer makes, that stay, and that stay with another severity or confidence."""

    rule: str
    added: int = 0
    removed: int = 0
    changed: int = 0
    same: int = 0
    examples: list[Example] = []


class Example(msgspec.Struct, kw_only=True):
    kind: str  # added, removed or changed
    exchange_id: str
    severity: Severity
    type: str
    part: str
    start: int
    end: int
    preview: str


class Comparison(msgspec.Struct, kw_only=True):
    """`without_texts`: exchanges that were stored without content. `worst`: the gravest finding that is added, None for none."""

    exchanges: int = 0
    without_texts: int = 0
    worst: Severity | None = None
    rules: list[Difference] = []


def compare(
    session: QuerySession,
    settings: DetectionSettings,
    changed: Sequence[str],
    without: Sequence[str],
    fingerprint: Fingerprint,
    suppressions: Suppressions,
) -> Comparison:
    """Look at every stored text with the rules of `settings`, and with those of `changed` in their place or beside them, less those of `without`.

    Suppressed findings count on neither side. Raises ConfigError for a rule that is wrong, StorageError for the store.
    """
    before_rules = rule_set(settings)
    known = {*before_rules.by_id, *(rule.id for rule in before_rules.evidence)}
    for name in without:
        if name not in known:
            raise ConfigError(f"--without: there is no rule {name!r}", "`llmsec-analyze rules list` has their ids")
    after = msgspec.structs.replace(settings, disabled_rules=(*settings.disabled_rules, *without))
    after_rules = rule_set(after, changed)
    # The model's own findings only change with what it takes for signs; without it, this is many times faster.
    pressure = FULL if _signs(before_rules) != _signs(after_rules) else WITHOUT_MODEL
    detectors = [
        ExchangeDetector(Scanner(each, fingerprint, rules=rules)) for each, rules in ((settings, before_rules), (after, after_rules))
    ]
    made = Comparison()
    by_rule: dict[str, Difference] = {}
    for exchange in of_anomalies(session, None):
        if exchange.provider is None:
            continue
        if not has_texts(exchange):
            made.without_texts += 1
            continue
        made.exchanges += 1
        old, new = (_found(detector, exchange, pressure, suppressions) for detector in detectors)
        for kind, finding in _differences(old, new):
            entry = by_rule.setdefault(finding.rule_id, Difference(rule=finding.rule_id))
            setattr(entry, kind, getattr(entry, kind) + 1)
            if kind != "same" and sum(example.kind == kind for example in entry.examples) < EXAMPLES:
                entry.examples.append(_example(kind, finding, exchange))
            if kind == "added" and (made.worst is None or rank(finding.severity) > rank(made.worst)):
                made.worst = finding.severity
    made.rules = sorted(by_rule.values(), key=lambda entry: (-(entry.added + entry.removed + entry.changed), entry.rule))
    return made


def _signs(rules: RuleSet) -> list[str]:
    return sorted(repr(rule) for rule in rules.evidence)


def _found(detector: ExchangeDetector, exchange: Exchange, pressure: int, suppressions: Suppressions) -> list[Finding]:
    parts = list(text_parts(exchange))
    report = detector.examine(exchange.exchange_id, parts, pressure=pressure, unread=unread(exchange))
    suppressions.apply(report, facts_of(exchange), parts)
    return [finding for finding in report.findings if finding.suppressed is None]


def _differences(old: Sequence[Finding], new: Sequence[Finding]) -> Iterator[tuple[str, Finding]]:
    before = {finding.finding_id: finding for finding in old}
    for finding in new:
        earlier = before.pop(finding.finding_id, None)
        if earlier is None:
            yield "added", finding
        elif (earlier.severity, earlier.confidence, earlier.type) != (finding.severity, finding.confidence, finding.type):
            yield "changed", finding
        else:
            yield "same", finding
    for finding in before.values():
        yield "removed", finding


def _example(kind: str, finding: Finding, exchange: Exchange) -> Example:
    place = finding.location
    return Example(
        kind=kind,
        exchange_id=exchange.exchange_id,
        severity=finding.severity,
        type=finding.type,
        part=place.part,
        start=place.start,
        end=place.end,
        preview=finding.preview,
    )


def totals(made: Comparison) -> Counter[str]:
    counts: Counter[str] = Counter()
    for entry in made.rules:
        counts.update(added=entry.added, removed=entry.removed, changed=entry.changed, same=entry.same)
    return counts
