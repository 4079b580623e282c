"""The attaching side of a capture inside the test's own process: a loaded kernel half and what a selection makes of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from llmsec_tap.capture.ebpf import events
from llmsec_tap.capture.ebpf.core import CoreLoader
from llmsec_tap.capture.probes.selection import Observed, Selection
from llmsec_tap.capture.probes.targets import TargetFinder
from llmsec_tap.journal import Journal

# Makes and frees as many TLS objects as each line of its input says. Nothing is sent anywhere.
TLS_OBJECTS = """
import ssl, sys
context = ssl.create_default_context()
print("ready", flush=True)
for line in sys.stdin:
    for _ in range(int(line)):
        context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO())
    print("done", flush=True)
"""


class Observing:
    def __init__(self, loader: CoreLoader, observed: Observed) -> None:
        self.loader = loader
        self.observed = observed

    def until(self, condition: Callable[[], bool], otherwise: str, timeout_s: float = 20) -> None:
        """As the warden does it."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(otherwise)
            self.turn()

    def turn(self) -> None:
        self.loader.processes.wait(0.01)
        while records := self.loader.processes.consume():
            for record in records:
                self.observed.on_event(events.decode(record))
        self.observed.look_at_due()

    def runs(self, program: str) -> int:
        """How often this BPF program has run. Needs `counting_runs`."""
        descriptor = self.loader._library.bpf_program__fd(self.loader._programs[program])
        return int(re.search(r"^run_cnt:\s+(\d+)$", Path(f"/proc/self/fdinfo/{descriptor}").read_text(), re.MULTILINE)[1])  # type: ignore[index]


@contextmanager
def observing(selection: Selection, write: Journal) -> Iterator[Observing]:
    loader = CoreLoader(selection.kernel_settings(1 << 20))
    try:
        observed = Observed(loader, TargetFinder(), selection, write)
        observed.start()
        yield Observing(loader, observed)
    finally:
        loader.close()


@contextmanager
def counting_runs() -> Iterator[None]:
    switch = Path("/proc/sys/kernel/bpf_stats_enabled")
    before = switch.read_text()
    switch.write_text("1")
    try:
        yield
    finally:
        switch.write_text(before)


class TLSObjects:
    """A process named `comm` that maps the libssl of `libraries`. Use as a context manager; it is ended by it."""

    def __init__(self, folder: Path, comm: str, libraries: Path) -> None:
        program = folder / comm
        if not program.is_symlink():
            program.symlink_to(Path(sys.executable).resolve())
        env = {**os.environ, "LD_LIBRARY_PATH": str(libraries)}
        self.process = subprocess.Popen([program, "-c", TLS_OBJECTS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
        assert self.process.stdout is not None
        self.process.stdout.readline()

    def make(self, count: int) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(b"%d\n" % count)
        self.process.stdin.flush()
        self.process.stdout.readline()

    def end(self) -> None:
        self.process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.communicate()
