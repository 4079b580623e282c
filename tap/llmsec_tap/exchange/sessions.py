"""Who reads the messages of a WebSocket, by the upgrade that opened it. A connection to a known provider whose protocol nobody here knows is one
exchange as a whole.
"""

from __future__ import annotations

import json

from llmsec_tap import limits
from llmsec_tap.dialects.base import NotJSON, RequestView, parse_json
from llmsec_tap.dialects.gemini_live import LIVE_PATH
from llmsec_tap.dialects.openai_realtime import REALTIME_PATH
from llmsec_tap.exchange.turns import MESSAGE_COST_BYTES, Said, Turns
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
