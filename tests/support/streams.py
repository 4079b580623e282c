"""Feeding a parser in every way that must not matter, and recording what it says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any


def cuts(data: bytes, *, all_pairs_up_to: int = 4000) -> Iterator[list[bytes]]:
    """The same bytes whole, byte by byte, and in every two-way split (every n-th one for long inputs)."""
    yield [data]
    yield [data[i : i + 1] for i in range(len(data))]
    step = max(1, len(data) // all_pairs_up_to)
    for at in range(1, len(data), step):
        yield [data[:at], data[at:]]


def feed_every_way(run: Callable[[list[bytes]], Any], data: bytes) -> Any:
    """`run` takes pieces and returns what came out; all cuts must give the same. Returns that."""
    expected = None
    for number, pieces in enumerate(cuts(data)):
        result = run(pieces)
        if number == 0:
            expected = result
        else:
            assert result == expected, f"cut {[len(p) for p in pieces][:4]}… differs"
    return expected
