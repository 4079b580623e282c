"""The rows of `taps`: one a run, the last beat counts, and a damaged one costs itself only."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from llmsec_analyzer.stored.session import QuerySession
from llmsec_tap.journal import SILENT, WARNINGS, Journal
from llmsec_tap.storage import create_store, open_store, taps
from llmsec_tap.storage.taps import Beat, write_beat

FIRST = Beat(node="n1", pid=7, version="1", started_ns=1_000_000_000, heartbeat_ns=2_000_000_000, exchanges=3)


def rows(root: Path, columns: str, journal: Journal = WARNINGS) -> list[tuple[object, ...]]:
    with QuerySession.open(root, journal) as session:
        return list(session.run(f"SELECT {columns} FROM taps ORDER BY started_ns").rows())


def test_a_beat_replaces_the_one_before(root, reader):
    store = create_store(root)
    write_beat(store, FIRST)
    write_beat(store, msgspec.structs.replace(FIRST, heartbeat_ns=5_000_000_000, exchanges=9, not_stored=1))
    write_beat(store, msgspec.structs.replace(FIRST, started_ns=3_000_000_000, stopped_ns=4_000_000_000))
    assert rows(root, "node, heartbeat_ns, exchanges, not_stored, epoch_ns(stopped)") == [
        ("n1", 5_000_000_000, 9, 1, None),
        ("n1", 2_000_000_000, 3, 0, 4_000_000_000),
    ]
    assert reader.rows("SELECT count(*) FROM taps") == [(2,)]


def test_an_old_store_that_may_not_be_written_has_none(root, make_exchange):
    store = create_store(root)
    (store.exchanges / "schema" / "tap-schema.parquet").unlink()
    with QuerySession(open_store(root)) as session:
        assert list(session.run("SELECT * FROM taps").rows()) == []


def test_a_damaged_one_costs_itself_only(root):
    store = create_store(root)
    write_beat(store, FIRST)
    write_beat(store, msgspec.structs.replace(FIRST, node="n2", started_ns=3_000_000_000))
    damaged = next(path for path in (store.exchanges / "taps").iterdir() if "00000001" in path.name)
    damaged.write_bytes(b"PAR1 not so PAR1")
    assert rows(root, "node", SILENT) == [("n2",)]


def test_the_oldest_are_forgotten(root, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(taps, "MAX_RUNS", 3)
    store = create_store(root)
    for number in range(5):
        write_beat(store, msgspec.structs.replace(FIRST, started_ns=number))
    assert rows(root, "started_ns") == [(2,), (3,), (4,)]
