"""What a place for records is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from llmsec_tap.errors import LLMSecError
from llmsec_tap.model import Exchange

if TYPE_CHECKING:
    from llmsec_trace.recorder import Stats


class DestinationError(LLMSecError):
    """A batch was not taken. `is_lasting`: no later try will do better, so it is given up and counted.

    `lost`: how many of its records that is of; None: all.
    """

    def __init__(self, message: str, hint: str = "", *, is_lasting: bool = False, lost: int | None = None) -> None:
        super().__init__(message, hint)
        self.is_lasting = is_lasting
        self.lost = lost


class Destination(Protocol):
    """Both methods are called on a thread that belongs to this destination alone, and may block.

    A destination that holds what a forked child must not share (a file, a connection) also has `forked()`, which is called in the child
    before anything else, and must neither block nor raise. One that tells more than records has `report(stats)`: see Reporting.
    """

    def send(self, batch: Sequence[Exchange]) -> None:
        """Take all of these. Raises DestinationError where the batch is to be tried again, or cannot be taken; any other exception gives it up."""

    def close(self) -> None:
        """Nothing more comes."""


class Reporting(Protocol):
    """What a destination may have beside the methods of Destination."""

    def report(self, stats: Stats) -> None:
        """Every lane.REPORT_S, at `flush()` and before `close()`: what is to be told beside records. What it raises is told and counted."""
