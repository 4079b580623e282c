"""What an HTTP message is to the stages above, whichever version of HTTP carried it.

A parser of one version reports a `Head`, gets the `BodySink` of that message, and feeds it. Framing, interim answers, streams and
tunnels stay inside the parser: nothing above may ask for the version (it is on the head for the record only).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from llmsec_tap.anomalies import AnomalyName
from llmsec_tap.wire.flow import Flow

Headers = list[tuple[bytes, bytes]]


class Head:
    """The head of a message. Header names are lower case, in wire order, repeats kept; values without outer white space.

    A version that states the authority apart from the headers (`:authority`) gives it as `host`.
    """

    __slots__ = ("headers", "method", "status", "target", "ts_ns", "version")

    def __init__(self, ts_ns: int, version: str, headers: Headers, *, method: str = "", target: str = "", status: int = 0) -> None:
        self.ts_ns = ts_ns  # of the first byte
        self.version = version
        self.headers = headers
        self.method = method
        self.target = target
        self.status = status

    def all(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.headers if key == name]

    def get(self, name: bytes) -> bytes | None:
        for key, value in self.headers:
            if key == name:
                return value
        return None

    def joined(self) -> dict[str, str]:
        """Headers by name; repeats joined with a comma (RFC 9110 5.3)."""
        headers: dict[str, str] = {}
        for name, value in self.headers:
            key, text = name.decode("latin-1"), value.decode("latin-1")
            headers[key] = f"{headers[key]}, {text}" if key in headers else text
        return headers


class BodySink(Protocol):
    """Takes the body of one message, framing removed: `data` and `gap` calls in any order, then exactly one `end`."""

    data: Callable[[int, bytes], None]
    """An attribute, which the sink may replace once it knows what the body is; parsers look it up each time."""

    def gap(self, ts_ns: int, length: int | None) -> None:
        """`length` bytes of the body were lost by the capture; None: unknown how many."""

    def end(self, ts_ns: int, how: str) -> None:
        """`how`: complete; or why the message is not: fin, reset, expired, capture_end, closed, damage."""


def ignore(ts_ns: int, data: bytes) -> None:
    """Takes bytes that nobody reads: the `data` of whatever has ended, or is not decoded."""


class _Ignored:
    def __init__(self) -> None:
        self.data: Callable[[int, bytes], None] = ignore

    def gap(self, ts_ns: int, length: int | None) -> None:
        pass

    def end(self, ts_ns: int, how: str) -> None:
        pass


IGNORED: BodySink = _Ignored()
"""The body of a message that is no part of an exchange (an interim response, an exchange that was cut)."""


class ExchangeSink(Protocol):
    """One request and its response in the making. Which response answers which request is settled before it comes here."""

    @property
    def request(self) -> BodySink: ...

    @property
    def response(self) -> BodySink: ...

    @property
    def is_ended(self) -> bool:
        """Both sides have ended."""

    @property
    def has_room(self) -> bool:
        """There was room in the account when it began; otherwise it is cut as soon as its head is known."""

    def request_head(self, head: Head) -> None: ...

    def response_head(self, head: Head) -> None: ...

    def trailers(self, headers: Headers) -> None:
        """Fields behind the answer's body."""

    def anomaly(self, name: AnomalyName) -> None: ...

    def unread(self, ts_ns: int, name: AnomalyName, data: bytes) -> None:
        """What the client sent here could not be read as a message."""

    def other(self, data: bytes, *, of_client: bool) -> None:
        """A second reading of bytes of the request, or of the answer."""

    def close(self, ts_ns: int, reason: str) -> None:
        """The connection ended; whatever is missing will not come."""


class ExchangeFactory(Protocol):
    def __call__(self, flow: Flow, client: str, server: str, ordinal: int) -> ExchangeSink:
        """`client` and `server` are `ip:port`; `ordinal` tells the exchanges of one connection apart (a count, or a stream's id)."""
