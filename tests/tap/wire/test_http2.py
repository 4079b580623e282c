"""HTTP/2 to exchanges: streams, headers, loss and damage. Frames are written by hand, header blocks by another's encoder."""

from __future__ import annotations

import json
import random
import re
import struct
from collections.abc import Callable
from pathlib import Path

import hpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsec_tap import limits
from llmsec_tap.model import Exchange, to_json
from llmsec_tap.pipeline import Pipeline
from llmsec_tap.wire.flow import Flow, FlowSink
from llmsec_tap.wire.http2 import huffman
from llmsec_tap.wire.http2.hpack import HeaderTable
from support.fixture_captures import FIXTURES, LIVE
from support.http2 import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    HELLO,
    PADDED,
    PUSH_PROMISE,
    RST_STREAM,
    SERVER_HELLO,
    SETTINGS,
    Fields,
    Hearing,
    Side,
    as_http2,
    frame,
    request,
    response,
)
from support.replay import replay
from support.wire import START_NS, Talk, pcap

BODY = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]}).encode()
ANSWER = {"id": "c", "object": "chat.completion", "model": "gpt-4o", "choices": [{"index": 0, "message": {"content": "hello"}}]}
WHOLE = json.dumps(ANSWER).encode()


def event(text: str) -> bytes:
    value = {"id": "c", "object": "chat.completion.chunk", "model": "m", "choices": [{"index": 0, "delta": {"content": text}}]}
    return b"data: " + json.dumps(value).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
STREAM = response(b"200", b"text/event-stream")


class Wire:
    """Both directions of a connection, fed by hand: `c` and `s` write frames, `>` and `<` carry them."""

    def __init__(self, *, is_midstream: bool = False, hello: bool = True) -> None:
        self.c, self.s = Side(), Side()
        self.exchanges: list[Exchange] = []
        self.pipeline = Pipeline(self.exchanges.append, lambda secret: secret, shield=False)
        self.flow: FlowSink = self.pipeline.open_flow(Flow("10.1.0.7:4000", "10.2.0.9:80", 1, is_midstream=is_midstream))
        self.now = 1
        if hello:
            self.client(HELLO).server(SERVER_HELLO)

    def client(self, *pieces: bytes) -> Wire:
        for data in pieces:
            self.now += 1_000_000
            self.flow.first.data(self.now, data)
        return self

    def server(self, *pieces: bytes) -> Wire:
        for data in pieces:
            self.now += 1_000_000
            self.flow.second.data(self.now, data)
        return self

    def call(self, stream: int = 1, fields: Fields | None = None, body: bytes = BODY) -> Wire:
        return self.client(self.c.headers(stream, fields or request()) + self.c.data(stream, body, ends=True))

    def answer(self, stream: int = 1, body: bytes = WHOLE) -> Wire:
        return self.server(self.s.headers(stream, response()) + self.s.data(stream, body, ends=True))

    def end(self, reason: str = "fin") -> list[Exchange]:
        self.flow.first.end(self.now, reason)
        self.flow.second.end(self.now, reason)
        self.flow.close(self.now, reason)
        account = self.pipeline.account
        assert account.held == account.fixed
        return self.exchanges

    @property
    def anomalies(self) -> dict[str, int]:
        return dict(self.pipeline.anomalies)


def said(exchanges: list[Exchange]) -> list[tuple[str | None, int | None, str | None, str | None, str]]:
    return [(e.method, e.status, e.input_text, e.output_text, e.completeness) for e in exchanges]


WELL = ("POST", 200, "hi", "hello", "complete")


# --- messages ----------------------------------------------------------------------------------------------------------------


def test_a_stream_is_an_exchange_whatever_carried_it() -> None:
    (exchange,) = Wire().call().answer().end()
    assert said([exchange]) == [WELL]
    assert (exchange.http_version, exchange.path, exchange.provider, exchange.api) == (
        "2",
        "/v1/chat/completions",
        "openai_compatible",
        "openai.chat",
    )
    assert (exchange.client, exchange.server) == ("10.1.0.7:4000", "10.2.0.9:80")


def test_the_authority_is_the_host() -> None:
    (exchange,) = Wire().call(fields=request(host=b"api.groq.com")).answer().end()
    assert exchange.provider == "groq"


