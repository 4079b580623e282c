"""How soon probes stand in a process that starts while the tap runs: the numbers of docs/overhead.md. Needs root, gcc and OpenSSL's headers.

    python bench/attach.py [N]     N processes for each kind of library (default 60)

Each process is a small C program that is linked to libssl, with a copy of the library of its own in its library path (a new inode, as in a
new container). `known`: the copy has a build id that was met before; `unknown`: each has another. The time runs from the kernel's word of
the program's start (the end of execve) to the moment when the last probe of the copy stands; `main` is when the program's own code began.
Prints one JSON object with medians and 99th percentiles in milliseconds, and where the time went.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tap")]

from llmsec_tap.capture.ebpf import events  # noqa: E402
from llmsec_tap.capture.probes.elf import ELFFile  # noqa: E402
from llmsec_tap.capture.probes.selection import Selection  # noqa: E402
from llmsec_tap.journal import Event, Journal, Level  # noqa: E402
from support.observing import Observing, observing  # noqa: E402

LIBRARY = Path("/usr/lib/x86_64-linux-gnu/libssl.so.3")
COMM = "attach-client"
CLIENT = """
#include <openssl/ssl.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>
int main(void)
{
	struct timespec now;
	clock_gettime(CLOCK_BOOTTIME, &now);
	SSL_CTX_free(SSL_CTX_new(TLS_client_method()));
	printf("%lld\\n", now.tv_sec * 1000000000LL + now.tv_nsec);
	fflush(stdout);
	usleep(300000);
}
"""


def boottime_ms() -> float:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) / 1e6


class Timed:
    """A function, and how long its calls took."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.ms: list[float] = []

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        begun = time.perf_counter()
        try:
            return self.function(*arguments, **named)
        finally:
            self.ms.append((time.perf_counter() - begun) * 1000)


def copy_of(folder: Path, number: int, *, is_known: bool) -> Path:
    """A folder with a copy of the library."""
    made = folder / f"{'known' if is_known else 'unknown'}{number}"
    made.mkdir()
    data = LIBRARY.read_bytes()
    if not is_known:
        with ELFFile(LIBRARY) as file:
            build_id = bytes.fromhex(file.build_id() or "")
        data = data.replace(build_id, os.urandom(len(build_id)))
    (made / LIBRARY.name).write_bytes(data)
    return made


def sample(tap: Observing, program: Path, libraries: Path, said: list[tuple[float, Event]]) -> dict[str, float]:
    said.clear()
    started: list[float] = []
    told: list[float] = []
    seen = tap.observed.on_event

    def on_event(event: events.Event) -> None:
        if event.type == events.EXEC and event.comm.startswith(COMM.encode()):
            started.append(event.ts_ns / 1e6)
            told.append(boottime_ms())
        seen(event)

    tap.observed.on_event = on_event  # type: ignore[method-assign]
    finder = tap.observed._finder
    attach, look, ahead = Timed(tap.loader.attach), Timed(finder.look), Timed(finder.look_ahead)
    tap.loader.attach, finder.look, finder.look_ahead = attach, look, ahead  # type: ignore[method-assign]
    process = subprocess.Popen([program], stdout=subprocess.PIPE, env={"LD_LIBRARY_PATH": str(libraries)})
    try:
        tap.until(lambda: any(event.facts.get("file") == str(libraries / LIBRARY.name) for _, event in said), "it was not probed")
        probed = next(at for at, event in said if event.facts.get("file") == str(libraries / LIBRARY.name))
    finally:
        tap.observed.on_event = seen  # type: ignore[method-assign]
        tap.loader.attach, finder.look, finder.look_ahead = attach.function, look.function, ahead.function  # type: ignore[method-assign]
        process.kill()
        out, _ = process.communicate()
    row = {"probed": probed - started[0], "attaching": sum(attach.ms), "looking": sum(look.ms)}
    row |= {"told": told[0] - started[0], "looking_ahead": sum(ahead.ms)}
    if out.strip():
        row["main"] = int(out) / 1e6 - started[0]
    tap.until(lambda: process.pid not in tap.observed._attachments.pids, "its end was not told")
    return row


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    result: dict[str, Any] = {"kernel": os.uname().release, "cpus": os.cpu_count(), "load": os.getloadavg(), "n": count}
    said: list[tuple[float, Event]] = []
    journal = Journal(lambda event: said.append((boottime_ms(), event)) if event.level >= Level.INFO else None)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        program = folder / COMM
        subprocess.run(["gcc", "-x", "c", "-", "-o", program, "-lssl"], input=CLIENT.encode(), check=True)
        with observing(Selection(comms=(COMM,)), journal) as tap:
            for kind in ("known", "unknown"):
                rows = []
                for number in range(count):
                    libraries = copy_of(folder, number, is_known=kind == "known")
                    rows.append(sample(tap, program, libraries, said))
                    shutil.rmtree(libraries)
                result[kind] = {}
                for what in ("probed", "main", "told", "looking", "looking_ahead", "attaching"):
                    values = sorted(row[what] for row in rows if what in row)
                    if values:
                        result[kind][what] = {
                            "p50": round(statistics.median(values), 2),
                            "p99": round(values[min(len(values) - 1, int(0.99 * len(values)))], 2),
                        }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
