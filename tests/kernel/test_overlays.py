"""Containers of one image: the files of its layers have a device of their own in each container, and are one file to the kernel."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from llmsec_tap.capture.probes.mapped import OpenFile
from llmsec_tap.capture.probes.selection import Selection
from llmsec_tap.journal import SILENT
from support.needs import program
from support.observing import Observing, TLSObjects, counting_runs, observing

LIBRARY = Path("/usr/lib/x86_64-linux-gnu/libssl.so.3")
COMM = "overlaid"
CONTAINERS = 4
OBJECTS = 101
# SSL_new, and at SSL_free and SSL_clear the other program: SSL_new itself clears what it makes.
ONCE = (OBJECTS, 2 * OBJECTS)


@pytest.fixture
def mounts(tmp_path: Path) -> Iterator[list[Path]]:
    """Overlays over one layer that holds a TLS library."""
    program("mount", "mount")
    layer = tmp_path / "layer"
    layer.mkdir()
    shutil.copy(LIBRARY, layer / LIBRARY.name)
    made = []
    for number in range(CONTAINERS):
        upper, work, merged = (tmp_path / f"{name}{number}" for name in ("upper", "work", "merged"))
        for folder in (upper, work, merged):
            folder.mkdir()
        options = f"lowerdir={layer},upperdir={upper},workdir={work}"
        mounted = subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, merged], capture_output=True, check=False)
        if mounted.returncode:
            pytest.skip(f"no overlay can be mounted here: {mounted.stderr.decode().strip()}")
        made.append(merged)
    yield made
    for merged in made:
        subprocess.run(["umount", "-l", merged], capture_output=True, check=False)


def open_by_path(path: Path) -> OpenFile:
    return OpenFile(os.open(path, os.O_PATH))


def test_one_layer_is_one_file_and_a_copy_is_another(mounts: list[Path], tmp_path: Path) -> None:
    files = [open_by_path(merged / LIBRARY.name) for merged in mounts]
    below, copy = open_by_path(tmp_path / "layer" / LIBRARY.name), open_by_path(Path(shutil.copy2(LIBRARY, tmp_path / "copy")))
    assert len({file.identity for file in (*files, below)}) == CONTAINERS + 1, "each has a device of its own"
    for file in files:
        assert file.is_same_as(files[0])
        assert file.is_same_as(below)
        assert not file.is_same_as(copy)
    os.utime(mounts[1] / LIBRARY.name)  # copied up: a file of this container alone
    copied_up = open_by_path(mounts[1] / LIBRARY.name)
    assert not copied_up.is_same_as(below)
    assert copied_up.status.st_ino == below.status.st_ino, "the overlay says otherwise"
    for file in (*files, below, copy, copied_up):
        file.close()


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def runs(tap: Observing, caller: TLSObjects) -> tuple[int, int]:
    before = tap.runs("tls_new"), tap.runs("tls_free")
    caller.make(OBJECTS)
    return tap.runs("tls_new") - before[0], tap.runs("tls_free") - before[1]


def unmounts(merged: Path) -> bool:
    return subprocess.run(["umount", merged], capture_output=True, check=False).returncode == 0


def test_a_call_is_probed_once_however_many_containers_share_its_library(mounts: list[Path], tmp_path: Path) -> None:
    with counting_runs(), observing(Selection(comms=(COMM,)), SILENT) as tap, ExitStack() as stack:
        callers = []
        for merged in mounts:
            callers.append(stack.enter_context(TLSObjects(tmp_path, COMM, merged)))
            pid = callers[-1].process.pid
            tap.until(lambda pid=pid: pid in tap.observed._attachments.pids, "it is not probed")
        for caller in callers:
            assert runs(tap, caller) == ONCE


def test_what_no_process_maps_any_more_is_let_go(mounts: list[Path], tmp_path: Path) -> None:
    """Descriptors stay as few as they were, and the mounts of containers that ended can be unmounted, whichever ended first."""
    with counting_runs(), observing(Selection(comms=(COMM,)), SILENT) as tap, ExitStack() as stack:
        standing = len(tap.observed._attachments)
        before = descriptors()
        callers = [stack.enter_context(TLSObjects(tmp_path, COMM, merged)) for merged in mounts]
        pids = [caller.process.pid for caller in callers]
        tap.until(lambda: set(pids) <= set(tap.observed._attachments.pids), "not all are probed")
        for merged, caller in zip(mounts, callers, strict=True):
            assert runs(tap, caller) == ONCE
            caller.end()
            tap.until(lambda merged=merged: unmounts(merged), f"{merged} is held by the tap", timeout_s=5)
        tap.until(lambda: descriptors() <= before, f"{descriptors()} descriptors are open, and {before} were before")
        assert len(tap.observed._attachments) <= standing + 1, "of the host's own: its dynamic loader"
        assert tap.observed._attachments.pids == []
