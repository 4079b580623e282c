"""aarch64: where functions of real programs return, what is no place for a probe, and numbers of system calls. tests/kernel runs on the host's machine only."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from llmsec_tap import seccomp
from llmsec_tap.capture.probes import arm64, x86
from llmsec_tap.capture.probes.elf import ELFError, ELFFile
from llmsec_tap.capture.probes.machine import HOST

ROOT = Path(__file__).parents[3]
RET, NOP, MOVE, UDF = 0xD65F03C0, 0xD503201F, 0xAA0003E1, 0
LOAD_X0_NEXT = 0x58000040  # ldr x0, 8 bytes on


def code(*words: int) -> bytes:
    return struct.pack(f"<{len(words)}I", *words)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("go") is None:
        pytest.skip("go is not installed (apt-get install golang-go)")
    folder = tmp_path_factory.mktemp("go")
    (folder / "main.go").write_text(
        'package main\n\nimport "fmt"\n\nfunc main() { fmt.Println("for another machine", 0x123456789abcdef) }\n'
    )
    env = {**os.environ, "GOARCH": "arm64", "CGO_ENABLED": "0", "GO111MODULE": "off", "GOCACHE": str(folder / "cache"), "GOFLAGS": ""}
    subprocess.run(["go", "build", "-o", folder / "made", folder / "main.go"], env=env, check=True)
    return folder / "made"


def test_returns_of_go_functions_are_where_gos_own_disassembler_has_them(program: Path) -> None:
    listing = subprocess.run(["go", "tool", "objdump", "-s", r"^fmt\.", program], capture_output=True, text=True, check=True).stdout
    expected: dict[str, list[int]] = {}
    for part in listing.split("TEXT ")[1:]:
        name = part.split("(SB)")[0]
        places = re.findall(r"^\s+\S+\s+0x([0-9a-f]+)\s+[0-9a-f]+\s+(\S+)", part, re.MULTILINE)
        begin = int(places[0][0], 16)
        expected[name] = [int(at, 16) - begin for at, operation in places if operation == "RET"]
    assert len(expected) > 30
    with ELFFile(program, arm64) as file:
        functions = file.functions(tuple(expected))
        assert functions.keys() == expected.keys()
        for name, function in functions.items():
            assert arm64.returns(file.code(function)) == expected[name], name
            assert file.is_function(function.offset, is_named=True), name
            assert not any(file.is_function(function.offset + between, is_named=True) for between in (1, 2, 3))


def test_a_program_of_another_machine_is_not_probed(program: Path) -> None:
    assert HOST is x86, "these tests run on x86-64"
    with pytest.raises(ELFError, match="machine 183, not x86-64"):
        ELFFile(program)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((MOVE, RET), [4]),
        ((0xD65F0BFF, MOVE, 0xD65F0FFF), [0, 8]),  # retaa, retab
        ((MOVE, NOP), []),
        ((0xD65F0020,), []),  # ret x1 jumps; Go and C return by x30
        ((LOAD_X0_NEXT, RET, MOVE), [4]),  # loads what is no return
    ],
)
def test_returns(words: tuple[int, ...], expected: list[int]) -> None:
    assert arm64.returns(code(*words)) == expected


@pytest.mark.parametrize("load", [LOAD_X0_NEXT, 0x18000040, 0x1C000040, 0x5C000040, 0x9C000040])
def test_a_constant_that_looks_like_a_return_is_doubt(load: int) -> None:
    with pytest.raises(x86.UnknownInstruction):
        arm64.returns(code(load, RET, RET))
    with pytest.raises(x86.UnknownInstruction):
        arm64.returns(code(NOP, RET, 0x58FFFFE0))  # ldr x0, 4 bytes back
    with pytest.raises(x86.UnknownInstruction):
        arm64.returns(code(RET)[:3])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((MOVE, MOVE, MOVE, MOVE), True),
        ((RET,), True),
        ((MOVE, 0x14000010), True),
        ((MOVE,), False),
        ((UDF, MOVE, MOVE, MOVE), False),
        ((MOVE, 0xFFFFFFFF, MOVE, MOVE), False),
        ((0x02000000, MOVE, MOVE, MOVE), False),
        ((), False),
    ],
)
def test_where_code_may_begin(words: tuple[int, ...], expected: bool) -> None:
    assert arm64.begins(code(*words)) is expected


@pytest.mark.parametrize(
    ("word", "expected"), [(RET, True), (NOP, True), (UDF, True), (0x17FFFFFF, True), (0xD61F0200, True), (MOVE, False)]
)
def test_what_stands_before_a_function(word: int, expected: bool) -> None:
    assert arm64.ends(code(MOVE, word)) is expected
    assert not arm64.ends(code(word)[1:])


def numbers_of(header: str) -> dict[str, int]:
    path = Path("/usr/include", header)
    if not path.exists():
        pytest.skip(f"{path} is not installed (apt-get install linux-libc-dev)")
    found = {name: int(value) for name, value in re.findall(r"#define __NR(?:3264)?_(\w+) (\d+)$", path.read_text(), re.MULTILINE)}
    return {"newfstatat": found.get("fstatat", 0), **found}


HEADERS = {"x86_64": "x86_64-linux-gnu/asm/unistd_64.h", "aarch64": "asm-generic/unistd.h"}


@pytest.mark.parametrize("machine", HEADERS)
def test_numbers_of_system_calls_are_the_kernels(machine: str) -> None:
    known = numbers_of(HEADERS[machine])
    of = seccomp._MACHINES[machine]
    for name, numbers in (seccomp._ALLOWED | seccomp._NETWORK | seccomp._SERVING).items():
        assert numbers[of.place] == known.get(name), name
    assert (of.clone, of.ioctl, of.prctl, of.seccomp) == tuple(known[name] for name in ("clone", "ioctl", "prctl", "seccomp"))
    header = (ROOT / "bpf/registers.h").read_text()
    parts = header.partition("#else")
    for name, value in re.findall(r"SYS_(\w+) = (\d+)", parts[2 if machine == "x86_64" else 0]):
        assert int(value) == known[name.lower()], name


def test_a_filter_is_of_its_machine() -> None:
    for machine, arch in (("x86_64", 0xC000003E), ("aarch64", 0xC00000B7)):
        filter_ = seccomp.program(network=True, serving=True, machine=machine)
        assert filter_[1][3] == arch
        allowed = {constant for code, _, _, constant in filter_[4:] if code == 0x15}
        table = seccomp._ALLOWED | seccomp._NETWORK | seccomp._SERVING
        place = seccomp._MACHINES[machine].place
        assert allowed >= {numbers[place] for numbers in table.values() if numbers[place] is not None}
        assert None not in allowed
