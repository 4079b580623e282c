"""Which matches are kept where there are very many: the gravest, of every rule some; the rest is counted, and masked all the same.

Noise must hide nothing. A cap that keeps what comes first lets two thousand addresses hide the key behind them; so caps are by
class (rule, severity, about the same confidence), and what is left out of a record is of classes that the record holds many of.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TypeVar

import msgspec

from llmsec_analyzer.engine.overlap import SPANS
from llmsec_analyzer.risk import rank

# What an exchange's record, and the result of one text, hold of findings.
MAX_FINDINGS = 1000
# Names of addresses are information, and redaction leaves them.
_NOT_MASKED = frozenset(("URL", "DOMAIN_NAME"))

T = TypeVar("T")


class Mask(msgspec.Struct, array_like=True):
    """Places in one text to be masked that no finding names: `places` holds start, end and number of the kind, 32 bits each.

    `kinds` and `rules` go together: what the number says was found, and by which rule.
    """

    part: str
    kinds: list[str]
    places: bytes
    rules: list[str] = []

    def spans(self) -> Iterator[tuple[int, int, str]]:
        flat = array("I", self.places)
        for at in range(0, len(flat), 3):
            yield flat[at], flat[at + 1], self.kinds[flat[at + 2]]

    def of(self, rules: Collection[str]) -> Mask:
        """Only the places of these rules."""
        wanted = [rule in rules for rule in self.rules]
        flat, kept = array("I", self.places), array("I")
        for at in range(0, len(flat), 3):
            if wanted[flat[at + 2]]:
                kept.extend(flat[at : at + 3])
        return Mask(self.part, self.kinds, kept.tobytes(), self.rules)


class Excess:
    """Matches of one text that are not kept: `counts` by rule; of what redaction masks, the places, at twelve bytes each."""

    __slots__ = ("_numbers", "_places", "counts")

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._places = array("I")
        self._numbers: dict[tuple[str, str], int] = {}  # of (rule, kind)

    def add(self, rule: str, category: str, kind: str, start: int, end: int, *, redact: bool = False) -> None:
        """`redact`: the rule masks its matches, whatever they are."""
        self.counts[rule] += 1
        if redact or is_masked(category, kind):
            self.hide(rule, kind, start, end)

    def hide(self, rule: str, kind: str, start: int, end: int) -> None:
        """A place that is masked and not counted: what was found there stands under another name."""
        self._places.extend((start, end, self._numbers.setdefault((rule, kind), len(self._numbers))))

    def moved(self, place: Callable[[int], int]) -> None:
        """Every place goes through `place`."""
        flat = self._places
        for at in range(0, len(flat), 3):
            flat[at], flat[at + 1] = place(flat[at]), place(flat[at + 1] - 1) + 1

    def mask(self, part: str) -> Mask:
        return Mask(part, [kind for _, kind in self._numbers], self._places.tobytes(), [rule for rule, _ in self._numbers])

    def spans(self) -> Iterator[tuple[int, int, str]]:
        return self.mask("").spans()


def is_masked(category: str, kind: str) -> bool:
    """Whether redaction takes matches of this kind out."""
    return category in SPANS and kind not in _NOT_MASKED


def severest(items: Sequence[T], limit: int, of: Callable[[T], tuple[str, str, float]]) -> tuple[Sequence[T], Sequence[T]]:
    """The `limit` gravest in their order, and the others. `of`: severity, rule and confidence of an item.

    Of one severity, each rule's surest comes before any rule's second: a thousand of one kind do not hide one of another.
    """
    if len(items) <= limit:
        return items, ()
    facts = [of(item) for item in items]
    turns: Counter[tuple[str, str]] = Counter()
    order: list[tuple[int, int, int]] = []
    for index in sorted(range(len(items)), key=lambda index: -facts[index][2]):
        severity, rule, _ = facts[index]
        order.append((-rank(severity), turns[severity, rule], index))
        turns[severity, rule] += 1
    order.sort()
    kept = {index for _, _, index in order[:limit]}
    return [item for index, item in enumerate(items) if index in kept], [item for index, item in enumerate(items) if index not in kept]
