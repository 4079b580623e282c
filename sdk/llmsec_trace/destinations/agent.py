"""Records to an agent on the same host, over the Unix socket that its configuration names (`sdk.socket`).

The agent says anew which process a record is of, and gives it an id of its own; a record that is sent twice it has once.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from llmsec_agent.receiving.protocol import HEAD, MAGIC, MAX_FRAME_BYTES, MAX_RECORDS, Answer, frame
from llmsec_tap.model import AnomalyCount, Exchange
from llmsec_trace.destinations.base import DestinationError

# A frame is sent once it has so much: small ones need no room of their own at the agent's end.
_FRAME_BYTES: Final = 48 << 10
# Whoever sends more than an agent takes waits there.
_TIMEOUT_S: Final = 30.0
_MAX_ANSWER_BYTES: Final = 64 << 10
# Around the records of a frame.
_LIST_BYTES: Final = 5

_encode: Final = msgspec.msgpack.Encoder().encode


class Agent:
    """Connects when the first record comes, and again where the agent was restarted."""

    def __init__(self, path: str | Path, timeout_s: float = _TIMEOUT_S) -> None:
        self.path = Path(path)
        self._timeout_s = timeout_s
        self._socket: socket.socket | None = None

    def send(self, batch: Sequence[Exchange]) -> None:
        refused: Counter[str] = Counter()
        for payload, count in _payloads(batch):
            answer = self._hand_over(payload)
            refused.update({answer.error: count} if answer.error else answer.refused)
        if refused:
            reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(refused.items()))
            raise DestinationError(f"the agent at {self.path} refused records: {reasons}", is_lasting=True, lost=refused.total())

    def _hand_over(self, payload: bytes) -> Answer:
        """Raises DestinationError where it is to be tried again; an agent has a record once that is sent twice."""
        is_old = self._socket is not None
        try:
            try:
                answer = self._ask(payload)
            except ConnectionError:
                if not is_old:
                    raise
                self.close()  # the agent was started anew, or made room for others
                answer = self._ask(payload)
        except (OSError, msgspec.DecodeError) as fault:
            self.close()
            why = getattr(fault, "strerror", None) or type(fault).__name__
            raise DestinationError(f"the agent at {self.path} does not take records: {why}") from None
        if answer.error:
            self.close()
        return answer

    def _ask(self, payload: bytes) -> Answer:
        if self._socket is None:
            self._socket = self._connect()
        self._socket.sendall(frame(payload))
        magic, size = HEAD.unpack(self._exactly(HEAD.size))
        if magic != MAGIC or size > _MAX_ANSWER_BYTES:
            raise ConnectionAbortedError
        return msgspec.msgpack.decode(self._exactly(size), type=Answer)

    def _connect(self) -> socket.socket:
        folder = self.path.parent.stat()
        if folder.st_mode & (stat.S_IWGRP | stat.S_IWOTH) or folder.st_uid not in (0, os.geteuid()):
            raise DestinationError(
                f"{self.path.parent} may be written to by other users, so others may listen there",
                "Have the agent's sdk.socket in a folder that is root's, or this user's alone.",
                is_lasting=True,
            )
        with contextlib.ExitStack() as undo:
            sock = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            sock.settimeout(self._timeout_s)
            sock.connect(str(self.path))
            undo.pop_all()
            return sock

    def _exactly(self, size: int) -> bytes:
        assert self._socket is not None
        data = bytearray()
        while len(data) < size:
            more = self._socket.recv(size - len(data))
            if not more:
                raise ConnectionResetError
            data += more
        return bytes(data)

    def forked(self) -> None:
        """The connection is the parent's, whose frames must not be mixed with ours: it keeps its own end of it."""
        self.close()

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _payloads(batch: Sequence[Exchange]) -> Iterator[tuple[bytes, int]]:
    """As few frames as hold the records, none of them beyond what an agent takes; and how many are in each."""
    waiting: list[msgspec.Raw] = []
    size = 0
    for exchange in batch:
        record = _encode(exchange)
        if len(record) > MAX_FRAME_BYTES - _LIST_BYTES:
            record = _encode(_bare(exchange))
        if waiting and (size + len(record) > _FRAME_BYTES or len(waiting) == MAX_RECORDS):
            yield _encode(waiting), len(waiting)
            waiting, size = [], 0
        waiting.append(msgspec.Raw(record))
        size += len(record)
    if waiting:
        yield _encode(waiting), len(waiting)


def _bare(exchange: Exchange) -> Exchange:
    bare = exchange.without_content()
    bare.anomalies = [*bare.anomalies, AnomalyCount(name="text_limit", count=1)]
    return bare
