"""From rules to a plan: which recognizer each rule gets, and what starts it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from llmsec_analyzer.engine.recognizer_api import Recognizer
from llmsec_analyzer.engine.stream import Plan
from llmsec_analyzer.recognizers.assigned import RECOGNIZERS
from llmsec_analyzer.recognizers.patterns import PatternRecognizer
from llmsec_analyzer.recognizers.run_recognizers import RunRecognizer
from llmsec_analyzer.rules.schema import Rule

# The recognizer of rules that nothing in a text starts: the model's, and comparisons of an answer with its request.
JUDGEMENT = "judgement"


def make_plan(
    rules: Sequence[Rule],
    *,
    trusted: frozenset[str] = frozenset(),
    engine: str = "auto",
    on_fault: Callable[[Recognizer, Exception], None] | None = None,
    timeouts: Counter[str] | None = None,
) -> Plan:
    """`trusted`: ids of reviewed rules, whose patterns may run on Python's own engine where that is faster.

    `timeouts` counts searches that ran out of time, by rule id.
    """
    timeouts = Counter() if timeouts is None else timeouts
    keywords: list[tuple[str, Recognizer]] = []
    classes: list[tuple[str, Recognizer]] = []
    contexts: list[tuple[str, str]] = []
    by_class: dict[str, list[Rule]] = {}
    for rule in rules:
        if rule.recognizer == JUDGEMENT:
            continue
        if rule.recognizer is not None:
            own = RECOGNIZERS[rule.recognizer](rule)
            keywords += [(word, own) for word in rule.keywords]
            if rule.trigger is not None:
                classes.append((rule.trigger, own))
            continue
        if rule.trigger is not None:
            by_class.setdefault(rule.trigger, []).append(rule)
            contexts += [(word, rule.id) for word in rule.context]
        if rule.keywords:
            pattern = PatternRecognizer(rule, timeouts, trusted=rule.id in trusted)
            keywords += [(word, pattern) for word in rule.keywords]
    for name, members in by_class.items():
        classes.append((name, RunRecognizer(name, members, trusted, timeouts)))
    return Plan(keywords, classes, contexts, engine=engine, on_fault=on_fault)
