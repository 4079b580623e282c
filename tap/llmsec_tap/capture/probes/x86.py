"""Instruction lengths of 64-bit x86 code: enough to find the return instructions and calls of one function, not a disassembler.

Needed because a byte of value 0xC3 may be part of another instruction, and a probe in the middle of one would crash the process.
So: any byte sequence that is not surely understood ends the walk, and the function is then not probed.
Opcode maps: Intel SDM volume 2, appendix A.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

ELF_MACHINE: Final = 62  # EM_X86_64
NAME: Final = "x86-64"
MULTIARCH: Final = "x86_64-linux-gnu"
LINKER: Final = "/lib64/ld-linux-x86-64.so.2"
ALIGNMENT: Final = 1

_PREFIXES: Final = frozenset(b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3")
_ILLEGAL: Final = frozenset(b"\x06\x07\x0e\x16\x17\x1e\x1f\x27\x2f\x37\x3f\x60\x61\x82\x9a\xce\xd4\xd5\xd6\xea")
# One-byte opcodes without ModRM: sizes of their immediate ("z": 4, or 2 with a 66 prefix).
_IMM8: Final = frozenset(
    [*(base + 4 for base in range(0, 0x40, 8)), 0x6A, *range(0x70, 0x80), 0xA8, *range(0xB0, 0xB8), 0xCD, *range(0xE0, 0xE8), 0xEB]
)
_IMMZ: Final = frozenset([*(base + 5 for base in range(0, 0x40, 8)), 0x68, 0xA9])
_REL32: Final = frozenset((0xE8, 0xE9))
_MODRM: Final = frozenset(
    (
        *(base + low for base in range(0, 0x40, 8) for low in range(4)),
        *(0x63, 0x69, 0x6B, *range(0x80, 0x90), 0xC0, 0xC1, 0xC6, 0xC7),
        *(*range(0xD0, 0xD4), *range(0xD8, 0xE0), 0xF6, 0xF7, 0xFE, 0xFF),
    )
)
_MODRM_IMM8: Final = frozenset((0x6B, 0x80, 0x83, 0xC0, 0xC1, 0xC6))
_MODRM_IMMZ: Final = frozenset((0x69, 0x81, 0xC7))
# Two-byte opcodes (0F xx) without ModRM, and those with an 8-bit immediate after it.
_TWO_PLAIN: Final = frozenset(
    (
        *(0x05, 0x06, 0x07, 0x08, 0x09, 0x0B, 0x0E, 0x30, 0x31, 0x32, 0x33, 0x34, 0x35, 0x37, 0x77),
        *(*range(0xC8, 0xD0), 0xA0, 0xA1, 0xA2, 0xA8, 0xA9, 0xAA),
    )
)
_TWO_IMM8: Final = frozenset((0x70, 0x71, 0x72, 0x73, 0xA4, 0xAC, 0xBA, 0xC2, 0xC4, 0xC5, 0xC6))


class Instruction(NamedTuple):
    at: int
    length: int
    opcode: int  # the first opcode byte; 0x0F for two-byte ones


class UnknownInstruction(Exception):  # noqa: N818 - a verdict, not a fault
    """The walk met bytes that it does not surely understand."""


def instructions(code: bytes) -> Iterator[Instruction]:
    """The instructions of a function from its first byte. Raises UnknownInstruction where the walk cannot be trusted."""
    at = 0
    while at < len(code):
        length, opcode = _length(code, at)
        if at + length > len(code):
            raise UnknownInstruction
        yield Instruction(at, length, opcode)
        at += length


def returns(code: bytes) -> list[int]:
    """Offsets of the near returns."""
    return [found.at for found in instructions(code) if code[found.at] in (0xC2, 0xC3)]


def first_call(code: bytes) -> int | None:
    """Where the first direct near call goes, relative to the function's first byte."""
    for found in instructions(code):
        if found.opcode == 0xE8 and found.length == 5:
            return found.at + 5 + int.from_bytes(code[found.at + 1 : found.at + 5], "little", signed=True)
    return None


def begins(code: bytes) -> bool:
    """Whether code may begin here: some instructions that are understood, or a return or jump before them."""
    try:
        for count, found in enumerate(instructions(code)):
            if found.opcode in _LEAVES or count >= _ENOUGH:
                return True
    except UnknownInstruction:
        return False
    return False


def ends(before: bytes) -> bool:
    """Whether these bytes may be the last of a function or of what fills up to the next."""
    return before[-1:] in _ENDINGS


