"""The record's Python side is its C side."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from llmsec_tap.capture.ebpf import events

BPF = Path(__file__).parents[3] / "bpf"
CODES = {"__u8": "B", "__u16": "H", "__u32": "I", "__u64": "Q"}
BUILT_BY = "14"  # clang's major version that built the shipped object


def record(**fields: int | bytes) -> bytes:
    """A record with these fields; the payload is given as `payload`."""
    payload = fields.pop("payload", b"")
    assert isinstance(payload, bytes)
    values: dict[str, int | bytes] = dict.fromkeys(events.Event._fields, 0) | {"local": bytes(16), "remote": bytes(16), "comm": b"test"}
    values |= {"version": events.VERSION, "type": events.DATA, "length": len(payload)} | fields
    return events.HEADER.pack(*values.values()) + payload


def test_the_layout_is_that_of_the_header_file() -> None:
    text = re.search(r"struct tap_event \{(.*?)\n\};", (BPF / "event.h").read_text(), re.DOTALL)
    assert text is not None
    names, layout = [], "="
    for kind, declared in re.findall(r"^\t(\w+) ([^;]+);", text[1], re.MULTILINE):
        for name in declared.split(", "):
            base, _, count = name.partition("[")
            size = int(count.rstrip("]") or 1) if count else 1
            if base == "reserved":
                layout += f"{struct.calcsize(CODES[kind]) * size}x"
            else:
                names.append(base)
                layout += f"{size}s" if count else CODES[kind]
    assert names == list(events.Event._fields)
    assert struct.calcsize(layout) == events.HEADER_BYTES == 128
    assert layout.replace(" ", "") == str(events.HEADER.format).replace(" ", "").replace("BBBB", "BBBB").replace("QQQQQ", "QQQQQ")


def test_constants_are_those_of_the_header_file() -> None:
    text = (BPF / "event.h").read_text()
    values = {name: int(value) for name, value in re.findall(r"\b(TAP_\w+) = (\d+)", text)}
    for name in ("DATA", "BIND", "CLOSE", "EXEC", "FORK", "EXIT", "MAP", "READ", "WRITE", "CUT", "UNREADABLE", "FRESH"):
        assert values[f"TAP_{name}"] == getattr(events, name)
    defined = {name: int(value) for name, value in re.findall(r"#define (TAP_\w+) (\d+)$", text, re.MULTILINE)}
    assert defined["TAP_EVENT_VERSION"] == events.VERSION
    assert defined["TAP_PART_BYTES"] * defined["TAP_MAX_PARTS"] == events.MAX_CALL_BYTES


def test_decoding() -> None:
    raw = record(payload=b"hello", connection=0xABCDEF0123456789, epoch_ns=7, pid=42, offset=9, family=events.AF_INET, inode=5)
    event = events.decode(raw + b"the size class's rest")
    assert (event.connection, event.epoch_ns, event.pid, event.offset) == (0xABCDEF0123456789, 7, 42, 9)
    assert events.payload(raw + b"rest", event) == b"hello"
    assert events.KEY.unpack_from(raw) == (0xABCDEF0123456789, 7, 42)
    assert events.LENGTH.unpack_from(raw) == (5,)
    assert events.name(event.comm) == "test"


def test_another_version_is_refused() -> None:
    with pytest.raises(ValueError, match="version 2"):
        events.decode(record(version=2))


@pytest.mark.parametrize(
    ("family", "address", "expected"),
    [
        (events.AF_INET, bytes([10, 0, 0, 7]) + bytes(12), "10.0.0.7:80"),
        (events.AF_INET6, bytes(15) + b"\1", "[::1]:80"),
        (events.AF_INET6, bytes(10) + b"\xff\xff" + bytes([10, 0, 0, 7]), "10.0.0.7:80"),
    ],
)
def test_addresses(family: int, address: bytes, expected: str) -> None:
    event = events.decode(record(family=family, inode=1, local=address, remote=address, local_port=80, remote_port=80))
    assert events.addresses(event) == (expected, expected)
    assert events.addresses(event._replace(inode=0)) is None


def test_the_shipped_objects_are_built_from_the_sources(tmp_path: Path) -> None:
    if shutil.which("clang") is None or shutil.which("llvm-strip") is None:
        pytest.skip("clang and llvm-strip are not installed (apt-get install clang llvm libbpf-dev)")
    version = re.search(r"version (\d+)", subprocess.run(["clang", "--version"], capture_output=True, text=True, check=True).stdout)
    if version is None or version[1] != BUILT_BY:
        pytest.skip(f"the shipped object was built by clang {BUILT_BY}, not {version and version[1]}")
    copy = tmp_path / "bpf"
    shutil.copytree(BPF, copy)
    names = ("tap.bpf.o", "tap.aarch64.bpf.o")
    for name in names:
        (copy / name).unlink()
    subprocess.run(["make", "-s", "-C", copy], check=True)
    for name in names:
        assert (copy / name).read_bytes() == (BPF / name).read_bytes(), name
