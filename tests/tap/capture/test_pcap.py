"""Capture files: the formats, and what is wrong with bad ones."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsec_tap.capture.files.pcap import CaptureReader
from llmsec_tap.errors import SourceError
from support.wire import block, option, pcap, pcapng

FRAMES = [(1_790_000_000_123_456_789 + i * 1_000_000_007, bytes([i % 256]) * (20 + i)) for i in range(300)]


class Consumer:
    def __init__(self) -> None:
        self.packets: list[tuple[int, int, bytes, int]] = []
        self.begins: list[int] = []

    def capture_begins(self, ts_ns: int) -> None:
        self.begins.append(ts_ns)

    def handler(self, linktype: int) -> Callable[[int, bytes, int, int, int], None]:
        return lambda ts, buffer, start, end, on_wire: self.packets.append((linktype, ts, buffer[start:end], on_wire))


def read(data: bytes) -> list[tuple[int, int, bytes, int]]:
    consumer = Consumer()
    CaptureReader(consumer).read_stream(io.BytesIO(data), "test")
    return consumer.packets


def failing(data: bytes) -> tuple[list[tuple[int, int, bytes, int]], SourceError]:
    consumer = Consumer()
    with pytest.raises(SourceError) as caught:
        CaptureReader(consumer).read_stream(io.BytesIO(data), "test")
    return consumer.packets, caught.value


def expected(unit: int, linktype: int = 1) -> list[tuple[int, int, bytes, int]]:
    return [(linktype, ts // unit * unit, frame, len(frame)) for ts, frame in FRAMES]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("nanoseconds", [True, False])
@pytest.mark.parametrize("wrap", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_pcap(order: str, nanoseconds: bool, wrap: Callable[[bytes], bytes]) -> None:
    data = wrap(pcap(FRAMES, order=order, nanoseconds=nanoseconds, linktype=113))
    assert read(data) == expected(1 if nanoseconds else 1000, 113)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("resolution", [9, 6, 3])
@pytest.mark.parametrize("wrap", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_pcapng(order: str, resolution: int, wrap: Callable[[bytes], bytes]) -> None:
    assert read(wrap(pcapng(FRAMES, order=order, resolution=resolution))) == expected(10 ** (9 - resolution))


def test_pcapng_sections_may_differ_in_byte_order_and_interfaces() -> None:
    data = pcapng(FRAMES[:3], order="<") + pcapng(FRAMES[3:5], order=">", linktype=276)
    assert [packet[0] for packet in read(data)] == [1, 1, 1, 276, 276]


def test_pcapng_binary_resolution_and_offset() -> None:
    interface = struct.pack("<HHI", 1, 0, 0) + option(9, bytes([0x80 | 10])) + option(14, struct.pack("<q", 100)) + option(0, b"")
    packet = struct.pack("<IIIII", 0, 0, 2048 + 512, 1, 1) + b"x\0\0\0"
    data = block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1)) + block(1, interface) + block(6, packet)
    assert read(data) == [(1, 102_500_000_000, b"x", 1)]


def test_pcapng_simple_and_obsolete_packet_blocks() -> None:
    head = block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1)) + block(1, struct.pack("<HHI", 1, 0, 4))
    simple = block(3, struct.pack("<I", 9) + b"abcd")
    obsolete = block(2, struct.pack("<HHIIII", 0, 0, 0, 5, 3, 3) + b"xyz\0")
    assert read(head + simple + obsolete) == [(1, 0, b"abcd", 9), (1, 5000, b"xyz", 3)]


def test_scapy_and_dpkt_files_are_read(tmp_path: Path) -> None:
    import dpkt
    from scapy.utils import PcapNgWriter, PcapWriter

    for make, name in ((PcapWriter, "a.pcap"), (PcapNgWriter, "b.pcapng")):
        writer = make(str(tmp_path / name))
        for _, frame in FRAMES[:5]:
            writer.write(frame)
        writer.close()
        assert [packet[2] for packet in read((tmp_path / name).read_bytes())] == [frame for _, frame in FRAMES[:5]]
    stream = io.BytesIO()
    writer = dpkt.pcapng.Writer(stream)
    for ts, frame in FRAMES[:5]:
        writer.writepkt(frame, ts / 1e9)
    assert [packet[2] for packet in read(stream.getvalue())] == [frame for _, frame in FRAMES[:5]]


def test_several_megabytes_cross_the_read_buffer() -> None:
    frames = [(FRAMES[0][0] + i, os.urandom(1500)) for i in range(3000)]
    for data in (pcap(frames), pcapng(frames)):
        assert [packet[2] for packet in read(data)] == [frame for _, frame in frames]


# --- what is wrong ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [pcap, pcapng])
@pytest.mark.parametrize("cut", [1, 7, 16, 25])
def test_cut_in_mid_packet_keeps_everything_before(make: Callable[..., bytes], cut: int) -> None:
    data = make(FRAMES[:10])
    whole = make(FRAMES[:9]) if make is pcap else data
    packets, fault = failing(data[: len(data) - cut] if make is pcap else data[: len(whole) - 24 - cut])
    assert [packet[2] for packet in packets] == [frame for _, frame in FRAMES[:9]]
    assert "cut in the middle of a" in str(fault)


def test_cut_gzip_keeps_everything_before() -> None:
    data = gzip.compress(pcap([(ts, os.urandom(1000)) for ts, _ in FRAMES]))
    packets, fault = failing(data[: len(data) // 2])
    assert 100 < len(packets) < 200
    assert "gzip" in str(fault)


def test_absurd_lengths_stop_the_reading_there() -> None:
    good = pcap(FRAMES[:4])
    packets, fault = failing(good + struct.pack("<IIII", 1, 1, 0xFFFFFFF0, 10) + b"x" * 5000)
    assert len(packets) == 4
    assert "damaged at byte" in str(fault)
    packets, fault = failing(pcapng(FRAMES[:4]) + struct.pack("<II", 6, 0x7FFFFFFF) + b"x" * 5000)
    assert len(packets) == 4
    packets, _ = failing(pcapng(FRAMES[:4]) + block(6, struct.pack("<IIIII", 9, 0, 0, 1, 1) + b"x"))
    assert len(packets) == 4


@pytest.mark.parametrize(
    "data",
    [b"GET / HTTP/1.1\r\n", b"PK\x03\x04" * 20, b"\0", gzip.compress(b"hello"), b"\x0a\x0d\x0d\x0a" + b"\x1c\0\0\0" + b"nonsense" * 3],
)
def test_what_is_no_capture_is_said(data: bytes) -> None:
    _, fault = failing(data)
    assert "not a capture" in str(fault) or "damaged" in str(fault)


def test_nothing_at_all_is_said() -> None:
    assert "empty" in str(failing(b"")[1])


def test_missing_files_and_folders_are_said(tmp_path: Path) -> None:
    reader = CaptureReader(Consumer())
    with pytest.raises(SourceError, match="No such file"):
        reader.read(str(tmp_path / "none.pcap"))
    with pytest.raises(SourceError, match="is a folder"):
        reader.read(str(tmp_path))
    with pytest.raises(SourceError, match="cannot open"):
        reader.read("a\0b")


def test_stop_ends_the_waiting_for_a_pipe() -> None:
    script = (
        "import sys, signal\n"
        "from llmsec_tap.capture.files.pcap import CaptureReader\n"
        "class C:\n"
        "    def capture_begins(self, ts): pass\n"
        "    def handler(self, linktype):\n"
        "        def packet(*a): print('packet', flush=True)\n"
        "        return packet\n"
        "r = CaptureReader(C())\n"
        "signal.signal(signal.SIGINT, lambda *a: r.stop())\n"
        "r.read('-')\n"
        "print('ended', r.packets, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(pcap(FRAMES[:1]))
    process.stdin.flush()
    assert process.stdout.readline() == b"packet\n", "a packet is given when it comes, not when the pipe ends"
    threading.Timer(0.2, process.send_signal, [2]).start()
    assert process.stdout.readline() == b"ended 1\n"
    process.stdin.close()
    process.stdout.close()
    assert process.wait(10) == 0


@given(st.sampled_from([pcap(FRAMES[:6]), pcapng(FRAMES[:6]), pcapng(FRAMES[:6], order=">")]), st.data())
def test_any_changed_bytes_raise_only_source_errors(whole: bytes, data: st.DataObject) -> None:
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 6))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(SourceError):
        read(bytes(changed[: data.draw(st.integers(0, len(changed)))]))
