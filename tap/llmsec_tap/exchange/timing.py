"""Latency and rate of a streamed answer, from capture times alone."""

from __future__ import annotations

from array import array
from typing import NamedTuple

from llmsec_tap.dialects.draft import Draft

_MS = 1_000_000


class Timings(NamedTuple):
    """Milliseconds, and tokens a second; None when the capture does not contain enough information."""

    ttft_ms: float | None = None
    itl_ms_p50: float | None = None
    itl_ms_p95: float | None = None
    output_tokens_per_s: float | None = None


def timings(draft: Draft, started_ns: int | None) -> Timings:
    """The times of a stream; `started_ns` is the request's first byte, None where that was not captured.

    Time to first token runs from the request's first byte to the first content of the answer: text, reasoning, a refusal or a tool call
    (OpenTelemetry's gen_ai.server.time_to_first_token). Events that say only that the answer has begun are none.
    The inter-token gaps are those between increments (text, reasoning, tool calls) as the server sent them: increments that
    share a packet are zero apart.
    """
    ttft = p50 = p95 = tokens_per_s = None
    if draft.first_text_ns is not None and started_ns is not None:
        ttft = (draft.first_text_ns - started_ns) / _MS
    if draft.gaps_ns:
        ordered = sorted(draft.gaps_ns)
        p50, p95 = _percentile(ordered, 50) / _MS, _percentile(ordered, 95) / _MS
    tokens = draft.usage.output_tokens
    if tokens is not None and draft.first_text_ns is not None:
        tokens_per_s = rate(tokens, draft.first_text_ns, draft.last_text_ns)
    return Timings(ttft, p50, p95, tokens_per_s)


def characters_per_token(model: str) -> float:
    """How many characters a token of this model's family has on average, where no tokenizer is at hand."""
    return 3.5 if "claude" in model.lower() else 4.0


def rate(tokens: int, first_ns: int, last_ns: int) -> float | None:
    """Tokens per second after the first one, as OpenTelemetry defines time per output token; None for fewer than two."""
    if tokens < 2 or last_ns <= first_ns:
        return None
    return (tokens - 1) * 1e9 / (last_ns - first_ns)


def _percentile(ordered: list[int] | array[int], percent: int) -> float:
    """Nearest rank: the smallest value with at least `percent` of all at or below it."""
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]
