"""What taps saw is in the database or declared lost, to the exchange, whatever the server and the disk do meanwhile."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time

import msgspec
import pytest

from llmsec_agent.both_ends import look_at
from llmsec_agent.fleet import database_of
from llmsec_agent.sinks.store import StoreSink
from llmsec_tap.counters import Snapshot
from llmsec_tap.errors import StorageError
from llmsec_tap.journal import SILENT, Journal
from llmsec_tap.storage import StoreWriter, audit, create_store, open_store
from llmsec_tap.storage.clickhouse import delivery as delivery_module
from llmsec_tap.storage.clickhouse.address import parse
from llmsec_tap.storage.clickhouse.client import Limits, connect
from llmsec_tap.storage.clickhouse.delivery import Delivery
from llmsec_tap.storage.clickhouse.migrations import migrate
from llmsec_tap.storage.clickhouse.tables import Layout
from llmsec_tap.storage.compact import compact
from llmsec_tap.storage.cursor import Cursor
from llmsec_tap.storage.erase import Subject, erase
from llmsec_tap.storage.retention import Retention, prune
from llmsec_tap.storage.taps import Beat
from support.clickhouse_front import running
from support.exchanges import full_exchange

NODE = "host-1"
DAY_NS = 86_400_000_000_000
QUICK = Limits(5.0, 2.0)  # less than the three seconds of a slow server


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(delivery_module, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(delivery_module, "LONGEST_WAIT_S", 0.01)


@pytest.fixture
def url(clickhouse):
    return made(clickhouse)


def made(server):
    url = server.new_url()
    client, _ = connect(parse(url), database=False)
    migrate(client, Layout(parse(url).database))
    client.close()
    return url


@pytest.fixture
def root(tmp_path):
    return tmp_path / "store"


class Tap:
    """One run of a tap, its store's sink as in an agent; each exchange becomes a part of its own."""

    def __init__(self, root, **retention):
        self.store = create_store(root)
        keep = Retention(**retention)
        self.sink = StoreSink(
            StoreWriter(self.store, max_store_bytes=keep.max_bytes, compact_by=lambda *_: None, max_waiting_bytes=40_000),
            keep,
            audit.whoami(),
        )
        self.sink.look = self.beat
        self.started_ns = time.time_ns()
        self.seen = 0
        self.sizes = []

    def beat(self):
        counts = Snapshot([self.sink.samples])
        return Beat(
            node=NODE, pid=7, version="1", started_ns=self.started_ns, heartbeat_ns=time.time_ns(),
            exchanges=self.seen, not_stored=counts.get("llmsec_store_lost_rows_total"),
        )  # fmt: skip

    def see(self, *numbers, **changes):
        for number in numbers:
            self.seen += 1
            item, _ = self.sink.encode(full_exchange(number, **{"node": NODE, "output_text": os.urandom(2000).hex(), **changes}))
            self.sink.write([item])
            with contextlib.suppress(StorageError):
                self.sink._writer.flush()
            self.sizes.append(sum(path.stat().st_size for path in self.store.exchanges.glob("day=*/part-*")))

    def end(self):
        with contextlib.suppress(StorageError):
            self.sink.close()


class Deliveries:
    def __init__(self, root, url, limits=QUICK, **options):
        self.said = []
        self.delivery = Delivery(open_store(root), parse(url), Journal(self.said.append), limits=limits, pause_s=0.01, **options)

    def step(self):
        return self.delivery.step(at_once=True)

    def finish(self):
        """The server is well again: what waits is sent, and the breaker asks for several tries."""
        deadline = time.monotonic() + 60
        while not self.step() and time.monotonic() < deadline:
            time.sleep(0.02)
        self.delivery.close()


def ends(root, url):
    return look_at(open_store(root), database_of(None, url), SILENT)


def parts(root):
    return sorted(root.glob("exchanges/day=*/part-*.parquet"))


def part_bytes(tap):
    return tap.sizes[0]


HOWS = [
    "refuse", "full", "read-only", "no right", "wrong password", "unauthorized", "internal", "garbage", "cut", "half", "after", "slow",
]  # fmt: skip


