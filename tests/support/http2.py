"""HTTP/2 written from frames: single frames, and whole HTTP/1 conversations said again as streams of one connection.

Header blocks are made by the `hpack` package, so that the reader is held to another's view of RFC 7541.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterable, Iterator

import hpack

from llmsec_tap.pipeline import Pipeline
from llmsec_tap.wire.connection import Connection
from llmsec_tap.wire.flow import Flow
from llmsec_tap.wire.messages import Head
from support.wire import Talk

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS, PADDED, WITH_PRIORITY = 1, 4, 8, 32
_HOP = {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade", b"host"}
Fields = list[tuple[bytes, bytes]]


def frame(kind: int, stream: int = 0, payload: bytes = b"", flags: int = 0) -> bytes:
    return len(payload).to_bytes(3, "big") + struct.pack(">BBI", kind, flags, stream) + payload


HELLO = PREFACE + frame(SETTINGS, payload=struct.pack(">HI", 3, 100)) + frame(WINDOW_UPDATE, payload=struct.pack(">I", 2**20))
SERVER_HELLO = frame(SETTINGS, payload=struct.pack(">HIHI", 3, 128, 4, 65535)) + frame(SETTINGS, flags=1)


class Side:
    """One endpoint's frames; its encoder keeps the table of headers."""

    def __init__(self, rng: random.Random | None = None) -> None:
        self.encoder = hpack.Encoder()
        self.rng = rng

    def headers(self, stream: int, fields: Fields, *, ends: bool = False) -> bytes:
        block = self.encoder.encode(fields)
        rng, end = self.rng, END_STREAM if ends else 0
        if rng is None or rng.random() < 0.5:
            return frame(HEADERS, stream, block, END_HEADERS | end)
        # Padding, priority and continuations, as an endpoint may.
        cuts = sorted(rng.randrange(len(block) + 1) for _ in range(rng.randrange(3)))
        parts = [block[a:b] for a, b in zip([0, *cuts], [*cuts, len(block)], strict=True)]
        pad = rng.randrange(20)
        first = bytes([pad]) + struct.pack(">IB", 0, 15) + parts[0] + bytes(pad)
        out = frame(HEADERS, stream, first, PADDED | WITH_PRIORITY | end | (END_HEADERS if len(parts) == 1 else 0))
        for number, part in enumerate(parts[1:], 2):
            out += frame(CONTINUATION, stream, part, END_HEADERS if number == len(parts) else 0)
        return out

    def data(self, stream: int, data: bytes, *, ends: bool = False) -> bytes:
        end = END_STREAM if ends else 0
        if self.rng is None or self.rng.random() < 0.7:
            return frame(DATA, stream, data, end)
        pad = self.rng.randrange(1, 30)
        return frame(DATA, stream, bytes([pad]) + data + bytes(pad), PADDED | end)


def request(path: bytes = b"/v1/chat/completions", *more: tuple[bytes, bytes], host: bytes = b"model:8000") -> Fields:
    return [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path),
        (b":authority", host),
        (b"content-type", b"application/json"),
        *more,
    ]


def response(status: bytes = b"200", content_type: bytes = b"application/json", *more: tuple[bytes, bytes]) -> Fields:
    return [(b":status", status), (b"content-type", content_type), *more]


# --- conversations said again ------------------------------------------------------------------------------------------------


class _Body:
    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.how: str | None = None
        self.data: Callable[[int, bytes], None] = lambda _ts, data: self.pieces.append(data)

    def gap(self, ts_ns: int, length: int | None) -> None: ...

    def end(self, ts_ns: int, how: str) -> None:
        self.how = how


class Said:
    """One exchange as HTTP/1 carried it (an `ExchangeSink`)."""

    is_ended = False
    has_room = True

    def __init__(self, client: str, server: str) -> None:
        self.client, self.server = client, server
        self.request, self.response = _Body(), _Body()
        self.heads: dict[str, Head] = {}

    def request_head(self, head: Head) -> None:
        self.heads["request"] = head

    def response_head(self, head: Head) -> None:
        self.heads["response"] = head

    def trailers(self, headers: object) -> None: ...

    def anomaly(self, name: str) -> None: ...

    def unread(self, ts_ns: int, name: str, data: bytes) -> None: ...

    def other(self, data: bytes, *, of_client: bool) -> None: ...

    def close(self, ts_ns: int, reason: str) -> None: ...


