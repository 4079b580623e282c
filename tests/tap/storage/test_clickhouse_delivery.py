"""Parts of a folder reach ClickHouse once each, whatever compaction, deletion, the server and a kill do meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from llmsec_tap.errors import StorageError
from llmsec_tap.journal import Journal
from llmsec_tap.storage import StoreWriter, open_store
from llmsec_tap.storage.clickhouse import delivery as delivery_module
from llmsec_tap.storage.clickhouse.address import parse
from llmsec_tap.storage.clickhouse.client import connect
from llmsec_tap.storage.clickhouse.delivery import Batching, Delivery
from llmsec_tap.storage.clickhouse.migrations import migrate
from llmsec_tap.storage.clickhouse.tables import Layout
from llmsec_tap.storage.compact import compact
from llmsec_tap.storage.cursor import DELETED, Cursor, Lost
from llmsec_tap.storage.taps import Beat, write_beat


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(delivery_module, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(delivery_module, "LONGEST_WAIT_S", 0.01)


@pytest.fixture
def write(root, make_exchange):
    """Each number becomes a part of its own."""

    def parts(*numbers, **changes):
        with StoreWriter.open(root) as writer:
            for number in numbers:
                writer.add(make_exchange(number, **changes))
                writer.flush()

    return parts


def merge(root, now_ns=None):
    """Every part there is into one, and originals of earlier merges are gone."""
    return compact(open_store(root), now_ns or time.time_ns() + 10**15, min_parts=2, grace_ns=0, settled_ns=0)


class Target:
    def __init__(self, server):
        self.url = server.new_url()
        self.address = parse(self.url)
        client, _ = connect(self.address, database=False)
        migrate(client, Layout(self.address.database))
        client.close()
        self.client, _ = connect(self.address)

    def rows(self, sql):
        return self.client.query(sql).result_rows

    def ids(self):
        return [row[0] for row in self.rows("SELECT exchange_id FROM exchanges ORDER BY exchange_id")]

    def sent(self):
        """Rows before the server merges repeated ones."""
        return self.rows("SELECT count() FROM exchange_rows")[0][0]


@pytest.fixture
def target(clickhouse):
    return Target(clickhouse)


@pytest.fixture
def deliver(root, target):
    said = []

    def run(**options):
        delivery = Delivery(open_store(root), target.address, Journal(said.append), **options)
        try:
            return delivery.step(at_once=True)
        finally:
            delivery.close()

    run.said = said
    return run


def ids(*numbers):
    return [f"{number:08x}{'ab' * 12}" for number in numbers]


def test_parts_are_sent_once(write, target, deliver):
    write(1, 2, 3)
    assert deliver()
    assert deliver()
    write(4)
    assert deliver()
    assert target.ids() == ids(1, 2, 3, 4)
    assert target.sent() == 4


def test_an_exchange_that_was_stored_again_is_there_once_as_it_is_now(write, target, deliver):
    write(1)
    deliver()
    write(1, tenant="later")
    deliver()
    assert target.rows("SELECT tenant FROM exchanges") == [("later",)]


def test_parts_that_were_merged_before_they_were_sent_are_sent_once(root, write, target, deliver):
    write(1, 2, 3)
    assert merge(root).merged == 3
    deliver()
    assert (target.ids(), target.sent()) == (ids(1, 2, 3), 3)
    merge(root)  # the originals go
    deliver()
    assert target.sent() == 3


def test_parts_that_were_sent_before_they_were_merged_are_not_sent_again(root, write, target, deliver):
    write(1, 2, 3)
    deliver()
    merge(root)
    deliver()
    merge(root)
    deliver()
    assert (target.ids(), target.sent()) == (ids(1, 2, 3), 3)


def test_of_a_merge_of_sent_and_waiting_parts_nothing_is_missing(root, write, target, deliver):
    write(1, 2)
    deliver()
    write(3)
    merge(root)
    deliver()
    assert target.ids() == ids(1, 2, 3)


def test_a_merge_of_merges_that_happened_meanwhile_is_no_loss(root, write, target, deliver):
    write(1, 2)
    cursor = Cursor(open_store(root), str(target.address))
    cursor.look()
    cursor.save()  # they are known to wait
    merge(root)
    write(3)
    merge(root)
    merge(root)  # parts 1 and 2, and their merge, are gone
    assert len(list(root.glob("exchanges/day=*/part-*.parquet"))) == 1
    deliver()
    assert target.ids() == ids(1, 2, 3)
    cursor = Cursor(open_store(root), str(target.address))
    assert cursor.state.rows_lost == 0
    assert not cursor.state.waiting


def test_the_cursor_of_a_delivered_folder_stays_small_and_merges_of_merges_are_not_sent_again(root, write, target, deliver):
    for begin in range(0, 60, 20):
        write(*range(begin, begin + 20))
        deliver()
        merge(root)
        deliver()
    state = Cursor(open_store(root), str(target.address)).state
    present = {f"{path.parent.name}/{path.name}" for path in root.glob("exchanges/day=*/part-*.parquet")}
    assert state.delivered == present
    assert (target.sent(), len(target.ids())) == (60, 60)


def test_what_is_deleted_before_it_was_sent_is_counted_and_named(root, write, target, deliver):
    write(1, 2)
    cursor = Cursor(open_store(root), str(target.address))
    first, _ = cursor.look()
    cursor.save()
    (root / "exchanges" / first).unlink()
    deliver()
    state = Cursor(open_store(root), str(target.address)).state
    assert (state.rows_lost, state.lost, state.rows_delivered) == (1, {first: Lost(1, DELETED)}, 1)
    assert [event.name for event in deliver.said if event.name == "part_not_delivered"] == ["part_not_delivered"]


@pytest.mark.parametrize("how", ["refuse", "garbage", "cut", "after"])
def test_a_server_that_fails_for_a_while_costs_nothing(clickhouse, write, target, deliver, how):
    if not clickhouse.is_front:
        pytest.skip("a real server does not fail on demand")
    write(1, 2, 3)
    clickhouse.fail(how, times=100)  # the library tries again by itself, too
    try:
        assert not deliver()
        assert sum(event.name == "delivery_failed" for event in deliver.said) == 1
    finally:
        clickhouse.fail("none", times=0)
    assert deliver()
    assert target.ids() == ids(1, 2, 3)


def test_a_failure_within_the_attempts_is_not_even_said(clickhouse, write, target, deliver):
    if not clickhouse.is_front:
        pytest.skip("a real server does not fail on demand")
    write(1)
    clickhouse.fail("refuse", times=2)
    assert deliver()
    assert not [event for event in deliver.said if event.name == "delivery_failed"]


def test_a_server_that_is_not_there_is_left_alone_after_ten_failures(root, write):
    write(1)
    said = []
    delivery = Delivery(open_store(root), parse("clickhouse://u@127.0.0.1:1/db"), Journal(said.append))
    for _ in range(6):
        assert not delivery.step(at_once=True)
    assert ["connection refused" in event.text for event in said] == [True, False]
    assert "10 failures" in said[1].text
    assert "1 rows wait" in said[1].text


def test_a_database_that_was_not_made_is_waited_for(root, clickhouse, write, deliver, target):
    write(1)
    url = clickhouse.new_url()
    said = []
    delivery = Delivery(open_store(root), parse(url), Journal(said.append))
    assert not delivery.step(at_once=True)
    assert "does not exist" in said[0].text
    client, _ = connect(parse(url), database=False)
    migrate(client, Layout(parse(url).database))
    assert delivery.step(at_once=True)
    assert said[-1].name == "delivery_resumed"
    delivery.close()


@pytest.mark.parametrize(("footer", "rows_lost"), [(False, 1), (True, 0)], ids=["its rows", "its footer, so nobody knows its rows"])
def test_a_damaged_part_costs_itself_alone(root, write, target, deliver, footer, rows_lost):
    write(1, 2, 3)
    part = sorted(root.glob("exchanges/day=*/part-*.parquet"))[1]
    data = bytearray(part.read_bytes())
    at = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    start, end = (at, len(data) - 8) if footer else (4, at)
    data[start:end] = bytes(end - start)
    part.write_bytes(data)
    deliver()
    assert target.ids() == ids(1, 3)
    state = Cursor(open_store(root), str(target.address)).state
    assert state.lost == {f"{part.parent.name}/{part.name}": Lost(rows_lost, "damaged")}
    assert state.rows_lost == rows_lost


def test_a_batch_is_sent_at_its_rows_or_its_age(root, write, target):
    write(1, 2)
    now = [0.0]
    delivery = Delivery(open_store(root), target.address, Journal(lambda _: None), batching=Batching(rows=3, age_s=5), clock=lambda: now[0])
    delivery.step()
    assert target.ids() == []
    now[0] = 5.0
    delivery.step()
    assert target.ids() == ids(1, 2)
    write(3, 4, 5)
    delivery.step()
    assert target.ids() == ids(1, 2, 3, 4, 5)
    delivery.close()


def test_a_large_part_goes_in_batches(root, make_exchange, target, deliver):
    with StoreWriter.open(root) as writer:
        for number in range(1200):
            writer.add(make_exchange(number))
    deliver(batching=Batching(rows=500))
    assert (len(target.ids()), target.sent()) == (1200, 1200)


def test_runs_of_taps_are_delivered_as_they_are_now(root, write, target, deliver):
    write(1)
    beat = Beat(node="n", pid=1, version="1", started_ns=5, heartbeat_ns=10)
    write_beat(open_store(root), beat)
    deliver()
    write_beat(open_store(root), Beat(node="n", pid=1, version="1", started_ns=5, heartbeat_ns=20, exchanges=7))
    deliver()
    assert target.rows("SELECT heartbeat_ns, exchanges FROM taps") == [(20, 7)]


def test_two_databases_have_a_cursor_each_and_the_second_names_the_first(root, write, clickhouse):
    write(1)
    said = []
    first, second = Target(clickhouse), Target(clickhouse)
    for target in (first, second):
        delivery = Delivery(open_store(root), target.address, Journal(said.append))
        delivery.step(at_once=True)
        delivery.close()
        assert target.ids() == ids(1)
    assert [event.facts["target"] for event in said if event.name == "another_database"] == [str(first.address)]


def test_a_damaged_cursor_says_what_to_do(root, write, target):
    write(1)
    path = Cursor(open_store(root), str(target.address)).path
    path.write_text("{")
    with pytest.raises(StorageError, match="is damaged") as raised:
        Cursor(open_store(root), str(target.address))
    assert "nothing twice" in raised.value.hint


def test_a_kill_in_the_middle_loses_and_doubles_nothing(root, write, target, tmp_path):
    write(*range(40))
    config = tmp_path / "c.yaml"
    node = target.address.nodes[0]
    config.write_text(
        f"storage:\n  path: {root}\n  clickhouse: {{nodes: ['{node.host}:{node.port}'], database: {target.address.database}, batch_size: 1}}\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", "from llmsec_agent.cli.tap.app import main; main()", "deliver", "--config", str(config), "--once"]
    process = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not target.ids() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert 0 < len(target.ids()) < 40
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert target.ids() == ids(*range(40))
    assert target.sent() <= 41  # the one that was under way may have been sent twice
