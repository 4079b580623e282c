"""What a run prints for each exchange, by the name of `--format`."""

from __future__ import annotations

import sys
from collections.abc import Callable

from llmsec_agent.events import to_line
from llmsec_agent.lane import Sink
from llmsec_agent.sinks.standard_output import StandardOutput, Turn, json_row
from llmsec_analyzer.show.listing import exchange_row, listing_header
from llmsec_tap.model import to_json


def printer(output: str, turn: Turn | None = None, *, with_header: bool = True) -> Callable[[Callable[[], None]], Sink] | None:
    """Makes the sink, given what to call when its reader is gone; None for `none`. `turn`: where other processes print, too."""
    if output == "none":
        return None
    if output in ("jsonl", "events"):
        is_events = output == "events"
        row = json_row(to_line if is_events else to_json, on_terminal=sys.stdout.isatty())
        return lambda on_reader_gone: StandardOutput(row, takes_events=is_events, header=None, on_reader_gone=on_reader_gone, turn=turn)
    return lambda on_reader_gone: StandardOutput(
        lambda exchange: exchange_row(exchange).encode("utf-8", "replace"),
        header=listing_header().encode() if with_header else None,
        on_reader_gone=on_reader_gone,
        turn=turn,
    )
