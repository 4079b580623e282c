"""What a protocol is to a connection: a sink for both directions, made by a function of the flow.

`Connection` finds out what is spoken (the first bytes, or an answer that opened a tunnel) and hands over all that follows, with what it
had peeked at. Which protocols are decoded is the pipeline's to say: a `Protocols` names them, and what it does not name is counted by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple, Protocol

from llmsec_tap.anomalies import AnomalyName
from llmsec_tap.wire.flow import Flow, FlowSink, StreamSink
from llmsec_tap.wire.messages import ExchangeSink, Head


class ProtocolSink(FlowSink, Protocol):
    """The decoder of one connection's protocol. `first` and `second` are the endpoints of its `Flow`; content decides who is client.

    `anomaly` counts an oddity of the connection and shows it on what is under way. After `close` nothing is called any more: cycles are
    cut there.
    """

    def shed(self) -> None:
        """Memory is short, and this connection holds more than its share: hand on what is under way as far as it came."""


class Upgrade(NamedTuple):
    """The exchange whose answer gave the connection, or a stream of HTTP/2, to another protocol (101, or 2xx to CONNECT).

    It has its own record, but for `h2c`: there the answer comes in the new protocol, and `exchange` is to be given it.
    """

    request: Head | None  # None: it was not captured
    response: Head
    client_is_first: bool  # of the flow
    exchange: ExchangeSink | None = None

    @property
    def name(self) -> str:
        """The protocol, in lower case as the Upgrade header (RFC 9110 7.8) or `:protocol` (RFC 8441) has it; `connect` for a proxy's
        tunnel, "" where none is named.
        """
        if self.response.status != 101:
            named = self.request.get(b":protocol") if self.request is not None else None
            return named.decode("latin-1").lower() if named else "connect"
        named = self.response.get(b"upgrade") or (self.request.get(b"upgrade") if self.request is not None else None) or b""
        return named.decode("latin-1").partition(",")[0].strip().lower()


class Protocols(NamedTuple):
    """Makers of decoders: by what the sniffer calls the first bytes (`sniff.classify_start`), and by `Upgrade.name`."""

    sniffed: Mapping[str, Callable[[Flow], ProtocolSink]] = {}
    upgraded: Mapping[str, Callable[[Flow, Upgrade], ProtocolSink]] = {}


HTTP1_ONLY = Protocols()


class _NotRead:
    """A connection that another process decodes, or that carries what nobody here reads."""

    def __init__(self) -> None:
        self.data: Callable[[int, bytes], None] = lambda _ts_ns, _data: None

    @property
    def first(self) -> StreamSink:
        return self

    @property
    def second(self) -> StreamSink:
        return self

    def gap(self, ts_ns: int, length: int | None) -> None: ...

    def other(self, ts_ns: int, data: bytes) -> None: ...

    def again(self) -> None: ...

    def end(self, ts_ns: int, reason: str) -> None: ...

    def close(self, ts_ns: int, reason: str) -> None: ...

    def anomaly(self, name: AnomalyName) -> None: ...

    def shed(self) -> None: ...


NOT_READ: Final = _NotRead()