@pytest.mark.parametrize("how", HOWS)
def test_while_a_server_fails_the_oldest_beyond_the_cap_are_declared_lost_and_the_rest_arrives(root, url, clickhouse, how):
    if not clickhouse.is_front:
        pytest.skip("a real server does not fail on demand")
    tap = Tap(root)
    tap.see(0)
    cap = part_bytes(tap) * 6
    deliveries = Deliveries(root, url, max_bytes=cap)
    assert deliveries.step()
    clickhouse.fail(how, times=10**6)
    try:
        for number in range(1, 31):
            tap.see(number)
            if number % 10 == 3:
                assert not deliveries.step()
    finally:
        clickhouse.fail("none", times=0)
    deliveries.finish()
    tap.end()
    deliveries = Deliveries(root, url, max_bytes=cap)
    deliveries.finish()
    found = ends(root, url)
    books = found.account
    assert books is not None
    assert (books.seen, books.waiting, books.missing, books.is_settled) == (31, 0, 0, True)
    assert 0 < books.lost == found.state.rows_lost < 31
    assert books.database == 31 - books.lost
    assert len(found.state.lost) == books.lost  # each by its name
    found.check()


def test_a_server_that_was_killed_and_is_away_for_long_gets_what_the_cap_left(root, tmp_path):
    pytest.importorskip("chdb")
    tap = Tap(root)
    tap.see(0)
    cap = part_bytes(tap) * 6
    with running(tmp_path / "engine") as server:
        url = made(server)
        deliveries = Deliveries(root, url, max_bytes=cap)
        assert deliveries.step()
    for number in range(1, 41):
        tap.see(number)
        if number % 8 == 0:
            assert not deliveries.step()
    with running(tmp_path / "engine", port=server.port):
        deliveries.finish()
        tap.end()
        Deliveries(root, url, max_bytes=cap).finish()
        found = ends(root, url)
        books = found.account
        assert books is not None
        assert (books.seen, books.waiting, books.missing) == (41, 0, 0)
        assert 30 < books.lost < 40
        assert books.database == 41 - books.lost
        newest = {f"{number:08x}{'ab' * 12}" for number in range(37, 41)}
        client, _ = connect(parse(url))
        assert newest <= {row[0] for row in client.query("SELECT exchange_id FROM exchanges").result_rows}
        client.close()


def test_the_folder_never_exceeds_its_caps_by_more_than_one_part_and_what_was_delivered_goes_first(root, url):
    size = 20_000
    tap = Tap(root, max_bytes=size * 8)
    tap.see(0)
    delivered = parts(root)
    Deliveries(root, url, max_bytes=size * 5).finish()
    tap.see(*range(1, 30))
    sizes = [path.stat().st_size for path in parts(root)]
    assert max(tap.sizes) <= size * 8
    cursor = Cursor(open_store(root), str(parse(url)))
    cursor.look()
    state = cursor.state
    assert sum((root / "exchanges" / name).stat().st_size for name in state.waiting) <= size * 5 + max(sizes)
    lost = list(state.lost)
    assert lost == sorted(lost)
    assert len(lost) + len(state.waiting) == 29
    assert max(lost) < min(state.waiting)
    assert f"{delivered[0].parent.name}/{delivered[0].name}" not in lost


def test_retention_takes_what_was_delivered_before_what_waits(root, url):
    tap = Tap(root)
    tap.see(*range(4))
    Deliveries(root, url).finish()
    delivered = parts(root)
    tap.see(*range(4, 8))
    size = part_bytes(tap)
    pruned = prune(open_store(root), time.time_ns(), Retention(max_bytes=int(size * 4.5)))
    assert (pruned.parts, pruned.dropped) == (4, 0)
    assert not set(parts(root)) & set(delivered)
    pruned = prune(open_store(root), time.time_ns(), Retention(max_bytes=int(size * 2.5)))
    assert (pruned.parts, pruned.dropped, pruned.dropped_rows, len(pruned.names)) == (2, 2, 2, 2)
    tap.end()
    Deliveries(root, url).finish()
    found = ends(root, url)
    assert found.account is not None
    assert (found.account.seen, found.account.database, found.account.lost, found.account.missing) == (8, 6, 2, 0)
    assert sum(line.startswith("declared lost: day=") for line in found.lines()) == 2