class Hearing(Pipeline):
    """Packets in, `said` out: the messages of every connection, undecoded."""

    def __init__(self) -> None:
        super().__init__(lambda _exchange: None, lambda secret: secret)
        self.said: dict[tuple[str, str], list[Said]] = {}

    def _connection(self, facts: Flow, on_closed: Callable[[], None] = lambda: None) -> Connection:
        return Connection(facts, self._made, lambda _name: None, lambda _name: None, on_closed)

    def _made(self, flow: Flow, client: str, server: str, ordinal: int) -> Said:
        said = Said(client, server)
        self.said.setdefault((client, server), []).append(said)
        return said


def _fields(head: Head) -> Fields:
    authority = head.get(b"host")
    pseudo: Fields
    if head.method:
        pseudo = [(b":method", head.method.encode("latin-1")), (b":scheme", b"http"), (b":path", head.target.encode("latin-1"))]
        if authority is not None:
            pseudo.append((b":authority", authority))
    else:
        pseudo = [(b":status", str(head.status).encode())]
    return pseudo + [(name, value) for name, value in head.headers if name not in _HOP]


def as_http2(said: Iterable[Said], talk: Talk, rng: random.Random, *, at_once: int = 8) -> Talk:
    """The same exchanges as streams of one connection, up to `at_once` under way at a time, in frames and segments cut at random."""
    client, server = Side(rng), Side(rng)
    talk.open()
    flight: list[tuple[int, bytes]] = []

    def write(side: int, data: bytes) -> None:
        flight.append((side, data))

    def flush() -> None:
        """Neighbours of one direction leave together, and are cut anywhere."""
        while flight:
            side, data = flight.pop(0)
            while flight and flight[0][0] == side and rng.random() < 0.5:
                data += flight.pop(0)[1]
            at = 0
            while at < len(data):
                size = rng.choice((1, 5, 9, 30, 400, 1448, 9000, 60000))
                talk.say(side, data[at : at + size])
                at += size

    write(1, SERVER_HELLO)
    write(0, HELLO)
    steps = [_steps(2 * number + 1, one, client, server, rng) for number, one in enumerate(said)]
    waiting, running = list(reversed(steps)), []
    while waiting or running:
        while waiting and len(running) < at_once and (not running or rng.random() < 0.6):
            flush()  # so that no two begin at the same time
            begun = waiting.pop()
            running.append(begun)
            write(*next(begun))  # streams begin in the order of their ids
        chosen = rng.choice(running)
        step = next(chosen, None)
        if step is None:
            running.remove(chosen)
        else:
            write(*step)
        if rng.random() < 0.05:
            write(rng.randrange(2), frame(PING, payload=bytes(8)) + frame(77, 5, b"unknown"))
        if len(flight) > 20:
            flush()
    flush()
    return talk.close()


def _steps(stream: int, said: Said, client: Side, server: Side, rng: random.Random) -> Iterator[tuple[int, bytes]]:
    for number, (side, body, head) in enumerate(
        ((client, said.request, said.heads.get("request")), (server, said.response, said.heads.get("response")))
    ):
        if head is None:
            continue
        pieces = [piece for whole in body.pieces for piece in _cut(whole, rng)]
        complete = body.how == "complete"
        yield number, side.headers(stream, _fields(head), ends=complete and not pieces)
        for at, piece in enumerate(pieces, 1):
            yield number, side.data(stream, piece, ends=complete and at == len(pieces))
        if not complete:
            yield number, frame(RST_STREAM, stream, struct.pack(">I", 8))


def _cut(data: bytes, rng: random.Random) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        size = rng.choice((3, 50, 200, 1000, 16384 - 40))
        yield data[at : at + size]
        at += size
