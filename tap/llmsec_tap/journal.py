"""What a run has to say to its operator: events with a level, a time, a name and fields. Who made the journal decides how they look.

Libraries are given a journal and never write to standard error themselves. Fields hold names and numbers, never captured content.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from enum import IntEnum
from typing import Any, NamedTuple


class Level(IntEnum):
    DEBUG = 10
    INFO = 20
    WARNING = 30
    ERROR = 40


class Event(NamedTuple):
    """`name` is stable and for machines, `text` is the same for people; `facts` are JSON values."""

    level: Level
    ts_ns: int  # epoch, of the wall clock
    name: str
    text: str
    facts: dict[str, Any]


class Journal:
    """Any thread may write; `write` gets one event at a time from each of them."""

    def __init__(self, write: Callable[[Event], None]) -> None:
        self._write = write

    def write(self, event: Event) -> None:
        """Pass on what another journal was given."""
        self._write(event)

    def debug(self, name: str, text: str, **facts: Any) -> None:
        self._write(Event(Level.DEBUG, time.time_ns(), name, text, facts))

    def info(self, name: str, text: str, **facts: Any) -> None:
        self._write(Event(Level.INFO, time.time_ns(), name, text, facts))

    def warning(self, name: str, text: str, **facts: Any) -> None:
        self._write(Event(Level.WARNING, time.time_ns(), name, text, facts))

    def error(self, name: str, text: str, **facts: Any) -> None:
        self._write(Event(Level.ERROR, time.time_ns(), name, text, facts))


def _warn(event: Event) -> None:
    if event.level >= Level.WARNING:
        warnings.warn(event.text, stacklevel=4)


# For those who use a part as a library and give it no journal.
WARNINGS = Journal(_warn)
SILENT = Journal(lambda _event: None)
