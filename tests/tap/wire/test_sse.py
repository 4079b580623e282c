"""Rules of https://html.spec.whatwg.org/multipage/server-sent-events.html, and what an observer adds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsec_tap import limits
from llmsec_tap.wire.sse import SSEParser
from support.streams import feed_every_way


def run(pieces: list[bytes], *, end: bool = True) -> tuple[list[tuple[str | None, bytes]], list[str], bool]:
    events: list[tuple[str | None, bytes]] = []
    anomalies: list[str] = []
    parser = SSEParser(lambda _ts, name, data: events.append((name, data)), anomalies.append)
    for piece in pieces:
        parser.feed(0, piece)
    if end:
        parser.end(0)
    return events, anomalies, parser.unfinished


CASES = [
    ("one event", b"data: a\n\n", [(None, b"a")]),
    ("no space after the colon (TGI)", b"data:a\n\n", [(None, b"a")]),
    ("only one space is dropped", b"data:  a\n\n", [(None, b" a")]),
    ("CRLF", b"data: a\r\n\r\ndata: b\r\n\r\n", [(None, b"a"), (None, b"b")]),
    ("CR alone", b"data: a\r\rdata: b\r\r", [(None, b"a"), (None, b"b")]),
    ("mixed line ends", b"event: x\rdata: a\ndata: b\r\n\n", [("x", b"a\nb")]),
    ("several data lines join with LF", b"data: a\ndata:\ndata: b\n\n", [(None, b"a\n\nb")]),
    ("BOM", b"\xef\xbb\xbfdata: a\n\n", [(None, b"a")]),
    ("BOM only at the start", b"data: a\n\n\xef\xbb\xbfdata: b\n\n", [(None, b"a")]),
    ("comments", b": ping\n\ndata: a\n: more\n\n", [(None, b"a")]),
    ("event name", b"event: message_start\ndata: {}\n\ndata: b\n\n", [("message_start", b"{}"), (None, b"b")]),
    ("name without data is no event, and is forgotten", b"event: x\n\ndata: a\n\n", [(None, b"a")]),
    ("empty name", b"event:\ndata: a\n\n", [(None, b"a")]),
    ("data without colon is an empty line of data", b"data\n\ndata\ndata\n\n", [(None, b""), (None, b"\n")]),
    ("id and retry are no data", b"id: 1\nretry: 5\ndata: a\n\n", [(None, b"a")]),
    ("unknown fields", b"foo: 1\n data: x\ndata: a\n\n", [(None, b"a")]),
    ("many empty lines", b"\n\n\ndata: a\n\n\n\n", [(None, b"a")]),
    ("invalid UTF-8 stays bytes", b"data: \xff\xfe\n\n", [(None, b"\xff\xfe")]),
    ("NUL stays", b"data: a\0b\n\n", [(None, b"a\0b")]),
]


@pytest.mark.parametrize(("data", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_rules(data: bytes, expected: list[tuple[str | None, bytes]]) -> None:
    events, anomalies, unfinished = feed_every_way(run, data)
    assert events == expected
    assert anomalies == []
    assert not unfinished


@pytest.mark.parametrize("tail", [b"data: b", b"data: b\n", b"data: b\r"])
def test_an_unfinished_last_event_is_given(tail: bytes) -> None:
    assert feed_every_way(run, b"data: a\n\n" + tail) == ([(None, b"a"), (None, b"b")], [], False)


def test_an_event_is_given_when_its_last_byte_comes() -> None:
    seen: list[int] = []
    parser = SSEParser(lambda ts, _name, _data: seen.append(ts), lambda _name: None)
    for ts, piece in enumerate([b"data: a", b"\n", b"\n", b"data: b\n\ndata: c\n\n"]):
        parser.feed(ts, piece)
    assert seen == [2, 3, 3]


def test_a_line_of_eight_mebibytes_is_whole_however_it_is_cut() -> None:
    line = b"x" * (8 * limits.MIB)
    data = b"data: " + line + b"\n\n"
    for size in (1448, 65536, len(data)):
        events, anomalies, _ = run([data[i : i + size] for i in range(0, len(data), size)])
        assert [len(payload) for _, payload in events] == [len(line)]
        assert anomalies == []


def test_over_the_limit_an_event_is_dropped_once_and_the_next_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmsec_tap.wire.sse.MAX_EVENT_BYTES", 100)
    long_line = b"data: " + b"x" * 200 + b"\n\n"
    many_lines = b"data: 0123456789\n" * 20 + b"\n"
    for long in (long_line, many_lines):
        events, anomalies, _ = feed_every_way(run, b"data: a\n\n" + long + b"data: b\n\n")
        assert events == [(None, b"a"), (None, b"b")]
        assert anomalies == ["event_limit"]


def test_a_gap_drops_the_torn_event_only() -> None:
    events: list[bytes] = []
    parser = SSEParser(lambda _ts, _name, data: events.append(data), lambda _name: None)
    parser.feed(0, b'data: 1\n\nevent: x\ndata: {"te')
    parser.gap()
    parser.feed(0, b'xt": 2}\n\ndata: 3\n\n')
    parser.end(0)
    assert events == [b"1", b"3"]


@given(st.lists(st.binary(max_size=40), max_size=12))
def test_any_bytes_in_any_cut_never_raise_and_agree(pieces: list[bytes]) -> None:
    assert run(pieces) == run([b"".join(pieces)])


@given(
    st.lists(
        st.tuples(st.sampled_from([b"", b"\n", b"\r\n", b"\r", b"data: a", b"data", b"event: e", b": c", b"\xef\xbb\xbf"])), max_size=20
    )
)
def test_any_mix_of_lines_in_any_cut_agrees(parts: list[tuple[bytes]]) -> None:
    pieces = [part[0] for part in parts]
    assert run(pieces) == run([b"".join(pieces)])
