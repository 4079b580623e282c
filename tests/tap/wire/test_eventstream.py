"""The encoder here is written from the specification; tests/peers compares with botocore's."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsec_tap.wire.eventstream import EventStreamParser, parse_headers
from support.aws import message
from support.streams import feed_every_way


def run(pieces: list[bytes]) -> tuple[list[tuple[str | None, bytes]], list[str], bool]:
    events: list[tuple[str | None, bytes]] = []
    anomalies: list[str] = []
    parser = EventStreamParser(lambda _ts, name, data: events.append((name, data)), anomalies.append)
    for piece in pieces:
        parser.feed(0, piece)
    parser.end(0)
    return events, anomalies, parser.unfinished


A = message({":message-type": "event", ":event-type": "chunk", ":content-type": "application/json"}, b'{"bytes":"e30="}')
B = message({":message-type": "event", ":event-type": "messageStop"}, b'{"stopReason":"end_turn"}')
FAILURE = message({":message-type": "exception", ":exception-type": "throttlingException"}, b'{"message":"slow down"}')


def test_messages() -> None:
    events, anomalies, unfinished = feed_every_way(run, A + B + FAILURE)
    assert events == [
        ("chunk", b'{"bytes":"e30="}'),
        ("messageStop", b'{"stopReason":"end_turn"}'),
        ("exception:throttlingException", b'{"message":"slow down"}'),
    ]
    assert (anomalies, unfinished) == ([], False)


def test_an_error_without_payload_gives_its_message() -> None:
    data = message({":message-type": "error", ":error-code": "InternalServerError", ":error-message": "broken"}, b"")
    assert run([data])[0] == [("exception:InternalServerError", b"broken")]


@pytest.mark.parametrize("at", range(len(A)))
def test_any_flipped_byte_costs_that_message_alone(at: int) -> None:
    damaged = bytearray(A)
    damaged[at] ^= 0x40
    events, anomalies, _ = run([bytes(damaged) + B + FAILURE])
    assert events == [("messageStop", b'{"stopReason":"end_turn"}'), ("exception:throttlingException", b'{"message":"slow down"}')]
    assert anomalies


def test_a_torn_start_is_skipped() -> None:
    events, anomalies, _ = run([A[7:] + B])
    assert [name for name, _ in events] == ["messageStop"]
    assert "eventstream_bad_frame" in anomalies


def test_a_gap_costs_the_torn_messages_alone() -> None:
    events: list[str | None] = []
    parser = EventStreamParser(lambda _ts, name, _data: events.append(name), lambda _name: None)
    parser.feed(0, A + B[:20])
    parser.gap()
    parser.feed(0, B[40:] + FAILURE)
    parser.end(0)
    assert events == ["chunk", "exception:throttlingException"]


def test_an_unfinished_message_is_marked() -> None:
    assert run([A + B[:-1]]) == ([("chunk", b'{"bytes":"e30="}')], [], True)


def test_absurd_lengths_are_no_allocation() -> None:
    prelude = struct.pack(">II", 0xFFFFFFF0, 0)
    events, anomalies, _ = run([prelude + struct.pack(">I", zlib.crc32(prelude)) + A])
    assert [name for name, _ in events] == ["chunk"]
    assert "eventstream_bad_frame" in anomalies


def test_every_header_type_is_skipped_by_its_length() -> None:
    def header(name: bytes, kind: int, value: bytes) -> bytes:
        return bytes([len(name)]) + name + bytes([kind]) + value

    data = b"".join(
        [
            header(b"t", 0, b""),
            header(b"f", 1, b""),
            header(b"b", 2, b"\1"),
            header(b"s", 3, b"\0\1"),
            header(b"i", 4, b"\0" * 4),
            header(b"l", 5, b"\0" * 8),
            header(b"y", 6, b"\0\2ab"),
            header(b"n", 7, b"\0\2cd"),
            header(b"ts", 8, b"\0" * 8),
            header(b"u", 9, b"\0" * 16),
        ]
    )
    assert parse_headers(data) == {"n": "cd"}
    assert parse_headers(data[:-1]) is None
    assert parse_headers(header(b"x", 10, b"")) is None


@given(st.lists(st.binary(max_size=60), max_size=6))
def test_any_bytes_never_raise(pieces: list[bytes]) -> None:
    run(pieces)
    events, _, _ = run([*pieces, A])
    assert len(events) <= 1
