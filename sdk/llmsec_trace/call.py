"""One request and its answer, or one connection, on the caller's side: what the transports say of it goes into the recorder's queue as it is.

Nothing is parsed, decoded or copied here, and nothing raises: a fault of ours costs a record, never the application's call.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from llmsec_tap.exchange.assembly import ExchangeAssembly
    from llmsec_tap.wire.connection import Connection
    from llmsec_tap.wire.http1 import ResponseParser
    from llmsec_trace.policy import Screening
    from llmsec_trace.recorder import Recorder
    from llmsec_trace.trace import TraceContext

RawHeaders = Sequence[tuple[bytes | str, bytes | str]]


class Kind(IntEnum):
    REQUEST = 0
    REQUEST_DATA = 1
    REQUEST_END = 2
    RESPONSE = 3
    DATA = 4
    END = 5
    GAP = 6  # so many bytes found no room in the queue
    FLUSH = 7
    CONNECTED = 8  # of a connection; what is received on it is DATA, with its GAP
    SENT = 9
    SENT_GAP = 10


class Asked(NamedTuple):
    """`body`: all of it; None: it comes in pieces, as REQUEST_DATA and REQUEST_END. `server` is `host:port` of the address."""

    method: str
    target: str
    headers: RawHeaders
    body: bytes | None
    server: str


class Answered(NamedTuple):
    """`is_framed`: the body comes as HTTP/1 frames it (chunk sizes and all). `client` and `server` are `ip:port` where they are known.

    `status` 0: the head is not known yet, and comes before the body, as it was sent.
    """

    status: int
    headers: RawHeaders
    version: str
    client: str | None = None
    server: str | None = None
    is_framed: bool = False


WIRE: Final = Answered(0, (), "1.1", is_framed=True)  # nothing of it was taken apart


class Ended(NamedTuple):
    """`how`: complete, or why the answer is not (as BodySink.end has it). `error`: the exception that the application got."""

    how: str
    error: str | None = None


COMPLETE: Final = Ended("complete")
CLOSED: Final = Ended("closed")


class Call:
    """Made by `Recorder.begin` or, for all of a connection's requests, by `Recorder.connect`. Any thread; the fields below the line are the recorder's alone."""

    __slots__ = ("__weakref__", "answered_from", "asked", "assembly", "connection", "error", "generation", "is_connection", "is_over", "is_wanted", "lost_bytes", "lost_sent", "parser", "recorder", "screening", "trace")  # fmt: skip

    def __init__(self, recorder: Recorder, asked: Asked, trace: TraceContext, generation: int, *, is_connection: bool = False) -> None:
        self.recorder = recorder
        self.asked: Asked | None = asked
        self.trace = trace
        self.generation = generation  # of the process: a fork makes another
        self.is_connection = is_connection
        self.is_over = False
        self.is_wanted = True  # the recorder sets it to False where more of the answer would be thrown away
        self.lost_bytes = 0  # that found no room in the queue since the last that did
        self.lost_sent = 0  # likewise, of what a connection sent
        self.screening: Screening | None = None  # what the application's own rules and policy say
        # ----
        self.assembly: ExchangeAssembly | None = None
        self.parser: ResponseParser | None = None
        self.connection: Connection | None = None
        self.answered_from: Answered | None = None
        self.error: str | None = None

    def request_data(self, data: bytes) -> None:
        if data:
            self.recorder.put(self, Kind.REQUEST_DATA, data, len(data))

    def request_end(self) -> None:
        self.recorder.put(self, Kind.REQUEST_END, None, 0)

    def answered(self, answer: Answered) -> None:
        self.recorder.put(self, Kind.RESPONSE, answer, 1024)

    def data(self, data: bytes) -> None:
        if data and self.is_wanted and not self.is_over:
            self.recorder.put(self, Kind.DATA, data, len(data))

    def sent(self, data: bytes) -> None:
        """Bytes of a connection."""
        if data and self.is_wanted and not self.is_over:
            self.recorder.put(self, Kind.SENT, data, len(data))

    def end(self) -> None:
        self._ended(COMPLETE)

    def closed(self) -> None:
        """The application wants no more of the answer."""
        self._ended(CLOSED)

    def failed(self, error: BaseException) -> None:
        kind = type(error)
        name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__.partition('.')[0]}.{kind.__qualname__}"
        self._ended(Ended("closed", name[:128]))

    def _ended(self, ended: Ended) -> None:
        if not self.is_over:
            self.is_over = True
            self.recorder.put(self, Kind.END, ended, 0)


Item = tuple[Call | None, Kind, int, Any]
