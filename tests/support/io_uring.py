"""Just enough of io_uring(7) to receive and to send over a socket, by its system calls themselves."""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import struct

_SETUP, _ENTER = 425, 426
_SEND, _RECV = 26, 27
_GET_EVENTS = 1
_PARAMS = struct.Struct("=10I10I10I")  # struct io_uring_params: itself, offsets of the submission ring, and of the completion ring
_SQE = struct.Struct("=BBHiQQIIQ24x")
_COMPLETIONS_AT, _ENTRIES_AT = 0x8000000, 0x10000000

_libc = ctypes.CDLL(None, use_errno=True)


class Ring:
    """One submission at a time, awaited. Raises OSError where the kernel refuses to make a ring."""

    def __init__(self) -> None:
        params = ctypes.create_string_buffer(_PARAMS.size)
        self._fd = _libc.syscall(_SETUP, 1, params)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        fields = _PARAMS.unpack(params.raw)
        submission, completion = fields[10:20], fields[20:30]
        self._sq = mmap.mmap(self._fd, submission[6] + 4 * fields[0], offset=0)
        self._cq = mmap.mmap(self._fd, completion[5] + 16 * fields[1], offset=_COMPLETIONS_AT)
        self._entries = mmap.mmap(self._fd, _SQE.size * fields[0], offset=_ENTRIES_AT)
        self._tail, self._array = submission[1], submission[6]
        self._head, self._mask, self._results = completion[0], completion[2], completion[5]

    def _do(self, operation: int, sock: socket.socket, address: int, length: int) -> int:
        _SQE.pack_into(self._entries, 0, operation, 0, 0, sock.fileno(), 0, address, length, 0, 1)
        struct.pack_into("=I", self._sq, self._array, 0)
        (tail,) = struct.unpack_from("=I", self._sq, self._tail)
        struct.pack_into("=I", self._sq, self._tail, tail + 1)
        if _libc.syscall(_ENTER, self._fd, 1, 1, _GET_EVENTS, None, 0) < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        (head,) = struct.unpack_from("=I", self._cq, self._head)
        (mask,) = struct.unpack_from("=I", self._cq, self._mask)
        _, result, _ = struct.unpack_from("=QiI", self._cq, self._results + 16 * (head & mask))
        struct.pack_into("=I", self._cq, self._head, head + 1)
        if result < 0:
            raise OSError(-result, os.strerror(-result))
        return int(result)

    def receive(self, sock: socket.socket) -> bytes:
        buffer = ctypes.create_string_buffer(65_536)
        received = self._do(_RECV, sock, ctypes.addressof(buffer), len(buffer))
        return buffer.raw[:received]

    def send(self, sock: socket.socket, data: bytes) -> None:
        buffer = ctypes.create_string_buffer(data, len(data))
        sent = 0
        while sent < len(data):
            sent += self._do(_SEND, sock, ctypes.addressof(buffer) + sent, len(data) - sent)
