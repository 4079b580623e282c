"""Merging the many small parts that a live capture leaves behind (one every few seconds) into few large ones.

Readers and writers go on meanwhile, and a kill at any point loses and doubles nothing:
- A merged part is published like any other, by rename. Its rows are copies that carry their stored_seq plus one, so the
  views prefer them to the originals, while a row that was stored later still wins over both.
- The originals stay for GRACE_NS, for readers that have listed them but not yet opened them. The merged part names them in
  its footer; whoever compacts next removes them once the time is up.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from llmsec_tap.errors import StorageError
from llmsec_tap.journal import SILENT
from llmsec_tap.storage.damage import is_framed, is_readable, set_aside
from llmsec_tap.storage.faults import storage_error
from llmsec_tap.storage.publish import publishing
from llmsec_tap.storage.store import Store

# Parts under this size count as small: what a capture writes because rows got old, not because they were many.
SMALL_BYTES = 1_000_000
# Fewer small parts than this are left alone: merging costs more than reading them.
MIN_PARTS = 32
# Parts this young are left alone, for an uneven clock between writers.
SETTLED_NS = 120_000_000_000
GRACE_NS = 600_000_000_000
# What one merged part is made of: enough to be worth a file, little enough to open at once.
MAX_MERGED_PARTS = 256
MAX_MERGED_BYTES = 64_000_000
REPLACES_KEY = "llmsec.replaces"
# All parts whose rows a merged one holds, through every merge before: its originals may be long gone (cursor.py).
HOLDS_KEY = "llmsec.holds"
MERGED_SUFFIX = "-merged.parquet"
_LOOK_S = 0.1


@dataclass(frozen=True)
class Compacted:
    merged: int = 0  # small parts whose rows are now in larger ones
    removed: int = 0  # originals of earlier merges that are gone now


def compact(
    store: Store,
    now_ns: int,
    *,
    min_parts: int = MIN_PARTS,
    grace_ns: int = GRACE_NS,
    settled_ns: int = SETTLED_NS,
    max_bytes: int | None = None,
) -> Compacted:
    """Merge where it pays, remove what was merged long enough ago. Does nothing while another process does it.

    `max_bytes`: bound of the store. Where copies and originals together are beyond it, the originals go at once.
    """
    merged = removed = 0
    with alone(store) as is_alone:
        if not is_alone:
            return Compacted()
        try:
            for folder in sorted(path for path in store.exchanges.glob("day=*") if path.is_dir() and not path.is_symlink()):
                replaced = _replaced(folder)
                removed += _remove(folder, replaced, now_ns - grace_ns)
                for group in _groups(folder, set(replaced), now_ns - settled_ns, min_parts):
                    merged += _merge(folder, group)
                    if max_bytes is not None and _bytes(store) > max_bytes:
                        removed += _remove(folder, dict.fromkeys((path.name for path in group), 0), 1)
        except OSError as fault:
            raise storage_error("cannot write", store.exchanges, fault) from None
    return Compacted(merged, removed)


def compact_apart(store: Store, now_ns: int) -> subprocess.Popen[bytes]:
    """`compact` in a process of its own, at the lowest priority, so that a capture goes on; it says nothing if it fails."""
    return subprocess.Popen(  # noqa: S603 - this interpreter, our own module
        [sys.executable, "-P", "-m", "llmsec_tap.storage.compact_here", str(now_ns)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd=store.root,
        env={**os.environ, "POLARS_MAX_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
    )


def seq_of(path: Path) -> int:
    """The stored_seq in a part's name; a name that is not ours counts as too new to touch."""
    number = path.name.removesuffix(".parquet").split("-")[1]
    return int(number) if number.isdecimal() else 2**63 - 1


@contextmanager
def alone(store: Store, wait_s: float = 0.0) -> Iterator[bool]:
    """Whether no other process compacts or prunes, and none will until the block ends; waits so long for one that does."""
    try:
        descriptor = os.open(store.exchanges, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as fault:
        raise storage_error("cannot read", store.exchanges, fault) from None
    try:
        yield _locked(descriptor, wait_s)
    finally:
        os.close(descriptor)


def _locked(descriptor: int, wait_s: float) -> bool:
    until = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() >= until:
                return False
            time.sleep(_LOOK_S)
        else:
            return True


def _replaced(folder: Path) -> dict[str, int]:
    """Names of originals that a merged part stands for, and when that part appeared."""
    from llmsec_tap.storage import merge  # noqa: PLC0415

    replaced: dict[str, int] = {}
    for path in folder.glob(f"part-*{MERGED_SUFFIX}"):
        appeared = path.stat().st_mtime_ns
        names = merge.footer_value(path, REPLACES_KEY)
        replaced |= dict.fromkeys(json.loads(names) if names else [], appeared)
    return replaced


def _bytes(store: Store) -> int:
    total = 0
    for path in store.exchanges.glob("day=*/part-*"):
        with suppress(FileNotFoundError):
            total += path.lstat().st_size
    return total


def _remove(folder: Path, replaced: dict[str, int], before_ns: int) -> int:
    removed = 0
    for name, appeared in replaced.items():
        # Only a plain name inside this folder; the footer is a file's content like any other.
        if appeared < before_ns and name == os.path.basename(name) and name.startswith("part-"):  # noqa: PTH119
            try:
                (folder / name).unlink()
                removed += 1
            except FileNotFoundError:
                continue
    return removed


def _groups(folder: Path, replaced: set[str], before_ns: int, min_parts: int) -> list[list[Path]]:
    """Small, settled parts in order of their seq, in groups for one merged part each."""
    parts = [path for path in folder.glob("part-*.parquet") if path.name not in replaced]
    small = [path for path in parts if path.stat().st_size < SMALL_BYTES and seq_of(path) < before_ns and is_framed(path)]
    if len(small) < min_parts:
        return []
    small.sort(key=seq_of)
    groups: list[list[Path]] = [[]]
    size = 0
    for path in small:
        part_size = path.stat().st_size
        if len(groups[-1]) == MAX_MERGED_PARTS or size + part_size > MAX_MERGED_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(path)
        size += part_size
    return [group for group in groups if len(group) > 1]


def _merge(folder: Path, group: list[Path]) -> int:
    """Merge a group; what in it cannot be read is set aside, and the rest is merged. How many parts were."""
    from llmsec_tap.storage import merge  # noqa: PLC0415

    # A name of its own even where the last of the group is a merged part: that one is removed under its name later.
    target = folder / f"part-{seq_of(group[-1]):019d}-{secrets.token_hex(4)}{MERGED_SUFFIX}"
    try:
        with publishing(target) as descriptor:
            footer = {REPLACES_KEY: json.dumps([path.name for path in group]), HOLDS_KEY: json.dumps(sorted(_held(group)))}
            merge.merge(group, footer, descriptor)
    except StorageError:
        sound = [path for path in group if is_readable(path)]
        if len(sound) == len(group):
            raise
        for path in group:
            if path not in sound:
                set_aside(path, SILENT)  # whoever reads the store next is told of nothing new: its rows were lost before
        return _merge(folder, sound) if len(sound) > 1 else 0
    return len(group)


def _held(group: list[Path]) -> set[str]:
    from llmsec_tap.storage import merge  # noqa: PLC0415

    held = {path.name for path in group}
    for path in group:
        if path.name.endswith(MERGED_SUFFIX):
            held |= set(json.loads(merge.footer_value(path, HOLDS_KEY) or merge.footer_value(path, REPLACES_KEY) or "[]"))
    return held
