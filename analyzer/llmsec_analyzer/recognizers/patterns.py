"""Rules with a pattern: looked for around a hit of one of their keywords.

Patterns run on google-re2, whose time is linear in the text whatever the pattern. Those that need look-around or
back-references run on `regex` with a time limit, on the candidate's surroundings only; a time-out is counted by rule.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import re2  # type: ignore[import-untyped]
import regex

from llmsec_analyzer.engine import escapes
from llmsec_analyzer.engine.recognizer_api import Match, View
from llmsec_analyzer.recognizers.identifiers import validator
from llmsec_analyzer.recognizers.validators import entropy
from llmsec_analyzer.rules.schema import Rule
from llmsec_tap.errors import ConfigError

# Real candidates take microseconds; a hundred milliseconds is a pattern gone wrong.
TIMEOUT_S = 0.1
_CONTEXT_CHARS = 80


class BadPatternError(ConfigError):
    """A pattern that neither engine takes."""


def compile_linear(pattern: str) -> Any:
    """By google-re2. Raises BadPatternError for what it does not take."""
    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except re2.error:
        raise BadPatternError("not a pattern of RE2") from None


def compile_pattern(pattern: str) -> tuple[Callable[[str], Any], int]:
    """A finder of all matches in a text, and the number of its group `v` (0, the whole match, where it has none)."""
    try:
        fast = compile_linear(pattern)
    except BadPatternError:
        try:
            slow = regex.compile(pattern)
        except regex.error as fault:
            raise BadPatternError(f"not a regular expression: {fault}") from None
        return lambda text: slow.finditer(text, timeout=TIMEOUT_S), slow.groupindex.get("v", 0)
    return fast.finditer, fast.groupindex.get("v", 0)


_BOUNDARY = re.compile(r"\(\?:\^\|\[\^(?P<class>(?:[^\]\\]|\\.)+)\]\)\(\?P<v>(?P<literal>[A-Za-z0-9_-]{2,})(?![*?{])")


def _begins_with_keyword(rule: Rule, *, trusted: bool) -> Callable[[str], Any] | None:
    """Whether a character before a keyword rules a match out: where each match is a boundary and then a keyword of the rule.

    With one keyword that shows in the pattern; of several, those of reviewed rules are taken to be how all matches begin.
    """
    found = _BOUNDARY.match(rule.pattern or "")
    if found is None or not (len(rule.keywords) == 1 or trusted):
        return None
    literal = found["literal"].lower()
    for keyword in rule.keywords:
        if not (literal.startswith(keyword.lower()) or (len(rule.keywords) > 1 and keyword.lower().startswith(literal))):
            return None
    return re.compile(f"[{found['class']}]").match


class PatternRecognizer:
    """One rule's pattern. The value is group `v` where the pattern has one, else the whole match. `timeouts` counts by rule id."""

    ordered = False

    def __init__(self, rule: Rule, timeouts: Counter[str], *, trusted: bool = False) -> None:
        assert rule.pattern is not None
        self.rule = rule
        self._timeouts = timeouts
        self.reach = max(rule.left, escapes.LONGEST) + 1
        self.near = rule.horizon if rule.near_token else 0
        self._trusted = trusted
        # Compiled at the first hit: most of some three hundred patterns never see one, and all together cost a third of a second.
        self._find: Callable[[str], Any] = self._first
        self._value = 0
        self._validators = [validator(name) for name in rule.validate]
        self._allowed: list[Any] | None = None  # compiled at the first match
        self._inner = _begins_with_keyword(rule, trusted=trusted)

    def _first(self, text: str) -> Any:
        rule = self.rule
        assert rule.pattern is not None
        if self._trusted and rule.evidence:
            # Reviewed, bounded and asked for often: three times as fast on Python's own engine, whose Python side is thinner.
            compiled = re.compile(rule.pattern)
            self._find, self._value = compiled.finditer, compiled.groupindex.get("v", 0)
        else:
            self._find, self._value = compile_pattern(rule.pattern)
        return self._find(text)

    def decide(self, view: View, start: int, end: int) -> list[Match] | int:
        rule = self.rule
        if rule.roles and view.role not in rule.roles:
            return []
        escape = 0
        if self._inner is not None and start > view.base and self._inner(view.text[start - 1 - view.base]):
            # Inside a longer word, as most hits in text without spaces are; unless what stands before it is an escape.
            before = escapes.before(view.slice(max(view.base, start - escapes.LONGEST), start))
            if before is None:
                return []
            escape = len(before[0])
        first = max(view.base, start - rule.left - 1, 0)
        last = min(view.end, end + rule.horizon)
        window = view.slice(first, last)
        if escape:
            at = start - first
            window = window[: at - min(escape, at)] + " " * min(escape, at) + window[at:]
        found = self._around(window, start - first, end - first, cut_left=first > 0)
        if found is None:
            left = window[: start - first]
            if (plain := escapes.blanked(left)) is not left:
                found = self._around(plain + window[start - first :], start - first, end - first, cut_left=first > 0)
        whole = view.closed or view.end > end + rule.horizon
        if found is None:
            # Nothing yet: look again when half as much more has come, so that a byte at a time stays cheap.
            return [] if whole else end + max(4, (view.end - end) * 3 // 2)
        match_end = first + found.end()
        if match_end == last and not (view.closed and last == view.end):
            return [] if whole else view.end + 1
        if match_end + rule.settle > view.end and not view.closed:
            return int(match_end + rule.settle)
        span = found.span(self._value)
        if span[0] < 0:
            return []  # the pattern names it as something else
        return self._judge(view, int(first + span[0]), int(first + span[1]))

    def _around(self, window: str, start: int, end: int, *, cut_left: bool) -> Any:
        """The first match that overlaps the hit. One that begins where the window was cut may be part of a longer word."""
        try:
            for found in self._find(window):
                if found.start() >= end:
                    return None
                if found.end() > start and not (cut_left and found.start() == 0):
                    return found
        except TimeoutError:
            self._timeouts[self.rule.id] += 1
        except UnicodeEncodeError:  # a lone surrogate: re2 takes UTF-8 only
            return self._around("".join("�" if "\ud800" <= c <= "\udfff" else c for c in window), start, end, cut_left=cut_left)
        return None

    def _is_allowed(self, value: str) -> bool:
        if self._allowed is None:
            self._allowed = [compile_linear(pattern) for pattern in self.rule.allow]
        clean = value.encode("utf-8", "replace").decode()
        return any(pattern.search(clean) is not None for pattern in self._allowed)

    def _judge(self, view: View, start: int, end: int) -> list[Match]:
        rule = self.rule
        value = view.slice(start, end)
        severity, confidence, note = rule.severity, rule.confidence, ""
        if rule.min_entropy is not None and entropy(value) < rule.min_entropy:
            return []
        if rule.allow and self._is_allowed(value):
            return []
        for check in self._validators:
            verdict = check(value)
            if verdict is False:
                return []
            if isinstance(verdict, str):  # a known example: stays, as information
                severity, note = "info", verdict
            elif verdict is not True:
                confidence = verdict
        if rule.context:
            near = view.slice(start - _CONTEXT_CHARS, start).lower()
            if not any(word in near for word in rule.context):
                return []
        return [Match(rule=rule, start=start, end=end, severity=severity, confidence=confidence, note=note)]
