"""What begins here, by content alone, and never sooner than the bytes can tell."""

from __future__ import annotations

import pytest

from llmsec_tap import limits
from llmsec_tap.wire.sniff import classify_start, find_message

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"POST /v1/chat/completions HTTP/1.1\r\n", "request"),
        (b"POST /v1/chat/completions HTTP/1.1", "more"),
        (b"\r\n\r\nGET / HTTP/1.0\n", "request"),
        (b"brew /pot HTTP/1.1\r\n", "request"),
        (b"POST /x SPDY/3\r\n", "other"),
        (b"GET " + b"/" * (limits.MAX_HEAD_BYTES + 1), "other"),
        (b"HTTP/1.1 200 OK\r\n", "response"),
        (b"HTTP/", "more"),
        (b"HTTP/1.", "more"),
        (b"HTTP/3.0 200", "other"),
        (PREFACE, "http2"),
        (PREFACE[:5], "more"),
        (b"PRI * HTTP/2.1\r\n", "other"),
        (b"\x16\x03\x01\x02\x00", "tls"),
        (b"\x16\x03", "more"),
        (b"\x16\x04\x01", "other"),
        (b"", "more"),
        (b"\0\0\0", "more"),
        (b"\0\0\x0c\x04\0\0\0\0\0", "http2"),  # a server's SETTINGS
        (b"\0\0\x0d\x04\0\0\0\0\0", "other"),
        (b"\0\0\0\0", "other"),
        (b"\0\0\x0c\x04\0\0\0\0\x01", "other"),
        (b"EHLO x\r\n", "other"),
    ],
)
def test_what_begins(data: bytes, expected: str) -> None:
    assert classify_start(data) == expected


@pytest.mark.parametrize("whole", [b"POST / HTTP/1.1\r\n", b"HTTP/1.1 200 OK\r\n", PREFACE, b"\x16\x03\x01"])
def test_no_beginning_of_it_is_taken_for_something_else(whole: bytes) -> None:
    found = [classify_start(whole[:cut]) for cut in range(len(whole) + 1)]
    settled = [kind for kind in found if kind != "more"]
    assert set(settled) == {classify_start(whole)}
    assert found == ["more"] * (len(found) - len(settled)) + settled


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\nGET / HTTP/1.1\r\n", ("request", 32)),
        (b"tail of a body HTTP/1.1 200 OK\r\nGET / HTTP/1.1\r\n", ("response", 15)),
        (b"no message", None),
        (b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\n" + PREFACE, ("http2", 32)),
        (b"tail\0\0\x02\0\0\0\0\0\x01ab\0\0\x04\x08\0\0\0\0\0\0\0\0\x01", ("http2", 4)),  # DATA, WINDOW_UPDATE
        (bytes(100), None),
        (b"HTTP/1.1 999 \r\n", None),
        (b"", None),
    ],
)
def test_the_first_message_in_bytes_of_unknown_meaning(data: bytes, expected: tuple[str, int] | None) -> None:
    assert find_message(data) == expected
