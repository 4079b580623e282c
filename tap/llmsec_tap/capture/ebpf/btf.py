"""Offsets of kernel structure members from the running kernel's BTF, for the bcc loader; `core` lets libbpf do it.

Format: https://docs.kernel.org/bpf/btf.html. Only structures and the anonymous ones inside them are followed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from llmsec_tap.errors import KernelError

_HEADER: Final = struct.Struct("<HBBIIIII")
_TYPE: Final = struct.Struct("<III")
_MEMBER: Final = struct.Struct("<III")
_STRUCT, _UNION = 4, 5
# Bytes after a type's own twelve, by kind: fixed, or for each of its `vlen` entries.
_FIXED: Final = {1: 4, 3: 12, 14: 4, 17: 4}
_EACH: Final = {4: 12, 5: 12, 6: 8, 13: 8, 15: 12, 19: 12}
VMLINUX: Final = Path("/sys/kernel/btf/vmlinux")


def member_offsets(wanted: Iterable[tuple[str, str]], data: bytes | None = None) -> dict[tuple[str, str], int]:
    """Byte offsets by (structure, member). Raises KernelError where the kernel has no BTF or lacks one of them."""
    if data is None:
        try:
            data = VMLINUX.read_bytes()
        except OSError:
            raise KernelError(
                "the kernel has no BTF, so where its sockets are is unknown", "Use a kernel with CONFIG_DEBUG_INFO_BTF."
            ) from None
    names = {structure for structure, _ in wanted}
    try:
        found = _members(data, names)
    except (struct.error, IndexError):
        raise KernelError("the kernel's BTF cannot be read", "Please report the kernel's version.") from None
    offsets: dict[tuple[str, str], int] = {}
    for structure, member in wanted:
        if (structure, member) not in found:
            raise KernelError(f"the kernel's struct {structure} has no member {member}", "Please report the kernel's version.")
        offsets[structure, member] = found[structure, member]
    return offsets


def _members(data: bytes, names: set[str]) -> dict[tuple[str, str], int]:
    magic, _, _, header_size, types_at, types_size, strings_at, _ = _HEADER.unpack_from(data)
    if magic != 0xEB9F:
        raise struct.error("no BTF")
    strings = header_size + strings_at
    at, end = header_size + types_at, header_size + types_at + types_size
    places: list[int] = [0]  # of each type id; 0 is void
    roots: list[tuple[str, int]] = []
    while at < end:
        name_at, info, _ = _TYPE.unpack_from(data, at)
        kind, count = info >> 24 & 0x1F, info & 0xFFFF
        places.append(at)
        if kind == _STRUCT and name_at:
            name = _string(data, strings + name_at)
            if name in names:
                roots.append((name, at))
        at += 12 + _FIXED.get(kind, 0) + _EACH.get(kind, 0) * count
    found: dict[tuple[str, str], int] = {}
    for name, place in roots:
        _collect(data, strings, places, name, place, 0, found)
    return found


def _collect(
    data: bytes, strings: int, places: list[int], name: str, place: int, base_bits: int, found: dict[tuple[str, str], int]
) -> None:
    _, info, _ = _TYPE.unpack_from(data, place)
    for index in range(info & 0xFFFF):
        name_at, kind_id, offset = _MEMBER.unpack_from(data, place + 12 + 12 * index)
        bits = base_bits + (offset & 0xFFFFFF if info >> 31 else offset)  # the upper byte is a bit field's size then
        if name_at:
            found.setdefault((name, _string(data, strings + name_at)), bits // 8)
            continue
        inner = places[kind_id]
        if _TYPE.unpack_from(data, inner)[1] >> 24 & 0x1F in (_STRUCT, _UNION):
            _collect(data, strings, places, name, inner, bits, found)


def _string(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode(errors="replace")
