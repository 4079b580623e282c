"""However standard output, the store or detection behave, a capture ends soon, and what was sent is stored or declared lost."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from support.agent import environment
from support.https_calls import Caller
from support.tls_front import Certificate

CALLS = 23
LONG = "a prompt of some length " * 400


class Ended:
    def __init__(self, code: int, seconds: float, said: str) -> None:
        self.code, self.seconds, self.said = code, seconds, said

    def count(self, pattern: str) -> int:
        found = re.search(pattern, self.said)
        return int(found[1].replace(",", "")) if found is not None else 0


@contextmanager
def capture(pid: int, folder: Path, out: int, *options: str) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[int], Ended]]]:
    log = folder / "log"
    command = [sys.executable, "-m", "llmsec_agent.cli.tap.app", "capture", "--pid", str(pid), "--format", "jsonl", *options]
    with log.open("wb") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, env=environment(), cwd=folder)

    def end(number: int) -> Ended:
        begun = time.monotonic()
        process.send_signal(number)
        process.wait(30)
        return Ended(process.returncode, time.monotonic() - begun, log.read_text())

    try:
        deadline = time.monotonic() + 30
        while "Ctrl-C stops" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield process, end
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def call(port: int, certificate: Certificate) -> None:
    caller = Caller(port, certificate.cert)
    for number in range(CALLS):
        caller.ask(f"{number} {LONG}")
    caller.close()
    time.sleep(1.0)


def stored(store: Path) -> int:
    from llmsec_analyzer.stored.session import QuerySession

    with QuerySession.open(store) as session:
        ((count,),) = session.select("SELECT count(*) FROM exchanges").rows()
    return int(count)


def test_a_pipe_that_nobody_reads(echo: tuple[int, int], certificate: Certificate, tmp_path: Path) -> None:
    pid, port = echo
    reader, writer = os.pipe()
    with capture(pid, tmp_path, writer, "--store", "store") as (_, end):
        os.close(writer)
        call(port, certificate)
        ended = end(signal.SIGINT)
    assert ended.seconds < 4, ended.said
    assert ended.code == 4, ended.said
    assert stored(tmp_path / "store") == CALLS
    printed = 0
    data = b""
    while piece := os.read(reader, 1 << 16):
        data += piece
    os.close(reader)
    for line in data.split(b"\n")[:-1]:
        json.loads(line)
        printed += 1
    assert printed + ended.count(r"([\d,]+) exchanges NOT PRINTED") == CALLS, ended.said


def test_a_reader_that_is_gone_ends_it_quietly(echo: tuple[int, int], certificate: Certificate, tmp_path: Path) -> None:
    pid, port = echo
    reader, writer = os.pipe()
    with capture(pid, tmp_path, writer, "--store", "store") as (process, _):
        os.close(writer)
        os.close(reader)
        caller = Caller(port, certificate.cert)
        caller.ask("hello")
        caller.close()
        assert process.wait(15) == 0
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_a_full_disk_behind_standard_output(echo: tuple[int, int], certificate: Certificate, tmp_path: Path) -> None:
    pid, port = echo
    full = os.open("/dev/full", os.O_WRONLY)
    with capture(pid, tmp_path, full, "--store", "store") as (_, end):
        call(port, certificate)
        ended = end(signal.SIGTERM)
    os.close(full)
    assert ended.seconds < 4, ended.said
    assert ended.code == 4, ended.said
    assert "Traceback" not in ended.said
    assert stored(tmp_path / "store") == CALLS
    assert ended.count(r"([\d,]+) exchanges NOT PRINTED") == CALLS


def test_a_full_disk_behind_the_store(echo: tuple[int, int], certificate: Certificate, tmp_path: Path) -> None:
    pid, port = echo
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=0777", "tmpfs", small], check=True)
    try:
        out = (tmp_path / "out").open("wb")
        with out, capture(pid, tmp_path, out.fileno(), "--store", str(small / "store")) as (_, end):
            with (small / "filler").open("wb", buffering=0) as filler:
                try:
                    while True:
                        filler.write(b"x" * 65_536)
                except OSError:
                    pass
            call(port, certificate)
            ended = end(signal.SIGINT)
        assert ended.seconds < 4, ended.said
        assert ended.code == 4, ended.said
        assert ended.count(r"stored ([\d,]+) in") + ended.count(r"([\d,]+) NOT STORED") == CALLS, ended.said
        assert len((tmp_path / "out").read_bytes().splitlines()) == CALLS
    finally:
        subprocess.run(["umount", "-l", small], check=True)


def test_a_full_disk_behind_the_written_file(echo: tuple[int, int], certificate: Certificate, tmp_path: Path) -> None:
    pid, port = echo
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", small], check=True)
    try:
        with (
            (tmp_path / "out").open("wb") as out,
            capture(pid, tmp_path, out.fileno(), "--store", "store", "--write", str(small / "w.pcapng")) as (process, end),
        ):
            call(port, certificate)
            deadline = time.monotonic() + 30
            while "error: cannot write" not in (tmp_path / "log").read_text():
                assert process.poll() is None
                assert time.monotonic() < deadline, "it says so at the end only"
                time.sleep(0.05)
            ended = end(signal.SIGINT)
        assert ended.said.count(f"cannot write {small / 'w.pcapng'}: No space left on device") == 1
        assert ended.code == 4, ended.said
        assert stored(tmp_path / "store") == CALLS
    finally:
        subprocess.run(["umount", "-l", small], check=True)


def test_a_detection_process_that_hangs(echo: tuple[int, int], certificate: Certificate, tmp_path: Path) -> None:
    pid, port = echo
    with (tmp_path / "out").open("wb") as out, capture(pid, tmp_path, out.fileno(), "--store", "store") as (process, end):
        workers = _children_named(process.pid, b"llmsec_analyzer.worker")
        assert workers
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)
        call(port, certificate)
        ended = end(signal.SIGINT)
    assert ended.seconds < 4, ended.said
    assert stored(tmp_path / "store") == CALLS
    assert "detection_skipped" in ended.said


def _children_named(parent: int, name: bytes) -> list[int]:
    found: list[int] = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if name in (path / "cmdline").read_bytes() and f"PPid:\t{parent}\n" in (path / "status").read_text():
                found.append(int(path.name))
        except OSError:
            continue
    return found
