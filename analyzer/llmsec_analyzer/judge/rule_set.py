"""Which rules a run has: those that ship, those of the configuration, less those that are switched off."""

from __future__ import annotations

import re

import msgspec

from llmsec_analyzer.rules.load import RuleError, check_form, load_builtin, load_paths
from llmsec_analyzer.rules.schema import Rule
from llmsec_analyzer.settings import DetectionSettings
from llmsec_analyzer.typed_files import nearest
from llmsec_tap.errors import ConfigError


class RuleSet(msgspec.Struct, frozen=True):
    """`matching` make findings, `evidence` feeds the model (or matches too, where there is no model)."""

    by_id: dict[str, Rule]
    matching: list[Rule]
    evidence: list[Rule]
    trusted: frozenset[str]


# The design's names for patterns of personal data, and the rules that stand for them here.
_PII_NAMES = {"ssn": ("ssn", "pii.ssn_plain"), "credit_card": ("credit_card",), "email": ("email",)}


def rule_set(settings: DetectionSettings) -> RuleSet:
    builtin = load_builtin()
    trusted = frozenset(rule.id for rule in builtin)
    rules = {rule.id: rule for rule in builtin}
    for rule in load_paths(settings.rules):
        if rule.id in rules:
            raise RuleError(f"rule {rule.id}: the id is taken", "give it another; shipped rules are switched off by disabled_rules")
        rules[rule.id] = rule
    for name in settings.disabled_rules:
        if name not in rules:
            raise ConfigError(f"security.disabled_rules: there is no rule {name!r}", nearest(name, list(rules)))
    _apply_pii(settings, rules)
    _apply_injection(settings, rules)
    off = set(settings.disabled_rules)
    kept = {name: rule for name, rule in rules.items() if name not in off and _is_on(settings, rule)}
    with_model = settings.prompt_injection.enabled and settings.prompt_injection.model.enabled
    evidence = [rule for rule in rules.values() if rule.evidence]
    matching = [rule for rule in kept.values() if not (rule.evidence and with_model)]
    return RuleSet(kept, matching, evidence, trusted)


def _is_on(settings: DetectionSettings, rule: Rule) -> bool:
    if rule.category == "pii":
        return settings.pii_detection.enabled
    if rule.category == "secret":
        return settings.secret_detection.enabled
    if rule.id.startswith("injection.") or rule.id in ("ignore_instructions", "system_override"):
        return settings.prompt_injection.enabled
    return settings.output.enabled or not rule.id.startswith(("output.", "tool."))


def _apply_pii(settings: DetectionSettings, rules: dict[str, Rule]) -> None:
    """`security.pii_detection.patterns`: the action and severity of a shipped kind, or a kind of one's own with a regex."""
    for name, wanted in settings.pii_detection.patterns.items():
        known = _PII_NAMES.get(name) or ((f"pii.{name}",) if f"pii.{name}" in rules else ())
        for rule_id in known:
            rule = rules[rule_id]
            rules[rule_id] = msgspec.structs.replace(rule, action=wanted.action, severity=wanted.severity or rule.severity)
        if not known:
            if wanted.regex is None:
                names = [*_PII_NAMES, *(rule.removeprefix("pii.") for rule in rules if rule.startswith("pii."))]
                raise ConfigError(f"security.pii_detection.patterns.{name}: no such kind, and no regex", nearest(name, names))
            rules[f"custom.{name}"] = _custom(name, wanted.regex, "pii", wanted.severity or "medium", wanted.action)


def _apply_injection(settings: DetectionSettings, rules: dict[str, Rule]) -> None:
    """`security.prompt_injection.patterns`: of the two shipped ones the severity; others are rules of their own."""
    for pattern in settings.prompt_injection.patterns:
        if pattern.name in ("ignore_instructions", "system_override"):
            rules[pattern.name] = msgspec.structs.replace(rules[pattern.name], severity=pattern.severity)
        elif pattern.regex is None:
            raise ConfigError(f"security.prompt_injection.patterns: {pattern.name!r} has no regex")
        else:
            rules[f"custom.{pattern.name}"] = _custom(pattern.name, pattern.regex, "prompt_injection", pattern.severity, "alert_only")


def _custom(name: str, regex: str, category: str, severity: str, action: str) -> Rule:
    rule_id = "custom." + re.sub(r"[^a-z0-9_]", "_", name.lower())
    words = literals(regex)
    digits = not words and "\\d" in regex
    if not words and not digits:
        raise ConfigError(
            f"the pattern {name!r} holds no word that every match has", "write it as a rule file, with keywords that start it"
        )
    rule = msgspec.convert(
        {
            "id": rule_id,
            "name": name,
            "description": f"The pattern {name!r} of the configuration matched.",
            "category": category,
            "type": name if category == "prompt_injection" else name.upper(),
            "severity": severity,
            "confidence": 0.6,
            "pattern": regex,
            "keywords": words,
            "trigger": "digits" if digits else None,
            "left": 80,
            "horizon": 160,
            "settle": 8,
            "action": action,
        },
        Rule,
    )
    try:
        check_form(rule)
    except ConfigError as fault:
        raise ConfigError(f"the pattern {name!r}: {fault}", fault.hint) from None
    return rule


def literals(regex: str) -> list[str]:
    """Words of which every match of the pattern holds at least one; none where that cannot be told."""
    try:
        from re import _parser  # type: ignore[attr-defined]  # noqa: PLC0415

        parsed = _parser.parse(regex)
    except re.error:
        return []
    return _needed(parsed)


def _needed(parsed: object) -> list[str]:
    best: list[str] = []
    run = ""

    def keep(words: list[str]) -> None:
        nonlocal best
        if words and all(len(word) >= 2 or word == "@" for word in words) and (not best or min(map(len, words)) > min(map(len, best))):
            best = words

    for operator, value in parsed:  # type: ignore[attr-defined]
        name = str(operator)
        if name == "LITERAL":
            run += chr(value)
            continue
        keep([run] if run else [])
        run = ""
        if name == "SUBPATTERN":
            keep(_needed(value[3]))
        elif name == "BRANCH":
            options = [_needed(branch) for branch in value[1]]
            if all(options):
                keep([word for option in options for word in option])
        elif name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT") and value[0] > 0:
            keep(_needed(value[2]))
    keep([run] if run else [])
    return best
