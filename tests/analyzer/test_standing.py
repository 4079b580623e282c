"""A standing session answers as a session that is opened for each question does."""

from __future__ import annotations

import dataclasses
import random
import threading
import time
from pathlib import Path

import pytest

from llmsec_analyzer.stored.exchanges import Filter, Position, find, page, records, records_page
from llmsec_analyzer.stored.session import QuerySession
from llmsec_analyzer.stored.standing import StandingSession
from llmsec_tap.errors import ConfigError
from llmsec_tap.journal import SILENT
from llmsec_tap.model import Exchange
from llmsec_tap.storage import Store, StoreWriter, create_store
from llmsec_tap.storage.compact import compact

_START = 1_790_000_000_000_000_000
_MINUTE = 60_000_000_000


def exchange(number: int, *, status: int = 200, started_ns: int | None = -1) -> Exchange:
    started = _START + number * _MINUTE if started_ns == -1 else started_ns
    return Exchange(
        exchange_id=f"{(started or 0) // 1_000_000:012x}{number:020x}", client="10.0.0.1:4000", server="10.0.0.2:80", started_ns=started, status=status,
        provider="vllm", method="POST", path="/v1/chat/completions", request_model=f"model-{number % 3}", tenant=f"tenant-{number % 7}",
    )  # fmt: skip


def stored(store: Store, exchanges: list[Exchange]) -> None:
    writer = StoreWriter(store)
    for one in exchanges:
        writer.add(one)
    writer.close()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return create_store(tmp_path / "store")


def everything(session: QuerySession) -> list[tuple[object, ...]]:
    return sorted(session.select("SELECT exchange_id, status FROM exchanges").rows())


