"""Containers without a runtime: a container is what the kernel makes of these calls, which are those that a runtime makes.

Processes in a cgroup as container runtimes name it, with mounts, process ids and a TLS library of their own.
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

from support.agent import environment
from support.tls_front import Certificate, children, free_port, wait_for_port

SUPPORT = Path(__file__).parent
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
