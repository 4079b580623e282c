"""What the decoder asks of the warden, over one socket that keeps messages whole (SOCK_SEQPACKET, unix(7)).

A message is `HEAD` and a payload of fixed layout; descriptors travel beside it (SCM_RIGHTS). The warden reads nothing but these
heads, so a decoder that an attacker has taken over can ask for what is listed here and for nothing else. Answers carry the
number of their question. The other direction is single bytes on the stop pipe.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum, unique
from typing import Final, NamedTuple

from llmsec_tap.capture.ebpf.loader_api import ProbeState

HEAD: Final = struct.Struct("=BxxxII")  # question, its number, its argument
ATTACHED: Final = struct.Struct("=Q")  # bytes of the ring, 0 where there is none
TOTALS: Final = struct.Struct("=11Q")  # KernelTotals
LOSS: Final = struct.Struct("=IxxxxQQIxxxxQQ")
LOSSES_A_MESSAGE: Final = 1000
MAX_MESSAGE: Final = 65_536
PIECE: Final = 60_000  # of an answer that takes several messages
MOST_PROBES: Final = 200
_MOST_BYTES_OF_TEXT: Final = 512
MAX_DETECTORS: Final = 2  # of each decoder: one, and while settings change its successor
# Bytes on the stop pipe; its end means stop, too.
STOP: Final = b"s"
NEWS: Final = b"n"


@unique
class Ask(IntEnum):
    ATTACHED = 1  # -> ATTACHED, the ring. Waits until the probes stand.
    FACTS = 2  # argument: a process id -> name NUL executable NUL container id NUL ms that its probes came late, each empty where unknown
    TOTALS = 3  # -> TOTALS
    LOSSES = 4  # argument: from which on -> LOSS, repeated
    DETACH = 5  # the capture ends: all probes out, and the other decoders are told -> nothing
    CAPTURING = 13  # the decoder reads from now on -> nothing
    DETECTOR = 6  # argument: its number, below MAX_DETECTORS; start a detection process -> its input, its output
    KILL_DETECTOR = 7  # argument: its number -> nothing
    NEWS = 12  # argument: from which byte on -> a piece of the message
    PROBES = 14  # argument: from which byte on -> a piece of `packed(...)`
    ALIVE = 10  # the decoder has made progress -> nothing
    SOCKETS = 9  # -> packet sockets, opened now: their rings fill from here on
    SOCKET = 11  # argument: which of them -> it, opened again, where its interface is another one by now; else nothing
    COMPACT = 8  # beside it: the store's folder -> nothing; parts are merged by a process of the folder's owner


class Probes(NamedTuple):
    """The first of what is read from and of what could not be, and how many of each there are."""

    states: Sequence[ProbeState] = ()
    read: int = 0
    unread: int = 0


def packed(states: Sequence[ProbeState]) -> bytes:
    """MOST_PROBES of them at most: texts that end in NUL, which no name of a file holds. The first two are the counts."""
    unread = sum(1 for state in states if state.problem)
    texts = [str(len(states) - unread), str(unread)]
    for state in states[:MOST_PROBES]:
        texts += (str(field) for field in state)
    return b"".join(text.encode(errors="surrogateescape").replace(b"\0", b" ")[:_MOST_BYTES_OF_TEXT] + b"\0" for text in texts)


def unpacked(data: bytes) -> Probes:
    read, unread, *texts = (text.decode(errors="backslashreplace") for text in data.split(b"\0")[:-1])
    rows = zip(*[iter(texts)] * len(ProbeState._fields), strict=True)
    states = [ProbeState(library, file, symbols, int(processes), problem) for library, file, symbols, processes, problem in rows]
    return Probes(states, int(read), int(unread))
