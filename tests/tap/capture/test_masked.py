"""`--write` files hold no credential, however the bytes are cut; what is no credential stays, and lengths stay."""

from __future__ import annotations

import itertools
import os
import random
import stat
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsec_tap.capture.files.masked import StreamMasker
from llmsec_tap.capture.files.masked_packets import PacketMasker, checksum
from llmsec_tap.capture.files.pcapng import PcapngWriter
from llmsec_tap.errors import SourceError
from support.wire import ipv4, tcp

BODY = (
    b'{"model":"m","api_key":"MARKERe\\"x","metadata":{"password": "MARKERf"},"messages":[{"role":"user","content":"Password: no, hello"}]}'
)
STREAM = (
    b"POST /v1/chat/completions?api_key=MARKERa&x=1&zz=MARKERb HTTP/1.1\r\nHost: node\r\nAuthorization: Bearer MARKERc\r\n"
    b"X-Custom: MARKERd\r\n\tMARKERfolded\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    % len(BODY)
    + BODY
    + b"GET //u:MARKERg@node/bot123456789:MARKERhAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA/x HTTP/1.1\r\nCookie: MARKERi\r\n\r\n"
    b"POST /f HTTP/1.1\r\nContent-Type: multipart/form-data; boundary=B\r\n\r\n"
    b'--B\r\nContent-Disposition: form-data; name="token"\r\n\r\nMARKERj\r\n--B\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nhello\r\n--B--\r\n'
    b"POST /g HTTP/1.1\r\nContent-Length: 30\r\n\r\nmodel=m&password=MARKERk&prompt=x"
)
KEPT = (
    b"POST /v1/chat/completions?api_key=",
    b"&x=1&",
    b"Host: node\r\n",
    b'"model":"m"',
    b'content":"Password: no, hello"',
    b"\r\nhello\r\n--B--",
    b"&prompt=x",
)


def masked(pieces: list[bytes]) -> bytes:
    masker = StreamMasker()
    return b"".join(masker.feed(piece) for piece in pieces)


def test_whole() -> None:
    out = masked([STREAM])
    assert len(out) == len(STREAM)
    assert b"MARKER" not in out
    for kept in KEPT:
        assert kept in out, kept


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, len(STREAM) - 1), max_size=40, unique=True))
def test_in_any_cut(cuts: list[int]) -> None:
    ends = [0, *sorted(cuts), len(STREAM)]
    out = masked([STREAM[a:b] for a, b in itertools.pairwise(ends)])
    assert len(out) == len(STREAM)
    for letter in b"abcdefgijk":  # h is known by its form alone: what came before it was whole is out
        assert b"MARKER%c" % letter not in out


def test_byte_by_byte() -> None:
    out = masked([bytes([byte]) for byte in STREAM])
    assert b"MARKERc" not in out
    for kept in KEPT[2:]:
        assert kept in out, kept


@given(st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=6))
def test_any_bytes_keep_their_number(data: bytes, cuts: list[int]) -> None:
    ends = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    assert len(masked([data[a:b] for a, b in itertools.pairwise(ends)])) == len(data)


def packets(size: int) -> list[bytes]:
    return [ipv4("10.0.0.1", "10.0.0.2", tcp(4000, 8000, 1000 + at, 1, 0x18, STREAM[at : at + size])) for at in range(0, len(STREAM), size)]


def payload(packet: bytes) -> bytes:
    return packet[40:]


def test_packets_in_order_twice_and_early() -> None:
    whole = packets(100)
    order = whole[:3] + whole[1:3] + [whole[4], whole[3]] + whole[5:]
    masker = PacketMasker()
    out = [masker.masked(packet) for packet in order]
    assert [len(packet) for packet in out] == [len(packet) for packet in order]
    assert out[3:5] == out[1:3]
    for packet in out:
        length = len(packet) - 20
        assert checksum(packet[12:20] + struct.pack(">HH", 6, length) + packet[20:]) in (0, 0xFFFF) or packet in order
    text = b"".join(map(payload, [*out[:3], out[6], out[5], *out[7:]]))
    for letter in b"abcdg":
        assert b"MARKER%c" % letter not in text


def test_any_order_keeps_heads_masked() -> None:
    rng = random.Random(5)
    for _ in range(200):
        order = packets(rng.choice((7, 20, 64, 300)))
        for _ in range(rng.randrange(6)):
            a = rng.randrange(1, len(order))
            order.insert(rng.randrange(1, len(order)), order.pop(a))
        masker = PacketMasker()
        assert b"MARKERc" not in b"".join(payload(masker.masked(packet)) for packet in order)


@pytest.mark.parametrize("mode", [0o644, 0o666, 0o600])
def test_the_file_is_private_even_if_it_was_there(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "out.pcapng"
    file.write_bytes(b"x" * 10_000)
    file.chmod(mode)
    PcapngWriter(str(file)).close()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.stat().st_size < 1000


def test_no_link_and_no_pipe_is_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    (tmp_path / "link").symlink_to(target)
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe", "/dev/full"):
        with pytest.raises(SourceError):
            PcapngWriter(str(tmp_path / name))
    assert target.read_bytes() == b"precious"


def test_a_websocket_stays_readable_and_its_key_does_not_stay() -> None:
    asked = (
        b"GET /v1/realtime?model=m HTTP/1.1\r\nHost: node\r\nUpgrade: websocket\r\nSec-WebSocket-Key: MARKERa\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"
        b"Sec-WebSocket-Protocol: realtime, openai-insecure-api-key.MARKERb\r\n\r\n\x81\x85\x01\x02\x03\x04abcde"
    )
    out = masked([asked])
    assert b"MARKER" not in out
    assert len(out) == len(asked)
    for kept in (
        b"Upgrade: websocket\r\n",
        b"Extensions: permessage-deflate; client_max_window_bits\r\n",
        b"\x81\x85\x01\x02\x03\x04abcde",
    ):
        assert kept in out
