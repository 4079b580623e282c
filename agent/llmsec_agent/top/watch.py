"""The live view's runs: over a store, over events from standard input, over a capture's."""

from __future__ import annotations

import os
import time

from llmsec_agent.store_rights import drop_rights
from llmsec_agent.top.board import Board
from llmsec_agent.top.screen import Top
from llmsec_agent.top.sources import REACH_NS, Follower, Lines, Source
from llmsec_agent.top.terminal import events_from_input, give_up_rights


def watch_store(store: str) -> None:
    """Until the user leaves. Raises StorageError, ConfigError where the store cannot be read."""
    drop_rights(store)  # before anything starts a thread, which would keep them
    now_ns = time.time_ns()
    source = Follower(store, store if "://" not in store else store.rsplit("@", maxsplit=1)[-1], now_ns)
    source.check()
    _run(source, Board(now_ns, reach_ns=REACH_NS))


def watch_input() -> None:
    source = Lines(events_from_input(), "standard input")
    give_up_rights()
    _run(source, Board())


def draw_capture(events: int) -> None:
    """Events of a capture of our own, until it ends."""
    source = Lines(events, "capture")
    give_up_rights()
    _run(source, Board(time.time_ns()), leaves_at_end=True)


def _run(source: Source, board: Board, *, leaves_at_end: bool = False) -> None:
    for name in ("COLUMNS", "LINES"):  # a shell's word of its size then; it would be believed for ever, rather than the terminal's own
        os.environ.pop(name, None)
    try:
        Top(source, board, leaves_at_end=leaves_at_end).run()
    finally:
        if not source.close():
            # A question of a large store is under way: nobody waits for it, and its thread must not outlive the interpreter.
            os._exit(0)
