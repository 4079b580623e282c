"""Recognizers that look at a whole run of characters once: numbers, e-mail addresses, IBANs, colons of addresses, names.

A class trigger says only that something of the kind is here; the run around it is looked at when it has ended.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final

from llmsec_analyzer.engine.escapes import ESCAPES, ESCAPES_BUT_PERCENT, blanked
from llmsec_analyzer.engine.recognizer_api import Match, View
from llmsec_analyzer.engine.triggers import RUN_STEP
from llmsec_analyzer.recognizers.identifiers import validator
from llmsec_analyzer.recognizers.patterns import compile_pattern
from llmsec_analyzer.recognizers.validators import Validator, entropy
from llmsec_analyzer.rules.schema import Rule
from llmsec_tap.model import Severity

# A match may take this many characters on either side of the run of digits (letters of identifiers, quotes).
MARGIN: Final = 14
CONTEXT_BEFORE: Final = 80
MAX_RUN: Final = 96

_NO_DIGITS = bytes(byte for byte in range(256) if not 48 <= byte <= 57)
_BEFORE_DIGITS: Final = 13
# Besides the usual: the no-break space and the dashes that word processors put between groups.
_NUMBER_CHARS = frozenset("0123456789+().-/ x#_\u00a0\u2011\u2013")
_EMAIL_CHARS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._%+-@!#$&'*=^`{|}~")
# Letters that names of hosts may hold besides ASCII: Latin, Greek, Cyrillic, kana, Han, Hangul.
_LETTERS = frozenset(
    chr(code) for first, last in ((0xC0, 0x530), (0x3040, 0x3100), (0x4E00, 0xA000), (0xAC00, 0xD7A4)) for code in range(first, last)
)
_HEX_CHARS = frozenset("0123456789abcdefABCDEF:.%")
_NAME_CHARS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_@/:")
_IBAN_CHARS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-")
_TOKEN_CHARS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+/=_-.")
_TAG_CHARS = frozenset(map(chr, range(0xE0000, 0xE0080)))
RUNS: Final[dict[str, tuple[frozenset[str], int, int, int]]] = {
    # class: the characters of a run, its longest length, what is looked at before and after it
    "digits": (_NUMBER_CHARS, MAX_RUN, MARGIN, MARGIN),
    "at": (_EMAIL_CHARS | _LETTERS, 320, 40, 1),
    "hex_colon": (_HEX_CHARS, 64, 1, 16),
    "dotted_name": (_NAME_CHARS, 256, 8, 8),
    "iban": (_IBAN_CHARS, 48, 44, 44),
    "long_token": (_TOKEN_CHARS, 512, 40, 40),
    "tags": (_TAG_CHARS, 8192, 0, 0),
}


class RunRecognizer:
    """All rules started by one class. Each rule's pattern is looked for in the run and its margins."""

    ordered = True
    near = 0

    def __init__(self, trigger: str, rules: Sequence[Rule], trusted: frozenset[str], timeouts: Counter[str]) -> None:
        self.trigger = trigger
        self._chars, self._longest, self._before, self._after = RUNS[trigger]
        self.reach = self._longest + self._before + 1
        self._escapes = ESCAPES if trigger in ("digits", "iban") else ESCAPES_BUT_PERCENT
        self._rules = [_RunRule(rule, timeouts, trusted=rule.id in trusted) for rule in rules]
        always = [rule for rule in self._rules if not (rule.rule.context and rule.rule.context_needed)]
        most = max((rule.rule.digits for rule in always), default=0)
        # Most runs of digits are years, amounts and versions: too short for nearly every rule, which one count shows.
        # Reviewed rules for digits want a word's beginning, in the run or at most twelve characters (of an Italian tax code) before it: in
        # the middle of a long hexadecimal or base 64 text none of them can match.
        self._anywhere = [rule for rule in always if trigger != "digits" or rule.rule.id not in trusted]
        self._always = [[rule for rule in always if rule.rule.digits <= digits] for digits in range(most + 1)]
        self._by_group = {rule.rule.id: rule for rule in self._rules if rule.rule.context}

    def decide(self, view: View, start: int, end: int) -> list[Match] | int:
        done = view.done_until.get(self, 0)
        if end <= done:
            return []
        text, base, chars = view.text, view.base, self._chars
        # `start` may lie anywhere in a class hit, so the run is found from the hit's last character.
        at = end - 1 - base
        first = at
        floor = max(0, done - base, at - self._longest)
        while first > floor and text[first - 1] in chars:
            first -= 1
        last, size = at, len(text)
        limit = at + self._longest  # from the hit on: a long run before it takes nothing away from what it stands in
        while last < size and last < limit and text[last] in chars:
            last += 1
        ended = last < size or last == limit
        if not view.closed:
            if not ended:
                return view.end + 1
            newline = text.find("\n", last, last + self._after)
            if size < last + self._after and newline < 0:
                return base + last + self._after
        # Of a run that is longer, the next hit that was kept may be before the end of what was looked at.
        view.done_until[self] = base + (last if last < limit else max(at + 1, last - RUN_STEP))
        is_cut = first > 0 and text[first - 1] in chars, last < size and text[last] in chars
        return self._judge_run(view, base + first, base + last, is_cut)

    def _judge_run(self, view: View, first: int, last: int, is_cut: tuple[bool, bool]) -> list[Match]:
        """`is_cut`: whether the run goes on before it, and behind it."""
        left = max(view.base, first - self._before)
        window = view.slice(left, last + self._after)
        cut = window.find("\n", last - left)
        if cut >= 0:
            window, is_cut = window[:cut], (is_cut[0], False)
        window = blanked(window, self._escapes)
        groups = view.groups(max(0, first - CONTEXT_BEFORE), first, min(left + len(window), last + MARGIN)) if self._by_group else {}
        rules = self._always[0]
        before = window[max(0, first - left - _BEFORE_DIGITS) : first - left]
        if len(before) == _BEFORE_DIGITS and before.isascii() and before.isalnum() and window[first - left : last - left].isalnum():
            rules = self._anywhere
        elif len(self._always) > 1:
            digits = len(window.encode("utf-8", "surrogatepass").translate(None, _NO_DIGITS))
            rules = self._always[min(digits, len(self._always) - 1)]
        if groups:
            rules = rules + [self._by_group[name] for name in groups if name in self._by_group and self._by_group[name] not in rules]
        found: list[Match] = []
        for rule in rules:
            if rule.rule.roles and view.role not in rule.rule.roles:
                continue
            for start, end, confidence, note, severity in rule.find(window, first - left, last - left, groups.get(rule.rule.id)):
                # What touches an edge at which the run goes on may be a part of something; a look from elsewhere sees it whole.
                if (start == 0 and is_cut[0]) or (end == len(window) and is_cut[1]):
                    continue
                found.append(Match(rule=rule.rule, start=left + start, end=left + end, severity=severity, confidence=confidence, note=note))
        return found


