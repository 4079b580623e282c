"""Which rules a run has: those that ship, those of the configuration, minus the disabled ones."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any

import msgspec

from llmsec_analyzer.engine.triggers import MAX_KEYWORD_BYTES
from llmsec_analyzer.prove.form import check_form
from llmsec_analyzer.recognizers.patterns import compile_pattern
from llmsec_analyzer.rules.load import RuleError, load_builtin, load_paths
from llmsec_analyzer.rules.schema import Rule
from llmsec_analyzer.settings import DetectionSettings
from llmsec_analyzer.typed_files import nearest
from llmsec_tap.errors import ConfigError


class RuleSet(msgspec.Struct, frozen=True):
    """`matching` make findings, `evidence` feeds the model (or matches too, where there is no model).

    `whole_text`: of those that match, the ones that nothing in a text starts. `redacting`: ids of rules whose matches are masked.
    """

    by_id: dict[str, Rule]
    matching: list[Rule]
    evidence: list[Rule]
    trusted: frozenset[str]
    whole_text: list[Rule] = []
    redacting: frozenset[str] = frozenset()


# The design's names for patterns of personal data, and the rules that stand for them here.
_PII_NAMES = {"ssn": ("ssn", "pii.ssn_plain"), "credit_card": ("credit_card",), "email": ("email",)}
# And for injection: signs that feed the model.
_SIGNS = ("ignore_instructions", "system_override")
# Matches of patterns up to this long are found as a text arrives; longer ones once it is whole.
_LONGEST = 200


def rule_set(settings: DetectionSettings, replacing: Sequence[str] = ()) -> RuleSet:
    """`replacing`: files, folders and packages of rules, each in the place of the one that has its id.

    Raises ConfigError for a rule, a pattern or a name that is wrong.
    """
    builtin = load_builtin()
    trusted = frozenset(rule.id for rule in builtin)
    # What shipped rules say of redaction is advice: nothing is masked that nobody asked to have masked.
    rules = {rule.id: msgspec.structs.replace(rule, action="alert_only") if rule.redacts else rule for rule in builtin}
    for rule in load_paths(settings.rules, check_form):
        if rule.id in rules:
            raise RuleError(
                f"rule {rule.id}: another rule already uses this id", "choose another id; disabled_rules switches a shipped rule off"
            )
        rules[rule.id] = rule
    fresh = {rule.id: rule for rule in load_paths(replacing, check_form)}
    rules |= fresh
    trusted -= fresh.keys()
    _apply_pii(settings, rules)
    replaced = _apply_injection(settings, rules)
    for name in settings.disabled_rules:
        if name not in rules:
            raise ConfigError(f"security.disabled_rules: there is no rule {name!r}", nearest(name, list(rules)))
    if not settings.enabled:
        return RuleSet({}, [], [], trusted)
    off = set(settings.disabled_rules)
    kept = {name: rule for name, rule in rules.items() if name not in off and _is_on(settings, rule)}
    with_model = settings.prompt_injection.enabled and settings.prompt_injection.model.enabled
    evidence = [rule for rule in rules.values() if rule.evidence]
    matching = [rule for rule in kept.values() if not (rule.evidence and with_model) and rule.id not in replaced]
    whole_text = [rule for rule in matching if rule.pattern is not None and not rule.keywords and rule.trigger is None]
    redacting = frozenset(rule.id for rule in kept.values() if rule.redacts)
    return RuleSet(kept, matching, evidence, trusted, whole_text, redacting)


def _is_on(settings: DetectionSettings, rule: Rule) -> bool:
    return rule.group == "always" or bool(getattr(settings, rule.group).enabled)


def _apply_pii(settings: DetectionSettings, rules: dict[str, Rule]) -> None:
    """`security.pii_detection.patterns`: the action and severity of a shipped kind, and a regex that is looked for beside it."""
    for name, wanted in settings.pii_detection.patterns.items():
        known = _PII_NAMES.get(name) or ((f"pii.{name}",) if f"pii.{name}" in rules else ())
        kind, severity = name.upper(), wanted.severity
        for rule_id in known:
            rule = rules[rule_id]
            kind, severity = rule.type, severity or rule.severity
            rules[rule_id] = msgspec.structs.replace(rule, action=wanted.action, severity=wanted.severity or rule.severity)
        if wanted.regex is not None:
            place = f"security.pii_detection.patterns.{name}"
            _add(rules, _custom(place, name, wanted.regex, "pii", severity or "medium", kind=kind, action=wanted.action), place)
        elif not known:
            names = [*_PII_NAMES, *(rule.removeprefix("pii.") for rule in rules if rule.startswith("pii."))]
            raise ConfigError(f"security.pii_detection.patterns.{name}: no such kind, and no regex", nearest(name, names))


def _apply_injection(settings: DetectionSettings, rules: dict[str, Rule]) -> frozenset[str]:
    """`security.prompt_injection.patterns`: what has a regex alarms by itself, beside the model. The ids that it stands in for."""
    replaced = set()
    for pattern in settings.prompt_injection.patterns:
        place = f"security.prompt_injection.patterns: {pattern.name}"
        if pattern.name in _SIGNS:
            rules[pattern.name] = msgspec.structs.replace(rules[pattern.name], severity=pattern.severity)
        elif pattern.regex is None:
            raise ConfigError(f"{place}: no such pattern, and no regex", nearest(pattern.name, list(_SIGNS)))
        if pattern.regex is not None:
            replaced.add(pattern.name)
            _add(rules, _custom(place, pattern.name, pattern.regex, "prompt_injection", pattern.severity, kind=pattern.name), place)
    return frozenset(replaced)


def _add(rules: dict[str, Rule], rule: Rule, place: str) -> None:
    if rule.id in rules:
        raise ConfigError(
            f"{place}: another pattern has this name",
            "names are compared without case, with _ in place of every character that is not a letter or digit",
        )
    rules[rule.id] = rule


def _custom(place: str, name: str, regex: str, category: str, severity: str, *, kind: str, action: str = "alert_only") -> Rule:
    """The rule of a configured regex. Where every match holds a known word and is short, that word starts it; else nothing does."""
    words = literals(regex)
    shortest, longest = widths(regex)
    is_started = bool(words) and longest <= _LONGEST and all(word.isascii() and len(word) <= MAX_KEYWORD_BYTES for word in words)
    rule = msgspec.convert(
        {
            "id": "custom." + re.sub(r"[^a-z0-9_]", "_", name.lower()),
            "name": name,
            "description": f"The pattern {name!r} of the configuration matched.",
            "category": category,
            "type": kind,
            "severity": severity,
            "confidence": 0.6,
            "pattern": regex,
            "keywords": words if is_started else [],
            "left": longest if is_started else 0,
            "horizon": longest if is_started else 0,
            "settle": longest - shortest + 1 if is_started else 1,
            "action": action,
        },
        Rule,
    )
    try:
        if is_started:
            check_form(rule)
        else:
            compile_pattern(regex)
    except ConfigError as fault:
        raise ConfigError(f"{place}: {fault}", fault.hint) from None
    return rule


def _parsed(regex: str) -> Any:
    """As Python reads it; None where it does not, as the engines know forms that it does not know."""
    try:
        from re import _parser  # type: ignore[attr-defined]  # noqa: PLC0415

        with warnings.catch_warnings():  # about what may mean something else one day
            warnings.simplefilter("ignore")
            return _parser.parse(regex)
    except (re.error, RecursionError, OverflowError):
        return None


def widths(regex: str) -> tuple[int, int]:
    """The lengths of the shortest and the longest match; an unknown one is very long."""
    parsed = _parsed(regex)
    if parsed is None:
        return 0, 1 << 30
    shortest, longest = parsed.getwidth()
    return int(shortest), int(longest)


def literals(regex: str) -> list[str]:
    """Words of which every match of the pattern holds at least one; none where that cannot be told."""
    parsed = _parsed(regex)
    return [] if parsed is None else _needed(parsed)


def _lead(parsed: object) -> str:
    """The plain characters that it begins with."""
    lead = ""
    for operator, value in parsed:  # type: ignore[attr-defined]
        if str(operator) != "LITERAL":
            break
        lead += chr(value)
    return lead


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
        before, run = run, ""
        if name == "SUBPATTERN":
            keep(_needed(value[3]))
        elif name == "BRANCH":
            leads = [_lead(branch) for branch in value[1]]
            if all(leads):
                keep([before + lead for lead in leads])
            options = [_needed(branch) for branch in value[1]]
            if all(options):
                keep([word for option in options for word in option])
        elif name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT") and value[0] > 0:
            keep(_needed(value[2]))
    keep([run] if run else [])
    return best
