from __future__ import annotations

import gzip
import tracemalloc
import zlib

import brotli
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from llmsec_tap import limits
from llmsec_tap.wire.encoding import content_decoder
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
    out = [decoded for piece in pieces for decoded in decoder.feed(piece)]
    return b"".join([*out, *decoder.end()]), anomalies


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
        assert list(decoder.feed(encoder.compress(word) + encoder.flush(zlib.Z_SYNC_FLUSH))) == [word]


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


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "gzip, gzip", "br, zstd"])
@pytest.mark.parametrize("text", [b'{"model":"m"}', b"[", b'  {"prompt":"Gr\xc3\xbc\xc3\x9fe an alle, die das lesen"}', b"data: {}\n\n"])
def test_plain_bytes_under_a_coding_are_read_as_servers_read_them(coding: str, text: bytes) -> None:
    """uvicorn and Go's net/http give the body to the application as it came, whatever Content-Encoding says."""
    out, anomalies = feed_every_way(lambda pieces: run(coding, pieces), text)
    assert out == text
    assert anomalies == ["content_encoding_absent"] * len(coding.split(","))


def test_a_stack_of_which_only_the_outer_coding_is_there() -> None:
    assert run("gzip, zstd", [zstandard.ZstdCompressor().compress(TEXT)]) == (TEXT, ["content_encoding_absent"])


def test_what_could_not_be_decoded_is_there_to_look_at() -> None:
    anomalies: list[str] = []
    decoder = content_decoder("gzip", anomalies.append)
    assert decoder is not None
    damage = b"\x07" + b"x" * 40  # a block of the type that does not exist (RFC 1951 3.2.3)
    assert list(decoder.feed(gzip.compress(TEXT)[:10])) == list(decoder.feed(damage)) == []
    assert (decoder.fault, decoder.undecoded, anomalies) == ("content_encoding_bad", damage, ["content_encoding_bad"])
    assert list(decoder.feed(b"more")) == []
    assert decoder.undecoded == b"more"


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
    assert len(out) <= limits.EXPANSION_FLOOR_BYTES + 9 * limits.MIB


@pytest.mark.parametrize(
    "coding", ["gzip, gzip", "deflate, gzip", "br, gzip", "gzip, br", "zstd, gzip", "gzip, zstd", "gzip, gzip, gzip, gzip"]
)
def test_every_stage_of_a_stack_is_bounded(coding: str) -> None:
    """Few kilobytes that stand for gigabytes: no stage may hold more than pieces of what the one before it gave."""
    zeros = b"\0" * (64 * limits.MIB)
    compress = {
        "gzip": lambda data: gzip.compress(data, 9),
        "deflate": zlib.compress,
        "br": lambda data: brotli.compress(data, quality=5),
        "zstd": zstandard.ZstdCompressor(level=19).compress,
    }
    names = coding.split(", ")
    bomb = compress[names[0]](zeros) * (16 if names[0] in ("gzip", "zstd") else 1)  # members in a row: a gigabyte
    for name in names[1:]:
        bomb = compress[name](bomb)
    tracemalloc.start()
    try:
        anomalies: list[str] = []
        decoder = content_decoder(coding, anomalies.append)
        assert decoder is not None
        size = sum(len(piece) for piece in decoder.feed(bomb))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert anomalies == ["content_encoding_bomb"]
    assert size <= limits.EXPANSION_FLOOR_BYTES + 9 * limits.MIB
    assert peak < 12 * limits.MIB


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
