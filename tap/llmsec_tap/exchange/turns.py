"""From the messages of a WebSocket to exchanges: one for each answer of the model, under the head of the upgrade that opened the connection.

What the client said since the last answer is the request; it is made into one JSON body, so that everything behind reads it as any other.
What counts as an answer is each API's own (`MessageRules`; turns_openai.py, turns_gemini.py); audio is counted there and goes no further.
"""

from __future__ import annotations

import json
from collections import deque
from typing import Final, Protocol

import msgspec

from llmsec_tap import limits
from llmsec_tap.account import Entry
from llmsec_tap.anomalies import AnomalyName
from llmsec_tap.dialects.base import JSON
from llmsec_tap.wire.flow import Flow
from llmsec_tap.wire.messages import ExchangeFactory, ExchangeSink, Head
from llmsec_tap.wire.protocols import Upgrade

# Answers of one connection that are under way at once; beyond, the oldest is handed on as far as it came.
_MAX_OPEN: Final = 64
# Answers that have ended are remembered: a late event of theirs begins nothing.
_REMEMBERED: Final = 64
MESSAGE_COST_BYTES: Final = 512  # of a message that waits, beside its bytes
_UNSEEN: Final = Head(0, "", [(b"upgrade", b"websocket")])  # the head of an upgrade that was not captured


class Turns:
    """A `MessageSink`. `rules` cut the messages, by `begin`, `tell` and `end`."""

    def __init__(self, flow: Flow, upgrade: Upgrade, factory: ExchangeFactory, rules: MessageRules) -> None:
        self._flow = flow
        self._upgrade = upgrade
        self._factory = factory
        self._rules = rules
        self._client, self._server = (flow.first, flow.second) if upgrade.client_is_first else (flow.second, flow.first)
        self._open: dict[str, ExchangeSink] = {}  # answers under way, and requests that wait for one
        self._ended: deque[str] = deque(maxlen=_REMEMBERED)
        self._waiting = Entry(flow.reserve)  # what the rules hold
        self._ordinal = 0
        self._last_ns = upgrade.response.ts_ns
        self._lost_of_client = False
        self._lost_of_server = False

    def message(self, ts_ns: int, data: bytes, *, of_client: bool) -> None:
        self._last_ns = ts_ns
        if of_client:
            self._rules.client(self, ts_ns, data)
        else:
            self._rules.server(self, ts_ns, data)
        if not self._waiting.set(self._rules.held):
            self._anomaly("memory_limit")
            self._rules.drop()
            self._waiting.set(0)
            self._lost_of_client = True

    # --- called by the rules --------------------------------------------------------------------------------------------

    def begin(self, ts_ns: int, key: str, asked_ns: int, body: bytes) -> None:
        """An answer begins, to a request that was whole at `asked_ns`."""
        self.ask(key, asked_ns, body)
        exchange = self._open.get(key)
        if exchange is not None:
            exchange.response_head(_head(ts_ns, self._upgrade.response))
            if self._lost_of_server:
                exchange.response.gap(ts_ns, None)
                self._lost_of_server = False

    def ask(self, key: str, asked_ns: int, body: bytes) -> None:
        """A request of which no answer has come yet."""
        while len(self._open) >= _MAX_OPEN:
            self._close(next(iter(self._open)), self._last_ns, "closed")
        self._ordinal += 1
        exchange = self._factory(self._flow, self._client, self._server, self._ordinal)
        exchange.request_head(_head(asked_ns, self._upgrade.request or _UNSEEN))
        self._open[key] = exchange
        if not exchange.has_room:
            exchange.anomaly("memory_limit")
            self._close(key, asked_ns, "memory")
            return
        if self._lost_of_client:
            exchange.request.gap(asked_ns, None)
            self._lost_of_client = False
        exchange.request.data(asked_ns, body)
        exchange.request.end(asked_ns, "complete")

    def tell(self, ts_ns: int, key: str, data: bytes) -> None:
        exchange = self._open.get(key)
        if exchange is not None:
            exchange.response.data(ts_ns, data)

    def end(self, ts_ns: int, key: str) -> None:
        exchange = self._open.pop(key, None)
        if exchange is not None:
            self._ended.append(key)
            exchange.response.end(ts_ns, "complete")

    @property
    def newest(self) -> str | None:
        return next(reversed(self._open), None)

    def is_open(self, key: str) -> bool:
        return key in self._open

    def has_ended(self, key: str) -> bool:
        return key in self._ended

    # --- the connection -----------------------------------------------------------------------------------------------

    def lost(self, ts_ns: int, *, of_client: bool) -> None:
        if of_client:
            self._lost_of_client = True
            return
        self._lost_of_server = not self._open
        for exchange in self._open.values():
            exchange.response.gap(ts_ns, None)

    def closing(self, ts_ns: int, code: int | None, *, of_client: bool) -> None:
        self._last_ns = ts_ns

    def copy_differs(self, data: bytes, *, of_client: bool) -> None:
        newest = self.newest
        if newest is not None:
            self._open[newest].other(data, of_client=of_client)

    def anomaly(self, name: AnomalyName) -> None:
        for exchange in self._open.values():
            exchange.anomaly(name)

    def _anomaly(self, name: AnomalyName) -> None:
        newest = self.newest
        if newest is not None:
            self._open[newest].anomaly(name)

    def shed(self) -> None:
        self.anomaly("memory_limit")
        for key in list(self._open):
            self._close(key, self._last_ns, "memory")
        self._rules.drop()
        self._waiting.set(0)
        self._lost_of_client = True

    def close(self, ts_ns: int, reason: str) -> None:
        self._rules.close(self, ts_ns)
        for key in list(self._open):
            self._close(key, ts_ns, reason)
        self._waiting.set(0)

    def _close(self, key: str, ts_ns: int, reason: str) -> None:
        exchange = self._open.pop(key)
        if not exchange.is_ended:
            exchange.close(ts_ns, reason)