def test_streams_that_interleave_keep_their_texts_apart() -> None:
    wire = Wire().call(1).call(3)
    wire.server(wire.s.headers(3, STREAM), wire.s.headers(1, STREAM))
    for n in range(5):
        wire.server(wire.s.data(1, event(f"a{n}")) + wire.s.data(3, event(f"b{n}")))
    exchanges = wire.server(wire.s.data(1, DONE, ends=True), wire.s.data(3, DONE, ends=True)).end()
    assert [(e.output_text, e.completeness, e.streaming) for e in exchanges] == [
        ("a0a1a2a3a4", "complete", True),
        ("b0b1b2b3b4", "complete", True),
    ]
    assert len({e.exchange_id for e in exchanges}) == 2


def test_a_server_that_speaks_first_is_the_server_still() -> None:
    wire = Wire(hello=False).server(SERVER_HELLO).client(HELLO)
    assert said(wire.call().answer().end()) == [WELL]


def test_the_process_that_is_watched_may_be_the_server() -> None:
    """Probes name the watched process first, whoever opened the connection."""
    wire = Wire(hello=False)
    wire.server(HELLO).client(SERVER_HELLO)
    wire.server(wire.c.headers(1, request()) + wire.c.data(1, BODY, ends=True))
    (exchange,) = wire.client(wire.s.headers(1, response()) + wire.s.data(1, WHOLE, ends=True)).end()
    assert said([exchange]) == [WELL]
    assert exchange.client == "10.2.0.9:80"


def test_cookies_in_pieces_are_one_header() -> None:
    from llmsec_tap.wire.http2.streams import _head

    block = HeaderTable(is_whole=True).read(
        hpack.Encoder().encode([(b":path", b"/"), (b"cookie", b"a=1"), (b"x", b"y"), (b"cookie", b"b=2")])
    )
    assert _head(1, block).headers == [(b"cookie", b"a=1; b=2"), (b"x", b"y")]


@pytest.mark.parametrize(
    ("what", "make"),
    [
        ("padding", lambda s: s.headers(1, response()) + frame(DATA, 1, b"\x05" + WHOLE + bytes(5), PADDED | END_STREAM)),
        ("all padding", lambda s: s.headers(1, response()) + frame(DATA, 1, b"\x05" + bytes(5), PADDED) + s.data(1, WHOLE, ends=True)),
        (
            "interim",
            lambda s: s.headers(1, [(b":status", b"103"), (b"link", b"</x>")]) + s.headers(1, response()) + s.data(1, WHOLE, ends=True),
        ),
        ("trailers", lambda s: s.headers(1, response()) + s.data(1, WHOLE) + s.headers(1, [(b"x-checksum", b"1")], ends=True)),
        ("an empty frame at the end", lambda s: s.headers(1, response()) + s.data(1, WHOLE) + frame(DATA, 1, b"", END_STREAM)),
        ("unknown frames", lambda s: s.headers(1, response()) + frame(0xBE, 1, b"x" * 50) + s.data(1, WHOLE, ends=True)),
        ("reset after its end", lambda s: s.headers(1, response()) + s.data(1, WHOLE, ends=True) + frame(RST_STREAM, 1, bytes(4))),
        ("reserved bit", lambda s: s.headers(1, response()) + frame(DATA, 1 | 1 << 31, WHOLE, END_STREAM)),
    ],
)
@pytest.mark.parametrize("cut", [1, 2, 7, 10_000])
def test_what_endpoints_may_do_changes_nothing(what: str, make: Callable[[Side], bytes], cut: int) -> None:
    wire = Wire().call()
    data = make(wire.s)
    exchanges = wire.server(*(data[at : at + cut] for at in range(0, len(data), cut))).end()
    assert said(exchanges) == [WELL], what
    assert wire.anomalies == {}


def test_a_block_over_many_frames_is_one_head() -> None:
    wire = Wire()
    block = wire.c.encoder.encode(request(b"/v1/chat/completions", (b"x-long", b"y" * 5000)))
    pieces = [block[at : at + 100] for at in range(0, len(block), 100)]
    wire.client(frame(HEADERS, 1, pieces[0]))
    wire.client(*(frame(CONTINUATION, 1, piece) for piece in pieces[1:-1]))
    wire.client(frame(CONTINUATION, 1, pieces[-1], END_HEADERS) + wire.c.data(1, BODY, ends=True))
    assert said(wire.answer().end()) == [WELL]


