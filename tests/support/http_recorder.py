"""A recording sink for the HTTP parsers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llmsec_tap.wire.http1 import MessageParser, RequestParser, ResponseParser
from llmsec_tap.wire.messages import Head


class Body:
    def __init__(self, messages: list[dict[str, Any]], head: Head) -> None:
        self.message: dict[str, Any] = {
            "start": f"{head.method} {head.target}" if head.method else head.status,
            "headers": [(k.decode("latin-1"), v.decode("latin-1")) for k, v in head.headers],
            "body": b"",
        }
        messages.append(self.message)
        self.data: Callable[[int, bytes], None] = self._data

    def _data(self, ts_ns: int, data: bytes) -> None:
        assert data
        self.message["body"] += data

    def gap(self, ts_ns: int, length: int | None) -> None:
        self.message["body"] += b"<gap>"

    def end(self, ts_ns: int, how: str) -> None:
        assert "end" not in self.message, "one end per message"
        self.message["end"] = how


class Recorder:
    """Collects messages and anomalies of one parser. `answered` is the method of the requests that the responses answer."""

    def __init__(self, kind: str, *, answered: str = "") -> None:
        self.messages: list[dict[str, Any]] = []
        self.anomalies: dict[str, int] = {}
        self.parser: MessageParser
        if kind == "request":
            self.parser = RequestParser(lambda head: Body(self.messages, head), self._anomaly)
        else:
            self.parser = ResponseParser(lambda head: Body(self.messages, head), self._anomaly, answered=lambda: answered)

    def _anomaly(self, name: str) -> None:
        self.anomalies[name] = self.anomalies.get(name, 0) + 1

    def run(self, pieces: list[bytes | None], *, end: str = "fin") -> tuple[list[dict[str, Any]], dict[str, int]]:
        """Pieces are fed in order; None is a gap of unknown length."""
        for ts, piece in enumerate(pieces):
            if piece is None:
                self.parser.gap(ts, None)
            else:
                self.parser.data(ts, piece)
        self.parser.end(len(pieces), end)
        return self.messages, self.anomalies
