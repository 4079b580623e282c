"""Who reads the messages of a WebSocket, by the upgrade that opened it. A connection to a known provider whose protocol nobody here knows is one
exchange as a whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Final

from llmsec_tap import limits
from llmsec_tap.anomalies import AnomalyName
from llmsec_tap.dialects.base import NotJSON, RequestView, dict_of, parse_json
from llmsec_tap.dialects.gemini_live import LIVE_PATH, either
from llmsec_tap.dialects.openai_realtime import REALTIME_PATH
from llmsec_tap.exchange.turns import MESSAGE_COST_BYTES, MessageRules, Said, Turns
from llmsec_tap.exchange.turns_gemini import GeminiRules
from llmsec_tap.exchange.turns_openai import RealtimeRules, ResponsesRules
from llmsec_tap.providers.hosts import provider_of_host
from llmsec_tap.wire.flow import Flow
from llmsec_tap.wire.messages import ExchangeFactory
from llmsec_tap.wire.protocols import Upgrade
from llmsec_tap.wire.websocket import MessageSink


class UnknownRules:
    """One exchange for all: it ends with the connection."""

    def __init__(self) -> None:
        self._said = Said()
        self._told: list[tuple[int, bytes]] = []
        self._told_bytes = 0

    @property
    def held(self) -> int:
        return self._said.size + self._told_bytes

    def client(self, turns: Turns, ts_ns: int, data: bytes) -> None:
        event = _text_of(data)
        if event is not None:
            self._said.add(ts_ns, event, tells=True)

    def server(self, turns: Turns, ts_ns: int, data: bytes) -> None:
        if _text_of(data) is not None and self._told_bytes + len(data) <= limits.MAX_BODY_BYTES:
            self._told.append((ts_ns, data))
            self._told_bytes += len(data) + MESSAGE_COST_BYTES

    def drop(self) -> None:
        self._said.take()
        self._told.clear()
        self._told_bytes = 0

    def close(self, turns: Turns, ts_ns: int) -> None:
        if not self._told:
            turns.ask("all", self._said.asked_ns or ts_ns, self._said.take())
            return
        began = self._told[0][0]
        turns.begin(began, "all", min(began, self._said.asked_ns or began), self._said.take())
        for told_ns, data in self._told:
            turns.tell(told_ns, "all", data)
        turns.end(ts_ns, "all")


def _text_of(data: bytes) -> bytes | None:
    """A message as JSON; None where it is no text."""
    try:
        parse_json(data)
    except NotJSON:
        try:
            return json.dumps(data.decode()).encode()
        except UnicodeDecodeError:
            return None
    return data


def session_of(flow: Flow, upgrade: Upgrade, factory: ExchangeFactory) -> MessageSink | None:
    """Who reads the messages of this connection; None where nothing says that a model is at its other end."""
    head = upgrade.request
    if head is None:
        return None
    view = RequestView(head.method, head.target, head.joined())
    path = view.path
    if REALTIME_PATH.search(path):
        return Turns(flow, upgrade, factory, RealtimeRules())
    if path.rstrip("/").endswith("/responses"):
        return Turns(flow, upgrade, factory, ResponsesRules())
    if LIVE_PATH.search(path):
        return Turns(flow, upgrade, factory, GeminiRules())
    if provider_of_host(view.host, path) is not None:
        return Turns(flow, upgrade, factory, UnknownRules())
    return None


_TRIED: Final = 32  # messages after which nobody is expected to name its API
_OF_GEMINI: Final = ("serverContent", "clientContent", "realtimeInput", "toolResponse", "toolCall", "setup")
_OF_REALTIME: Final = ("response.", "conversation.", "input_audio_buffer.", "session.")


class JoinedSession:
    """A `MessageSink` of a connection whose upgrade was not captured: its messages tell the API."""

    def __init__(self, flow: Flow, upgrade: Upgrade, factory: ExchangeFactory, on_unknown: Callable[[], None]) -> None:
        self._make: Callable[[MessageRules], Turns] = lambda rules: Turns(flow, upgrade, factory, rules)
        self._on_unknown = on_unknown
        self._turns: Turns | None = None
        self._tried = 0

    def message(self, ts_ns: int, data: bytes, *, of_client: bool) -> None:
        if self._turns is None:
            if self._tried >= _TRIED:
                return
            self._tried += 1
            rules = _rules_of(data)
            if rules is None:
                if self._tried == _TRIED:
                    self._on_unknown()
                return
            self._turns = self._make(rules)
            self._turns.lost(ts_ns, of_client=True)
            self._turns.lost(ts_ns, of_client=False)
        self._turns.message(ts_ns, data, of_client=of_client)

    def lost(self, ts_ns: int, *, of_client: bool) -> None:
        if self._turns is not None:
            self._turns.lost(ts_ns, of_client=of_client)

    def closing(self, ts_ns: int, code: int | None, *, of_client: bool) -> None:
        """What ends here is said when the connection does."""

    def copy_differs(self, data: bytes, *, of_client: bool) -> None:
        if self._turns is not None:
            self._turns.copy_differs(data, of_client=of_client)

    def anomaly(self, name: AnomalyName) -> None:
        if self._turns is not None:
            self._turns.anomaly(name)

    def shed(self) -> None:
        if self._turns is not None:
            self._turns.shed()

    def close(self, ts_ns: int, reason: str) -> None:
        if self._turns is not None:
            self._turns.close(ts_ns, reason)
        elif self._tried < _TRIED:
            self._on_unknown()


def _rules_of(data: bytes) -> MessageRules | None:
    """Whose a message is, by what only that API's messages have."""
    try:
        value = dict_of(parse_json(data))
    except NotJSON:
        return None
    if any(either(value, name) is not None for name in _OF_GEMINI):
        return GeminiRules()
    kind = value.get("type")
    if not isinstance(kind, str) or not kind.startswith(_OF_REALTIME):
        return None
    return ResponsesRules() if "sequence_number" in value or (kind == "response.create" and "input" in value) else RealtimeRules()
