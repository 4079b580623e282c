"""One number for an exchange or a text, 0 to 100, and the reasons for it.

Each finding weighs severity x confidence: info 0, low 10, medium 35, high 65, critical 90. What the model's side leaks or
asks to run weighs a quarter more than the same thing going in, because the data has already left the model. Findings of one rule count once at
full weight and then as repeats; the weights are joined as chances are, 1 - (1 - a)(1 - b)…, so that many small things
never outweigh one grave thing by mere number, and the sum never passes 100. Suppressed findings add nothing. docs/detection.md has examples.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from llmsec_tap.model import Category, Exchange, Finding, Severity

SEVERITIES: tuple[Severity, ...] = ("info", "low", "medium", "high", "critical")
WEIGHT: dict[str, float] = {"info": 0.0, "low": 0.10, "medium": 0.35, "high": 0.65, "critical": 0.90}
OUTPUT_FACTOR = 1.25
_BY_MODEL = frozenset(("injection.model", "output.injection"))
_CERTAIN = frozenset(("secret", "prompt_injection", "jailbreak"))
# How ids of rules and policies begin that are a recorded application's own (the SDK): nobody else can apply them.
OWN_RULES: Final = "sdk."
REPEAT_FACTOR = 0.1  # of what one more finding of the same rule adds, up to five of them


def rank(severity: str) -> int:
    return SEVERITIES.index(severity)


def risk_score(findings: Iterable[Finding]) -> int:
    return risk(findings)[0]


def security_score(findings: Iterable[Finding]) -> int:
    """The gravest single finding, 0 to 100, on the scale that alert rules are written for: above 90 is certain.

    A critical finding is 91 to 100 by its confidence. A secret or an injection that a pattern found is 95 from severity high on. What the
    model found is its score, up to 100. Anything else weighs as in `risk`. Unlike that, small things do not add up.
    """
    return max((_score(finding) for finding in findings if finding.suppressed is None), default=0)


def _score(finding: Finding) -> int:
    if finding.severity == "critical":
        return 90 + max(1, round(10 * finding.confidence))
    if finding.rule_id in _BY_MODEL:
        return round(100 * finding.confidence)
    if finding.category in _CERTAIN and rank(finding.severity) >= rank("high"):
        return 95
    return round(100 * WEIGHT[finding.severity] * finding.confidence)


def types_of(findings: Iterable[Finding], category: Category) -> list[str]:
    """The kinds of one category, without what is suppressed or information only."""
    return sorted(
        {finding.type for finding in findings if finding.category == category and finding.severity != "info" and finding.suppressed is None}
    )


def risk(findings: Iterable[Finding]) -> tuple[int, list[str]]:
    """The score, and for each rule that adds to it one line: `rule: +points`."""
    best: dict[str, float] = {}
    repeats: dict[str, int] = {}
    for finding in findings:
        if finding.suppressed is not None:
            continue
        weight = WEIGHT[finding.severity] * finding.confidence
        if finding.location.is_in_answer:
            weight *= OUTPUT_FACTOR
        best[finding.rule_id] = max(best.get(finding.rule_id, 0.0), min(weight, 0.99))
        repeats[finding.rule_id] = repeats.get(finding.rule_id, -1) + 1
    safe = 1.0
    reasons: list[str] = []
    for rule, weight in sorted(best.items(), key=lambda item: (-item[1], item[0])):
        weight = min(0.99, weight * (1 + REPEAT_FACTOR * min(repeats[rule], 5)))
        before = safe
        safe *= 1 - weight
        points = round((before - safe) * 100)
        if points:
            reasons.append(f"{rule}: +{points}")
    return round((1 - safe) * 100), reasons


def add_findings(exchange: Exchange, more: list[Finding]) -> None:
    """Findings that detection did not make, and the scores that they raise; a score that is null (not looked at) stays so."""
    if not more:
        return
    exchange.findings = [*exchange.findings, *more]
    if exchange.risk_score is not None:
        exchange.risk_score, exchange.risk_reasons = risk(exchange.findings)
        exchange.security_score = security_score(exchange.findings)
