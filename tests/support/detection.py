"""Detection in the test's own process: what the detection process does, without the process."""

from __future__ import annotations

from typing import Any

from llmsec_analyzer.judge.exchange import AnswerStreams, ExchangeDetector
from llmsec_analyzer.judge.exchange_parts import text_parts, unread
from llmsec_tap.model import Exchange


class Detecting:
    """`listener` for a pipeline, `detect` for its exchanges."""

    def __init__(self, scanner: Any, **options: Any) -> None:
        self.detector = ExchangeDetector(scanner, **options)
        self.streams: dict[str, AnswerStreams] = {}

    def listener(self, assembly: Any) -> _Listener:
        return _Listener(self)

    def detect(self, exchange: Exchange) -> Exchange:
        streams = self.streams.pop(exchange.exchange_id, None)
        if exchange.provider is None:
            return exchange
        return self.detector.examine(exchange.exchange_id, list(text_parts(exchange)), streams, unread=unread(exchange)).applied(exchange)


class _Listener:
    def __init__(self, owner: Detecting) -> None:
        self._owner = owner
        self._streams = owner.detector.streams()

    def delta(self, ts_ns: int, kind: str, choice: int, text: str) -> None:
        if kind != "tool_call":
            self._streams.feed(kind, choice, [text])

    def finished(self, exchange: Exchange) -> None:
        self._owner.streams[exchange.exchange_id] = self._streams
