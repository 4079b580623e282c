"""TLS libraries are told as a program starts, from what its file names: before they are mapped."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llmsec_tap.capture.probes import needed
from llmsec_tap.capture.probes.targets import TargetFinder

TLS = "int SSL_read(void *s, void *b, int n) { return n; } int SSL_write(void *s, const void *b, int n) { return n; }"
PROGRAM = "#include <unistd.h>\nint %s; int main(void) { pause(); return 0; }"


def build(out: Path, source: str, *options: str) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    subprocess.run(["gcc", "-x", "c", "-", "-x", "none", "-o", out, *options], input=source.encode(), check=True)
    return out


@contextmanager
def running(program: Path, **env: str) -> Iterator[int]:
    with subprocess.Popen([program], env={"PATH": "/usr/bin", **env}) as process:
        try:
            # The parent goes on while the kernel still lays out the new program, and its environment reads as empty until then.
            deadline = time.monotonic() + 10
            while not Path(f"/proc/{process.pid}/environ").read_bytes() and time.monotonic() < deadline:
                time.sleep(0.001)
            yield process.pid
        finally:
            process.kill()


def told(pid: int) -> list[str]:
    with TargetFinder().look_ahead(pid) as found:
        return [plan.shown for plan in found.plans]


NEEDED = ("-Wl,--no-as-needed", "-Wl,--enable-new-dtags")


@pytest.mark.parametrize("through", ["itself", "another library"])
@pytest.mark.parametrize("by", ["runpath", "environment"])
def test_what_a_program_is_linked_to_is_told(tmp_path: Path, through: str, by: str) -> None:
    library = build(tmp_path / "libssl.so.9", TLS, "-shared", "-fPIC", "-O2", "-Wl,-soname,libssl.so.9")
    linked = library
    where = ["-Wl,-rpath,$ORIGIN"] if by == "runpath" else []
    if through == "another library":
        linked = build(tmp_path / "libmiddle.so", "int middle;", "-shared", "-fPIC", *NEEDED, str(library), *where)
        linked = linked.rename(tmp_path / "libmiddle.so")
    program = build(
        tmp_path / "program", PROGRAM % "x", *NEEDED, f"-L{tmp_path}", f"-l:{linked.name}", f"-Wl,-rpath-link,{tmp_path}", *where
    )
    env = {} if by == "runpath" else {"LD_LIBRARY_PATH": f"relative:{tmp_path}"}
    with running(program, **env) as pid:
        assert told(pid) == [str(library)]


def test_a_program_without_tls_needs_none_and_one_that_is_gone_gives_nothing(tmp_path: Path) -> None:
    program = build(tmp_path / "program", PROGRAM % "x")
    with running(program) as pid:
        assert told(pid) == []
    assert told(pid) == []


def test_names_are_not_looked_up_on_a_file_system_that_may_take_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = build(tmp_path / "libssl.so.9", TLS, "-shared", "-fPIC", "-O2", "-Wl,-soname,libssl.so.9")
    program = build(tmp_path / "program", PROGRAM % "x", *NEEDED, str(library), "-Wl,-rpath,$ORIGIN")
    with running(program) as pid:
        assert told(pid) == [str(library)]
        monkeypatch.setattr(needed, "_LOCAL", frozenset())
        assert told(pid) == []


def test_damage_is_no_hint(tmp_path: Path) -> None:
    data = bytearray(build(tmp_path / "program", PROGRAM % "x").read_bytes())

    for at in range(0, 4096, 7):
        damaged = tmp_path / "damaged"
        damaged.write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
        with needed.OpenFile(os.open(damaged, os.O_PATH)) as file:
            needed.NeededLibraries()._needed_by(file)
