"""The decoder's side of the receiver: a thread that reads admitted records, and hands each to the decoding thread in its turn."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from llmsec_agent.receiving.admission import Peer, made_ours
from llmsec_agent.receiving.messages import LENGTH, Counts, Received, decode
from llmsec_agent.receiving.protocol import MAX_FRAME_BYTES, exactly
from llmsec_tap.capture.host.process import Facts, PodLookup, ProcessTable
from llmsec_tap.counters import Sample, by_label
from llmsec_tap.identity.credentials import Fingerprinter
from llmsec_tap.journal import Journal
from llmsec_tap.model import Exchange, Process

# Records that wait for the decoding thread: what applications send may not crowd out what is captured.
_MAX_BYTES: Final = 4 << 20
_MAX_MESSAGE_BYTES: Final = 2 * MAX_FRAME_BYTES


class Inbox(threading.Thread):
    """A `CaptureThread`. `put` calls what it is given on the decoding thread, `take` is given the records there."""

    def __init__(
        self,
        sock: socket.socket,
        put: Callable[[Callable[[], None]], None],
        take: Callable[[Exchange], None],
        journal: Journal,
        *,
        fingerprint: Fingerprinter,
        node: str | None,
        detects: bool,
        pods: PodLookup | None,
    ) -> None:
        super().__init__(name="llmsec-inbox", daemon=True)
        self.fault: BaseException | None = None  # it never ends the capture
        self._socket = sock
        self._put = put
        self._take = take
        self._journal = journal
        self._made_ours = partial(made_ours, fingerprint=fingerprint, node=node, detects=detects)
        self._pods = pods
        self._bytes = 0
        self._changed = threading.Condition()
        self._stopping = False
        self._is_up = True
        self._counts = Counts(0, {})
        self.records = 0
        self._lost: Counter[str] = Counter()  # here, by reason

    def run(self) -> None:
        try:
            while (data := self._message()) is not None:
                self._take_in(data)
        except Exception as fault:  # noqa: BLE001 - the receiver must not be left writing to nobody
            self._end(type(fault).__name__)
        else:
            self._end("it has ended")

    def stop(self) -> None:
        """The receiver hears that nobody wants more; what it has sent is still read."""
        self._stopping = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
        with self._changed:
            self._changed.notify_all()

    def samples(self) -> Iterable[Sample]:
        yield Sample("llmsec_sdk_receiver_up", float(self._is_up))
        yield Sample("llmsec_sdk_connections", self._counts.clients)
        yield Sample("llmsec_sdk_records_total", self.records)
        yield from by_label("llmsec_sdk_refused_total", "reason", Counter(self._counts.refused) + self._lost)

    def _take_in(self, data: bytearray) -> None:
        try:
            message = decode(data)
        except MemoryError:
            self._lost["memory"] += 1
            return
        if isinstance(message, Counts):
            self._counts = message
            return
        self._wait_for_room()
        with self._changed:
            self._bytes += len(data)
        self._put(partial(self._one, message, len(data)))

    def _end(self, why: str) -> None:
        self._is_up = False
        self._socket.close()
        if not self._stopping:
            self._journal.error("sdk_receiver_ended", f"records of applications are not received any more: {why}; restart the agent")

    def _wait_for_room(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._bytes < _MAX_BYTES or self._stopping)

    def _message(self) -> bytearray | None:
        """None at the end."""
        head = exactly(self._socket, LENGTH.size)
        if head is None:
            return None
        (size,) = LENGTH.unpack(head)
        if size > _MAX_MESSAGE_BYTES:
            raise ConnectionAbortedError
        return exactly(self._socket, size)

    def _one(self, message: Received, size: int) -> None:
        """On the decoding thread."""
        with self._changed:
            self._bytes -= size
            self._changed.notify_all()
        self.records += 1
        self._take(self._made_ours(message.exchange, message.peer, self._process(message.peer)))

    def _process(self, peer: Peer) -> Process | None:
        if not peer.pid:
            return None
        return ProcessTable(self._pods, facts=lambda _pid: Facts(peer.comm, None, peer.container)).get(peer.pid)
