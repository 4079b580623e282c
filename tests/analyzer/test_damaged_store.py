"""A store with damaged parts, or an odd name, is still a store: everything else is read, compacted and written."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llmsec_analyzer.stored.session import QuerySession
from llmsec_tap.errors import StorageError
from llmsec_tap.journal import SILENT, Journal
from llmsec_tap.model import Exchange
from llmsec_tap.storage import StoreWriter, compact, open_store
from support.exchanges import full_exchange
from support.journal import Said

Damage = Callable[[Path], None]


def garbage_in_a_frame(path: Path) -> None:
    path.write_bytes(b"PAR1" + os.urandom(4000) + (100).to_bytes(4, "little") + b"PAR1")


def damaged_page(path: Path) -> None:
    """Footer and frame are whole; the rows are not."""
    data = bytearray(path.read_bytes())
    end = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    data[4:end] = os.urandom(end - 4)
    path.write_bytes(data)


DAMAGE: dict[str, Damage] = {
    "empty": lambda path: path.write_bytes(b"") and None,
    "three bytes": lambda path: path.write_bytes(b"PAR") and None,
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "garbage in a frame": garbage_in_a_frame,
    "a damaged page": damaged_page,
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Forty parts of one exchange each."""
    with StoreWriter.open(tmp_path / "store") as writer:
        for number in range(40):
            writer.add(full_exchange(number))
            writer.flush()
    return tmp_path / "store"


def rows(root: Path, journal: Journal = SILENT) -> int:
    with QuerySession.open(root, journal) as session:
        ((count,),) = session.select("SELECT count(*) FROM (SELECT exchange_id, input_text, started FROM exchanges)").rows()
        return int(count)


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_one_damaged_part_costs_its_own_rows(root: Path, damage: Damage) -> None:
    victim = sorted(root.glob("exchanges/day=*/part-*.parquet"))[7]
    damage(victim)
    journal = Said()
    assert rows(root, journal) == 39
    assert any(victim.name in line and "is damaged" in line for line in journal.texts)
    assert victim.with_name(victim.name + ".damaged").exists()
    assert rows(root, again := Said()) == 39
    assert again.texts == [], "it is named once"


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_the_rest_is_compacted(root: Path, damage: Damage) -> None:
    victims = sorted(root.glob("exchanges/day=*/part-*.parquet"))
    damage(victims[7])
    done = compact.compact(open_store(root, SILENT), time.time_ns() + 10**12, min_parts=8)
    assert done.merged == 39
    assert rows(root) == 39


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_moved_store_takes_new_rows(root: Path, damage: Damage) -> None:
    damage(sorted(root.glob("exchanges/day=*/part-*.parquet"))[7])
    moved = root.rename(root.with_name("moved"))
    with StoreWriter.open(moved, SILENT) as writer:
        writer.add(full_exchange(1000))
    assert writer.stats.not_stored == 0
    assert rows(moved) == 40


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_reader_that_may_not_rename_leaves_it_out(root: Path) -> None:
    read_without_renaming(root)


def test_a_part_that_cannot_be_renamed_is_left_out(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> Path:
        raise PermissionError

    monkeypatch.setattr(Path, "rename", refuse)
    read_without_renaming(root)


def read_without_renaming(root: Path) -> None:
    victim = sorted(root.glob("exchanges/day=*/part-*.parquet"))[7]
    victim.write_bytes(b"")
    journal = Said()
    assert rows(root, journal) == 39
    assert any("left out" in line for line in journal.texts)
    assert victim.exists()


def test_a_fifo_in_the_place_of_a_part_is_not_waited_for(root: Path) -> None:
    victim = sorted(root.glob("exchanges/day=*/part-*.parquet"))[7]
    victim.unlink()
    os.mkfifo(victim)
    assert rows(root) == 39


@pytest.mark.parametrize(
    "name", ["x*", "x?y", "x[1]", "[", "a'b", "ünï cöde", "x*y[?]", "%s", "-x", "back\\slash", 'double"quote', "new\nline"]
)
def test_any_name_of_a_folder_works(tmp_path: Path, name: str) -> None:
    exchange: Exchange = full_exchange(1)
    (tmp_path / "sibling").mkdir()
    with StoreWriter.open(tmp_path / name / "store*", SILENT) as writer:
        writer.add(exchange)
    assert rows(tmp_path / name / "store*") == 1


def test_a_link_in_the_place_of_a_day_is_not_written_through(root: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (root / "exchanges/day=none").symlink_to(elsewhere)
    with pytest.raises(StorageError), StoreWriter.open(root) as writer:
        writer.add(full_exchange(1, started_ns=None))
    assert list(elsewhere.iterdir()) == []
