"""Work is linear in the input, however it is cut: doubling it at most doubles the cost.

Nobody lists the worst inputs: a search draws a state (a beginning), a unit of a few tokens that is repeated, and a cut, and measures
CPU time at n and 4n. A ratio that is too high is measured again, so that another process on the machine fails nothing.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from llmsec_tap import limits
from llmsec_tap.account import Account
from llmsec_tap.capture.files.masked import StreamMasker
from llmsec_tap.wire.connection import Connection
from llmsec_tap.wire.encoding import content_decoder
from llmsec_tap.wire.eventstream import EventStreamParser
from llmsec_tap.wire.flow import Flow
from llmsec_tap.wire.grpc import GRPCParser
from llmsec_tap.wire.http1 import RequestParser, ResponseParser
from llmsec_tap.wire.http2.streams import HTTP2
from llmsec_tap.wire.messages import ignore
from llmsec_tap.wire.ndjson import JSONArrayParser, NDJSONParser
from llmsec_tap.wire.sse import SSEParser
from llmsec_tap.wire.tcp import ACK, FIN, RST, SYN, TCPReassembler
from support.aws import message
from support.http2 import CONTINUATION, DATA, GOAWAY, HEADERS, HELLO, RST_STREAM, SETTINGS, frame

RATIO = 2.5  # for one doubling
CASES = int(os.environ.get("LLMSEC_LINEAR_CASES", "8"))
FEW_SECONDS = 0.006
SURELY_CHEAP_SECONDS = 0.02  # at 4n: no more than moving the bytes, and too little to be measured

Feed = Callable[[bytes], None]


class Sink:
    """A body whose bytes go nowhere."""

    def __init__(self) -> None:
        self.data: Callable[[int, bytes], None] = ignore

    def gap(self, ts_ns: int, length: int | None) -> None:
        pass

    def end(self, ts_ns: int, how: str) -> None:
        pass


class Exchange:
    """Never ends: pipelined requests pile up."""

    is_ended = False
    has_room = True

    def __init__(self, *_facts: object) -> None:
        self.request, self.response = Sink(), Sink()

    def request_head(self, head: object) -> None: ...

    def response_head(self, head: object) -> None: ...

    def trailers(self, headers: object) -> None: ...

    def anomaly(self, name: str) -> None: ...

    def unread(self, ts_ns: int, name: str, data: bytes) -> None: ...

    def other(self, data: bytes, *, of_client: bool) -> None: ...

    def close(self, ts_ns: int, reason: str) -> None: ...


def silent(*_anything: object) -> None:
    pass


def http(make: Callable[..., Any]) -> Callable[[], Feed]:
    def start() -> Feed:
        parser = make(lambda _head: Sink(), silent)
        return lambda data: parser.data(0, data)

    return start


def flow(side: str, *, is_midstream: bool = False) -> Callable[[], Feed]:
    def start() -> Feed:
        made = Connection(Flow("1.1.1.1:1", "2.2.2.2:2", 0, is_midstream=is_midstream), Exchange, silent, silent)
        direction = getattr(made, side)
        return lambda data: direction.data(0, data)

    return start


def http2(*, is_midstream: bool = False) -> Callable[[], Feed]:
    def start() -> Feed:
        made = HTTP2(Flow("1.1.1.1:1", "2.2.2.2:2", 0, is_midstream=is_midstream), Exchange, silent)
        return lambda data: made.first.data(0, data)

    return start


def framed(make: Callable[..., Any]) -> Callable[[], Feed]:
    def start() -> Feed:
        parser = make(silent, silent)
        return lambda data: parser.feed(0, data)

    return start


def decoder(coding: str) -> Callable[[], Feed]:
    def start() -> Feed:
        made = content_decoder(coding, silent)
        assert made is not None
        return lambda data: silent(*made.feed(data))

    return start


TEXT = [b"\n", b"\r", b"\r\n", b" ", b":", b"a", b"\0", b"\xff", b"x" * 50]
HEADS = [
    b"GET ",
    b"POST /",
    b"HTTP/1.1",
    b" HTTP/1.1\r\n",
    b"HTTP/1.1 200 OK\r\n",
    b"X: y\r\n",
    b" fold\r\n",
    b"\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
]
CHUNKS = [b"1\r\n", b"\r\n1\r\n", b"0\r\n", b"zz\r\n", b";ext", b"00000", b"5;", b"HTTP/1.", b"1\r\na\r\n"]
REQUEST = b"POST / HTTP/1.1\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\n"
STARTS = [
    b"",
    b"\x00bad\r\n",
    b"GET /",
    REQUEST,
    REQUEST + b"Transfer-Encoding: chunked\r\n\r\n",
    REQUEST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
]
RESPONSE_STARTS = [
    b"",
    ANSWER,
    ANSWER + b"Transfer-Encoding: chunked\r\n\r\n",
    ANSWER + b"Transfer-Encoding: chunked\r\n\r\n0\r\n",
    ANSWER + b"\r\n",
]
JSON = [b"{", b"}", b"[", b"]", b'"', b"\\", b",", b"\n", b" ", b'{"a":1}', b"\n{", b"x" * 30]

FRAMES = [
    frame(HEADERS, 1, b"\x82", 5),
    frame(HEADERS, 1, b"\x83\x86\x84"),
    frame(CONTINUATION, 1, b"\x40\x01a\x01b" * 5),
    frame(CONTINUATION, 1, b"\xbe" * 30, 4),
    frame(DATA, 1, b"x"),
    frame(DATA, 1, b"", 1),
    frame(DATA, 3, b"\x05" + b"x" * 30, 8),
    frame(RST_STREAM, 1, bytes(4)),
    frame(GOAWAY, 0, bytes(8)),
    frame(SETTINGS, 1),
    b"\0\x40\0\0\0\0\0\0\1",  # the beginning of a long frame, again and again
    b"\0",
]

PARSERS: dict[str, tuple[Callable[[], Feed], list[bytes], list[bytes]]] = {
    "request": (http(RequestParser), STARTS, TEXT + HEADS + CHUNKS),
    "response": (http(ResponseParser), RESPONSE_STARTS, TEXT + HEADS + CHUNKS),
    "connection, client": (flow("first"), STARTS, TEXT + HEADS),
    "connection, joined": (flow("second", is_midstream=True), STARTS, TEXT + HEADS),
    "sse": (framed(SSEParser), [b"", b"data: ", b"\xef\xbb\xbf"], [*TEXT, b"data:", b"event: a", b"\n\n", b"data: {}\n\n"]),
    "ndjson": (framed(NDJSONParser), [b"", b"{"], JSON + TEXT),
    "json array": (framed(JSONArrayParser), [b"", b"[", b'["', b"[{"], JSON),
    "event stream": (framed(EventStreamParser), [b"", b"\0\0\0\x20"], [*TEXT, b"\0\0\0\x10", message({":event-type": "a"}, b"{}")]),
    "http2": (http2(), [b"", HELLO], FRAMES),
    "http2, joined": (http2(is_midstream=True), [b"", frame(SETTINGS)], FRAMES),
    "grpc": (framed(GRPCParser), [b"", b"\0\0\0\1"], [*TEXT, b"\0\0\0\0\0", b"\1\0\0\0\2\x1f\x8b", b"\0\xff\xff\xff\xff"]),
    "masked http2": (lambda: StreamMasker().feed, [HELLO], FRAMES),
    "gzip": (decoder("gzip"), [b"", b"\x1f\x8b\x08\0\0\0\0\0\0\3"], [b"\x03\0" + b"\0" * 8 + b"\x1f\x8b\x08\0\0\0\0\0\0\3", *TEXT]),
}


def cost(start: Callable[[], Feed], pieces: list[bytes]) -> float:
    feed = start()
    began = time.process_time()
    for piece in pieces:
        feed(piece)
    return time.process_time() - began


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def ratio(measure: Callable[[int], float], count: int) -> float:
    """The ratio of one doubling, from n to 4n; at its best of a few."""
    best = 99.0
    for _ in range(4):
        small = min(measure(count), measure(count))
        large = measure(4 * count)
        if large < SURELY_CHEAP_SECONDS:
            return 1.0
        best = min(best, (large / small) ** 0.5)
        if best <= RATIO:
            break
    return best


def big_enough(measure: Callable[[int], float], count: int, most: int) -> int:
    """So many repetitions that the time can be measured."""
    while measure(count) < FEW_SECONDS and count < most:
        count *= 2
    return count


@pytest.mark.parametrize("name", PARSERS)
def test_parsers(name: str) -> None:
    start, beginnings, tokens = PARSERS[name]
    rng = random.Random(os.environ.get("LLMSEC_LINEAR_SEED", name))
    for _ in range(CASES):
        beginning = rng.choice(beginnings)
        unit = b"".join(rng.choices(tokens, k=rng.randint(1, 3)))
        size = rng.choice([1, 1, 7, 50, 1448, 1 << 16])

        def measure(count: int, beginning: bytes = beginning, unit: bytes = unit, size: int = size) -> float:
            return cost(start, cut(beginning + unit * count, size))

        count = big_enough(measure, 1 + 2000 // len(unit), 1 + 200_000 // len(unit))
        assert ratio(measure, count) <= RATIO, f"{name}: {beginning!r} + {unit!r} × {count}, cut at {size}"


# --- TCP ---------------------------------------------------------------------------------------------------------------

KEYS = [bytes([10, 0, 0, 1, 10, 0, 0, 2, 0, 9, 0, 80]), bytes([10, 0, 0, 2, 10, 0, 0, 1, 0, 80, 0, 9])]


def segments(kind: str, count: int) -> Iterator[tuple[bytes, int, int, int, bytes]]:
    rng = random.Random(kind)
    order = list(range(count))
    if kind == "random order":
        rng.shuffle(order)
    for number in order:
        key, seq, ack, flags, data = KEYS[0], 1000 + 2 * number, 0, ACK, b"z"
        if kind == "backwards":
            seq = 1000 + 2 * (count - number)
        elif kind == "jumping":
            seq, ack = rng.getrandbits(32), rng.getrandbits(32)
        elif kind == "overlapping":
            seq, data = 1000 + rng.randint(0, 2 * count), rng.randbytes(rng.randint(1, 60))
        elif kind == "differing copies":
            seq, data = 1000 + number // 2, rng.randbytes(2)
        elif kind == "anything":
            key, seq = rng.choice(KEYS), 1000 + rng.randint(0, 4000)
            ack, flags, data = 1000 + rng.randint(0, 4000), rng.choice([ACK, ACK, ACK, SYN, RST, FIN | ACK]), rng.randbytes(9)
        elif kind == "many connections":
            key = number.to_bytes(4, "big") + KEYS[0][4:]
        yield key, seq & 0xFFFFFFFF, ack, flags, data


class Stream:
    def __init__(self) -> None:
        self.data: Callable[[int, bytes], None] = silent

    def gap(self, ts_ns: int, length: int | None) -> None: ...

    def end(self, ts_ns: int, reason: str) -> None: ...

    def other(self, ts_ns: int, data: bytes) -> None: ...

    def again(self) -> None: ...


class Streams:
    def __init__(self, _facts: Flow) -> None:
        self.first, self.second = Stream(), Stream()

    def anomaly(self, name: str) -> None: ...

    def close(self, ts_ns: int, reason: str) -> None: ...


@pytest.mark.parametrize(
    "kind",
    ["random order", "backwards", "jumping", "overlapping", "differing copies", "anything", "many connections", "every other byte"],
)
def test_segments(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_PENDING_SEGMENTS_PER_DIRECTION", 500)  # beyond it cost settles

    def measure(count: int) -> float:
        fed = list(segments(kind, count))
        tcp = TCPReassembler(Streams, silent, Account(4 << 20))
        began = time.process_time()
        for number, (key, seq, ack, flags, data) in enumerate(fed):
            tcp.segment(number * 1000, key, seq, ack, flags, data)
        spent = time.process_time() - began
        tcp.close()
        return spent

    assert ratio(measure, 4000) <= RATIO


def test_pipelined_requests_without_an_answer() -> None:
    def measure(count: int) -> float:
        return cost(flow("first"), [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 8] * count)

    assert ratio(measure, 400) <= RATIO
