"""What recognizers are given and what they give back.

A recognizer is asked at each hit of its triggers: `decide(view, start, end)` sees the text as far as it has arrived and
answers with matches (possibly none), or with the position it must wait for. What it answers depends on nothing
but the text before that position, so the same text in any pieces gives the same matches. At the end of the text
(`view.closed`) it must answer.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Protocol

import msgspec

from llmsec_analyzer.rules.schema import Rule
from llmsec_tap.model import Severity


class Match(msgspec.Struct, frozen=True, kw_only=True):
    """One thing found, in character offsets of the whole text. `note` says why it counts, without the text itself."""

    rule: Rule
    start: int
    end: int
    severity: Severity
    confidence: float
    note: str = ""
    type: str = ""

    @property
    def kind(self) -> str:
        return self.type or self.rule.type


class View:
    """The text so far: `text` begins at character `base` of the whole and ends at `end`."""

    __slots__ = ("base", "closed", "contexts", "done_until", "end", "role", "text")

    def __init__(self, role: str = "user") -> None:
        self.text = ""
        self.base = 0
        self.end = 0
        self.closed = False
        self.role = role
        self.contexts: list[tuple[int, str]] = []  # (end of a context word, the group it belongs to), in order
        self.done_until: dict[object, int] = {}  # per recognizer of runs: up to where runs were looked at

    def slice(self, start: int, end: int) -> str:
        """Characters start to end of the whole text, as far as they are held."""
        base = self.base
        return self.text[max(0, start - base) : max(0, end - base)]

    def groups(self, start: int, first: int, end: int) -> dict[str, int]:
        """Groups of the context words that end between start and end, each with its distance to `first`."""
        found: dict[str, int] = {}
        contexts = self.contexts
        for index in range(bisect_left(contexts, (start + 1,)), len(contexts)):
            at, group = contexts[index]
            if at > end:
                break
            found[group] = max(0, first - at)
        return found


class Recognizer(Protocol):
    """`reach` is how far before a hit it may look; the scanner keeps that much text. `ordered`: asked hit after hit, never the
    next one while an earlier one waits. `near`: asked only where a long run of token characters ends within so many characters after
    the hit; 0: always.
    """

    reach: int
    near: int
    ordered: bool

    def decide(self, view: View, start: int, end: int) -> list[Match] | int: ...
