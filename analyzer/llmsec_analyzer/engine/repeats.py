"""Stretches of a text that repeat the same few characters, and the text without their middles.

A megabyte of one letter says as much as two kilobytes of it, and would cost what a megabyte of words costs, or more: most of
the ways to make a scanner slow are such texts, and they cost their sender nothing.
"""

from __future__ import annotations

from bisect import bisect_right

# Shorter texts are scanned as they are. A stretch is looked for at each step, and kept for so many characters at either end:
# more than any recognizer of runs looks at (512), so that what touches an end is seen as it is.
LEAST_CHARS = 8192
_STEP = 2048
_KEPT = 1536
# The longest piece whose repetition counts: shorter than what could be said in it.
_LONGEST_PERIOD = 32
_PROBE = 64


class Shortened:
    """`text`, and the way back: `place` leads from a place in it to the one in the text as sent."""

    __slots__ = ("_at", "_left_out", "text")

    def __init__(self, text: str, cuts: list[tuple[int, int]]) -> None:
        pieces: list[str] = []
        self._at: list[int] = []
        self._left_out: list[int] = []
        done = left_out = 0
        for start, end in cuts:
            pieces.append(text[done:start])
            self._at.append(start - left_out)
            left_out += end - start
            self._left_out.append(left_out)
            done = end
        pieces.append(text[done:])
        self.text = "".join(pieces)

    def place(self, place: int) -> int:
        number = bisect_right(self._at, place)
        return place + self._left_out[number - 1] if number else place


def shortened(text: str) -> Shortened | None:
    """The text without the middles of such stretches; None where it has none."""
    size = len(text)
    if size < LEAST_CHARS:
        return None
    cuts: list[tuple[int, int]] = []
    at = 0
    while at + LEAST_CHARS <= size:
        again = text.find(text[at : at + _PROBE], at + 1, at + _LONGEST_PERIOD + _PROBE)
        if again < 0:
            at += _STEP
            continue
        period = again - at
        end = _end(text, at, period)
        middle = (end - at - 2 * _KEPT) // period * period
        if middle > 0:
            cuts.append((at + _KEPT, at + _KEPT + middle))
        at = max(end, at + _STEP)
    return Shortened(text, cuts) if cuts else None


def _end(text: str, start: int, period: int) -> int:
    """Where the stretch from `start` stops to repeat itself: comparisons of slices, twice as long each time, then halved."""
    size = len(text) - period
    good, step = start, _PROBE
    while good < size and text[good : min(size, good + step)] == text[good + period : min(size, good + step) + period]:
        good = min(size, good + step)
        step *= 2
    while step > 1:
        step //= 2
        if good + step <= size and text[good : good + step] == text[good + period : good + period + step]:
            good += step
    return good + period
