"""Records to a function of the application's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llmsec_tap.model import Exchange


class Callback:
    """`function` is called with one record after the other, off the application's threads. What it raises costs that record, and is counted."""

    def __init__(self, function: Callable[[Exchange], object]) -> None:
        if not callable(function):
            raise TypeError(f"Callback takes a function of one record, not {type(function).__name__}")
        self._function = function
        self.failed = 0
        self.last_error: Exception | None = None

    def send(self, batch: Sequence[Exchange]) -> None:
        for exchange in batch:
            try:
                self._function(exchange)
            except Exception as fault:  # noqa: BLE001 - the application's own code
                self.failed += 1
                self.last_error = fault

    def close(self) -> None:
        pass
