"""Instructions of 64-bit Arm code: enough to find the return instructions of one function.

Each is four bytes at a multiple of four, so none is in the middle of another. What may stand between them is data: constants that code of
the same function loads. A return among these is none, and a probe on it would change a constant.
Encodings: Arm Architecture Reference Manual for A-profile, chapter C4.
"""

from __future__ import annotations

from typing import Final

from llmsec_tap.capture.probes.x86 import UnknownInstruction

ELF_MACHINE: Final = 183  # EM_AARCH64
NAME: Final = "aarch64"
MULTIARCH: Final = "aarch64-linux-gnu"
LINKER: Final = "/lib/ld-linux-aarch64.so.1"
ALIGNMENT: Final = 4

_RETURNS: Final = frozenset((0xD65F03C0, 0xD65F0BFF, 0xD65F0FFF))  # ret; retaa and retab, which authenticate first
_NOP: Final = 0xD503201F
_ENOUGH: Final = 4


def returns(code: bytes) -> list[int]:
    """Offsets of the returns. Raises UnknownInstruction where one of them may be data."""
    words = _words(code)
    data = {place for at, word in enumerate(words) for place in _loaded(at, word)}
    found = [at for at, word in enumerate(words) if word in _RETURNS]
    if any(at in data for at in found):
        raise UnknownInstruction
    return [at * 4 for at in found]


def begins(code: bytes) -> bool:
    """Whether code may begin here: some instructions of classes that exist, or a return or jump before them."""
    words = _words(code[: len(code) // 4 * 4])
    for count, word in enumerate(words):
        if not _exists(word):
            return False
        if count + 1 >= _ENOUGH or _leaves(word):
            return True
    return False


def ends(before: bytes) -> bool:
    """Whether these bytes may be the last of a function or of what fills up to the next."""
    word = int.from_bytes(before[-4:], "little") if len(before) >= 4 else -1
    return word in _RETURNS or word == _NOP or _leaves(word) or word >> 16 == 0


def falls_on(before: bytes, code: bytes) -> bool:
    """Whether an instruction may begin at the first byte of `code`: all that stand at a multiple of four do."""
    return True


def _words(code: bytes) -> memoryview:
    if len(code) % 4:
        raise UnknownInstruction
    return memoryview(code).cast("I")


def _loaded(at: int, word: int) -> range:
    """Where the constant stands that this instruction loads (LDR literal), as words of the function; two or four of them for the longer ones."""
    if word & 0x3B000000 != 0x18000000:
        return range(0)
    distance = word >> 5 & 0x7FFFF
    first = at + distance - (distance >> 18 << 19)
    kind = word >> 30
    is_vector = bool(word & 0x04000000)
    return range(first, first + ((1, 2, 4)[kind] if is_vector and kind < 3 else 2 if kind == 1 else 1))


def _exists(word: int) -> bool:
    """Main encoding groups: 0001 and 0011 are unallocated, and of 0000 only undefined instructions are common (UDF)."""
    return word >> 25 & 0xF not in (0, 1, 3) and word != 0xFFFFFFFF


def _leaves(word: int) -> bool:
    """A return, a direct jump, or one through a register."""
    return word in _RETURNS or word & 0xFC000000 == 0x14000000 or word & 0xFFFFFC1F == 0xD61F0000
