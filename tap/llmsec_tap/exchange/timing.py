"""Latency and rate of a streamed answer, from capture times alone."""

from __future__ import annotations

from array import array

from llmsec_tap.dialects.draft import Draft
from llmsec_tap.model import Exchange

_MS = 1_000_000


def timings(exchange: Exchange, draft: Draft) -> None:
    """Set ttft_ms, itl_ms_p50, itl_ms_p95 and output_tokens_per_s of a stream; they stay null where the capture cannot say.

    Time to first token runs from the request's first byte to the first event of the answer, which is what clients time: most
    servers send it with the first token. Some send it at once and the text much later; `first_text_ns` tells the two apart.
    The inter-token gaps are those between increments (text, reasoning, tool calls) as the server sent them: increments that
    share a packet are zero apart.
    """
    if not exchange.streaming:
        return
    if exchange.first_token_ns is not None and exchange.started_ns is not None and exchange.completeness != "midstream":
        exchange.ttft_ms = (exchange.first_token_ns - exchange.started_ns) / _MS
    if draft.gaps_ns:
        ordered = sorted(draft.gaps_ns)
        exchange.itl_ms_p50 = _percentile(ordered, 50) / _MS
        exchange.itl_ms_p95 = _percentile(ordered, 95) / _MS
    tokens = exchange.usage.output_tokens
    if tokens is not None and draft.first_text_ns is not None:
        exchange.output_tokens_per_s = rate(tokens, draft.first_text_ns, draft.last_text_ns)


def rate(tokens: int, first_ns: int, last_ns: int) -> float | None:
    """Tokens per second after the first one, as OpenTelemetry defines time per output token; None for fewer than two."""
    if tokens < 2 or last_ns <= first_ns:
        return None
    return (tokens - 1) * 1e9 / (last_ns - first_ns)


def _percentile(ordered: list[int] | array[int], percent: int) -> float:
    """Nearest rank: the smallest value with at least `percent` of all at or below it."""
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]
