"""IP fragments put together (RFC 791 3.2, RFC 8200 4.5), for an observer.

A datagram is given out once its first fragment, its last one and all between have come. Where fragments overlap, the datagram is
dropped (RFC 5722 says so for IPv6; no stack makes such IPv4 fragments): an overlap is only ever a way to hide bytes.
Bounds: limits.MAX_FRAGMENT_DATAGRAMS, MAX_FRAGMENT_BYTES for all and FRAGMENT_AGE_NS; the oldest goes first.
"""

from __future__ import annotations

from bisect import bisect_left

from llmsec_tap import limits
from llmsec_tap.account import Account

Key = tuple[bytes, int, int]
"""(source and destination address, identification, protocol)"""


class _Datagram:
    __slots__ = ("began_ns", "bytes", "dropped", "end", "pieces", "starts")

    def __init__(self, ts_ns: int) -> None:
        self.began_ns = ts_ns
        self.starts: list[int] = []
        self.pieces: list[bytes] = []
        self.bytes = 0
        self.end: int | None = None  # where the last fragment ends
        self.dropped = False


class Fragments:
    """`add` fragments; it returns the datagram's payload when one is whole. `overlaps` and `given_up` count."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._datagrams: dict[Key, _Datagram] = {}
        self._bytes = 0
        self.overlaps = 0
        self.given_up = 0

    def add(self, ts_ns: int, key: Key, offset: int, data: bytes, *, more: bool) -> bytes | None:
        datagram = self._datagrams.get(key)
        if datagram is not None and ts_ns - datagram.began_ns > limits.FRAGMENT_AGE_NS:
            self._forget(key)
            self.given_up += not datagram.dropped
            datagram = None
        if datagram is None:
            while len(self._datagrams) >= limits.MAX_FRAGMENT_DATAGRAMS:
                self._give_up_oldest()
            datagram = self._datagrams[key] = _Datagram(ts_ns)
        if datagram.dropped:
            return None
        end = offset + len(data)
        if end > limits.MAX_DATAGRAM_BYTES or not self._insert(datagram, offset, data, is_last=not more):
            self.overlaps += 1
            self._release(datagram)
            datagram.dropped = True  # what still comes of it is dropped, too
            return None
        while self._bytes > limits.MAX_FRAGMENT_BYTES:
            self._give_up_oldest()
        if datagram.end is None or datagram.bytes != datagram.end or key not in self._datagrams:
            return None
        whole = b"".join(datagram.pieces)
        self._forget(key)
        return whole

    def close(self) -> None:
        for key in list(self._datagrams):
            self._forget(key)

    def _insert(self, datagram: _Datagram, offset: int, data: bytes, *, is_last: bool) -> bool:
        """False for what overlaps. The same fragment once more (RFC 8200 4.5) changes nothing."""
        end = offset + len(data)
        index = bisect_left(datagram.starts, offset)
        if index < len(datagram.starts) and datagram.starts[index] == offset:
            return datagram.pieces[index] == data
        if index and datagram.starts[index - 1] + len(datagram.pieces[index - 1]) > offset:
            return False
        if index < len(datagram.starts) and end > datagram.starts[index]:
            return False
        if datagram.end is not None and (is_last or end > datagram.end):
            return False
        if is_last:
            if datagram.starts and datagram.starts[-1] > offset:
                return False
            datagram.end = end
        datagram.starts.insert(index, offset)
        datagram.pieces.insert(index, data)
        datagram.bytes += len(data)
        self._count(len(data) + limits.PIECE_COST_BYTES)
        return True

    def _count(self, size: int) -> None:
        self._bytes += size
        self._account.fix(size)

    def _release(self, datagram: _Datagram) -> None:
        self._count(-datagram.bytes - len(datagram.pieces) * limits.PIECE_COST_BYTES)
        datagram.pieces.clear()
        datagram.starts.clear()
        datagram.bytes = 0

    def _forget(self, key: Key) -> None:
        self._release(self._datagrams.pop(key))

    def _give_up_oldest(self) -> None:
        key = next(iter(self._datagrams))
        self.given_up += not self._datagrams[key].dropped
        self._forget(key)
