"""One line per exchange, as `replay` and `capture` print them while they come: fixed columns, so that nothing waits for the rest."""

from __future__ import annotations

import datetime as dt

from llmsec_analyzer.show.terminal import cut, pad, visible
from llmsec_tap.model import Exchange

_COLUMNS = (("time", 12), ("provider", 17), ("model", 28), ("status", 6), ("in", 7), ("out", 7), ("ttft ms", 8), ("risk", 4), ("note", 18))
_NUMBERS = frozenset(("in", "out", "ttft ms", "risk"))
_TEXT_COLUMNS = 60


def listing_header() -> str:
    return "  ".join(pad(name, width, right=name in _NUMBERS) for name, width in _COLUMNS) + "  input"


def exchange_row(exchange: Exchange) -> str:
    """Time (UTC), who serves, model, status, tokens (~ marks an estimate), time to first token, risk, what is odd, and the input's beginning."""
    usage, estimate = exchange.usage, exchange.usage_estimated
    started = exchange.started_ns or 0
    moment = dt.datetime.fromtimestamp(started // 1_000_000_000, dt.UTC)
    if exchange.is_connection and exchange.tls is not None:
        who, what = exchange.provider or "-", f"{exchange.tls.transport} {exchange.tls.server_name or exchange.server}"
    elif exchange.provider is None:
        who, what = "-", f"{exchange.method or ''} {exchange.path or ''}"
    else:
        who, what = exchange.provider, exchange.response_model or exchange.request_model or exchange.operation or ""
    note = exchange.error_type or (exchange.completeness if exchange.completeness != "complete" else "")
    cells = (
        f"{moment:%H:%M:%S}.{started % 1_000_000_000 // 1_000_000:03d}",
        who,
        what,
        str(exchange.status or "-"),
        _count(usage.input_tokens, estimate.input_tokens if estimate else None),
        _count(usage.output_tokens, estimate.output_tokens if estimate else None),
        f"{exchange.ttft_ms:.1f}" if exchange.ttft_ms is not None else "",
        f"{exchange.risk_score}" if exchange.risk_score else "",
        note,
    )
    line = "  ".join(
        pad(cut(visible(cell), width), width, right=name in _NUMBERS) for cell, (name, width) in zip(cells, _COLUMNS, strict=True)
    )
    return f"{line}  {cut(visible(exchange.input_text or ''), _TEXT_COLUMNS)}".rstrip()


def _count(stated: int | None, estimated: int | None) -> str:
    if stated is not None:
        return f"{stated}"
    return f"~{estimated}" if estimated is not None else ""
