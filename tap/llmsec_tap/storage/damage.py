"""Parts that cannot be read: found, named and set aside, so that one of them costs its own rows and no others.

A part is published whole, so damage comes from outside: a disk, a copy that was cut, somebody's hand. A damaged part keeps its bytes under
another name, which no reader's pattern matches: PART.damaged.

Parquet's frame (https://parquet.apache.org/docs/file-format): "PAR1", data, footer, length of the footer (4 bytes, little-endian), "PAR1".
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from llmsec_tap.journal import Journal

_MAGIC = b"PAR1"
_SMALLEST = 12
_NEEDED = {"part": {"exchange_id", "row_key", "stored_seq"}, "tap": {"heartbeat_ns", "started_ns"}}
PARTS = "part-*.parquet"
TAP_FILES = "tap-*.parquet"
DAMAGED_SUFFIX = ".damaged"


def parts(exchanges: Path, pattern: str = PARTS) -> Iterator[Path]:
    """Every part of a store, whatever stands under its name; with TAP_FILES the files of its taps instead."""
    for folder in sorted(exchanges.iterdir()) if exchanges.is_dir() else ():
        if folder.is_dir():
            yield from sorted(folder.glob(pattern))


def is_framed(path: Path) -> bool:
    """Whether the file begins and ends as Parquet does: 20 us, for every part of a store that is opened."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        status = os.fstat(descriptor)
        size = status.st_size
        if not stat.S_ISREG(status.st_mode) or size < _SMALLEST or os.pread(descriptor, 4, 0) != _MAGIC:
            return False
        tail = os.pread(descriptor, 8, size - 8)
        return tail[4:] == _MAGIC and int.from_bytes(tail[:4], "little") <= size - _SMALLEST
    except OSError:
        return False
    finally:
        os.close(descriptor)


def is_readable(path: Path) -> bool:
    """Whether every row can be read: all of the file, so only where something has failed."""
    import pyarrow as pa  # type: ignore[import-untyped]  # noqa: PLC0415
    import pyarrow.parquet as pq  # type: ignore[import-untyped]  # noqa: PLC0415

    if not is_framed(path):
        return False
    try:
        with pq.ParquetFile(path, memory_map=False) as file:
            if not _NEEDED["part" if path.name.startswith("part-") else "tap"] <= set(file.schema_arrow.names):
                return False
            for _ in file.iter_batches(batch_size=1000):
                pass
    except (OSError, ValueError, pa.ArrowException):
        return False
    return True


def set_aside(found: Path, journal: Journal) -> bool:
    """Rename a damaged part, and say so. False where this user may not: then it has to be left out by name."""
    with contextlib.suppress(OSError):
        found.rename(found.with_name(found.name + DAMAGED_SUFFIX))
        kept_as = found.name + DAMAGED_SUFFIX
        journal.warning(
            "part_damaged", f"{found} is damaged: its rows are lost, it is kept as {kept_as}, everything else is read", part=str(found)
        )
        return True
    journal.warning("part_damaged", f"{found} is damaged: its rows are left out, everything else is read", part=str(found))
    return False


def set_aside_damaged(exchanges: Path, journal: Journal, *, thoroughly: bool = False) -> list[Path]:
    """Set aside what is damaged; those that this user may not rename, to be left out by name."""
    is_sound = is_readable if thoroughly else is_framed
    found = [*parts(exchanges), *parts(exchanges, TAP_FILES)]
    return [path for path in found if not is_sound(path) and not set_aside(path, journal)]
