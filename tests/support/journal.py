"""A journal that a test reads."""

from __future__ import annotations

from llmsec_tap.journal import Event, Journal


class Said(Journal):
    """`events` in their order; `texts` as people would read them."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        super().__init__(self.events.append)

    @property
    def texts(self) -> list[str]:
        return [event.text for event in self.events]
