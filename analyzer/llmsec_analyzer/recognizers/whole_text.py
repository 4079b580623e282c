"""Patterns that no word or class of characters starts: they run over the whole text, once it is whole.

A regular expression of somebody's configuration may begin with anything and be of any length, so it is not cut to what the one
pass over a text can start. google-re2 is linear; a pattern that needs another engine has a time limit in each window.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from llmsec_analyzer.engine.excess import Excess
from llmsec_analyzer.engine.recognizer_api import Match
from llmsec_analyzer.engine.stream import MAX_ALIKE
from llmsec_analyzer.recognizers.patterns import compile_pattern
from llmsec_analyzer.rules.schema import Rule

# A text is looked at in windows, so that one search is short; a match may be as long as what they overlap by.
_WINDOW: Final = 16_384
_OVERLAP: Final = 2048
_BEFORE: Final = 64  # seen by \b and look-behind
# A pattern that runs out of time in so many windows of one text is disabled for the rest of that text.
_TIMEOUTS_ALLOWED: Final = 10


class WholeTextPatterns:
    """`words`: for each rule, words of which every match holds one (any case), as far as that is known. `timeouts` counts by rule id."""

    def __init__(self, rules: Sequence[tuple[Rule, Sequence[str]]], timeouts: Counter[str]) -> None:
        self._patterns = [_Pattern(rule, words, timeouts) for rule, words in rules]

    def scan(self, text: str, role: str, excess: Excess | None) -> tuple[list[Match], Excess | None]:
        """The matches that are kept, and `excess` with the places of the others."""
        found: list[Match] = []
        if not self._patterns:
            return found, excess
        low = text.lower() if text.isascii() else None
        for pattern in self._patterns:
            rule = pattern.rule
            if (rule.roles and role not in rule.roles) or not pattern.may_match(low):
                continue
            kept = 0
            for start, end in pattern.spans(text):
                if kept < MAX_ALIKE:
                    kept += 1
                    found.append(Match(rule=rule, start=start, end=end, severity=rule.severity, confidence=rule.confidence))
                else:
                    excess = excess or Excess()
                    excess.add(rule.id, rule.category, rule.type, start, end, redact=rule.redacts)
        return found, excess


class _Pattern:
    def __init__(self, rule: Rule, words: Sequence[str], timeouts: Counter[str]) -> None:
        assert rule.pattern is not None
        self._timeouts = timeouts
        self.rule = rule
        self._words = [word.lower() for word in words if word.isascii()] if all(word.isascii() for word in words) else []
        self._find: Callable[[str], Any]
        self._find, self._value = compile_pattern(rule.pattern)

    def may_match(self, low: str | None) -> bool:
        """`low`: the text in lower case; None where letters beyond ASCII may stand for others."""
        return low is None or not self._words or any(word in low for word in self._words)

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Places of all matches, from left to right; none is empty and none is given twice."""
        late: Counter[str] = Counter()
        done = 0
        for at in range(0, len(text), _WINDOW):
            first = max(0, at - _BEFORE)
            for start, end in self._in_window(text[first : at + _WINDOW + _OVERLAP], late):
                if at <= first + start < at + _WINDOW and start < end and first + start >= done:
                    done = first + end
                    yield first + start, first + end
            if late[self.rule.id] >= _TIMEOUTS_ALLOWED:
                return

    def _in_window(self, window: str, late: Counter[str]) -> Iterator[tuple[int, int]]:
        try:
            for match in self._find(window):
                yield match.span(self._value)
        except TimeoutError:
            late[self.rule.id] += 1
            self._timeouts[self.rule.id] += 1
        except UnicodeEncodeError:  # a lone surrogate: re2 takes UTF-8 only
            clean = "".join("\ufffd" if "\ud800" <= char <= "\udfff" else char for char in window)
            yield from self._in_window(clean, late)
