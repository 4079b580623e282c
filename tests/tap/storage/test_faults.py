"""Stores that cannot be written: every fault is one StorageError, keeps what is stored and counts what is not."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys

import pytest

from llmsec_tap.errors import StorageError
from llmsec_tap.storage import StoreWriter, create_store


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("cannot mount a small file system here (needs root)")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def incompressible(size: int) -> str:
    return os.urandom(size // 2).hex()


def test_a_full_disk_loses_nothing_stored_and_counts_the_rest(small_disk, make_exchange, reader):
    root = small_disk / "store"
    writer = StoreWriter(create_store(root), flush_rows=10, max_waiting_bytes=4_000_000)
    faults: list[StorageError] = []
    for number in range(400):
        try:
            writer.add(make_exchange(number, output_text=incompressible(20_000)))
        except StorageError as fault:
            faults.append(fault)
    with pytest.raises(StorageError, match="no space left"):
        writer.close()
    stats = writer.stats
    assert faults
    assert {(fault.retryable, fault.exit_code) for fault in faults} == {(True, 4)}
    assert all("no space left" in str(fault) and "free space" in fault.hint for fault in faults)
    assert 0 < stats.stored < 400
    assert stats.added == stats.stored + stats.not_stored == 400
    assert not list(root.rglob("*.tmp"))
    reader.root = root
    assert reader.count() == stats.stored


def test_a_disk_with_room_again_takes_what_waited(small_disk, make_exchange):
    root = small_disk / "store"
    store = create_store(root)
    ballast = small_disk / "ballast"
    with ballast.open("wb") as file:
        free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
        file.write(b"x" * (free - 8192))
    writer = StoreWriter(store)
    for number in range(20):
        writer.add(make_exchange(number, output_text=incompressible(4_000)))
    with pytest.raises(StorageError, match="no space left"):
        writer.flush()
    assert writer.stats.stored == writer.stats.not_stored == 0
    ballast.unlink()
    writer.close()
    assert writer.stats.stored == 20


def test_no_room_for_a_new_store(small_disk):
    with (small_disk / "ballast").open("wb") as file:
        free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
        file.write(b"x" * free)
    with pytest.raises(StorageError, match=r"no space left|cannot write"):
        create_store(small_disk / "store")
    assert not list(small_disk.rglob("*.tmp"))


def test_a_read_only_file_system(small_disk, make_exchange):
    root = small_disk / "store"
    writer = StoreWriter.open(root)
    writer.add(make_exchange(1))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(StorageError, match="the file system is read-only") as caught:
        writer.close()
    assert not caught.value.retryable
    assert writer.stats.not_stored == 1
    with pytest.raises(StorageError, match="read-only"):
        create_store(small_disk / "other")


def test_a_file_size_limit(root, make_exchange, reader):
    """What a quota looks like to a user without rights: the write is cut short and then fails."""
    store = create_store(root)
    writer = StoreWriter(store)
    writer.add(make_exchange(1))
    writer.flush()
    before, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, hard))
    try:
        for number in range(2, 40):
            writer.add(make_exchange(number))
        with pytest.raises(StorageError, match="file size limit"):
            writer.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(root.rglob("*.tmp"))
    assert reader.count() == 1
    writer.close()
    assert reader.count() == 39


def test_waiting_rows_are_bounded_while_the_store_is_gone(root, make_exchange):
    writer = StoreWriter(create_store(root), flush_rows=5, max_waiting_bytes=200_000)
    exchanges = root / "exchanges"
    exchanges.rename(root / "gone")
    exchanges.write_text("in the way")
    held = []
    for number in range(500):
        with contextlib.suppress(StorageError):
            writer.add(make_exchange(number))
        held.append(writer._bytes)
    assert max(held) < 200_000 + 2 * 4_000_000
    assert writer.stats.added == 500


def test_leaving_the_block_by_an_error_still_writes_what_waits(root, make_exchange, reader):
    with pytest.raises(ZeroDivisionError), StoreWriter.open(root) as writer:  # noqa: PT012
        writer.add(make_exchange(1))
        raise ZeroDivisionError
    assert reader.count() == 1


def test_heavy_libraries_are_not_imported_before_they_are_needed():
    script = (
        "import sys; import llmsec_tap.storage, llmsec_tap.storage.views\n"
        "print([name for name in ('pyarrow', 'duckdb', 'polars') if name in sys.modules])"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    assert subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True).stdout == "[]\n"
