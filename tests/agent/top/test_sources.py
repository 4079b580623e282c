"""Where events come from: lines of a pipe in any cut, wrong ones, too long ones; a store with what its rows leave null."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llmsec_agent.events import Ended as ToldEnd
from llmsec_agent.events import to_line
from llmsec_agent.top import sources
from llmsec_agent.top.facts import Ended, Lost
from llmsec_agent.top.sources import Follower, Lines, Said, Source, Stored, Told
from llmsec_analyzer.stored.stores import Session
from llmsec_tap.errors import ConfigError, SourceError, StorageError
from llmsec_tap.storage import StoreWriter, create_store
from llmsec_tap.storage.taps import Beat, write_beat
from support.hostile import exchange, finding

LOSS = b'{"event":"loss","ts_ns":1,"what":"records","count":2}'


def told(source: Source, until: int, within_s: float = 10.0) -> list[Told]:
    """So many, or an end."""
    found: list[Told] = []
    deadline = time.monotonic() + within_s
    while len(found) < until and time.monotonic() < deadline:
        found += source.told(0.1)
        time.sleep(0.01)
    return found


@pytest.fixture
def pipe() -> Iterator[tuple[Lines, int]]:
    read, write = os.pipe()
    source = Lines(read, "input")
    source.start()
    yield source, write
    assert source.close()
    os.close(read)


def test_lines_come_whole_however_they_are_cut(pipe: tuple[Lines, int]) -> None:
    source, write = pipe
    for byte in LOSS + b"\n\n" + LOSS:  # an empty line is none, the last may have no end
        os.write(write, bytes([byte]))
    os.close(write)
    assert told(source, 3) == [Lost(ts_ns=1, what="records", count=2)] * 2 + [Said("input has ended", is_end=True)]


@pytest.mark.parametrize("wrong", [b"no event", b"{}", b'{"event":"other"}', b"\xff\xfe", b"[" * 100_000, b'{"event":"loss","ts_ns":"x"}'])
def test_a_wrong_line_is_said_with_its_number_and_the_next_is_read(pipe: tuple[Lines, int], wrong: bytes) -> None:
    source, write = pipe
    threading.Thread(target=lambda: (os.write(write, LOSS + b"\n" + wrong + b"\n" + LOSS + b"\n"), os.close(write))).start()
    first, said, second, end = told(source, 4)
    assert first == second == Lost(ts_ns=1, what="records", count=2)
    assert isinstance(said, Said)
    assert said.text.startswith("input, line 2: not a line of --format events")
    assert len(said.text) < 400
    assert end == Said("input has ended", is_end=True)


def test_a_line_without_end_is_left_out_and_takes_no_memory(pipe: tuple[Lines, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_MAX_LINE", 200_000)
    source, write = pipe
    with os.fdopen(write, "wb") as file:
        for _ in range(20):
            file.write(b"x" * 100_000)
        file.write(b"\n" + LOSS + b"\n")
    said, loss, _ = told(source, 3)
    assert isinstance(said, Said)
    assert "is left out" in said.text
    assert loss == Lost(ts_ns=1, what="records", count=2)


def test_a_reader_that_is_behind_lets_the_pipe_fill(pipe: tuple[Lines, int]) -> None:
    source, write = pipe
    os.set_blocking(write, False)
    written, full_since = 0, time.monotonic()
    while time.monotonic() - full_since < 1.0:  # so long nobody has read
        try:
            written += os.write(write, (LOSS + b"\n") * 50)
            full_since = time.monotonic()
        except BlockingIOError:
            time.sleep(0.01)
        assert written < 10_000_000
    assert source._queue._waiting.qsize() == sources._MAX_WAITING
    os.close(write)
    assert sum(isinstance(one, Lost) for one in told(source, 10**9, 1.0)) == written // (len(LOSS) + 1)


def test_a_record_can_be_opened_until_newer_ones_take_its_room(pipe: tuple[Lines, int], monkeypatch: pytest.MonkeyPatch) -> None:
    source, write = pipe
    lines = [to_line(ToldEnd(ts_ns=1, exchange_id=one.exchange_id, exchange=one)) for one in (exchange(2, "first"), exchange(3, "second"))]
    monkeypatch.setattr(sources, "_MAX_KEPT", len(lines[1]) + 10)
    os.write(write, lines[0] + b"\n")
    assert isinstance(told(source, 1)[0], Ended)
    assert "first" in source.show(f"{2:032x}")
    os.write(write, lines[1] + b"\n")
    told(source, 1)
    assert "second" in source.show(f"{3:032x}")
    with pytest.raises(SourceError, match="not at hand"):
        source.show(f"{2:032x}")
    os.close(write)


def now_ended(number: int, behind_s: float = 0.0, **changes: object) -> object:
    now = time.time_ns() - int(behind_s * 1e9)
    return msgspec.structs.replace(exchange(number), started_ns=now - 1_000_000, ended_ns=now, **changes)


def test_a_store_tells_each_exchange_once_and_what_its_taps_lost(tmp_path: Path) -> None:
    root = tmp_path / "store"
    writer = StoreWriter(create_store(root))
    writer.add(now_ended(1))  # type: ignore[arg-type]
    writer.add(now_ended(2, 3600.0))  # type: ignore[arg-type]
    writer.close()
    for heard, not_stored in ((time.time_ns(), 4), (time.time_ns() - 3600 * 10**9, 100)):
        write_beat(
            create_store(root),
            Beat(node="a", pid=not_stored, version="1", started_ns=heard - 1, heartbeat_ns=heard, not_stored=not_stored, lost_records=1),
        )
    source = Follower(str(root), "store", time.time_ns())
    source.check()
    source.start()
    (first,) = told(source, 1)
    assert isinstance(first, Stored)
    assert [one.exchange_id for one in first.rows] == [f"{1:032x}"]
    assert first.losses == {"not stored": 4, "lost records": 1, "looks cut short": 0, "not readable": 0}
    assert first.rows[0].process is None
    assert [finding.rule_id for finding in first.rows[0].findings] == ["injection.override"]
    writer = StoreWriter(create_store(root))
    writer.add(now_ended(3, provider=None, status=None, request_model=None))  # type: ignore[arg-type]
    writer.close()
    (second,) = told(source, 1)
    assert isinstance(second, Stored)
    assert [one.exchange_id for one in second.rows] == [f"{3:032x}"]
    with pytest.raises(ConfigError):
        source.show("f" * 32)
    assert source.close()


def test_more_than_a_look_takes_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_AT_ONCE", 3)
    writer = StoreWriter(create_store(tmp_path / "store"))
    for number in range(5):
        writer.add(now_ended(number, number / 1000))  # type: ignore[arg-type]
    writer.close()
    source = Follower(str(tmp_path / "store"), "store", time.time_ns())
    source.start()
    (look,) = told(source, 1)
    assert isinstance(look, Stored)
    assert len(look.rows) == 3
    assert look.losses["looks cut short"] == 1
    assert source.close()


def test_what_a_clock_that_is_ahead_has_stamped_hides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_AT_ONCE", 3)
    writer = StoreWriter(create_store(tmp_path / "store"))
    for number in range(4):
        writer.add(now_ended(number, -600.0))  # type: ignore[arg-type]
    writer.add(now_ended(9))  # type: ignore[arg-type]
    writer.close()
    source = Follower(str(tmp_path / "store"), "store", time.time_ns())
    source.start()
    (look,) = told(source, 1)
    assert isinstance(look, Stored)
    assert f"{9:032x}" in [one.exchange_id for one in look.rows]
    assert source.close()


def test_a_row_that_is_not_readable_is_counted_and_the_others_come(tmp_path: Path) -> None:
    writer = StoreWriter(create_store(tmp_path / "store"))
    weird = msgspec.structs.replace(finding("request.messages[0].parts[0]", 0, 2), severity="of a later version")
    writer.add(now_ended(1, findings=[weird]))  # type: ignore[arg-type]
    writer.add(now_ended(2))  # type: ignore[arg-type]
    writer.close()
    source = Follower(str(tmp_path / "store"), "store", time.time_ns())
    source.start()
    (look,) = told(source, 1)
    assert isinstance(look, Stored)
    assert [one.exchange_id for one in look.rows] == [f"{2:032x}"]
    assert look.losses["not readable"] == 1
    assert source.close()


def test_whatever_a_look_at_a_store_raises_is_said_and_the_next_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_EVERY_S", 0.01)
    writer = StoreWriter(create_store(tmp_path / "store"))
    writer.add(now_ended(1))  # type: ignore[arg-type]
    writer.close()
    looked, faults = sources._looked, iter([ValueError("secret content")])

    def look(session: Session, since_ns: int) -> tuple[list[dict[str, Any]], dict[str, int]]:
        for fault in faults:
            raise fault
        return looked(session, since_ns)

    monkeypatch.setattr(sources, "_looked", look)
    source = Follower(str(tmp_path / "store"), "store", time.time_ns())
    source.start()
    said, found, no_more = told(source, 3)
    assert isinstance(said, Said)
    assert said.text.startswith("the store cannot be followed: ValueError at test_sources.py:")
    assert isinstance(found, Stored)
    assert len(found.rows) == 1
    assert no_more == Said("")
    assert source.close()


def test_a_store_that_is_none_is_said_before_anything_is_drawn(tmp_path: Path) -> None:
    source = Follower(str(tmp_path / "none"), "none", time.time_ns())
    with pytest.raises(StorageError):
        source.check()
    source.close()


def test_the_view_needs_nothing_of_the_console(tmp_path: Path) -> None:
    """They are different extras."""
    pytest.importorskip("textual", reason="the extra `top`")
    blocked = "import sys; sys.modules.update(dict.fromkeys(('starlette', 'uvicorn', 'jinja2', 'pygal')))"
    subprocess.run([sys.executable, "-c", f"{blocked}; import llmsec_agent.top.watch, llmsec_agent.top.captured"], check=True, timeout=60)
