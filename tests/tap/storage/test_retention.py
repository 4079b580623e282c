"""What retention deletes and what it leaves, among files that are ours, others' and links."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from llmsec_tap.storage import StoreWriter, open_store
from llmsec_tap.storage.retention import Pruned, Retention, prune
from support.exchanges import full_exchange

DAY_NS = 86_400_000_000_000
FIRST_NS = 1_700_000_000_000_000_000 // DAY_NS * DAY_NS


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Ten days of three parts each."""
    with StoreWriter.open(tmp_path / "store") as writer:
        for day in range(10):
            for number in range(3):
                writer.add(full_exchange(day * 10 + number, started_ns=FIRST_NS + day * DAY_NS + number))
                writer.flush()
    return tmp_path / "store"


def days(root: Path) -> int:
    return len(list(root.glob("exchanges/day=*")))


def size(root: Path) -> int:
    return sum(path.stat().st_size for path in root.glob("exchanges/day=*/part-*"))


def test_days_that_are_over_long_enough_go_whole(root: Path) -> None:
    now_ns = FIRST_NS + 10 * DAY_NS
    assert prune(open_store(root), now_ns, Retention(days=30)) == Pruned()
    assert prune(open_store(root), now_ns, Retention(days=4)).parts == 18
    assert days(root) == 4
    assert prune(open_store(root), now_ns + DAY_NS // 2, Retention(days=4)) == Pruned()
    assert prune(open_store(root), now_ns + DAY_NS, Retention(days=4)).parts == 3


def test_the_oldest_parts_go_until_it_is_small_enough(root: Path) -> None:
    before = size(root)
    pruned = prune(open_store(root), 0, Retention(max_bytes=before // 2))
    assert size(root) <= before // 2
    assert size(root) == before - pruned.bytes
    assert len(list(root.glob("exchanges/day=*/part-*"))) == 30 - pruned.parts
    oldest_left = min(path.parent.name for path in root.glob("exchanges/day=*/part-*"))
    assert days(root) - sum(1 for folder in root.glob("exchanges/day=*") if not any(folder.iterdir())) <= 6
    assert oldest_left > "day=2023-11-16"


def test_without_a_bound_nothing_goes(root: Path) -> None:
    assert prune(open_store(root), 2**62, Retention()) == Pruned()


def test_what_is_not_ours_stays(root: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "part-1.parquet").write_bytes(b"x" * 1000)
    (root / "exchanges/day=2000-01-01").symlink_to(elsewhere)
    first = min(root.glob("exchanges/day=2023*"))
    (first / "notes.txt").write_text("mine")
    (first / "part-link.parquet").symlink_to(elsewhere / "part-1.parquet")
    prune(open_store(root), 2**62, Retention(days=1, max_bytes=0))
    assert (elsewhere / "part-1.parquet").exists()
    assert (first / "notes.txt").read_text() == "mine"
    assert (root / "exchanges/schema").exists()
    assert not list(root.glob("exchanges/day=2023*/part-*"))


def test_it_leaves_a_store_alone_that_somebody_compacts(root: Path) -> None:
    descriptor = os.open(root / "exchanges", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert prune(open_store(root), 2**62, Retention(days=1)) == Pruned()
    os.close(descriptor)
    assert prune(open_store(root), 2**62, Retention(days=1)).parts == 30
