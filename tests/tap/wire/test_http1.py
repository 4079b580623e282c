"""HTTP/1.x messages: rows named for a behaviour, and what damage may and may not do."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsec_tap import limits
from llmsec_tap.wire.http1 import RequestParser
from llmsec_tap.wire.messages import IGNORED
from support.http_recorder import Recorder
from support.streams import feed_every_way


def message(start: str | int, body: bytes, end: str = "complete") -> tuple[str | int, bytes, str]:
    return start, body, end


def brief(messages: list[dict[str, Any]]) -> list[tuple[str | int, bytes, str | None]]:
    return [(m["start"], m["body"], m.get("end")) for m in messages]


REQUESTS = [
    ("no body", b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n", [message("GET /v1/models", b"")], {}),
    ("content length", b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", [message("POST /", b"abc")], {}),
    (
        "keep-alive and pipelining",
        b"POST /a HTTP/1.1\r\nContent-Length: 1\r\n\r\nxPOST /b HTTP/1.1\r\nContent-Length: 1\r\n\r\nyGET /c HTTP/1.1\r\n\r\n",
        [message("POST /a", b"x"), message("POST /b", b"y"), message("GET /c", b"")],
        {},
    ),
    (
        "chunked with extensions and trailers",
        b'POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n4;ext=1;q="a"\r\nWiki\r\n5 ; x\r\npedia\r\n0\r\nX-Sum: 1\r\n\r\nGET /b HTTP/1.1\r\n\r\n',
        [message("POST /", b"Wikipedia"), message("GET /b", b"")],
        {},
    ),
    (
        "upper case hex and leading zeros",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: CHUNKED\r\n\r\n00A\r\n0123456789\r\n000\r\n\r\n",
        [message("POST /", b"0123456789")],
        {},
    ),
    ("bare LF", b"POST / HTTP/1.1\nContent-Length: 2\n\nab", [message("POST /", b"ab")], {"http_bare_lf": 1}),
    ("empty lines before", b"\r\n\r\nGET / HTTP/1.1\r\n\r\n", [message("GET /", b"")], {}),
    ("absolute target", b"GET http://h/p?q HTTP/1.1\r\n\r\n", [message("GET http://h/p?q", b"")], {}),
    ("same lengths repeated", b"POST / HTTP/1.1\r\nContent-Length: 2, 2\r\nContent-Length: 2\r\n\r\nab", [message("POST /", b"ab")], {}),
    (
        "lengths that disagree",
        b"POST / HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nab",
        [message("POST /", b"ab")],
        {"http_bad_length": 1},
    ),
    ("length that is no number", b"POST / HTTP/1.1\r\nContent-Length: -5\r\n\r\n", [message("POST /", b"")], {"http_bad_length": 1}),
    (
        "length and chunked: chunked wins",
        b"POST / HTTP/1.1\r\nContent-Length: 99\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
        [message("POST /", b"a")],
        {"http_length_and_chunked": 1},
    ),
    ("a line without colon is skipped", b"GET / HTTP/1.1\r\nbroken\r\nHost: a\r\n\r\n", [message("GET /", b"")], {"http_bad_head": 1}),
    ("cut in the body", b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nab", [message("POST /", b"ab", "fin")], {}),
    ("cut in a chunk", b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", [message("POST /", b"ab", "fin")], {}),
    (
        "cut before the last chunk",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n",
        [message("POST /", b"ab", "fin")],
        {},
    ),
    ("cut in the head", b"POST / HTTP/1.1\r\nContent-Le", [], {"http_bad_head": 1}),
]


@pytest.mark.parametrize(("data", "expected", "anomalies"), [row[1:] for row in REQUESTS], ids=[row[0] for row in REQUESTS])
def test_requests(data: bytes, expected: list[Any], anomalies: dict[str, int]) -> None:
    messages, seen = feed_every_way(lambda pieces: Recorder("request").run(pieces), data)
    assert brief(messages) == expected
    assert seen == anomalies


RESPONSES = [
    ("content length", b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", [message(200, b"abc")], {}),
    ("no reason phrase", b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", [message(200, b"")], {}),
    ("read to close", b"HTTP/1.1 200 OK\r\n\r\nab\r\n\r\ncd", [message(200, b"ab\r\n\r\ncd")], {}),
    ("HTTP/1.0", b"HTTP/1.0 200 OK\r\n\r\nab", [message(200, b"ab")], {}),
    (
        "204 and 304 have no body",
        b"HTTP/1.1 204 N\r\n\r\nHTTP/1.1 304 N\r\nContent-Length: 9\r\n\r\nHTTP/1.1 200 O\r\nContent-Length: 1\r\n\r\nx",
        [message(204, b""), message(304, b""), message(200, b"x")],
        {},
    ),
    (
        "interim responses",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: a\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx",
        [message(100, b"", "none"), message(103, b"", "none"), message(200, b"x")],
        {},
    ),
    ("after 101 nothing is read", b"HTTP/1.1 101 Switch\r\nUpgrade: websocket\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", [message(101, b"")], {}),
    (
        "chunked stream",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\ndata: a\n\n\r\n0\r\n\r\n",
        [message(200, b"data: a\n\n")],
        {},
    ),
]


@pytest.mark.parametrize(("data", "expected", "anomalies"), [row[1:] for row in RESPONSES], ids=[row[0] for row in RESPONSES])
def test_responses(data: bytes, expected: list[Any], anomalies: dict[str, int]) -> None:
    messages, seen = feed_every_way(lambda pieces: Recorder("response").run(pieces), data)
    assert [(s, b, e or "none") for s, b, e in brief(messages)] == expected
    assert seen == anomalies


def test_obsolete_folding_is_joined() -> None:
    messages, anomalies = feed_every_way(
        lambda pieces: Recorder("request").run(pieces), b"GET / HTTP/1.1\r\nX-Long: a\r\n  b\r\n\tc\r\nHost : h\r\n\r\n"
    )
    assert messages[0]["headers"] == [("x-long", "a b c"), ("host", "h")]
    assert anomalies == {"http_obs_fold": 2}


def test_a_response_to_head_has_no_body() -> None:
    data = b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n"
    messages, _ = feed_every_way(lambda pieces: Recorder("response", answered="HEAD").run(pieces), data)
    assert brief(messages) == [message(200, b""), message(200, b"")]


def test_after_connect_nothing_is_read() -> None:
    recorder = Recorder("response", answered="CONNECT")
    messages, anomalies = recorder.run([b"HTTP/1.1 200 Connection established\r\n\r\n", b"\x16\x03\x01GET / HTTP/1.1\r\n\r\n"])
    assert brief(messages) == [message(200, b"")]
    assert anomalies == {}


@pytest.mark.parametrize("reason", ["fin", "reset", "expired", "capture_end"])
def test_read_to_close_is_complete_only_by_fin(reason: str) -> None:
    messages, _ = Recorder("response").run([b"HTTP/1.1 200 OK\r\n\r\nab"], end=reason)
    assert messages[0]["end"] == ("complete" if reason == "fin" else reason)


# --- damage -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\x01\x02garbage\r\n\r\n",
        b"NOT HTTP AT ALL\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"G\x00T / HTTP/1.1\r\n\r\n",
        b"HTTP/1.1 2000 x\r\n\r\n",
    ],
)
def test_after_garbage_the_next_message_is_found(garbage: bytes) -> None:
    good = b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 2\r\n\r\nok"
    messages, anomalies = feed_every_way(lambda pieces: Recorder("request").run(pieces)[0], garbage + good), None
    assert brief(messages)[-1] == message("POST /v1/chat/completions", b"ok")
    assert anomalies is None


def test_a_bad_chunk_size_ends_that_body_at_the_next_message() -> None:
    data = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\nlost\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    recorder = Recorder("response")
    messages, anomalies = recorder.run([data])
    assert messages[0]["body"].startswith(b"abc")
    assert messages[0]["end"] == "damage"
    assert brief(messages)[1] == message(200, b"ok")
    assert anomalies["http_bad_chunk"] == 1


@pytest.mark.parametrize("size", [b"+3", b"0x3", b"1_0", b"-1", b"3 3", b"ffffffffffffffffffff"])
def test_chunk_sizes_that_int_would_take_are_refused(size: bytes) -> None:
    _, anomalies = Recorder("response").run([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + size + b"\r\nabc\r\n"])
    assert anomalies.get("http_bad_chunk") == 1


def test_heads_over_the_limit_are_skipped() -> None:
    data = b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * (limits.MAX_HEAD_BYTES // 6 + 10) + b"\r\nGET /next HTTP/1.1\r\n\r\n"
    messages, anomalies = Recorder("request").run([data[i : i + 1448] for i in range(0, len(data), 1448)])
    assert brief(messages) == [message("GET /next", b"")]
    assert anomalies["http_head_limit"] == 1


# --- gaps ---------------------------------------------------------------------------------------------------------------


def run_with_gap(kind: str, before: bytes, length: int | None, after: bytes) -> tuple[list[Any], dict[str, int]]:
    recorder = Recorder(kind)
    recorder.parser.data(0, before)
    recorder.parser.gap(1, length)
    recorder.parser.data(2, after)
    recorder.parser.end(3, "fin")
    return brief(recorder.messages), recorder.anomalies


def test_a_gap_of_known_length_in_a_fixed_body_keeps_both_sides() -> None:
    before = b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc"
    messages, anomalies = run_with_gap("request", before, 4, b"hijGET /b HTTP/1.1\r\n\r\n")
    assert messages == [message("POST /", b"abc<gap>hij"), message("GET /b", b"")]
    assert anomalies == {}


def test_a_gap_to_the_very_end_of_a_body_keeps_the_connection_in_step() -> None:
    before = b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc"
    messages, _ = run_with_gap("request", before, 7, b"GET /b HTTP/1.1\r\n\r\n")
    assert messages == [message("POST /", b"abc<gap>"), message("GET /b", b"")]


def test_a_gap_beyond_a_body_ends_it_and_finds_the_next_message() -> None:
    before = b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc"
    messages, _ = run_with_gap("request", before, 30, b"t: x\r\n\r\nGET /c HTTP/1.1\r\n\r\n")
    assert messages == [message("POST /", b"abc<gap>", "damage"), message("GET /c", b"")]


CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("cut", range(1, 30))
def test_a_gap_in_a_chunked_stream_resumes_at_a_later_chunk(cut: int) -> None:
    """Whatever was lost, the events sent after the next chunk boundary are read, and the message ends where it ends."""
    stream = b"".join(b"%x\r\n%b\r\n" % (len(e), e) for e in (b"data: %02d\n\n" % i for i in range(12))) + b"0\r\n\r\n"
    before, after = stream[: 20 + cut], stream[20 + cut + 31 :]
    for length in (31, None):
        messages, _ = run_with_gap("response", CHUNKS + before, length, after)
        (_, body, end), *rest = messages
        assert rest == []
        assert end == "complete"
        assert b"<gap>" in body
        assert body.endswith(b"data: 09\n\ndata: 10\n\ndata: 11\n\n")


def test_a_gap_in_a_head_loses_that_message_only() -> None:
    messages, anomalies = run_with_gap("request", b"POST / HTTP/1.1\r\nHost", 12, b"x: y\r\n\r\nGET /b HTTP/1.1\r\n\r\n")
    assert messages == [message("GET /b", b"")]
    assert anomalies["http_bad_head"] == 1


def test_a_gap_that_swallows_the_end_and_the_next_head_never_completes_the_first() -> None:
    messages, _ = run_with_gap("response", CHUNKS + b"8\r\ndata: a\n", 400, b"xyz\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nq")
    assert messages[0][2] == "damage"
    assert messages[1] == message(200, b"q")


# --- any input ----------------------------------------------------------------------------------------------------------

_pieces = st.lists(
    st.one_of(
        st.none(),
        st.binary(max_size=40),
        st.sampled_from(
            [
                b"GET / HTTP/1.1\r\n\r\n",
                b"HTTP/1.1 200 OK\r\n\r\n",
                b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\n",
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
                b"5\r\nhello\r\n",
                b"0\r\n\r\n",
                b"\r\n",
                b"HTTP/1.1 2",
                b"Content-Length: 99999999999999999999\r\n",
            ]
        ),
    ),
    max_size=12,
)


@given(st.sampled_from(["request", "response"]), _pieces)
@settings(max_examples=400)
def test_anything_with_gaps_never_raises_and_every_message_ends_once(kind: str, pieces: list[bytes | None]) -> None:
    messages, _ = Recorder(kind).run(pieces)
    assert all("end" in m or m["start"] in range(100, 200) for m in messages)


@given(
    st.sampled_from(["request", "response"]),
    st.lists(
        st.one_of(
            *[
                st.just(p)
                for p in (
                    b"GET / HTTP/1.1\r\n",
                    b"\r\n",
                    b"HTTP/1.1 200 OK\r\n",
                    b"Transfer-Encoding: chunked\r\n",
                    b"3\r\nabc\r\n",
                    b"0\r\n",
                    b"Content-Length: 2\r\n",
                    b"ab",
                )
            ]
        ),
        max_size=14,
    ),
)
@settings(max_examples=300)
def test_how_bytes_are_cut_never_matters(kind: str, parts: list[bytes]) -> None:
    data = b"".join(parts)
    whole = Recorder(kind).run([data])
    assert Recorder(kind).run([data[i : i + 1] for i in range(len(data))]) == whole
    assert Recorder(kind).run(list(parts)) == whole


# --- what servers accept --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_bytes", "anomalies"),
    [
        (b"POST / HTTP/1.1\r\nContent-Length: 00000000000000000000002\r\n\r\nab", {}),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n00000000000000000000002\r\nab\r\n000000000000000000000\r\n\r\n", {}),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2;" + b"e" * 40_000 + b"\r\nab\r\n0\r\n\r\n", {}),
        (b"POST / HTTP/1.1\r\nX: " + b"y" * 1_000_000 + b"\r\nContent-Length: 2\r\n\r\nab", {}),
        (b"POST /" + b"p" * 900_000 + b" HTTP/1.1\r\nContent-Length: 2\r\n\r\nab", {}),
        (b"POST / HTTP/1.1\r\n" + b"X: y\r\n" * 100_000 + b"Content-Length: 2\r\n\r\nab", {"http_header_limit": 1}),
        (
            b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
            {"http_framing_unclear": 1},
        ),
        (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n", {"http_framing_unclear": 1}),
    ],
    ids=["length zeros", "size zeros", "extension", "long head", "long line", "many headers", "two codings", "chunked in 1.0"],
)
@pytest.mark.parametrize("size", [1, 1448, 65536, 1 << 30])
def test_what_servers_accept_is_read(request_bytes: bytes, anomalies: dict[str, int], size: int) -> None:
    follow = b"GET /next HTTP/1.1\r\n\r\n"
    data = request_bytes + follow
    messages, seen = Recorder("request").run([data[at : at + size] for at in range(0, len(data), size)])
    assert [(m["body"], m["end"]) for m in messages] == [(b"ab", "complete"), (b"", "complete")]
    assert seen == anomalies


def test_bytes_outside_of_messages_are_given_out() -> None:
    skipped: list[bytes] = []
    parser = RequestParser(lambda _head: IGNORED, lambda _name: None, on_skipped=skipped.append)
    for piece in (b"GET / HTTP/1.1\r\n\r\n", b'{"messages":', b' "lost"}\n', b"GET / HTTP/1.1\r\n\r\nPOST / HTTP/1.1\r\nX"):
        parser.data(0, piece)
    parser.end(0, "fin")
    assert b"".join(skipped) == b'{"messages": "lost"}\n'
