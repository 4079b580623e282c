from __future__ import annotations

import gzip
import zlib

import brotli
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from llmsec_tap import limits
from llmsec_tap.reassembly.encoding import content_decoder
from support.streams import feed_every_way

TEXT = b'data: {"choices":[{"delta":{"content":"Gr\xc3\xbc\xc3\x9fe"}}]}\n\n' * 5


def raw_deflate(data: bytes) -> bytes:
    encoder = zlib.compressobj(9, zlib.DEFLATED, -15)
    return encoder.compress(data) + encoder.flush()


CODINGS = {
    "gzip": gzip.compress(TEXT),
    "x-gzip": gzip.compress(TEXT),
    "deflate": zlib.compress(TEXT),
    "Deflate ": raw_deflate(TEXT),
    "br": brotli.compress(TEXT),
    "zstd": zstandard.ZstdCompressor().compress(TEXT),
    "gzip, br": brotli.compress(gzip.compress(TEXT)),
    "br, identity, zstd": zstandard.ZstdCompressor().compress(brotli.compress(TEXT)),
}


def run(coding: str, pieces: list[bytes]) -> tuple[bytes, list[str]]:
    anomalies: list[str] = []
    decoder = content_decoder(coding, anomalies.append)
    assert decoder is not None
    return b"".join(decoder.feed(piece) for piece in pieces), anomalies


@pytest.mark.parametrize("coding", CODINGS)
def test_codings(coding: str) -> None:
    assert feed_every_way(lambda pieces: run(coding, pieces), CODINGS[coding]) == (TEXT, [])


def test_several_gzip_members_and_zstd_frames() -> None:
    assert feed_every_way(lambda p: run("gzip", p), gzip.compress(b"a" * 50) + gzip.compress(b"b" * 50)) == (b"a" * 50 + b"b" * 50, [])
    compress = zstandard.ZstdCompressor().compress
    assert feed_every_way(lambda p: run("zstd", p), compress(b"a" * 50) + compress(b"b" * 50)) == (b"a" * 50 + b"b" * 50, [])


def test_decoded_bytes_come_as_soon_as_they_can() -> None:
    """Servers flush a coded stream per event, so each event must be readable when its bytes arrive."""
    encoder = zlib.compressobj(6, zlib.DEFLATED, 31)
    decoder = content_decoder("gzip", lambda _name: None)
    assert decoder is not None
    for word in (b"one", b"two", b"three"):
        assert decoder.feed(encoder.compress(word) + encoder.flush(zlib.Z_SYNC_FLUSH)) == word


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
def test_damage_keeps_what_came_before_and_is_said_once(coding: str) -> None:
    whole = {"gzip": gzip.compress, "deflate": zlib.compress, "br": brotli.compress, "zstd": zstandard.ZstdCompressor().compress}[coding]
    text = bytes(range(256)) * 400
    data = bytearray(whole(text))
    for at in range(len(data) // 2, len(data) // 2 + 40):
        data[at] ^= 0xA5
    out, anomalies = run(coding, [bytes(data[i : i + 100]) for i in range(0, len(data), 100)] + [b"more"])
    assert text.startswith(out[:1])
    assert anomalies in ([], ["content_encoding_bad"])
    out, anomalies = run(coding, [b"this is no coded data at all", b"and more"])
    assert anomalies == ["content_encoding_bad"]


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd"])
def test_a_bomb_stops_near_the_floor(coding: str) -> None:
    zeros = b"\0" * (128 * limits.MIB)
    bomb = {
        "gzip": lambda: gzip.compress(zeros),
        "br": lambda: brotli.compress(zeros, quality=1),
        "zstd": lambda: zstandard.ZstdCompressor().compress(zeros),
    }[coding]()
    out, anomalies = run(coding, [bomb])
    assert anomalies == ["content_encoding_bomb"]
    assert len(out) <= limits.EXPANSION_FLOOR_BYTES + 40 * limits.MIB


def test_unknown_and_too_many_codings_are_kept_as_they_are() -> None:
    for value in ("compress", "gzip, unknown", ", ".join(["gzip"] * 9)):
        anomalies: list[str] = []
        assert content_decoder(value, anomalies.append) is None
        assert anomalies == ["content_encoding_unknown"]
    assert content_decoder("identity", pytest.fail) is None
    assert content_decoder("", pytest.fail) is None


@given(st.sampled_from(["gzip", "deflate", "br", "zstd", "gzip, zstd", "br, deflate"]), st.lists(st.binary(max_size=80), max_size=6))
def test_any_bytes_never_raise(coding: str, pieces: list[bytes]) -> None:
    run(coding, pieces)
