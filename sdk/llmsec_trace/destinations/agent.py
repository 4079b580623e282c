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
from typing import Any, Final

import msgspec

from llmsec_agent.receiving.protocol import HEAD, MAGIC, MAX_FRAME_BYTES, MAX_RECORDS, Answer, exactly, frame
from llmsec_tap.model import AnomalyCount, Exchange
from llmsec_tap.storage.rows import INT64_MAX, INT64_MIN, well_formed
from llmsec_trace.destinations.base import DestinationError

# A frame is sent once it has so much: small ones need no room of their own at the agent's end.
_FRAME_BYTES: Final = 48 << 10
# Whoever sends more than an agent takes waits there.
_TIMEOUT_S: Final = 30.0
_MAX_ANSWER_BYTES: Final = 64 << 10
# Around the records of a frame.
_LIST_BYTES: Final = 5

# Reasons of a refusal that may be in what a client or server wrote.
_BY_CONTENT: Final = ("malformed", "too_large")
_Record = tuple[Exchange, msgspec.Raw]
_encode: Final = msgspec.msgpack.Encoder().encode


class Agent:
    """Connects when the first record comes, and again where the agent was restarted."""

    def __init__(self, path: str | Path, timeout_s: float = _TIMEOUT_S) -> None:
        self.path = Path(path)
        self._timeout_s = timeout_s
        self._socket: socket.socket | None = None

    def send(self, batch: Sequence[Exchange]) -> None:
        refused: Counter[str] = Counter()
        for records in _frames(batch):
            for place, reason in self._refused(records).items():
                # Without its texts the record still says that something passed unread.
                again = self._refused([_record(_bare(records[place][0]))]) if reason in _BY_CONTENT else {0: reason}
                refused.update(again.values())
        if refused:
            reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(refused.items()))
            raise DestinationError(f"the agent at {self.path} refused records: {reasons}", is_lasting=True, lost=refused.total())

    def _refused(self, records: list[_Record]) -> dict[int, str]:
        answer = self._hand_over(_encode([encoded for _, encoded in records]))
        return dict.fromkeys(range(len(records)), answer.error) if answer.error else answer.refused

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

    def _exactly(self, size: int) -> bytearray:
        assert self._socket is not None
        data = exactly(self._socket, size)
        if data is None:
            raise ConnectionResetError
        return data

    def forked(self) -> None:
        """The connection is the parent's, whose frames must not be mixed with ours: it keeps its own end of it."""
        self.close()

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _frames(batch: Sequence[Exchange]) -> Iterator[list[_Record]]:
    """As few frames as hold the records, none of them beyond what an agent takes."""
    waiting: list[_Record] = []
    waiting_bytes = 0
    for exchange in batch:
        record = _record(exchange)
        if _size(record) > MAX_FRAME_BYTES - _LIST_BYTES:
            record = _record(_bare(exchange))
        if waiting and (waiting_bytes + _size(record) > _FRAME_BYTES or len(waiting) == MAX_RECORDS):
            yield waiting
            waiting, waiting_bytes = [], 0
        waiting.append(record)
        waiting_bytes += _size(record)
    if waiting:
        yield waiting


def _size(record: _Record) -> int:
    return memoryview(record[1]).nbytes


def _record(exchange: Exchange) -> _Record:
    """MessagePack holds neither lone surrogates nor numbers beyond 64 bits, which JSON of a request may have: the former are replaced, the latter null."""
    try:
        return exchange, msgspec.Raw(_encode(exchange))
    except (OverflowError, ValueError):
        return exchange, msgspec.Raw(_encode(_mended(exchange)))


def _mended(value: Any) -> Any:
    if isinstance(value, str):
        return well_formed(value)
    if isinstance(value, int):
        return value if INT64_MIN <= value <= INT64_MAX else None
    if isinstance(value, msgspec.Struct):
        return {name: _mended(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, list):
        return [_mended(item) for item in value]
    if isinstance(value, dict):
        return {_mended(name): _mended(item) for name, item in value.items()}
    return value


def _bare(exchange: Exchange) -> Exchange:
    bare = exchange.without_content()
    bare.anomalies = [*bare.anomalies, AnomalyCount(name="text_limit", count=1)]
    return bare
