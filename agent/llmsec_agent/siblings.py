"""What the decoders of one tap have in common, beside the warden: the order of their start, standard output, and one closing summary.

The first decoder makes key and store ready while it has the rights for it, and the others go on when it has. At the end they hand in
their counts to the first, which adds them up and says the summary. All of it is made before the decoders are forked.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from llmsec_tap.counters import Sample

_TRY_EVERY_S: Final = 0.005
_HAND_IN_S: Final = 5.0
_MAX_COUNTS_BYTES: Final = 64 << 20


class Siblings:
    """Call `sibling` in each decoder's process, and `close` in the one that forked them."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._gate = os.pipe()
        self._ends = [socket.socketpair() for _ in range(count - 1)]
        self._output = os.memfd_create("llmsec-output") if count > 1 else None

    def sibling(self, number: int) -> Sibling:
        """What the decoder of this number keeps; the other ends are closed, so that each sees when another is gone."""
        opening, waiting = self._gate[1], self._gate[0]
        os.close(waiting if number == 0 else opening)
        mine: list[socket.socket] = []
        for other, (collecting, handing) in enumerate(self._ends, 1):
            keep, leave = (collecting, handing) if number == 0 else (handing, collecting)
            leave.close()
            if number in (0, other):
                mine.append(keep)
            else:
                keep.close()
        turn = OutputTurn(self._output) if self._output is not None else None
        return Sibling(number, self._count, opening if number == 0 else waiting, mine, turn)

    def close(self) -> None:
        for descriptor in self._gate:
            os.close(descriptor)
        for pair in self._ends:
            for sock in pair:
                sock.close()
        if self._output is not None:
            os.close(self._output)


class Sibling:
    """One decoder among `count`."""

    def __init__(self, number: int, count: int, gate: int, ends: list[socket.socket], turn: OutputTurn | None) -> None:
        self.number = number
        self.count = count
        self.output_turn = turn
        self._gate = gate
        self._ends = ends

    @property
    def is_first(self) -> bool:
        return self.number == 0

    def await_first(self) -> bool:
        """Until the first is ready. False: it has ended before, and says why."""
        return bool(os.read(self._gate, 1))

    def let_others_go(self) -> None:
        with contextlib.suppress(OSError):  # they are gone, and the warden ends this one
            os.write(self._gate, b"g" * (self.count - 1))
        os.close(self._gate)

    def hand_in(self, counts: list[Sample]) -> None:
        """The last word of a decoder that is not the first. Waits while that one is still busy, but not for ever."""
        import msgspec

        (end,) = self._ends
        end.settimeout(_HAND_IN_S)
        with contextlib.suppress(OSError):
            end.sendall(msgspec.msgpack.encode(counts))
        end.close()

    def collect(self, within_s: float) -> list[list[Sample] | None]:
        """What the others handed in. None for each that has ended without, or takes longer."""
        deadline = time.monotonic() + within_s
        return [_read(end, deadline) for end in self._ends]


def _read(end: socket.socket, deadline: float) -> list[Sample] | None:
    with end:
        return _read_all(end, deadline)


def _read_all(end: socket.socket, deadline: float) -> list[Sample] | None:
    import msgspec  # late, as the rest of what decodes: it would stand between the command and its probes

    from llmsec_tap.counters import Sample

    data = bytearray()
    try:
        while len(data) < _MAX_COUNTS_BYTES:
            end.settimeout(max(0.001, deadline - time.monotonic()))
            piece = end.recv(1 << 20)
            if not piece:
                return msgspec.msgpack.decode(data, type=list[Sample])
            data += piece
    except (OSError, msgspec.MsgspecError):
        pass
    return None


class OutputTurn:
    """Whose turn it is to write to standard output: a line longer than a pipe takes at once is several writes, and stays in one piece.

    A lock on a file that only the decoders have (fcntl(2): of a process), which goes with a decoder that dies. For one thread of each.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._has_it = False

    def take(self, within_s: float) -> bool:
        """False where another has it for so long."""
        deadline = time.monotonic() + within_s
        while not self._has_it:
            try:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                if time.monotonic() >= deadline:
                    return False
                time.sleep(_TRY_EVERY_S)
            else:
                self._has_it = True
        return True

    def give(self) -> None:
        if self._has_it:
            self._has_it = False
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN)
