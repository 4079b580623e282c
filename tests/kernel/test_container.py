"""`--container`: processes in a cgroup as container runtimes name it, with mounts, process ids and a TLS library of their own.

No runtime is needed: a container is what the kernel makes of these calls, which are those that a runtime makes.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.agent import Agent, environment
from support.https_calls import ask_once
from support.needs import program
from support.tls_front import Certificate, children, free_port, python_server, wait_for_port

SUPPORT = Path(__file__).parents[1] / "support"
ECHO = SUPPORT / "tls_echo.py"
LIBRARY = Path("/usr/lib/x86_64-linux-gnu/libssl.so.3")
ID = "7e57c0de" * 8
# As docker names the group where systemd manages it, as containerd does under Kubernetes, and as it does without systemd.
GROUPS = {
    "docker": f"system.slice/docker-{ID}.scope",
    "containerd": f"kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod7.slice/cri-containerd-{ID}.scope",
    "cgroupfs": f"kubepods/besteffort/pod7/{ID}",
}
# Entered, mounts and process ids of its own, the root replaced, a copy of the library in the library's place.
ENTER = """
set -eu
echo $$ > "$GROUP/cgroup.procs"
exec unshare --mount --pid --cgroup --fork sh -euc '
  mount --make-rprivate /
  mount --rbind / "$ROOT"
  mount --bind "$COPY" "$ROOT$LIBRARY"
  cd "$ROOT"
  pivot_root . mnt
  umount -l /mnt
  mount -t proc proc /proc
  cd "$HOME_FOLDER"
  exec "$@"
' sh "$@"
"""


def hierarchies() -> dict[str, Path]:
    """Where this host has cgroup v2, v1, or both; of v1 any hierarchy that wants no settings before processes may enter."""
    found: dict[str, Path] = {}
    for line in Path("/proc/mounts").read_text().splitlines():
        _, place, kind, options, *_ = line.split()
        if kind == "cgroup2" or (kind == "cgroup" and "cpuset" not in options):
            found.setdefault("v2" if kind == "cgroup2" else "v1", Path(place))
    return found


@contextmanager
def group(hierarchy: Path, name: str) -> Iterator[Path]:
    path = hierarchy / name
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        deadline = time.monotonic() + 10
        while (path / "cgroup.procs").read_text() and time.monotonic() < deadline:
            for pid in (path / "cgroup.procs").read_text().split():
                os.kill(int(pid), signal.SIGKILL)
            time.sleep(0.05)
        for folder in made:
            folder.rmdir()


@contextmanager
def contained(entered: Path, folder: Path, certificate: Certificate) -> Iterator[tuple[int, int]]:
    """The echo server inside; its process id as the host sees it, and its port."""
    root = folder / "root"
    root.mkdir()
    port = free_port()
    env = {
        **environment(),
        "PYTHONPATH": str(SUPPORT.parent),
        "GROUP": str(entered),
        "ROOT": str(root),
        "HOME_FOLDER": str(folder),
        "COPY": shutil.copy(LIBRARY, folder / "libssl.copy"),
        "LIBRARY": str(LIBRARY.resolve()),
    }
    command = [sys.executable, ECHO, "threads", str(port), certificate.cert, certificate.key]
    process = subprocess.Popen(["sh", "-c", ENTER, "sh", *command], env=env)
    try:
        wait_for_port(port, process)
        (inside,) = children(process.pid)
        yield inside, port
        os.kill(inside, signal.SIGKILL)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("is_late", [False, True], ids=["running", "started-later"])
@pytest.mark.parametrize("runtime", GROUPS)
@pytest.mark.parametrize("version", hierarchies())
def test_a_container_is_captured_and_nothing_else(
    certificate: Certificate, tmp_path: Path, version: str, runtime: str, is_late: bool
) -> None:
    program("unshare", "util-linux")
    assert LIBRARY.exists(), "the copy in the container is made of it"
    outside_port = free_port()
    with (
        python_server(ECHO, "threads", str(outside_port), str(certificate.cert), str(certificate.key), port=outside_port),
        group(hierarchies()[version], GROUPS[runtime]) as entered,
    ):
        agent = Agent("--container", ID[:12])
        if is_late:
            with agent, contained(entered, tmp_path, certificate) as (inside, port):
                agent.wait_for_probes(LIBRARY.resolve())  # the container's: the host's own is found under /lib
                talk_and_check(agent, certificate, inside, port, outside_port)
        else:
            with contained(entered, tmp_path, certificate) as (inside, port), agent:
                talk_and_check(agent, certificate, inside, port, outside_port)


def talk_and_check(agent: Agent, certificate: Certificate, inside: int, port: int, outside_port: int) -> None:
    maps = Path(f"/proc/{inside}/maps").read_text()
    inodes = {int(line.split()[4]) for line in maps.splitlines() if line.endswith(str(LIBRARY.resolve()))}
    assert inodes
    assert LIBRARY.stat().st_ino not in inodes, "it runs the host's library"
    asked = {}
    for number in range(13):
        asked[f"contained {number}"] = ask_once(port, certificate.cert, f"contained {number}", stream=number % 2 == 1)
        ask_once(outside_port, certificate.cert, f"outside {number}")
    rows = agent.wait_for_exchanges(13)
    assert [row["input_text"] for row in rows] == list(asked), "in their order, and none of the host's"
    for row in rows:
        text, client = asked[row["input_text"]]
        assert row["output_text"] == text
        assert row["client"] == f"127.0.0.1:{client}"
        assert row["completeness"] == "complete", row["anomalies"]
        assert row["process"]["container_id"] == ID
        assert row["process"]["pid"] == inside
