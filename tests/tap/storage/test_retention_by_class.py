"""Retention of classes and tenants, deletion of a subject, the cap of a folder: what goes, what stays, and that a reader sees no more than that."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from llmsec_tap.errors import StorageError
from llmsec_tap.journal import SILENT
from llmsec_tap.model import Exchange
from llmsec_tap.storage import StoreWriter, create_store, open_store
from llmsec_tap.storage.compact import alone, compact
from llmsec_tap.storage.erase import Subject, damaged_parts, erase
from llmsec_tap.storage.retention import Keep, Retention, prune, read_policy, write_policy
from support.exchanges import full_exchange
from support.journal import Said

DAY_NS = 86_400_000_000_000
FIRST_NS = 1_700_000_000_000_000_000 // DAY_NS * DAY_NS
NOW_NS = FIRST_NS + 10 * DAY_NS
LONG = 10**18
TEXT = "Malm\u00f6"


def fill(root: Path, *exchanges: Exchange, rows: int = 100) -> None:
    with StoreWriter(create_store(root), flush_rows=rows) as writer:
        for exchange in exchanges:
            writer.add(exchange)


def on_day(day: int, number: int, **changes: object) -> Exchange:
    return full_exchange(day * 10 + number, started_ns=FIRST_NS + day * DAY_NS + number, **changes)


def is_bare(exchange: Exchange) -> bool:
    return exchange.input_text is None and TEXT not in str(exchange)


def test_texts_go_and_counts_stay(root, reader):
    fill(root, *(on_day(day, number) for day in range(10) for number in range(3)))
    before = reader.records()
    pruned = prune(open_store(root), NOW_NS, Retention(keep=Keep(content=4)))
    assert (pruned.stripped, pruned.rows) == (18, 0)
    after = reader.records()
    assert [is_bare(exchange) for exchange in after] == [True] * 18 + [False] * 12
    assert after[18:] == before[18:]
    for old, new in zip(before, after, strict=True):
        assert (old.exchange_id, old.usage, old.tenant, old.risk_score, old.status) == (
            new.exchange_id,
            new.usage,
            new.tenant,
            new.risk_score,
            new.status,
        )
    assert after[0].anomalies[-1].name == "content_expired"
    assert after[0].findings[0].preview == ""
    assert prune(open_store(root), NOW_NS, Retention(keep=Keep(content=4))).stripped == 0
    assert not any(TEXT.encode() in path.read_bytes() for path in root.glob("exchanges/day=2023-11-14/*"))


def test_each_tenant_has_its_own_days(root, reader):
    fill(root, *(on_day(0, number, tenant=tenant) for number, tenant in enumerate(("acme", "short", None))))
    keep = Retention(keep=Keep(content=30), tenants={"short": Keep(content=1), "gone": Keep(metadata=1)})
    assert prune(open_store(root), NOW_NS, keep).stripped == 1
    assert {exchange.tenant: is_bare(exchange) for exchange in reader.records()} == {"acme": False, "short": True, None: False}
    keep = Retention(tenants={"acme": Keep(metadata=1)})
    assert prune(open_store(root), NOW_NS, keep).rows == 1
    assert {exchange.tenant for exchange in reader.records()} == {"short", None}


def test_a_record_with_findings_stays_without_texts_until_they_may_go(root, reader):
    fill(root, on_day(0, 0), on_day(0, 1, findings=[]))
    assert prune(open_store(root), NOW_NS, Retention(keep=Keep(metadata=2, findings=30))).rows == 1
    (left,) = reader.records()
    assert is_bare(left)
    assert left.findings
    prune(open_store(root), NOW_NS, Retention(keep=Keep(findings=2)))
    (left,) = reader.records()
    assert (left.findings, left.risk_score) == ([], 17)
    assert prune(open_store(root), NOW_NS, Retention(keep=Keep(metadata=2, findings=2))).rows == 1
    assert reader.records() == []
    assert not list(root.glob("exchanges/day=2*"))


def test_the_oldest_texts_go_beyond_their_bytes(root, reader):
    fill(root, *(on_day(day, 0) for day in range(10)), rows=1)
    size = sum(path.stat().st_size for path in reader.parts())
    keep = Retention(content_bytes=size // 2)
    prune(open_store(root), NOW_NS, keep)
    bare = [is_bare(exchange) for exchange in reader.records()]
    assert bare == sorted(bare, reverse=True)
    assert 4 <= sum(bare) <= 6
    assert prune(open_store(root), NOW_NS, keep).stripped == 0


def test_merged_parts_keep_what_they_say_of_their_originals(root, reader):
    fill(root, *(on_day(0, number) for number in range(8)), rows=1)
    store = open_store(root)
    assert compact(store, time.time_ns(), settled_ns=-LONG, min_parts=4).merged == 8
    prune(store, NOW_NS, Retention(keep=Keep(content=1)))
    assert all(is_bare(exchange) for exchange in reader.records())
    assert not any(TEXT.encode() in path.read_bytes() for path in reader.parts())
    assert compact(store, time.time_ns(), grace_ns=-LONG).removed == 8
    assert len(reader.records()) == 8


@pytest.mark.parametrize(
    ("subject", "left"),
    [
        (Subject("tenant", frozenset(("acme",))), {3, 4, 5}),
        (Subject("end_user", frozenset(("jo",))), {0, 2, 3, 5}),
        (Subject("exchange_id", frozenset((on_day(0, 2).exchange_id,))), {0, 1, 3, 4, 5}),
        (Subject("tenant", frozenset(("nobody",))), set(range(6))),
    ],
)
def test_a_subject_goes_from_all_parts_and_their_copies(root, reader, subject, left):
    rows = [on_day(0, n, tenant="acme" if n < 3 else "other", end_user="jo" if n % 3 == 1 else "al") for n in range(6)]
    fill(root, *rows, *rows, rows=2)
    store = open_store(root)
    compact(store, time.time_ns(), settled_ns=-LONG, min_parts=2)
    counted = erase(store, subject, SILENT, really=False)
    assert len(reader.records()) == 6
    assert erase(store, subject, SILENT).rows == counted.rows
    assert {int(exchange.exchange_id[:8], 16) for exchange in reader.records()} == left
    assert erase(store, subject, SILENT).rows == 0


def test_only_the_texts_of_a_subject(root, reader):
    fill(root, on_day(0, 0, tenant="acme"), on_day(0, 1, tenant="other"))
    assert erase(open_store(root), Subject("tenant", frozenset(("acme",))), SILENT, content_only=True).stripped == 1
    assert [is_bare(exchange) for exchange in reader.records()] == [True, False]


def test_deletion_waits_for_a_merge_and_says_so_when_it_takes_too_long(root):
    fill(root, on_day(0, 0))
    store = open_store(root)
    with alone(store) as is_alone:
        assert is_alone
        with pytest.raises(StorageError, match="compacted"):
            erase(store, Subject("tenant", frozenset(("acme",))), SILENT, wait_s=0.05)
    assert erase(store, Subject("tenant", frozenset(("acme",))), SILENT, wait_s=0).rows == 1


def test_a_damaged_part_is_set_aside_and_named_and_the_rest_is_read(root, reader):
    fill(root, *(on_day(0, number) for number in range(3)), rows=1)
    damaged = reader.parts()[1]
    data = bytearray(damaged.read_bytes())
    data[4 : len(data) // 2] = b"\xff" * (len(data) // 2 - 4)
    damaged.write_bytes(data)
    said = Said()
    assert erase(open_store(root), Subject("tenant", frozenset(("acme",))), said, content_only=True).stripped == 2
    assert [path.name for path in damaged_parts(open_store(root))] == [damaged.name + ".damaged"]
    assert damaged.name in said.texts[0]


def test_a_folder_is_never_larger_than_its_cap_by_more_than_one_part(root, reader):
    cap = 200_000
    largest = 0
    writer = StoreWriter(create_store(root), flush_rows=1, max_store_bytes=cap)
    for number in range(60):
        writer.add(on_day(number % 5, number))
        sizes = [path.stat().st_size for path in reader.parts()]
        largest = max(largest, sum(sizes))
        assert sum(sizes) <= cap + max(sizes)
    writer.close()
    assert largest > cap // 2
    assert writer.pruned.parts > 30
    assert int(reader.records()[-1].exchange_id[:8], 16) % 10 == 9


def test_a_merge_under_a_cap_drops_its_originals_at_once(root, reader):
    fill(root, *(on_day(0, number) for number in range(20)), rows=1)
    store = open_store(root)
    size = sum(path.stat().st_size for path in reader.parts())
    compact(store, time.time_ns(), settled_ns=-LONG, min_parts=4, max_bytes=size)
    assert len(reader.parts()) == 1
    assert len(reader.records()) == 20


def test_queries_meanwhile_see_each_row_once(root):
    from llmsec_analyzer.stored.session import QuerySession

    fill(root, *(on_day(0, number) for number in range(60)), rows=2)
    store = open_store(root)
    thread = threading.Thread(target=lambda: prune(store, NOW_NS, Retention(keep=Keep(content=1))))
    thread.start()
    looks = 0
    while thread.is_alive() or not looks:
        with QuerySession.open(root) as session:
            assert len(list(session.select("SELECT exchange_id, input_text FROM exchanges").rows())) == 60
        looks += 1
    thread.join()


def test_the_policy_stays_with_the_store(root):
    store = create_store(root)
    assert read_policy(store) == Retention()
    keep = Retention(days=30, keep=Keep(content=7), tenants={"a": Keep(findings=1)})
    write_policy(store, keep)
    assert read_policy(open_store(root)) == keep
    (root / "retention.json").write_text("{")
    with pytest.raises(StorageError, match="damaged"):
        read_policy(store)