def test_what_a_server_pushes_is_an_exchange() -> None:
    wire = Wire().call()
    pushed = [(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"model"), (b":path", b"/style.css")]
    wire.server(frame(PUSH_PROMISE, 1, struct.pack(">I", 2) + wire.s.encoder.encode(pushed), END_HEADERS))
    wire.answer(1).server(wire.s.headers(2, response(b"200", b"text/css")) + wire.s.data(2, b"body{}", ends=True))
    assert [(e.method, e.path, e.completeness) for e in wire.end()] == [
        ("POST", "/v1/chat/completions", "complete"),
        ("GET", "/style.css", "complete"),
    ]


def test_a_stream_that_is_reset_is_aborted_with_what_had_come() -> None:
    wire = Wire().call()
    wire.server(wire.s.headers(1, STREAM) + wire.s.data(1, event("a"))).client(frame(RST_STREAM, 1, struct.pack(">I", 8)))
    wire.server(wire.s.data(1, event("late")))
    exchanges = wire.call(3).answer(3).end()
    assert [(e.output_text, e.completeness) for e in exchanges] == [("a", "aborted"), ("hello", "complete")]


def test_streams_beyond_a_goaway_are_over() -> None:
    wire = Wire().call(1).call(3).server(frame(GOAWAY, 0, struct.pack(">II", 1, 0) + b"bye")).answer(1)
    assert [(e.status, e.completeness) for e in wire.exchanges] == [(None, "aborted"), (200, "complete")]
    assert len(wire.end()) == 2


