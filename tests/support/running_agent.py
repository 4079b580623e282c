"""`llmsec-tap agent` as a process of its own, with its configuration file, its listeners and the one who notifies systemd."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from support.agent import environment
from support.tls_front import free_port


class Running:
    """`config` is what the file said at first; `write` changes it."""

    def __init__(
        self,
        folder: Path,
        capture: dict[str, Any],
        prefix: tuple[str, ...],
        env: dict[str, str],
        observability: dict[str, Any],
        storage: dict[str, Any],
        alerting: dict[str, Any],
        sdk: dict[str, Any],
    ) -> None:
        self.health, self.metrics = free_port(), free_port()
        self.file = folder / "config.yaml"
        self.store = folder / "store"
        self.config: dict[str, Any] = {
            "capture": {"memory_cap": "512MiB", **capture},
            "storage": {"path": str(self.store), **storage},
            "server": {"bind_address": f"127.0.0.1:{self.health}"},
            "observability": {**observability, "metrics": {"port": self.metrics, **observability.get("metrics", {})}},
            "alerting": alerting,
            "sdk": sdk,
        }
        self.write()
        self.log = folder / "log"
        self.notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notified.bind(str(folder / "notify"))
        self.notified.settimeout(20)
        command = [*prefix, sys.executable, "-m", "llmsec_agent.cli.tap.app", "agent", "--config", str(self.file)]
        variables = {**environment(), **env, "NOTIFY_SOCKET": str(folder / "notify")}
        variables.pop("LLMSEC_STORE")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log, env=variables, cwd=folder)

    def write(self) -> None:
        self.file.write_text(yaml.safe_dump(self.config))

    @property
    def said(self) -> str:
        return self.log.read_text()

    def until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 30
        while not condition():
            assert self.process.poll() is None, self.said
            assert time.monotonic() < deadline, f"{what}:\n{self.said}"
            time.sleep(0.05)

    def get(self, port: int, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, refused.read().decode()
        except OSError:
            return 0, ""

    def value(self, sample: str) -> float | None:
        page = self.get(self.metrics, "/metrics")[1]
        return next((float(line.rpartition(" ")[2]) for line in page.splitlines() if line.startswith(sample + " ")), None)

    def ready(self) -> None:
        self.until(lambda: self.get(self.health, "/ready")[0] == 200, "it is not ready")

    def hang_up(self) -> None:
        self.write()
        self.process.send_signal(signal.SIGHUP)

    def stop(self) -> float:
        """Seconds from SIGTERM to the exit."""
        begun = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        return time.monotonic() - begun


@contextmanager
def agent(
    folder: Path,
    *pids: int,
    prefix: tuple[str, ...] = (),
    env: dict[str, str] | None = None,
    chosen: dict[str, Any] | None = None,
    storage: dict[str, Any] | None = None,
    alerting: dict[str, Any] | None = None,
    sdk: dict[str, Any] | None = None,
    **observability: Any,
) -> Iterator[Running]:
    """`chosen`, `storage`, `alerting` and `sdk`: what else these sections say, the first of `capture`."""
    capture = {"pids": list(pids), "plain": False, **(chosen or {})}
    running = Running(folder, capture, prefix, env or {}, observability, storage or {}, alerting or {}, sdk or {})
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.kill()
            running.process.wait()
        running.notified.close()


def who_connects(root: int, port: int) -> dict[int, str]:
    """Of the processes below this one, those with a TCP connection to the port, and their effective capabilities."""
    inodes = set()
    lines = [line for table in ("tcp", "tcp6") for line in Path("/proc/net", table).read_text().splitlines()[1:]]
    for line in lines:
        fields = line.split()
        if int(fields[2].rpartition(":")[2], 16) == port:
            inodes.add(f"socket:[{fields[9]}]")
    found: dict[int, str] = {}
    waiting = [root]
    while waiting:
        pid = waiting.pop()
        for task in Path(f"/proc/{pid}/task").iterdir():
            waiting += map(int, (task / "children").read_text().split())
        links = {str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.is_symlink()}
        if links & inodes:
            status = Path(f"/proc/{pid}/status").read_text()
            found[pid] = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff"))
    return found
