"""Scanning a text as it arrives, or whole: the same matches either way.

A `Plan` is made once for a set of rules; a `StreamScanner` is the state of one text. Memory is bounded: of a long stream
only the last few thousand characters are held (more while a candidate is open), and matches that are alike are capped;
those beyond the cap are counted and their places kept (excess.py).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import accumulate

import msgspec

from llmsec_analyzer.engine import escapes
from llmsec_analyzer.engine.excess import Excess
from llmsec_analyzer.engine.recognizer_api import Match, Recognizer, View
from llmsec_analyzer.engine.repeats import shortened
from llmsec_analyzer.engine.triggers import CARRY, CLASSES, RUN_STEP, TriggerIndex

# What is kept of a stream behind its end: recognizers look back a few hundred characters at most.
KEEP_CHARS = 1024
TRIM_AT_CHARS = 4096
# Matches of one rule, severity and about the same confidence: more of them in one text say nothing new.
MAX_ALIKE = 500
_SEEN_AT_LEAST = 8192
_CONTEXT_REACH = 256
# The class of rules with `near`: their keywords are everyday words, so they are evaluated only after such a run appears.
NEAR = "long_token"
MAX_NEAR = KEEP_CHARS // 2  # so that the text is still held then
_HELD_AT_MOST = 64
_NEVER = 1 << 62
# Bytes of UTF-8 that do not begin a character: what is left without them is the number of characters begun.
_CONTINUATION = bytes(range(0x80, 0xC0))


class Plan:
    """All recognizers, and one index of everything that may start them."""

    def __init__(
        self,
        keywords: Sequence[tuple[str, Recognizer]],
        classes: Sequence[tuple[str, Recognizer]],
        contexts: Sequence[tuple[str, str]],
        *,
        engine: str = "auto",
        on_fault: Callable[[Recognizer, Exception], None] | None = None,
    ) -> None:
        """`keywords` and `classes` say which recognizer each starts; `contexts` are (word, group)."""
        words: dict[bytes, int] = {}
        self.started: list[list[Recognizer]] = []  # by trigger number: keywords first, then classes
        self.groups: list[list[str]] = []
        self.sizes: list[int] = []
        for word, recognizer in keywords:
            self.started[self._number(words, word)].append(recognizer)
        for word, group in contexts:
            self.groups[self._number(words, word)].append(group)
        names = sorted({name for name, _ in classes}, key=list(CLASSES).index)
        self.keywords = len(words)
        for name in names:
            self._add_class([recognizer for wanted, recognizer in classes if wanted == name])
        if NEAR not in names and any(recognizer.near for _, recognizer in keywords):
            names.append(NEAR)
            self._add_class()
        self.near = self.keywords + names.index(NEAR) if NEAR in names else -1
        self.index = TriggerIndex(list(words), names, engine)
        self.engine = self.index.engine
        self.faults: Counter[str] = Counter()
        self.on_fault = on_fault

    def _add_class(self, recognizers: Sequence[Recognizer] = ()) -> None:
        self.started.append(list(recognizers))
        self.groups.append([])
        self.sizes.append(1)

    def _number(self, words: dict[bytes, int], word: str) -> int:
        key = word.encode().lower()  # bytes: ASCII case only, as both engines match
        number = words.get(key)
        if number is None:
            number = words[key] = len(words)
            self.started.append([])
            self.groups.append([])
            self.sizes.append(len(word))
        return number


class Candidate:
    """A hit that a recognizer has yet to decide on; `due` is the end of text at which it wants to be asked again."""

    __slots__ = ("due", "end", "recognizer", "start")

    def __init__(self, recognizer: Recognizer, start: int, end: int) -> None:
        self.recognizer = recognizer
        self.start = start
        self.end = end
        self.due = 0


class StreamScanner:
    """One text. `feed` and `close` return what became known just then; `matches` is all of it."""

    __slots__ = (
        "_alike",
        "_carry",
        "_due",
        "_ends",
        "_held",
        "_hits",
        "_parts",
        "_pending",
        "_runs",
        "_seen",
        "_seen_limit",
        "deltas",
        "excess",
        "known_at",
        "matches",
        "plan",
        "view",
    )

    def __init__(self, plan: Plan, role: str = "user") -> None:
        self.plan = plan
        self.view = View(role)
        self.matches: list[Match] = []
        self.known_at: list[int] = []  # for each match, after how many deltas it was known
        self.excess: Excess | None = None
        self.deltas = 0
        self._hits = plan.index.hits
        self._carry = b""
        self._pending: list[Candidate] = []
        self._due: int = _NEVER  # the earliest end of text at which a waiting candidate wants to be asked again
        self._held: list[Candidate] = []  # of rules with `near`, until such a run follows
        self._ends: Sequence[int] = ()  # of a batch of increments: where each ends in the text
        self._parts: list[str] = []  # arrived, and not yet part of the view's text
        self._runs: dict[int, tuple[int, int]] = {}  # class: (end of its last hit, of the last one kept)
        self._seen: set[tuple[str, int, int]] = set()
        self._seen_limit = _SEEN_AT_LEAST
        self._alike: Counter[tuple[str, str, float]] = Counter()

    def feed(self, delta: str) -> Sequence[Match]:
        """The next increment."""
        self.deltas += 1
        return self._take(delta)

    def feed_many(self, deltas: Sequence[str]) -> Sequence[Match]:
        """Increments that arrived together: what is found is the same, and so is after how many of them each match could be known."""
        if len(deltas) == 1:
            return self.feed(deltas[0])
        self.deltas += len(deltas)
        self._ends = list(accumulate(map(len, deltas), initial=self.view.end))[1:]
        fresh = self._take("".join(deltas))
        self._ends = ()
        return fresh

    def close(self) -> Sequence[Match]:
        """The text ends here."""
        self.view.closed = True
        self._join()
        return self._decide() if self._pending else ()

    def _take(self, text: str) -> Sequence[Match]:
        # The text is joined only when somebody has to look at it.
        data = text.encode("utf-8", "surrogatepass")
        carry = self._carry
        block = carry + data
        self._carry = block[-CARRY:]
        hits = self._hits(block)
        view = self.view
        before = view.end
        end = view.end = before + len(text)
        self._parts.append(text)
        if hits:
            self._join()
            self._note(hits, block, len(carry), before, len(data) == len(text))
            if self._pending:
                return self._decide()
        elif end >= self._due:
            self._join()
            return self._decide()
        if end - view.base > TRIM_AT_CHARS:
            self._join()
            self._trim()
        return ()

    def _join(self) -> None:
        parts = self._parts
        if parts:
            view = self.view
            view.text = view.text + (parts[0] if len(parts) == 1 else "".join(parts))
            parts.clear()

    def _note(self, hits: list[tuple[int, int]], block: bytes, carried: int, before: int, ascii_only: bool) -> None:
        """Turn hits into open candidates and context words, with their place in characters."""
        plan, view, pending = self.plan, self.view, self._pending
        counted, at = carried, before
        for number, end in hits:
            if end <= carried:
                continue  # was reported with the block before
            at += end - counted if ascii_only else len(block[counted:end].translate(None, _CONTINUATION))
            counted = end
            groups = plan.groups[number]
            if groups and _begins_word(view, at - plan.sizes[number]):
                view.contexts += [(at, group) for group in groups]
            if number >= plan.keywords:
                if self._same_run(number, at):
                    continue
                if number == plan.near and self._held:
                    pending += [held for held in self._held if held.end + held.recognizer.near >= at]
                    self._held.clear()
            for recognizer in plan.started[number]:
                candidate = Candidate(recognizer, at - plan.sizes[number], at)
                if recognizer.near:
                    self._hold(candidate)
                else:
                    pending.append(candidate)

    def _hold(self, candidate: Candidate) -> None:
        held = self._held
        held.append(candidate)
        if len(held) > _HELD_AT_MOST:
            self._held = [other for other in held if other.end + other.recognizer.near >= candidate.end]

    def _same_run(self, number: int, at: int) -> bool:
        """Whether this hit of a class only continues the one before it, in this block or the last; one in RUN_STEP is kept all the same."""
        last, kept = self._runs.get(number, (-9, -99))
        if at - last <= 2 and at - kept < RUN_STEP:
            self._runs[number] = (at, kept)
            return True
        self._runs[number] = (at, at)
        return False

    def _decide(self) -> Sequence[Match]:
        view, end, closed = self.view, self.view.end, self.view.closed
        fresh: list[Match] = []
        waiting: list[Candidate] = []
        blocked: set[int] = set()  # recognizers of runs, of which an earlier candidate waits: they take runs in their order
        for candidate in self._pending:
            recognizer = candidate.recognizer
            if (candidate.due > end and not closed) or id(recognizer) in blocked:
                waiting.append(candidate)
                if recognizer.ordered:
                    blocked.add(id(recognizer))
                continue
            done = view.done_until.get(recognizer, 0)
            try:
                answer = recognizer.decide(view, candidate.start, candidate.end)
            except Exception as fault:  # noqa: BLE001 - one faulty recognizer must not silence the others
                self._fault(recognizer, fault)
                continue
            if isinstance(answer, int):
                candidate.due = max(answer, end + 1)
                waiting.append(candidate)
                if recognizer.ordered:
                    blocked.add(id(recognizer))
            elif answer:
                self._add(answer, fresh, self._moment(candidate, done) if self._ends else self.deltas)
        self._pending = waiting
        self._due = min((candidate.due for candidate in waiting), default=_NEVER)
        if view.end - view.base > TRIM_AT_CHARS:
            self._trim()
        return fresh

    def _moment(self, candidate: Candidate, done: int) -> int:
        """After how many increments what this candidate led to could be known: the first of the batch with which it is decided."""
        view, ends, recognizer = self.view, self._ends, candidate.recognizer

        def is_known(size: int) -> bool:
            probe = View(view.role)
            probe.base, probe.end = view.base, size
            probe.text = view.text[: size - view.base]
            probe.contexts = [context for context in view.contexts if context[0] <= size]
            probe.done_until = {recognizer: done}
            answer = recognizer.decide(probe, candidate.start, candidate.end)
            return not isinstance(answer, int) and bool(answer)

        # With the last increment it is known. It mostly is within one or two of the candidate, so look near it first.
        lowest, highest, step = bisect_left(ends, candidate.end), len(ends) - 1, 1
        while lowest + step < highest:
            if is_known(ends[lowest + step - 1]):
                highest = lowest + step - 1
                break
            lowest, step = lowest + step, 2 * step
        return self.deltas - len(ends) + 1 + bisect_left(ends, True, lo=lowest, hi=highest, key=is_known)

    def _add(self, found: Sequence[Match], fresh: list[Match], known_at: int) -> None:
        for match in found:
            key = (match.rule.id + match.kind, match.start, match.end)
            if key in self._seen:
                continue
            self._seen.add(key)
            alike = (match.rule.id, match.severity, round(match.confidence, 1))
            if self._alike[alike] >= MAX_ALIKE:
                if self.excess is None:
                    self.excess = Excess()
                self.excess.add(match.rule.id, match.rule.category, match.kind, match.start, match.end, redact=match.rule.redacts)
                continue
            self._alike[alike] += 1
            self.matches.append(match)
            self.known_at.append(known_at)
            fresh.append(match)

    def _fault(self, recognizer: Recognizer, fault: Exception) -> None:
        plan = self.plan
        rule = getattr(recognizer, "rule", None)
        plan.faults[rule.id if rule is not None else type(recognizer).__name__] += 1
        if plan.on_fault is not None:
            plan.on_fault(recognizer, fault)

    def _trim(self) -> None:
        view = self.view
        start = view.end - KEEP_CHARS
        for candidate in self._pending:
            start = min(start, candidate.start - candidate.recognizer.reach)
        if start > view.base:
            view.text = view.text[start - view.base :]
            view.base = start
        floor = start - _CONTEXT_REACH
        if view.contexts and view.contexts[0][0] < floor:
            view.contexts = [context for context in view.contexts if context[0] >= floor]
        if len(self._seen) > self._seen_limit:  # what is not held any more is not met again
            self._seen = {key for key in self._seen if key[2] >= view.base}
            self._seen_limit = max(_SEEN_AT_LEAST, 2 * len(self._seen))


def _begins_word(view: View, start: int) -> bool:
    """Whether a word may begin there: `tel` is none in `hotel`, `Card` is one in `creditCard`, as is `tel` behind an escape."""
    text, at = view.text, start - view.base
    if at <= 0:
        return True
    before, first = text[at - 1], text[at]
    if not first.isascii():
        return True
    if not before.isalpha() or (first.isupper() and before.islower()) or not before.isascii():
        return True
    return escapes.before(text[max(0, at - escapes.LONGEST) : at]) is not None


def scan_whole(plan: Plan, text: str, role: str = "user") -> StreamScanner:
    """The whole text at once, in blocks that keep memory flat; of stretches that repeat themselves, the ends (repeats.py)."""
    scanner = StreamScanner(plan, role)
    less = shortened(text)
    if less is not None:
        text = less.text
    for at in range(0, len(text), 65_536):
        scanner.feed(text[at : at + 65_536])
    scanner.close()
    if less is not None:
        scanner.matches = [
            msgspec.structs.replace(match, start=less.place(match.start), end=less.place(match.end - 1) + 1) for match in scanner.matches
        ]
        if scanner.excess is not None:
            scanner.excess.moved(less.place)
    return scanner