def test_an_upgrade_from_http1_answers_on_the_first_stream() -> None:
    wire = Wire(hello=False)
    call = b"POST /v1/chat/completions HTTP/1.1\r\nHost: m\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: \r\n"
    wire.client(call + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY)
    wire.server(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n" + SERVER_HELLO)
    wire.client(HELLO).answer(1).call(3).answer(3)
    exchanges = wire.end()
    assert said(exchanges) == [WELL, WELL]
    assert [e.http_version for e in exchanges] == ["1.1", "2"]


def test_http1_in_answer_to_http2_is_said() -> None:
    wire = Wire(hello=False).client(HELLO).server(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    assert wire.end() == []
    assert wire.anomalies == {"http2_refused": 1}


# --- loss --------------------------------------------------------------------------------------------------------------------


def test_a_gap_inside_a_stream_costs_that_stream_only() -> None:
    wire = Wire().call(1).call(3)
    wire.server(wire.s.headers(1, STREAM) + wire.s.headers(3, STREAM) + wire.s.data(3, event("b")))
    lost = wire.s.data(1, event("a") * 10)
    wire.server(lost[:40])
    wire.flow.second.gap(wire.now, len(lost) - 60)
    wire.server(lost[-20:] + wire.s.data(1, event("c") + DONE, ends=True), wire.s.data(3, DONE, ends=True))
    assert [(e.output_text, e.completeness) for e in wire.end()] == [("c", "gapped"), ("b", "complete")]


def test_after_a_loss_of_frames_the_next_ones_are_found() -> None:
    wire = Wire().call(1).call(3)
    wire.server(wire.s.headers(1, STREAM) + wire.s.data(1, event("a")))
    lost = wire.s.headers(3, response(b"200", b"text/event-stream", (b"x-request-id", b"abc"))) + wire.s.data(3, event("lost"))
    wire.flow.second.gap(wire.now, len(lost))
    wire.server(wire.s.data(3, event("b")) + wire.s.data(1, event("c")), wire.s.data(3, DONE, ends=True), wire.s.data(1, DONE, ends=True))
    wire.call(5).server(
        wire.s.headers(5, response(b"200", b"application/json", (b"x-request-id", b"abc"))) + wire.s.data(5, WHOLE, ends=True)
    )
    exchanges = sorted(wire.end(), key=lambda e: e.started_ns)
    assert [(e.status, e.output_text, e.completeness) for e in exchanges] == [
        (200, "ac", "gapped"),
        (None, "b", "gapped"),
        (200, "hello", "complete"),
    ]
    # The value of x-request-id was in the table by what was lost.
    assert "http2_header_unknown" in [a.name for a in exchanges[2].anomalies]


def test_a_loss_in_the_middle_of_large_frames_is_recovered_from() -> None:
    wire = Wire().call(1).call(3)
    big = wire.s.headers(1, STREAM) + wire.s.data(1, event("x" * 16000)) + wire.s.data(1, event("y" * 16000))
    wire.server(big[:5000])
    wire.flow.second.gap(wire.now, 20000)
    rest = big[25000:] + wire.s.data(1, event("z") + DONE, ends=True)
    wire.server(*(rest[at : at + 1448] for at in range(0, len(rest), 1448)))
    exchanges = wire.answer(3).end()
    assert [(e.output_text, e.completeness) for e in exchanges] == [("z", "gapped"), ("hello", "complete")]


@pytest.mark.parametrize("skipped", range(8))
def test_joined_in_the_middle_no_text_is_lost_that_was_captured(skipped: int) -> None:
    """Frames: request 1, request 3, head 1, head 3, then events of both."""
    wire = Wire(is_midstream=True, hello=False)
    c, s = Side(), Side()
    turns: list[tuple[int, bytes]] = []
    for stream in (1, 3):
        turns.append(
            (0, c.headers(stream, request(b"/v1/chat/completions", (b"authorization", b"Bearer k"))) + c.data(stream, BODY, ends=True))
        )
    turns += [(1, s.headers(1, STREAM)), (1, s.headers(3, STREAM))]
    turns += [(1, s.data(stream, event(f"{stream}"))) for _ in range(2) for stream in (1, 3)]
    turns += [(1, s.data(stream, DONE, ends=True)) for stream in (1, 3)]
    for side, data in turns[skipped:]:
        (wire.server if side else wire.client)(data)
    exchanges = wire.end()
    expected = [{"11", "33"}] * 5 + [{"1", "33"}, {"1", "3"}, {"", "3"}]
    assert {e.output_text or "" for e in exchanges} == expected[skipped]
    assert all(e.input_text == "hi" for e in exchanges if e.method)
    assert len([e for e in exchanges if e.completeness == "midstream"]) == min(2, skipped)


# --- damage and hostility ----------------------------------------------------------------------------------------------------

BAD: list[tuple[str, bytes]] = [
    ("DATA on no stream", frame(DATA, 0, b"x")),
    ("HEADERS on no stream", frame(HEADERS, 0, b"\x82", END_HEADERS)),
    ("SETTINGS on a stream", frame(SETTINGS, 1)),
    ("SETTINGS of seven bytes", frame(SETTINGS, 0, b"x" * 7)),
    ("RST_STREAM of three bytes", frame(RST_STREAM, 1, b"xxx")),
    ("PING of one byte", frame(6, 0, b"x")),
    ("WINDOW_UPDATE of one byte", frame(8, 0, b"x")),
    ("GOAWAY of one byte", frame(GOAWAY, 0, b"x")),
    ("CONTINUATION of nothing", frame(CONTINUATION, 1, b"\x82", END_HEADERS)),
    ("padding longer than the frame", frame(DATA, 1, b"\xffx", PADDED)),
    ("padding of an empty frame", frame(DATA, 1, b"", PADDED)),
    ("padding longer than the headers", frame(HEADERS, 9, b"\xff\x82", PADDED | END_HEADERS)),
    ("priority cut short", frame(HEADERS, 9, b"\0\0", 0x20 | END_HEADERS)),
    ("a promise of nothing", frame(PUSH_PROMISE, 1, b"\0\0", END_HEADERS)),
    ("a promise of stream 0", frame(PUSH_PROMISE, 1, bytes(4) + b"\x82", END_HEADERS)),
    ("another frame inside a block", frame(HEADERS, 9, b"\x82") + frame(DATA, 9, b"x")),
]
BLOCKS: list[tuple[str, bytes]] = [
    ("index 0", b"\x80"),
    ("an entry that is not there", b"\xfe"),
    ("an integer without end", b"\xff" + b"\xff" * 20),
    ("an integer cut short", b"\xff\xff"),
    ("a string beyond the end", b"\x00\x7fab"),
    ("no name", b"\x00\x00\x01x"),
    ("Huffman with the end inside", b"\x00\x84\xff\xff\xff\xff\x01x"),
    ("Huffman padded with zeros", b"\x00\x81\x00\x01x"),
    ("a size update", b"\x3f\xff\xff\xff\x7f\x82"),
]


@pytest.mark.parametrize(("what", "bad"), BAD, ids=[name for name, _ in BAD])
def test_a_frame_that_none_may_send_is_passed_over(what: str, bad: bytes) -> None:
    wire = Wire().call(1).server(bad)
    exchanges = wire.answer(1).call(3).answer(3).end()
    assert wire.anomalies.get("http2_bad_frame") == 1, what
    assert [e.output_text for e in exchanges if e.method == "POST"] == ["hello", "hello"]


@pytest.mark.parametrize(("what", "block"), BLOCKS, ids=[name for name, _ in BLOCKS])
def test_a_block_that_cannot_be_decoded_costs_its_headers_only(what: str, block: bytes) -> None:
    wire = Wire().client(frame(HEADERS, 1, block, END_HEADERS) + frame(DATA, 1, BODY, END_STREAM)).answer(1)
    exchanges = wire.call(3).answer(3).end()
    assert [e.output_text for e in exchanges][-1] == "hello", what
    assert exchanges[0].request.body_bytes == len(BODY)
    assert (wire.anomalies.get("http2_bad_block") == 1) is (what != "a size update")


def test_a_flood_of_continuations_is_bounded() -> None:
    wire = Wire().client(frame(HEADERS, 1, b""))
    for _ in range(200):
        wire.client(frame(CONTINUATION, 1, b"\x00\x7f\x80\x7f" + b"a" * 16000))
        assert wire.pipeline.account.held < 2 * limits.MAX_HEAD_BYTES
    assert wire.anomalies["http_head_limit"] >= 1
    wire.end()


def test_a_block_that_grows_when_decoded_is_bounded() -> None:
    wire = Wire()
    add = wire.c.encoder.encode([(b"x", b"y" * 4000)])
    wire.client(frame(HEADERS, 1, b"\x83\x84" + add + b"\xbe" * 16000, END_HEADERS | END_STREAM)).answer(1)
    (exchange,) = wire.end()
    assert exchange.method == "POST"
    assert "http_header_limit" in [a.name for a in exchange.anomalies]


def test_a_rapid_reset_holds_nothing() -> None:
    wire = Wire()
    for stream in range(1, 4001, 2):
        wire.client(wire.c.headers(stream, request()) + frame(RST_STREAM, stream, struct.pack(">I", 8)))
        assert wire.pipeline.account.held < 64 * limits.KIB
    assert [e.completeness for e in wire.end()] == ["aborted"] * 2000


def test_open_streams_are_within_the_account() -> None:
    exchanges: list[Exchange] = []
    pipeline = Pipeline(exchanges.append, lambda secret: secret, shield=False, memory_cap_bytes=4 * limits.MIB)
    flow = pipeline.open_flow(Flow("10.1.0.7:4000", "10.2.0.9:80", 1, is_midstream=False))
    client = Side()
    flow.first.data(1, HELLO)
    for stream in range(1, 2001, 2):
        flow.first.data(stream, client.headers(stream, request()) + client.data(stream, BODY))
        assert pipeline.account.held <= pipeline.account.limit
    flow.close(9999, "fin")
    assert len(exchanges) == 1000
    assert pipeline.account.held == pipeline.account.fixed


@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=60)), max_size=20), st.booleans())
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_taken(pieces: list[tuple[bool, bytes]], is_midstream: bool) -> None:
    wire = Wire(is_midstream=is_midstream)
    for side, data in pieces:
        (wire.client if side else wire.server)(data)
    wire.end()


