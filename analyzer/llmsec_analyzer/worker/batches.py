"""Increments of streaming answers, collected as they are decoded and sent together, each answer as a stream with a number."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from llmsec_analyzer.worker.protocol import Begin, Forget, Increments, ToWorker
from llmsec_tap.exchange.assembly import ExchangeAssembly
from llmsec_tap.model import Exchange

# Streams that ended and whose exchange did not come yet.
_MAX_ENDED = 65_536


class AnswerListener:
    """Collects the increments of one answer, to be scanned while the rest arrives. `stream` is 0 until some were sent."""

    __slots__ = ("_assembly", "_batches", "_pieces", "is_lost", "stream")

    def __init__(self, batches: Batches, assembly: ExchangeAssembly) -> None:
        self._assembly: ExchangeAssembly | None = assembly
        self._batches = batches
        self._pieces: list[Increments] = []
        self.stream = 0
        self.is_lost = False  # some of it was not sent: the whole answer is scanned when it has ended

    def delta(self, ts_ns: int, kind: str, choice: int, text: str) -> None:
        # Once per streamed token.
        if kind == "tool_call":
            return  # several calls may arrive by turns under one choice; their arguments are scanned at the end
        pieces = self._pieces
        if pieces:
            last = pieces[-1]
            if last.kind == kind and last.choice == choice:
                last.texts.append(text)
                self._batches.held += 1 + (len(text) >> 8)
                return
        pieces.append(Increments(0, kind, choice, time.monotonic_ns(), [text]))
        self._batches.holds(self, text)

    @property
    def exchange_id(self) -> str:
        return self._assembly.exchange_id if self._assembly is not None else ""

    def finished(self, exchange: Exchange) -> None:
        self._batches.finished(self, exchange)
        self._assembly = None

    def take(self) -> list[Increments]:
        pieces, self._pieces = self._pieces, []
        return pieces


class Batches:
    """`send` takes a message for the process; `has_room` says whether increments may be sent now. `held`: increments not sent yet."""

    def __init__(self, send: Callable[[ToWorker], object], has_room: Callable[[], bool]) -> None:
        self._send = send
        self._has_room = has_room
        self.held = 0
        self._dirty: list[AnswerListener] = []
        self._streams = 0
        self._first = 1  # of the process that is there now; earlier streams went to another
        self._ended: OrderedDict[str, int] = OrderedDict()

    def holds(self, listener: AnswerListener, text: str) -> None:
        """The listener has something to send. Called from within a parser: what it holds goes out with the next `flush`."""
        self._dirty.append(listener)
        self.held += 1 + (len(text) >> 8)

    def flush(self) -> None:
        dirty, self._dirty = self._dirty, []
        for listener in dirty:
            self._send_of(listener)
        self.held = 0

    def finished(self, listener: AnswerListener, exchange: Exchange) -> None:
        self._send_of(listener)
        if listener.is_lost or not self.is_known(listener.stream):
            return
        if exchange.provider is None:
            self._send(Forget(listener.stream))
            return
        self._ended[exchange.exchange_id] = listener.stream
        if len(self._ended) > _MAX_ENDED:
            self._send(Forget(self._ended.popitem(last=False)[1]))

    def stream_of(self, exchange_id: str) -> int:
        """The stream that its answer came by, once; 0 where there is none."""
        return self._ended.pop(exchange_id, 0)

    def is_known(self, stream: int) -> bool:
        """To the process that is there now."""
        return stream >= self._first

    def restart(self) -> None:
        """Another process takes over: it knows no stream."""
        self._first = self._streams + 1

    def _send_of(self, listener: AnswerListener) -> None:
        pieces = listener.take()
        if not pieces or listener.is_lost:
            return
        known = self.is_known(listener.stream)
        if (listener.stream and not known) or not self._has_room():
            if known:
                self._send(Forget(listener.stream))
            listener.is_lost = True
            return
        if not listener.stream:
            self._streams += 1
            listener.stream = self._streams
            self._send(Begin(listener.stream, listener.exchange_id))
        for piece in pieces:
            piece.stream = listener.stream
            self._send(piece)
