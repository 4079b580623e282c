"""`--write` files of HTTP/2 hold no credential, however the bytes are cut, and still read as what was said."""

from __future__ import annotations

import itertools
import json

import hpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsec_tap.capture.files.masked import StreamMasker
from llmsec_tap.wire.http2.hpack import HeaderTable
from support.http2 import CONTINUATION, DATA, END_HEADERS, HEADERS, HELLO, PADDED, Fields, Side, frame, request
from support.replay import replay
from support.wire import Talk, pcap

KEY = b"sk-proj-MARKERaMARKERaMARKERaMARKERaMARKERaMARKER"
BODY = json.dumps({"model": "m", "api_key": "MARKERb", "messages": [{"role": "user", "content": "hello"}]}).encode()
SECRETS: Fields = [(b"authorization", b"Bearer " + KEY), (b"x-api-key", KEY), (b"cookie", b"s=" + KEY), (b"x-custom", b"MARKERc")]


def direction(*, coded: bool = True) -> bytes:
    """Three calls; the later ones refer to the headers of the first."""
    client = Side()
    out = HELLO
    for stream in (1, 3, 5):
        block = client.encoder.encode(request(b"/v1/chat/completions", *SECRETS), huffman=coded)
        out += frame(HEADERS, stream, block, END_HEADERS) + client.data(stream, BODY, ends=True)
    return out


def all_it_says(data: bytes) -> bytes:
    """What a reader finds in it: bytes as they are, and headers decoded."""
    table, said, at = HeaderTable(is_whole=False), [data], 24
    while at + 9 <= len(data):
        length = int.from_bytes(data[at : at + 3], "big")
        if data[at + 3] in (HEADERS, CONTINUATION):
            said += [name + b": " + value for name, value in table.read(data[at + 9 : at + 9 + length]).headers]
        at += 9 + length
    return b"\n".join(said)


def masked(pieces: list[bytes]) -> bytes:
    masker = StreamMasker()
    return b"".join(masker.feed(piece) for piece in pieces)


@pytest.mark.parametrize("coded", [False, True])
def test_no_value_that_may_be_a_credential_is_left(*, coded: bool) -> None:
    whole = direction(coded=coded)
    assert b"MARKERa" in all_it_says(whole)
    out = masked([whole])
    assert len(out) == len(whole)
    assert b"MARKER" not in all_it_says(out)


def test_what_is_written_reads_as_the_same_exchange() -> None:
    talk = Talk().open().say(0, masked([direction()])).close()
    exchanges, pipeline = replay(pcap(talk.frames))
    assert [(e.method, e.path, e.input_text) for e in exchanges] == [("POST", "/v1/chat/completions", "hello")] * 3
    assert dict(pipeline.anomalies) == {}


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, len(direction()) - 1), max_size=40, unique=True), st.booleans())
def test_in_any_cut(cuts: list[int], coded: bool) -> None:
    whole = direction(coded=coded)
    ends = [0, *sorted(cut for cut in cuts if cut < len(whole)), len(whole)]
    out = masked([whole[a:b] for a, b in itertools.pairwise(ends)])
    assert len(out) == len(whole)
    said = all_it_says(out)
    assert b"MARKERa" not in said
    assert b"MARKERc" not in said


def test_a_block_over_several_frames_is_left_out() -> None:
    block = hpack.Encoder().encode(request(b"/", *SECRETS), huffman=False)
    whole = HELLO + frame(HEADERS, 1, block[:20]) + frame(CONTINUATION, 1, block[20:], END_HEADERS)
    assert b"MARKER" not in all_it_says(masked([whole]))


def test_after_a_loss_all_is_masked_until_frames_are_seen() -> None:
    masker = StreamMasker()
    whole = direction(coded=False)
    masker.feed(whole[:100])
    masker.skip(50)
    out = masker.feed(whole[150:])
    assert b"MARKER" not in out
    assert b'"hello"' in out


def test_padding_and_priority_stay() -> None:
    block = hpack.Encoder().encode(request(b"/", *SECRETS), huffman=False)
    padded = HELLO + frame(HEADERS, 1, b"\x05" + bytes(4) + b"\x0f" + block + bytes(5), END_HEADERS | PADDED | 0x20)
    out = masked([padded])
    assert b"MARKER" not in out
    assert out.endswith(bytes(5))


def test_joined_in_the_middle() -> None:
    whole = direction(coded=False)
    second = whole.index(frame(DATA, 1, BODY, 1)) + 9 + len(BODY)
    assert b"MARKER" not in masked([whole[second:]])