@pytest.mark.parametrize("seed", range(20))
def test_how_bytes_are_cut_makes_no_difference(seed: int) -> None:
    rng = random.Random(seed)
    c, s = Side(random.Random(seed)), Side(random.Random(seed))
    up = HELLO + b"".join(c.headers(n, request()) + c.data(n, BODY, ends=True) for n in (1, 3, 5))
    down = SERVER_HELLO + b"".join(s.headers(n, response()) + s.data(n, WHOLE, ends=True) for n in (3, 1, 5))
    if seed % 2:
        at = rng.randrange(len(down))
        down = down[:at] + rng.randbytes(3) + down[at + 3 :]

    def run(cut: Callable[[], int]) -> list[bytes]:
        wire = Wire(hello=False)
        for data, say in ((up, wire.client), (down, wire.server)):
            at = 0
            while at < len(data):
                size = cut()
                say(data[at : at + size])
                at += size
            wire.now = 1_000_000_000
        return [re.sub(rb'"(\w+_ns|exchange_id|\w*_ms\w*)":[^,]*,', b"", to_json(e)) for e in wire.end()]

    assert run(lambda: rng.choice((1, 2, 9, 50))) == run(lambda: 100_000)


# --- header compression ------------------------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.tuples(st.binary(min_size=1, max_size=20), st.binary(max_size=60)), max_size=12), max_size=12), st.booleans())
@settings(max_examples=100, deadline=None)
def test_blocks_read_as_another_reader_reads_them(blocks: list[list[tuple[bytes, bytes]]], coded: bool) -> None:
    encoder, table = hpack.Encoder(), HeaderTable(is_whole=True)
    for number, fields in enumerate(blocks):
        lower = [(name.lower(), value) for name, value in fields]
        if number == 5:
            encoder.header_table_size = 100
        assert table.read(encoder.encode(lower, huffman=coded)).headers == lower


