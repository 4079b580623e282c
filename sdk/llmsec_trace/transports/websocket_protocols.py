"""websockets: the protocol of a connection, which makes all bytes that are sent, and is given all that are received, handshakes included.

One connection is many requests, so there is no moment at which one could be kept from leaving.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmsec_trace.call import Asked
from llmsec_trace.transports.addresses import host_and_port
from llmsec_trace.transports.hooking import Hook

if TYPE_CHECKING:
    from llmsec_trace.call import Call


class SendingHook(Hook):
    name = "data_to_send"
    call: Call | None = None
    has_begun = False

    def __call__(self) -> Any:
        pieces = self.original()
        if pieces:
            try:
                self._sent(b"".join(pieces))
            except Exception:  # noqa: BLE001 - never the application's problem
                self.recorder.fault()
        return pieces

    def _sent(self, data: bytes) -> None:
        if not self.has_begun:
            self.has_begun = True
            uri = self.owner.uri
            self.call = self.recorder.connect(Asked("GET", uri.resource_name, (), b"", host_and_port(uri.host, uri.port)))
        if self.call is not None:
            self.call.sent(data)

    def __del__(self) -> None:
        """Nobody closed it."""
        if self.call is not None:
            self.call.closed()


class ReceivingHook(Hook):
    name = "receive_data"

    def __call__(self, data: Any) -> None:
        if (call := _call_of(self.owner)) is not None:
            call.data(bytes(data))
        self.original(data)


class EndHook(Hook):
    name = "receive_eof"

    def __call__(self) -> None:
        self.original()
        if (call := _call_of(self.owner)) is not None:
            call.end()


def hooks_of(protocol: Any) -> list[tuple[type[Hook], Any]]:
    return [(hook, protocol) for hook in (SendingHook, ReceivingHook, EndHook)]


def _call_of(protocol: Any) -> Call | None:
    sending = vars(protocol).get(SendingHook.name)
    return sending.call if isinstance(sending, SendingHook) else None