@pytest.mark.parametrize("keep", [Retention(days=1), msgspec.convert({"keep": {"metadata": 1}}, Retention)], ids=["days", "rows"])
def test_what_waits_outlives_its_days_until_it_was_delivered(root, url, keep):
    tap = Tap(root)
    deliveries = Deliveries(root, url)
    tap.see(1, 2)
    deliveries.delivery._look()
    later = time.time_ns() + 400 * DAY_NS
    prune(open_store(root), later, keep)
    assert sum(1 for _ in parts(root)) == 2
    deliveries.finish()
    prune(open_store(root), later, keep)
    assert not parts(root)
    tap.end()
    Deliveries(root, url).finish()
    books = ends(root, url).account
    assert books is not None
    assert (books.seen, books.database, books.lost, books.missing) == (2, 2, 0, 0)


def test_what_is_deleted_on_purpose_before_delivery_is_not_lost(root, url):
    tap = Tap(root)
    deliveries = Deliveries(root, url)
    tap.see(1, 2, tenant="acme")
    tap.see(3, tenant="other")
    deliveries.delivery._look()
    assert erase(open_store(root), Subject("tenant", frozenset({"acme"})), SILENT).rows == 2
    deliveries.finish()
    tap.end()
    Deliveries(root, url).finish()
    books = ends(root, url).account
    assert books is not None
    assert (books.seen, books.database, books.lost, books.deleted, books.missing) == (3, 1, 0, 2, 0)


def test_of_a_merge_of_delivered_and_waiting_parts_only_the_waiting_rows_are_lost(root, url):
    tap = Tap(root)
    tap.see(1, 2)
    Deliveries(root, url).finish()
    tap.see(3)
    compact(open_store(root), time.time_ns() + 10**15, min_parts=2, grace_ns=0, settled_ns=0)
    pruned = prune(open_store(root), time.time_ns(), Retention(max_bytes=0))
    assert (pruned.dropped, pruned.dropped_rows) == (1, 1)
    tap.end()
    Deliveries(root, url).finish()
    books = ends(root, url).account
    assert books is not None
    assert (books.seen, books.database, books.lost, books.missing) == (3, 2, 1, 0)


def test_of_parts_that_were_lost_after_an_insert_without_an_answer_the_server_is_asked(root, url, clickhouse):
    if not clickhouse.is_front:
        pytest.skip("a real server does not fail on demand")
    tap = Tap(root)
    tap.see(1, 2)
    deliveries = Deliveries(root, url, max_bytes=part_bytes(tap) * 4)
    clickhouse.fail("after", times=100)  # stored, and the answer is lost
    try:
        assert not deliveries.step()
        tap.see(*range(3, 13))
    finally:
        clickhouse.fail("none", times=0)
    state = Cursor(open_store(root), str(parse(url))).state
    lost = state.rows_lost
    assert len(state.doubtful) == 2
    tap.end()
    deliveries.finish()
    books = ends(root, url).account
    assert books is not None
    assert (books.seen, books.database, books.lost, books.missing) == (12, 12 - lost + 2, lost - 2, 0)
    assert not Cursor(open_store(root), str(parse(url))).state.doubtful


def test_rows_that_a_server_cannot_read_cost_themselves_only(root, url, monkeypatch):
    tap = Tap(root)
    tap.see(1)
    writer = tap.sink._writer
    for number in range(2, 12):
        tap.seen += 1
        writer.put(tap.sink.encode(full_exchange(number, node=NODE, tenant="bad" if number == 5 else "good"))[0])
    writer.flush()
    deliveries = Deliveries(root, url)
    insert = deliveries.delivery._insert_parquet

    def refusing(table, data, named):
        import io

        import pyarrow.parquet as pq

        if named and "bad" in pq.read_table(io.BytesIO(data)).column("tenant").to_pylist():
            raise delivery_module._RowsRefusedError("error 26")
        insert(table, data, named)

    monkeypatch.setattr(deliveries.delivery, "_insert_parquet", refusing)
    deliveries.step()
    tap.end()
    deliveries.finish()
    found = ends(root, url)
    books = found.account
    assert books is not None
    assert (books.seen, books.database, books.lost, books.waiting, books.missing) == (11, 10, 1, 0, 0)
    assert [lost.why for lost in found.state.lost.values()] == ["the server refuses its rows: error 26"]