def test_every_byte_has_its_huffman_code() -> None:
    from hpack.huffman import HuffmanEncoder
    from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH

    encoder = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)
    for data in (bytes([value, other]) for value in range(256) for other in (0, 97, 255)):
        assert huffman.decode(encoder.encode(data)) == data


def test_after_a_loss_what_was_added_since_is_known() -> None:
    encoder, table = hpack.Encoder(), HeaderTable(is_whole=True)
    table.read(encoder.encode([(b"a", b"1"), (b"b", b"2")]))
    table.lose()
    encoder.encode([(b"c", b"3")])  # lost
    assert table.read(encoder.encode([(b"d", b"4")])).headers == [(b"d", b"4")]
    found = table.read(encoder.encode([(b"d", b"4"), (b"c", b"3"), (b"a", b"1")]))
    assert (found.headers, found.unknown, found.is_broken) == ([(b"d", b"4")], 2, False)


# --- the same conversations over both versions ----------------------------------------------------------------------------------


def _comparable(exchange: Exchange) -> dict[str, object]:
    """Without the version, and what comes of other times and framings of the same bytes."""
    value = json.loads(to_json(exchange))
    for name in [name for name in value if name.endswith(("_ns", "_ms", "_p50", "_p95", "_per_s"))] + ["exchange_id", "http_version"]:
        value.pop(name, None)
    return value


def _captures() -> list[Path]:
    """Those of HTTP/1 alone: after an upgrade the bytes are another protocol's, which HTTP/2 carries otherwise (RFC 8441)."""
    return [LIVE, *(path for path in sorted((FIXTURES / "golden").glob("*.pcap*")) if "websocket" not in path.name)]


def _is_whole(exchange: Exchange) -> bool:
    return exchange.completeness == "complete" and not any(
        a.name.startswith(("tcp_", "http_", "packet_", "ip_")) for a in exchange.anomalies
    )


@pytest.mark.parametrize("capture", _captures(), ids=lambda path: path.name)
def test_the_shipped_captures_say_the_same_over_http2(capture: Path) -> None:
    from llmsec_tap.capture.files.pcap import CaptureReader

    hearing = Hearing()
    CaptureReader(hearing).read(str(capture))
    hearing.close()
    expected, _ = replay(capture)
    for (client, server), exchanges in hearing.said.items():
        (host, port), (there, at) = ((end.rpartition(":")[0].strip("[]"), int(end.rpartition(":")[2])) for end in (client, server))
        talk = as_http2(exchanges, Talk(client=(host, port), server=(there, at), now_ns=START_NS), random.Random(str(client)))
        found, _ = replay(pcap(talk.frames))
        ours = sorted((e for e in found), key=lambda e: e.started_ns)
        theirs = sorted((e for e in expected if (e.client, e.server) == (client, server)), key=lambda e: e.started_ns)
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            if _is_whole(other):
                assert _comparable(one) == _comparable(other)
