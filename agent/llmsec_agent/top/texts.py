"""Figures and lines of the live view as text, narrow enough for 80 columns."""

from __future__ import annotations

import datetime as dt
from typing import Final

from llmsec_agent.top.board import Board, Line
from llmsec_agent.top.windows import Rates


def short(number: float) -> str:
    """Five characters at most: `<0.1`, `0.2`, `12`, `3.4k`, `12M`."""
    if number <= 0:
        return "0"
    if number < 0.05:
        return "<0.1"
    for unit in ("", "k", "M", "G", "T"):
        if number < 999.5:
            return f"{number:.1f}{unit}" if number < 9.95 and not (unit == "" and number == int(number)) else f"{number:.0f}{unit}"
        number /= 1000
    return "much"


def took(ms: float | None) -> str:
    if ms is None:
        return ""
    return f"{ms:.0f}ms" if ms < 9999.5 else f"{ms / 1000:.0f}s"


def figures(rates: Rates) -> tuple[str, ...]:
    """As COLUMNS has them."""
    errors = "" if rates.error_share is None else f"{rates.error_share:.0%}"
    return (
        short(rates.requests), str(rates.open or ""), short(rates.input_tokens), short(rates.output_tokens),
        took(rates.ttft_p50_ms), took(rates.ttft_p95_ms), errors, str(rates.risk or ""),
    )  # fmt: skip


# Title and width of each figure, with the space before it.
COLUMNS: tuple[tuple[str, int], ...] = (
    ("req/s", 6), ("open", 5), ("in/s", 6), ("out/s", 6), ("first", 7), ("p95", 7), ("err", 5), ("risk", 5),
)  # fmt: skip


def moment(at_ns: int) -> str:
    """Local time of day; years that no clock has are none."""
    try:
        return dt.datetime.fromtimestamp(at_ns / 1e9).astimezone().strftime("%H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return "--:--:--"


def what(line: Line) -> str:
    """Of a line of the latest, what stands behind its process and model."""
    if line.kind != "exchange" or line.is_open:
        return line.note
    tokens = f"{line.input_tokens or '?'}/{line.output_tokens or '?'} tok" if line.input_tokens or line.output_tokens else ""
    risk = f"risk {line.risk}" if line.risk else "unscanned" if line.risk is None and tokens else ""
    return " ".join(word for word in (line.status, tokens, took(line.ttft_ms), risk, line.note) if word)


# Of the line of totals, for the names of losses: whoever names them, what stands behind them is seen.
_MAX_LOST: Final = 48
_MAX_LOSS: Final = 32


def totals(board: Board) -> str:
    """What was seen, and what was not: losses come first, they are what a reader must not miss."""
    lost = _losses([(name, count) for name, count in board.lost.items() if count])
    seen = f"{board.exchanges:,} exchanges  {board.errors:,} errors  {board.findings:,} findings  open {board.open:,}"
    return f"{'LOST ' + lost if lost else 'lost 0'}  partial {board.damaged:,}  unscanned {board.unscanned:,} | {seen}"


def _losses(lost: list[tuple[str, int]]) -> str:
    """The first by name as far as there is room, the others as one sum."""
    told = ""
    for number, (name, count) in enumerate(lost):
        short_name = name if len(name) <= _MAX_LOSS else f"{name[: _MAX_LOSS - 1]}…"
        longer = f"{told} {short_name} {count:,}".lstrip()
        if told and len(longer) > _MAX_LOST:
            return f"{told} others {sum(count for _, count in lost[number:]):,}"
        told = longer
    return told
