"""What the live page is told: each exchange once, what is left out as a count, and a store that cannot be followed."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llmsec_agent.console import live
from llmsec_agent.console.asking import Asking
from llmsec_analyzer.stored import standing
from llmsec_tap.errors import ConfigError, StorageError
from llmsec_tap.storage import Store, StoreWriter, create_store
from llmsec_tap.storage.clickhouse.address import parse
from llmsec_tap.storage.clickhouse.client import connect
from llmsec_tap.storage.clickhouse.migrations import migrate
from llmsec_tap.storage.clickhouse.tables import Layout
from llmsec_tap.storage.compact import compact
from support.clickhouse_front import Server, copy_folder
from support.hostile import HOSTILE, START, exchange
from support.journal import Said


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return create_store(tmp_path / "store")


@pytest.fixture
def asking(store: Store) -> Iterator[Asking]:
    made = Asking(str(store.root), Said())
    yield made
    made.close()


def fill(store: Store, numbers: range, ended_s: float = 0.0) -> None:
    """One part of exchanges that ended so many seconds from now."""
    now_ns = time.time_ns() + int(ended_s * 1e9)
    writer = StoreWriter(store)
    for number in numbers:
        writer.add(msgspec.structs.replace(exchange(number), started_ns=now_ns - 10**8, ended_ns=now_ns + number))
    writer.close()


class Page:
    """What one page was told."""

    def __init__(self, asking: Asking, start_ns: int | None = None) -> None:
        self.look = live._Look(asking, start_ns)
        self.told = self._new()

    def _new(self) -> list[int]:
        return [int(row["id"], 16) for row in self.look.new()]

    def until(self, told: int, left_out: int = 0) -> None:
        deadline = time.monotonic() + 30
        while (len(self.told), self.look.left_out) != (told, left_out):
            assert time.monotonic() < deadline, (self.told, self.look.left_out)
            self.told += self._new()
            time.sleep(0.02)


async def event(source: AsyncIterator[bytes]) -> tuple[str, dict[str, Any]]:
    """Its kind and its content."""
    fields = dict(line.split(": ", 1) for line in (await asyncio.wait_for(anext(source), 30)).decode().splitlines() if line)
    return fields.get("event", "message"), json.loads(fields["data"])


def test_each_exchange_is_told_once(store: Store, asking: Asking) -> None:
    async def heard() -> list[dict[str, Any]]:
        source = live.events(asking, start_ns=START)
        assert await anext(source) == b"retry: 2000\n\n"
        assert await event(source) == ("state", {"fault": "", "left_out": 0})
        writer, found = StoreWriter(store), []
        for number in range(3):
            writer.add(exchange(number + 1, HOSTILE[number]))
            writer.flush()
            found.append((await event(source))[1])
        writer.close()
        await source.aclose()
        return found

    rows = asyncio.run(heard())
    assert [row["id"] for row in rows] == [f"{number:032x}" for number in (1, 2, 3)]
    assert [row["cells"][2] for row in rows] == ["model-1", "model-2", "model-0"]


def test_a_store_that_is_gone_is_said_once_and_that_it_is_back(store: Store, asking: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_EVERY_S", 0.01)
    fill(store, range(1))
    looks = iter([None, "gone", "gone", "gone"])
    since = asking.since

    def asked(*arguments: Any) -> Any:
        if (fault := next(looks, None)) is not None:
            raise StorageError(f"the store is {fault}\u202e", "look for it")
        return since(*arguments)

    monkeypatch.setattr(asking, "since", asked)

    async def heard() -> list[tuple[str, dict[str, Any]]]:
        source = live.events(asking)
        await anext(source)
        found = [await event(source) for _ in range(3)]
        await source.aclose()
        return found

    assert asyncio.run(heard()) == [
        ("state", {"fault": "", "left_out": 0}),
        ("state", {"fault": "the store is gone\\u202e (look for it)", "left_out": 0}),
        ("state", {"fault": "", "left_out": 0}),
    ]


def test_a_clock_that_is_ahead_hides_nothing(store: Store, asking: Asking) -> None:
    page = Page(asking)
    fill(store, range(1, 211), ended_s=600)
    page.until(200, 10)
    fill(store, range(301, 306))
    page.until(205, 10)
    assert page.told[200:] == [301, 302, 303, 304, 305]


def test_what_is_stored_long_after_its_end_is_told_and_what_is_stored_again_is_counted(store: Store, asking: Asking) -> None:
    page = Page(asking)
    fill(store, range(1, 4), ended_s=-600)
    page.until(3)
    fill(store, range(11, 14), ended_s=-7200)
    page.until(3, 3)


def test_what_a_merge_writes_is_no_news(store: Store, asking: Asking) -> None:
    page = Page(asking)
    fill(store, range(1, 3))
    fill(store, range(3, 5))
    page.until(4)
    page.look._told.clear()
    assert compact(store, time.time_ns(), min_parts=2, settled_ns=0).merged == 2
    fill(store, range(9, 10))
    page.until(5)
    assert page.told == [1, 2, 3, 4, 9]


def test_a_page_that_comes_back_is_told_what_it_missed(store: Store, asking: Asking) -> None:
    left_ns = time.time_ns()
    fill(store, range(1, 3), ended_s=-60)  # it may have been stored after the page had left
    fill(store, range(11, 221))
    page = Page(asking, left_ns - 1)
    page.until(200, 10)
    assert page.told == list(range(21, 221))


def test_a_store_that_is_read_by_time_counts_what_it_leaves_out(store: Store, asking: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standing, "MAX_ROWS", -1)
    monkeypatch.setattr(live, "_MOST", 3)
    monkeypatch.setattr(live, "_AT_ONCE", 2)
    monkeypatch.setattr(live, "_EVERY_TIME_S", 0.0)
    page = Page(asking)
    fill(store, range(1, 6), ended_s=600)
    page.until(2, 1)
    fill(store, range(11, 12))
    page.until(3, 1)
    assert page.told[2] == 11


def test_of_a_database_it_is_what_ended_of_late(tmp_path: Path, clickhouse: Server) -> None:
    url = clickhouse.new_url()
    client, _ = connect(parse(url), database=False)
    migrate(client, Layout(parse(url).database))
    asking = Asking(url, Said())
    page = Page(asking, time.time_ns() - 3600 * 10**9)
    store = create_store(tmp_path / "store")
    fill(store, range(1, 3), ended_s=-600)
    fill(store, range(3, 5))
    fill(store, range(5, 6), ended_s=600)
    copy_folder(store.root, url)
    page.until(3)
    assert page.told == [3, 4, 5]
    asking.close()


def test_all_that_is_stored_late_at_once_is_told_or_counted(store: Store, asking: Asking) -> None:
    page = Page(asking)
    fill(store, range(1, 251), ended_s=-600)
    page.until(200, 50)


@pytest.mark.parametrize("wrong", ["x", "-1", "٣", "9" * 20])
def test_where_to_begin_is_a_time(wrong: str) -> None:
    with pytest.raises(ConfigError, match="since is a time"):
        live.start_of(wrong)
    assert live.start_of("") is None
    assert live.start_of("7") == 7
    assert (live.start_of("9" * 19) or 0) <= time.time_ns()
