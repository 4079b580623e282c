"""An agent under steady load, and what is done to it meanwhile: the numbers of docs/performance.md. Needs root and curl.

    python bench/soak.py [MINUTES [CALLS_PER_SECOND]]     default 60 and 15

Over the time: calls over TLS, half of them streams, of a server that the agent observes; a reload each minute (each time with another
threshold); SIGKILL for its detection process every sixth minute; its log cut to nothing every tenth, as logrotate's copytruncate does;
and a thousand short processes, each a curl that makes one call to a second server, which is not observed. Prints one JSON object: calls
made, exchanges stored, what the agent itself says was lost, how many of the short processes were seen, and resident memory, descriptors
and threads of all its processes at each minute.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tap"), str(ROOT / "analyzer"), str(ROOT / "agent")]

from llmsec_analyzer.stored.session import QuerySession  # noqa: E402
from support.https_calls import ask_once  # noqa: E402
from support.running_agent import Running, agent  # noqa: E402
from support.tls_front import children, free_port, make_certificate, wait_for_port  # noqa: E402

ECHO = ROOT / "tests" / "support" / "tls_echo.py"
SHORT = 1000
LOSSES = (
    "llmsec_kernel_lost_records_total",
    "llmsec_kernel_lost_calls_total",
    "llmsec_queue_left_out_records_total",
    "llmsec_store_lost_rows_total",
    'llmsec_sink_dropped_records_total{reason="full",sink="store"}',
)


def family(pid: int) -> list[int]:
    return [pid, *(each for child in children(pid) for each in family(child))]


def looks(pid: int) -> dict[str, Any]:
    resident = descriptors = threads = 0
    for each in family(pid):
        with suppress(OSError, KeyError):  # it may be ending
            fields = dict(line.split(":", 1) for line in Path(f"/proc/{each}/status").read_text().splitlines() if ":" in line)
            resident += int(fields["VmRSS"].split()[0])
            threads += int(fields["Threads"])
            descriptors += sum(1 for _ in Path(f"/proc/{each}/fd").iterdir())
    return {"resident_mb": round(resident / 1000, 1), "descriptors": descriptors, "threads": threads}


class Calls:
    """At a steady rate from a thread of its own."""

    def __init__(self, port: int, cafile: Path, per_second: float) -> None:
        self.made = self.failed = 0
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(port, cafile, 1 / per_second))
        self._thread.start()

    def _run(self, port: int, cafile: Path, period_s: float) -> None:
        due = time.monotonic()
        while not self._ends.is_set():
            try:
                ask_once(port, cafile, f"question {self.made} about the weather in Rome", stream=self.made % 2 == 1)
                self.made += 1
            except OSError:
                self.failed += 1
            due = max(due + period_s, time.monotonic() - 1)
            self._ends.wait(max(0.0, due - time.monotonic()))

    def end(self) -> None:
        self._ends.set()
        self._thread.join()


def short_call(port: int, cafile: Path, number: int) -> None:
    body = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": f"short {number}"}]})
    address = f"https://127.0.0.1:{port}/v1/chat/completions"
    options = ["--http1.1", "--cacert", str(cafile), "-H", "content-type: application/json", "-d", body, address]
    subprocess.run(["curl", "-s", *options], stdout=subprocess.DEVNULL, check=False)


def minute_of(running: Running, number: int) -> None:
    """What is done to the agent in this minute."""
    running.config["security"] = {"prompt_injection": {"confidence_threshold": 0.80 + number % 10 / 100}}
    running.hang_up()
    if number % 6 == 3:
        for pid in family(running.process.pid):
            with suppress(OSError):
                if b"llmsec_analyzer.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)
    if number % 10 == 5:
        os.truncate(running.log, 0)


def soak(folder: Path, minutes: int, per_second: float) -> dict[str, Any]:
    certificate = make_certificate(folder)
    with ExitStack() as stack:
        ports = []
        pids = []
        for _ in range(2):
            port = free_port()
            command = [sys.executable, str(ECHO), "asyncio", str(port), str(certificate.cert), str(certificate.key)]
            process = stack.enter_context(subprocess.Popen(command))
            stack.callback(process.kill)
            wait_for_port(port, process)
            ports.append(port)
            pids.append(process.pid)
        running = stack.enter_context(agent(folder, pids[0], chosen={"comms": ["curl"]}))
        running.ready()
        calls = Calls(ports[0], certificate.cert, per_second)
        stack.callback(calls.end)
        each_minute = [looks(running.process.pid)]
        begun, shorts = time.monotonic(), 0
        for number in range(1, minutes + 1):
            while (left := begun + number * 60 - time.monotonic()) > 0:
                if shorts < SHORT * number / minutes:
                    short_call(ports[1], certificate.cert, shorts)
                    shorts += 1
                time.sleep(min(left, 60 * minutes / SHORT / 2))
            minute_of(running, number)
            each_minute.append(looks(running.process.pid))
        calls.end()
        time.sleep(8)
        losses = {name: running.value(name) for name in LOSSES}
        facts = {
            name: running.value(name)
            for name in (
                'llmsec_config_reloads_total{result="accepted"}',
                'llmsec_config_reloads_total{result="refused"}',
                "llmsec_detection_deaths_total",
                "llmsec_store_parts_total",
                "llmsec_peak_resident_memory_bytes",
            )
        }
        stopped_s = running.stop()
        said = running.said
        with QuerySession.open(running.store) as session:
            ((stored, seen, unscanned),) = session.select(
                "SELECT count(*) FILTER (process.comm != 'curl'), count(*) FILTER (process.comm = 'curl'), "
                "count(*) FILTER (anomalies::VARCHAR LIKE '%detection_%') FROM exchanges"
            ).rows()
    return {
        "calls": calls.made,
        "failed_calls": calls.failed,
        "stored": stored,
        "short_processes": shorts,
        "short_processes_seen": seen,
        "not_fully_scanned": unscanned,
        "losses": losses,
        **facts,
        "exit_code": running.process.returncode,
        "stopped_in_s": round(stopped_s, 2),
        "minutes": each_minute,
        "said_last": said.splitlines()[-12:],
    }


def main() -> None:
    minutes = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    per_second = float(sys.argv[2]) if len(sys.argv) > 2 else 15
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip()
    with tempfile.TemporaryDirectory() as folder:
        result = soak(Path(folder), minutes, per_second)
    print(json.dumps({"commit": commit, "cores": os.cpu_count(), "kernel": os.uname().release, **result}, indent=1))


if __name__ == "__main__":
    main()
