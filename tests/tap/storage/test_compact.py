from __future__ import annotations

import threading
import time

import duckdb
import pytest

from llmsec_tap.storage import StoreWriter, create_store
from llmsec_tap.storage.compact import Compacted, compact, seq_of

LONG = 10**18


def small_parts(root, make_exchange, count, *, first=0, **changes):
    writer = StoreWriter(create_store(root), flush_rows=1)
    for number in range(first, first + count):
        writer.add(make_exchange(number, **changes))
    writer.flush()
    return writer.store


def merge_now(store, **options):
    return compact(store, time.time_ns(), **{"settled_ns": -LONG, "min_parts": 4, **options})


def test_merging_changes_nothing_that_a_reader_sees(root, reader, make_exchange):
    store = small_parts(root, make_exchange, 20)
    before = reader.records()
    assert merge_now(store) == Compacted(merged=20)
    assert len(reader.parts()) == 21
    assert reader.records() == before
    assert merge_now(store) == Compacted()
    assert merge_now(store, grace_ns=-LONG) == Compacted(removed=20)
    assert len(reader.parts()) == 1
    assert reader.records() == before


def test_rows_stored_later_win_over_merged_ones(root, reader, make_exchange):
    store = small_parts(root, make_exchange, 10, status=200)
    merge_now(store, grace_ns=-LONG)
    small_parts(root, make_exchange, 10, status=500)
    assert reader.rows("SELECT DISTINCT status FROM exchanges") == [(500,)]
    for _ in range(3):
        merge_now(store, grace_ns=-LONG)
        assert reader.rows("SELECT status, count(*) FROM exchanges GROUP BY 1") == [(500, 10)]
    assert len(reader.parts()) == 1


def test_repeats_within_one_merge_leave_the_newest(root, reader, make_exchange):
    store = small_parts(root, make_exchange, 6, status=200)
    small_parts(root, make_exchange, 6, status=503)
    merge_now(store)
    merge_now(store, grace_ns=-LONG)
    (part,) = reader.parts()
    assert duckdb.sql(f"SELECT count(*), min(status) FROM '{part}'").fetchall() == [(6, 503)]
    assert reader.count() == 6


def test_a_merged_part_that_is_merged_again_is_not_lost(root, reader, make_exchange):
    store = small_parts(root, make_exchange, 8)
    merge_now(store)
    small_parts(root, make_exchange, 8, first=100)
    merge_now(store)
    for _ in range(3):
        merge_now(store, grace_ns=-LONG)
        assert reader.count() == 16


def test_few_young_or_large_parts_are_left_alone(root, reader, make_exchange):
    store = small_parts(root, make_exchange, 10)
    assert compact(store, time.time_ns(), settled_ns=-LONG, min_parts=11) == Compacted()
    assert compact(store, time.time_ns(), min_parts=4) == Compacted()


def test_only_one_process_compacts_at_a_time(root, make_exchange):
    import fcntl
    import os

    store = small_parts(root, make_exchange, 10)
    descriptor = os.open(store.exchanges, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert merge_now(store) == Compacted()
    os.close(descriptor)
    assert merge_now(store) == Compacted(merged=10)


def test_older_parts_get_the_newer_columns(root, reader, make_exchange):
    import pyarrow.parquet as pq

    store = small_parts(root, make_exchange, 4)
    for part in reader.parts():
        pq.write_table(pq.read_table(part).drop_columns(["framing"]), part)
    small_parts(root, make_exchange, 4, first=10)
    merge_now(store, grace_ns=-LONG)
    merge_now(store, grace_ns=-LONG)
    assert reader.rows("SELECT framing, count(*) FROM exchanges GROUP BY 1 ORDER BY 2, 1") == [("sse", 4), (None, 4)]


def test_a_damaged_part_is_not_touched(root, reader, make_exchange):
    store = small_parts(root, make_exchange, 6)
    damaged = reader.parts()[2]
    damaged.write_bytes(damaged.read_bytes()[:-100])
    assert merge_now(store) == Compacted(merged=5)
    assert damaged.exists()


def test_readers_and_writers_go_on_during_merges(root, reader, make_exchange):
    store = small_parts(root, make_exchange, 40)
    stop = threading.Event()
    failures: list[duckdb.Error] = []
    counts: list[int] = []

    def read() -> None:
        try:
            while not stop.is_set():
                counts.append(reader.count())
        except duckdb.Error as fault:
            failures.append(fault)

    thread = threading.Thread(target=read)
    thread.start()
    for first in range(100, 160, 20):
        small_parts(root, make_exchange, 20, first=first)
        merge_now(store)
    stop.set()
    thread.join()
    assert failures == []
    assert counts == sorted(counts)
    assert reader.count() == 100


def test_a_writer_of_many_small_parts_compacts_apart(root, reader, make_exchange, monkeypatch):
    from llmsec_tap.storage import compact as module

    monkeypatch.setattr(time, "time_ns", lambda now=time.time_ns: now() - 10**12)
    writer = StoreWriter(create_store(root), flush_rows=1)
    for number in range(module.MIN_PARTS):
        writer.add(make_exchange(number))
    monkeypatch.undo()
    writer.close()
    assert any(path.name.endswith("-merged.parquet") for path in reader.parts())
    assert reader.count() == module.MIN_PARTS


@pytest.mark.parametrize(
    ("name", "seq"), [("part-0000000000000000512.parquet", 512), ("part-7-ab-merged.parquet", 7), ("part-x.parquet", 2**63 - 1)]
)
def test_seq_of(tmp_path, name, seq):
    assert seq_of(tmp_path / name) == seq
