"""`llmsec-tap capture` as a process of its own, as users run it, and what it prints."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]


def environment() -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(ROOT / "tap"), str(ROOT / "analyzer"), str(ROOT / "agent"))),
        "LLMSEC_STORE": "none",
    }


class Agent:
    """Use as a context manager: attached when entered, stopped by SIGINT and read to its end when left.

    Plain HTTP is looked at where `--plain` asks for it: most servers of the tests stand behind a proxy, and would be seen twice.
    Detection runs where `--detect` asks for it: its process takes longer to start than most of the tests take.
    """

    def __init__(self, *options: str, prefix: tuple[str, ...] = (), env: dict[str, str] | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._out = Path(self._folder.name, "out")
        self._err = Path(self._folder.name, "err")
        if "--plain" not in options:
            options = ("--no-plain", *options)
        if "--detect" not in options:
            options = ("--no-detect", *options)
        command = [*prefix, sys.executable, "-m", "llmsec_agent.cli.tap.app", "capture", "--format", "jsonl", *options]
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(command, stdout=out, stderr=err, env={**environment(), **(env or {})}, cwd=self._folder.name)
        self.exit_code: int | None = None
        self._rows: list[dict[str, Any]] = []  # what was read of its output, up to `_read_to`
        self._read_to = 0
        self._final: tuple[str, list[dict[str, Any]]] | None = None

    @property
    def folder(self) -> Path:
        return Path(self._folder.name)

    @property
    def said(self) -> str:
        return self._err.read_text() if self._final is None else self._final[0]

    def __enter__(self) -> Self:
        try:
            self.wait_for(lambda: "Ctrl-C stops" in self.said, "it did not attach")
        except BaseException:
            self.process.kill()
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()
        self._final = self.said, self._read()
        self._folder.cleanup()

    def stop(self, number: int = signal.SIGINT) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.exit_code = self.process.wait(30)

    @property
    def decoder(self) -> int:
        """The process that decodes: the child of the one that was started."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        if children.exists():
            pids = [int(pid) for pid in children.read_text().split()]
        else:
            parents = {int(path.parent.name): path.read_text().rpartition(")")[2].split()[1] for path in Path("/proc").glob("[0-9]*/stat")}
            pids = [pid for pid, parent in parents.items() if parent == str(self.process.pid)]
        return next(pid for pid in sorted(pids) if b"capture" in Path(f"/proc/{pid}/cmdline").read_bytes())

    def wait_for_probes(self, path: str | Path) -> None:
        """Until it probes this file."""
        self.wait_for(lambda: f" in {path}: " in self.said, f"{path} was not probed")

    def wait_for(self, condition: Callable[[], bool], otherwise: str, timeout_s: float = 20) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if self.process.poll() is not None:
                raise AssertionError(f"the agent ended with {self.process.returncode}:\n{self.said}")
            if time.monotonic() > deadline:
                raise AssertionError(f"{otherwise}:\n{self.said}")
            time.sleep(0.02)

    def exchanges(self, **equal: Any) -> list[dict[str, Any]]:
        """What it has printed so far; `equal` keeps those whose fields are as given (`pid` is process.pid)."""
        found = []
        for row in self._read():
            values = {**row, "pid": (row["process"] or {}).get("pid"), "comm": (row["process"] or {}).get("comm")}
            if all(values[name] == value for name, value in equal.items()):
                found.append(row)
        return found

    def records(self) -> list[dict[str, Any]]:
        """Every line that it has printed so far."""
        return self._read()

    def _read(self) -> list[dict[str, Any]]:
        if self._final is not None:
            return self._final[1]
        with self._out.open("rb") as out:
            out.seek(self._read_to)
            data = out.read()
        data = data[: data.rfind(b"\n") + 1]
        self._rows += [json.loads(line) for line in data.splitlines()]
        self._read_to += len(data)
        return list(self._rows)

    def wait_for_exchanges(self, count: int, timeout_s: float = 20, **equal: Any) -> list[dict[str, Any]]:
        self.wait_for(lambda: len(self.exchanges(**equal)) >= count, f"{count} exchanges with {equal} did not come", timeout_s)
        time.sleep(0.1)  # one too many would come now
        return sorted(self.exchanges(**equal), key=lambda row: row["started_ns"])