def test_new_parts_copies_merges_and_deletions_are_seen(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmsec_analyzer.stored.standing._LOOK_S", -1.0)
    standing = StandingSession(store)
    at_random = random.Random(7)
    for step in range(24):
        stored(store, [exchange(at_random.randrange(200), status=200 + step) for _ in range(at_random.randrange(1, 9))])
        if step % 6 == 5:
            compact(store, time.time_ns() + 10**12, min_parts=2, grace_ns=0 if step % 12 == 5 else 10**15, settled_ns=0)
        if step == 15:
            min(store.exchanges.glob("day=2*/part-*")).unlink()
        with QuerySession(store) as fresh, standing.lend() as lent:
            assert everything(lent) == everything(fresh), step
    standing.close()


def test_pages_are_those_of_all_rows(store: Store) -> None:
    numbers = list(range(0, 3000, 7)) + list(range(9000, 9200))
    random.Random(3).shuffle(numbers)
    for begin in range(0, len(numbers), 200):
        stored(store, [exchange(number) for number in numbers[begin : begin + 200]])
    stored(store, [exchange(number, started_ns=None) for number in range(9)])
    standing = StandingSession(store)
    for wanted in (Filter(limit=60), Filter(limit=50, tenant="tenant-3"), Filter(limit=40, model="model-1", since_ns=_START + 5 * _MINUTE), Filter(limit=9, tenant="nobody"),
                   Filter(limit=90, until_ns=_START + 2500 * _MINUTE)):  # fmt: skip
        with QuerySession(store) as fresh:
            expected = [one.exchange_id for one in records(fresh, dataclasses.replace(wanted, limit=100_000))]
        found: list[str] = []
        before = None
        for _ in range(1000):
            with standing.lend() as lent:
                rows = page(lent, dataclasses.replace(wanted, before=before))
                whole = records_page(lent, dataclasses.replace(wanted, before=before))
            assert [one.exchange_id for one in whole] == [row["exchange_id"] for row in rows]
            found += [row["exchange_id"] for row in rows]
            if len(rows) < wanted.limit:
                break
            before = Position(rows[-1]["started_ns"], rows[-1]["exchange_id"])
        assert found == expected, wanted


def test_one_is_found_by_its_id_or_its_beginning(store: Store) -> None:
    old = exchange(5)
    stored(store, [exchange(number) for number in range(50)])
    unknown = exchange(1, started_ns=None)
    stored(store, [unknown])
    standing = StandingSession(store)
    with standing.lend() as lent:
        for wanted in (old, unknown):
            assert find(lent, wanted.exchange_id).exchange_id == wanted.exchange_id
        assert find(lent, old.exchange_id[:14]).exchange_id == old.exchange_id
        assert everything(lent)[0]  # all of the store is there again
        assert len(everything(lent)) == 51
        for wrong in ("ffffffffffff", "f" * 32, "", "zz"):
            with pytest.raises(ConfigError):
                find(lent, wrong)


def test_many_ask_while_parts_come_and_go(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmsec_analyzer.stored.standing._LOOK_S", -1.0)
    stored(store, [exchange(number) for number in range(100)])
    standing = StandingSession(store, SILENT)
    faults: list[BaseException] = []
    done = threading.Event()

    def ask() -> None:
        try:
            while not done.is_set():
                with standing.lend() as lent:
                    assert len(everything(lent)) >= 100
                    assert len(page(lent, Filter(limit=20))) == 20
        except BaseException as fault:  # noqa: BLE001 - told below
            faults.append(fault)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for step in range(12):
        stored(store, [exchange(200 + step)])
        if step % 4 == 3:
            compact(store, time.time_ns() + 10**12, min_parts=2, grace_ns=0, settled_ns=0)
            compact(store, time.time_ns() + 10**13, min_parts=2, grace_ns=0, settled_ns=0)
    done.set()
    for thread in threads:
        thread.join(30)
    assert not faults


def test_a_part_that_is_damaged_later_costs_its_own_rows(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmsec_analyzer.stored.standing._LOOK_S", -1.0)
    stored(store, [exchange(1)])
    stored(store, [exchange(2), exchange(3)])
    standing = StandingSession(store, SILENT)
    first = min(store.exchanges.glob("day=2*/part-*"))
    first.write_bytes(first.read_bytes()[:40])
    with standing.lend() as lent:
        assert len(everything(lent)) in (1, 2)


def test_an_old_layout_is_read_with_the_new_one(store: Store) -> None:
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    stored(store, [exchange(1)])
    part = next(store.exchanges.glob("day=2*/part-*"))
    table = pq.read_table(part)
    pq.write_table(table.drop_columns(["tls", "deviations"]), part)
    stored(store, [exchange(2)])
    standing = StandingSession(store)
    with standing.lend() as lent:
        assert list(lent.select("SELECT status, tls FROM exchanges ORDER BY exchange_id").rows()) == [(200, None), (200, None)]
        assert find(lent, exchange(1).exchange_id).status == 200
    with QuerySession(store) as fresh, standing.lend() as lent:
        assert everything(fresh) == everything(lent)


def test_a_store_beyond_the_bound_is_asked_as_before(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmsec_analyzer.stored.standing.MAX_ROWS", 3)
    stored(store, [exchange(number) for number in range(6)])
    stored(store, [exchange(2, status=500)])
    standing = StandingSession(store)
    with QuerySession(store) as fresh, standing.lend() as lent:
        assert everything(lent) == everything(fresh)
        assert len(page(lent, Filter(limit=3))) == 3
    # Answers that somebody keeps for a generation do not outlive what is stored meanwhile.
    before = standing.generation
    stored(store, [exchange(7)])
    monkeypatch.setattr("llmsec_analyzer.stored.standing._LOOK_S", -1.0)
    with standing.lend() as lent:
        assert len(everything(lent)) == 7
    assert standing.generation > before


def test_what_is_known_of_parts_goes_with_them(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmsec_analyzer.stored.standing._LOOK_S", -1.0)
    standing = StandingSession(store)
    for step in range(12):
        stored(store, [exchange(step)])
        compact(store, time.time_ns() + 10**12, min_parts=2, grace_ns=0, settled_ns=0)
        compact(store, time.time_ns() + 10**13, min_parts=2, grace_ns=0, settled_ns=0)
        standing.lend().close()
    there = len(list(store.exchanges.glob("*/part-*")))
    assert (len(standing._times), len(standing._columns), len(standing._parts)) == (there, there, there)