def falls_on(before: bytes, code: bytes) -> bool:
    """Whether the walks through the bytes before reach the first byte of `code`, rather than pass over it.

    Wherever a walk begins, x86 code falls into step after a few instructions: most of those that begin early enough agree.
    """
    both, mark = before + code, len(before)
    on = over = 0
    for start in range(max(0, mark // 2)):
        at = start
        try:
            while at < mark:
                at += _length(both, at)[0]
        except UnknownInstruction:
            continue
        if at == mark:
            on += 1
        else:
            over += 1
    return on >= over


def is_push(code: bytes) -> bool:
    """Whether the first instruction is a push of a register, which the kernel emulates: probes on it are an order cheaper."""
    return code[:1] in _PUSHES or (code[:1] == b"\x41" and code[1:2] in _PUSHES)


_PUSHES: Final = frozenset(bytes([value]) for value in range(0x50, 0x58))
_LEAVES: Final = frozenset((0xC2, 0xC3, 0xE9, 0xEB))  # ret, jmp
_ENDINGS: Final = frozenset((b"\xc3", b"\xcc", b"\x90", b"\x00"))  # ret, int3, nop, the last byte of a long nop
_ENOUGH: Final = 4


def _length(code: bytes, start: int) -> tuple[int, int]:
    at = start
    operand_16 = address_32 = wide = False
    try:
        while code[at] in _PREFIXES:
            operand_16 |= code[at] == 0x66
            address_32 |= code[at] == 0x67
            at += 1
        if code[at] & 0xF0 == 0x40:
            wide = bool(code[at] & 8)
            at += 1
        opcode = code[at]
        at += 1
        immediate_z = 2 if operand_16 and not wide else 4
        if opcode in (0xC4, 0xC5, 0x62):  # VEX and EVEX: in 64-bit code always, as LDS, LES and BOUND do not exist
            return _vector(code, at, opcode) - start, opcode
        if opcode == 0x0F:
            return _two_byte(code, at, immediate_z) - start, opcode
        if opcode in _MODRM:
            extension = code[at] >> 3 & 7
            at = _modrm(code, at)
            if opcode in _MODRM_IMM8 or (opcode == 0xF6 and extension < 2):
                at += 1
            elif opcode in _MODRM_IMMZ or (opcode == 0xF7 and extension < 2):
                at += immediate_z
        elif opcode in _IMM8:
            at += 1
        elif opcode in _IMMZ:
            at += immediate_z
        elif opcode in _REL32:
            at += 4
        elif 0xB8 <= opcode <= 0xBF:
            at += 8 if wide else immediate_z
        elif 0xA0 <= opcode <= 0xA3:
            at += 4 if address_32 else 8
        elif opcode in (0xC2, 0xCA):
            at += 2
        elif opcode == 0xC8:
            at += 3
        elif opcode in _ILLEGAL:
            raise UnknownInstruction
    except IndexError:
        raise UnknownInstruction from None
    return at - start, opcode


def _modrm(code: bytes, at: int) -> int:
    value = code[at]
    mode, low = value >> 6, value & 7
    at += 1
    if mode == 3:
        return at
    if low == 4:
        if mode == 0 and code[at] & 7 == 5:
            at += 4
        at += 1
    elif mode == 0 and low == 5:
        at += 4  # relative to the instruction pointer
    return at + (1 if mode == 1 else 4 if mode == 2 else 0)


def _two_byte(code: bytes, at: int, immediate_z: int) -> int:
    second = code[at]
    at += 1
    if second in (0x38, 0x3A):
        at = _modrm(code, at + 1)
        return at + (1 if second == 0x3A else 0)
    if 0x80 <= second <= 0x8F:
        return at + 4  # Jcc rel32, whatever the prefixes in 64-bit mode
    if second in _TWO_PLAIN:
        return at
    at = _modrm(code, at)
    return at + (1 if second in _TWO_IMM8 else 0)


def _vector(code: bytes, at: int, opcode: int) -> int:
    if opcode == 0xC5:
        table, at = 1, at + 1
    elif opcode == 0xC4:
        table, at = code[at] & 31, at + 2
    else:
        table, at = code[at] & 7, at + 3
    operation = code[at]
    at += 1
    if table == 1 and operation == 0x77:  # vzeroupper
        return at
    if table not in (1, 2, 3, 5, 6):
        raise UnknownInstruction
    at = _modrm(code, at)
    return at + (1 if table == 3 or (table == 1 and operation in _TWO_IMM8) else 0)
