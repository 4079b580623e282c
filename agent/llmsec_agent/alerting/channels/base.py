"""What every channel is to the thread that serves it."""

from __future__ import annotations

from typing import Protocol

from llmsec_agent.alerting.message import Message


class SendError(Exception):
    """One line without secrets. `is_final`: no later attempt mends it. `retry_after`: seconds that the server asked for."""

    def __init__(self, text: str, *, is_final: bool = False, retry_after: float | None = None) -> None:
        super().__init__(text)
        self.is_final = is_final
        self.retry_after = retry_after


class Channel(Protocol):
    def send(self, message: Message) -> None:
        """Returns when the other side has taken it. Raises SendError."""
