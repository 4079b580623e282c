"""The proof of rules: ids unique, every example found or not found as it says, whole and a character at a time alike."""

from __future__ import annotations

from collections.abc import Sequence

from llmsec_analyzer.engine.stream import StreamScanner
from llmsec_analyzer.prove.synthetic import expand
from llmsec_analyzer.recognizers.build import JUDGEMENT, make_plan
from llmsec_analyzer.rules.schema import Rule


def check_rules(rules: Sequence[Rule], *, trusted: frozenset[str] = frozenset()) -> list[str]:
    """All that is wrong, one sentence each; none is the proof."""
    wrong: list[str] = []
    seen: dict[str, Rule] = {}
    for rule in rules:
        if rule.id in seen:
            wrong.append(f"rule {rule.id}: another rule already uses this id")
        seen[rule.id] = rule
        wrong += [f"rule {rule.id}: {problem}" for problem in _problems(rule, trusted)]
    return wrong


def _problems(rule: Rule, trusted: frozenset[str]) -> list[str]:
    problems: list[str] = []
    if len(rule.description) < 20:
        problems.append("the description must say what was found and what an attacker gains")
    if rule.recognizer == JUDGEMENT:
        return problems  # made by comparisons and the model; their own tests prove them
    if not rule.examples.match:
        problems.append("there is no example that must match")
    if not rule.examples.no_match:
        problems.append("there is no example that must not match")
    plan = make_plan([rule], trusted=trusted)
    role = rule.roles[0] if rule.roles else "user"
    for example in rule.examples.match:
        text = expand(example)
        whole, pieces = _found(plan, [text], role), _found(plan, list(text), role)
        if not whole:
            problems.append(f"does not match its example {example!r}")
        elif whole != pieces:
            problems.append(f"matches differently when its example {example!r} arrives a character at a time")
    problems += [f"matches {example!r}, which it must not" for example in rule.examples.no_match if _found(plan, [expand(example)], role)]
    if plan.faults:
        problems.append("its recognizer fails on its own examples")
    return problems


def _found(plan: object, pieces: list[str], role: str) -> set[tuple[int, int]]:
    scanner = StreamScanner(plan, role)  # type: ignore[arg-type]
    for piece in pieces:
        scanner.feed(piece)
    scanner.close()
    return {(match.start, match.end) for match in scanner.matches}
