"""A local user attacks the tap, or others through it, with the files of its own processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.agent import Agent
from support.elf import TEXT_AT, elf, symbol

MAPPER = Path(__file__).parents[1] / "support/callers/hostile_mapper.py"
NOBODY = 65534
# Prints the bytes of its own code, over and over: a breakpoint of the kernel's would show as 0xCC.
VICTIM = """
import mmap, sys, time
with open(sys.argv[1], "rb") as file:
    code = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_EXEC)
before = code[:]
print("ready", flush=True)
deadline = time.monotonic() + 60
while time.monotonic() < deadline:
    if code[:] != before:
        print("changed", flush=True)
    time.sleep(0.001)
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        os.chmod(name, 0o755)  # noqa: PTH101
        yield Path(name)


def hostile_library(folder: Path) -> Path:
    """The attacker's own folder and library, large enough that looking at it takes a while."""
    own = folder / "own"
    own.mkdir()
    path = own / "libssl.so"
    strings = b"\0SSL_read\0SSL_write\0" + b"padding\0" * 500_000
    path.write_bytes(elf(strings, symbol(1, TEXT_AT + 3) + symbol(10, TEXT_AT + 64)))
    os.chown(own, NOBODY, NOBODY)
    os.chown(path, NOBODY, NOBODY)
    return path


@contextmanager
def running(*command: str | Path, user: int) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(command, user=user, group=user, extra_groups=(), stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


@contextmanager
def attacker(folder: Path, *arguments: str | Path) -> Iterator[int]:
    script = shutil.copy(MAPPER, folder)  # the repository may lie where nobody may not look, and so may the Python of the tests
    with running("/usr/bin/python3", script, *arguments, user=NOBODY) as process:
        yield process.pid


def test_no_probe_reaches_a_file_that_the_attacker_only_names(folder: Path) -> None:
    """The path of a mapped library is exchanged for a link to a file that the attacker cannot even read."""
    victim = folder / "victim"
    # mov $0x90909090,%eax over and over: at TEXT_AT + 3 is the middle of an instruction.
    victim.write_bytes(elf(b"\0", b"", text=b"\xb8\x90\x90\x90\x90" * 800))
    victim.chmod(0o600)
    path = hostile_library(folder)
    with running(sys.executable, "-c", VICTIM, victim, user=0) as bystander, attacker(folder, path, "swap", victim) as pid:
        for _ in range(3):
            with Agent("--comm", Path(f"/proc/{pid}/comm").read_text().strip(), "--duration", "2") as agent:
                agent.process.wait(30)
            assert agent.exit_code == 0, agent.said
        bystander.kill()
        assert bystander.stdout is not None
        assert bystander.stdout.read() == ""


def test_a_library_that_is_cut_short_while_it_is_examined_ends_nothing(folder: Path) -> None:
    path = hostile_library(folder)
    with attacker(folder, path, "truncate") as pid:
        for _ in range(3):
            with Agent("--pid", str(pid), "--duration", "1") as agent:
                agent.process.wait(30)
            assert agent.exit_code == 0, agent.said