class MessageRules(Protocol):
    """Where requests and answers begin and end in the messages of one API."""

    @property
    def held(self) -> int:
        """Bytes of messages that wait for an answer."""

    def client(self, turns: Turns, ts_ns: int, data: bytes) -> None: ...

    def server(self, turns: Turns, ts_ns: int, data: bytes) -> None: ...

    def drop(self) -> None:
        """There is no room for what waits."""

    def close(self, turns: Turns, ts_ns: int) -> None:
        """The connection ended: what still waits was not answered."""


class Said:
    """Messages of the client, as members of one JSON list. A message that is no JSON is kept as a text."""

    __slots__ = ("asked_ns", "events", "size", "tells")

    def __init__(self) -> None:
        self.events: list[bytes] = []
        self.size = 0
        self.asked_ns = 0
        self.tells = False  # there is something that a model would answer, or nobody knows

    def add(self, ts_ns: int, data: bytes, *, tells: bool) -> None:
        if self.size + len(data) > limits.MAX_BODY_BYTES:
            return
        self.events.append(data)
        self.size += len(data) + MESSAGE_COST_BYTES
        self.asked_ns = ts_ns
        self.tells = self.tells or tells

    def take(self) -> bytes:
        """All of it, and nothing is left."""
        taken = b"[" + b",".join(self.events) + b"]"
        self.events = []
        self.size = self.asked_ns = 0
        self.tells = False
        return taken


def as_text(data: bytes) -> bytes:
    """A message that is no JSON, as a JSON text."""
    return json.dumps(data.decode("utf-8", "replace")).encode()


def _head(ts_ns: int, head: Head) -> Head:
    """The upgrade's head for one message: what it says of a body is not this one's."""
    headers = [(name, value) for name, value in head.headers if not name.startswith((b"content-", b"transfer-"))]
    return Head(ts_ns, head.version, headers, method=head.method, target=head.target, status=head.status)


def encoded(value: JSON) -> bytes | None:
    try:
        return msgspec.json.encode(value)
    except (UnicodeEncodeError, ValueError, RecursionError):
        return None