class _RunRule:
    """One rule's pattern and checks. Builtin patterns are reviewed and run on Python's `re`; a user's run on re2."""

    def __init__(self, rule: Rule, timeouts: Counter[str], *, trusted: bool) -> None:
        self.rule = rule
        self._timeouts = timeouts
        self._trusted = trusted
        self._find: Callable[[str], Any] = self._first  # compiled when it is first asked, as in patterns.py
        self._value = 0
        self._shrinks = "iban" in rule.validate
        self._validators = [validator(name) for name in rule.validate]

    def _first(self, window: str) -> Any:
        assert self.rule.pattern is not None
        if self._trusted:
            compiled = re.compile(self.rule.pattern)
            self._find, self._value = compiled.finditer, compiled.groupindex.get("v", 0)
        else:
            self._find, self._value = compile_pattern(self.rule.pattern)
        return self._find(window)

    def find(self, window: str, first: int, last: int, distance: int | None) -> list[tuple[int, int, float, str, Severity]]:
        found = []
        rule = self.rule
        try:
            for match in self._find(window):
                if match.end() <= first:
                    continue
                if match.start() >= last:
                    break
                start, end = match.span(self._value)
                if start < 0:
                    continue  # the pattern names it as something else, so that nothing inside is taken for the value
                value = window[start:end]
                if rule.min_entropy is not None and entropy(value) < rule.min_entropy:
                    continue
                severity: Severity = rule.severity
                # A word that names the kind of number adds up to 0.1, the more the nearer it stands.
                bonus = 0.0 if distance is None else 0.1 * max(0.0, 1 - distance / CONTEXT_BEFORE)
                confidence, note = min(0.99, rule.confidence + bonus), ""
                good = True
                for check in self._validators:
                    verdict = check(value)
                    if verdict is False and self._shrinks:
                        value = self._shrunk(value, check)
                        end = start + len(value)
                        verdict = bool(value)
                    if verdict is False:
                        good = False
                        break
                    if isinstance(verdict, str):
                        severity, note = "info", verdict
                    elif verdict is not True:
                        confidence = verdict
                if good:
                    found.append((start, end, confidence, note, severity))
        except TimeoutError:
            self._timeouts[rule.id] += 1
        except UnicodeEncodeError:
            clean = "".join("�" if "\ud800" <= c <= "\udfff" else c for c in window)
            return self.find(clean, first, last, distance)
        return found

    @staticmethod
    def _shrunk(value: str, check: Validator) -> str:
        """The longest run of its words, from the first, that passes: an IBAN in groups may be followed by capitals."""
        while " " in value:
            value = value.rpartition(" ")[0]
            if check(value) is True:
                return value
        return ""
