"""A connection of which all bytes are told, both ways: read by the stages that read a tap's. Loaded with the first one."""

from __future__ import annotations

from collections.abc import Callable

from llmsec_tap.exchange.assembly import Context, ExchangeAssembly
from llmsec_tap.exchange.sessions import session_of
from llmsec_tap.wire.connection import Connection
from llmsec_tap.wire.flow import Flow
from llmsec_tap.wire.protocols import NOT_READ, Protocols, ProtocolSink, Upgrade
from llmsec_tap.wire.websocket import WebSocket
from llmsec_trace.call import Call


def connection_of(call: Call, flow: Flow, context: Context, on_closed: Callable[[], None]) -> Connection:
    """`flow`, whose first endpoint is this process. `call` learns where the rest of the connection is of no language model."""

    def assembly(flow: Flow, client: str, server: str, ordinal: int) -> ExchangeAssembly:
        return ExchangeAssembly(context, flow, client, server, ordinal)

    def turn(flow: Flow, client: str, server: str, ordinal: int) -> ExchangeAssembly:
        return ExchangeAssembly(context, flow, client, server, ordinal, framing="websocket")

    def websocket(flow: Flow, upgrade: Upgrade) -> ProtocolSink:
        sink = session_of(flow, upgrade, turn)
        if sink is None:
            call.is_wanted = False
            return NOT_READ
        return WebSocket(flow, upgrade, sink, _uncounted)

    return Connection(flow, assembly, _uncounted, _uncounted, on_closed, Protocols(upgraded={"websocket": websocket}))


def _uncounted(name: str) -> None:
    """What is odd is on the records."""