def test_a_folder_of_many_exchanges_is_compared_in_several_questions(root, url):
    tap = Tap(root)
    for number in range(4_500):
        tap.seen += 1
        tap.sink._writer.put(tap.sink.encode(full_exchange(number, node=NODE))[0])
    tap.end()
    before = ends(root, url)
    assert (before.total.folder, before.total.database, len(before.total.missing)) == (4_500, 0, 20)
    Deliveries(root, url, limits=Limits()).finish()
    found = ends(root, url)
    found.check()
    assert found.account is not None
    assert (found.total.database, found.account.missing) == (4_500, 0)


def test_what_is_dropped_is_in_the_audit_log_the_journal_and_the_metrics(root, url):
    tap = Tap(root)
    tap.see(0)
    deliveries = Deliveries(root, url, max_bytes=int(part_bytes(tap) * 2.5))
    deliveries.delivery._look()
    tap.see(1, 2, 3)
    tap.end()
    counts = Snapshot([tap.sink.samples])
    assert (counts.get("llmsec_store_undelivered_parts_total"), counts.get("llmsec_store_undelivered_rows_total")) == (2, 2)
    (entry,) = [entry for entry in audit.entries(open_store(root)) if entry.event == "deletion"]
    state = Cursor(open_store(root), str(parse(url))).state
    assert entry.facts["dropped"] == 2
    assert set(entry.facts["names"]) == set(state.lost)
    deliveries.finish()
    named = [event.facts["part"] for event in deliveries.said if event.name == "part_not_delivered"]
    assert named == list(state.lost)
    again = Deliveries(root, url)
    again.finish()
    assert not [event for event in again.said if event.name == "part_not_delivered"]  # said once


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a small file system here (needs root)")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_of_the_folder_stops_no_delivery_and_what_found_no_room_was_counted(small_disk, url):
    root = small_disk / "store"
    tap = Tap(root)
    deliveries = Deliveries(root, url)
    tap.see(0)
    assert deliveries.step()
    ballast = small_disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb") as file:
        for _ in range(600):
            file.write(bytes(1024 * 4))
            file.flush()
            tap.see(tap.seen) if tap.seen < 20 else None
    with contextlib.suppress(OSError), ballast.open("ab", buffering=0) as file:
        while True:
            file.write(bytes(512))
    tap.see(*range(tap.seen, tap.seen + 60))
    assert deliveries.step()
    assert [event.name for event in deliveries.said].count("delivery_not_noted") == 1
    ballast.unlink()
    tap.see(tap.seen)
    tap.end()
    deliveries.finish()
    books = ends(root, url).account
    assert books is not None
    assert books.not_stored > 0
    assert (books.seen, books.lost, books.waiting, books.missing) == (books.database + books.not_stored, 0, 0, 0)


def test_a_full_disk_keeps_nobody_from_making_room_and_what_goes_then_is_declared_too(small_disk, url):
    root = small_disk / "store"
    tap = Tap(root)
    tap.see(*range(10))
    Deliveries(root, url).delivery._look()
    tap.see(*range(10, 15))  # nobody has looked at these yet
    with contextlib.suppress(OSError), (small_disk / "ballast").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(512))
    pruned = prune(open_store(root), time.time_ns(), Retention(max_bytes=tap.sizes[6]))
    assert pruned.dropped > 0
    state = Cursor(open_store(root), str(parse(url))).state
    assert (state.rows_lost, len(state.waiting)) == (pruned.dropped_rows, 15 - pruned.dropped)
