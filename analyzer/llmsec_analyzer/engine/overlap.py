"""Which of several overlapping matches count.

One rule for all: a match above severity info wins over an info match; then the more confident one wins, then the
longer, then the earlier, then the rule id. What it overlaps goes. Evidence of injection and judgements on whole
texts are no spans of this kind and overlap nothing.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable

from llmsec_analyzer.engine.recognizer_api import Match

SPANS = frozenset(("pii", "secret"))


def resolve(matches: Iterable[Match]) -> list[Match]:
    """The matches that count, in the order of the text."""
    kept: list[Match] = []
    spans: list[Match] = []
    for match in matches:
        (spans if match.rule.category in SPANS else kept).append(match)
    spans.sort(key=lambda m: (m.severity == "info", -m.confidence, m.start - m.end, m.start, m.rule.id))
    taken: list[tuple[int, int]] = []  # (end, start), in order; they do not overlap
    for match in spans:
        at = bisect_left(taken, (match.start + 1, -1))  # the first that ends behind the match's beginning
        if at == len(taken) or taken[at][1] >= match.end:
            insort(taken, (match.end, match.start))
            kept.append(match)
    kept.sort(key=lambda m: (m.start, m.end, m.rule.id))
    return kept
