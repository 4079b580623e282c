"""The audit log: one changed byte is found, wherever it stands; a kill at any byte costs only what was not acknowledged."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from llmsec_tap.errors import StorageError
from llmsec_tap.storage import audit, create_store
from llmsec_tap.storage.compact import compact
from llmsec_tap.storage.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return create_store(tmp_path / "store")


def log_of(store: Store) -> Path:
    return next((store.root / "audit").glob("audit-*.jsonl"))


def some(count: int, event: str = "query") -> list[tuple[str, dict[str, object]]]:
    return [(event, {"number": number, "what": "ä\ud83d"[:1]}) for number in range(count)]


def test_a_log_that_nobody_touched_is_whole(store: Store) -> None:
    assert audit.verify(store).entries == 0
    for _ in range(3):
        head = audit.append(store, some(2))
    chain = audit.verify(store, head)
    assert (chain.entries, chain.first_seq, chain.last_seq, chain.faults, chain.head) == (6, 1, 6, (), head)
    assert [entry.seq for entry in audit.entries(store)] == [1, 2, 3, 4, 5, 6]
    assert log_of(store).stat().st_mode & 0o777 == 0o600


def test_each_single_changed_byte_is_found(store: Store) -> None:
    audit.append(store, some(3))
    path = log_of(store)
    data = path.read_bytes()
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :])
        assert audit.verify(store).faults, at
    path.write_bytes(data)
    assert not audit.verify(store).faults


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("taken out", lambda lines: lines[:1] + lines[2:]),
        ("first taken out", lambda lines: lines[1:]),
        ("moved", lambda lines: [lines[0], lines[2], lines[1], *lines[3:]]),
        ("doubled", lambda lines: [*lines[:2], *lines[1:]]),
    ],
)
def test_an_entry_that_is_elsewhere_is_found(store: Store, name: str, change) -> None:
    audit.append(store, some(5))
    path = log_of(store)
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))
    assert audit.verify(store).faults


def test_a_cut_end_and_a_log_written_anew_are_found_by_a_hash_that_was_noted(store: Store) -> None:
    head = audit.append(store, some(5))
    path = log_of(store)
    whole = path.read_bytes()
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:-1]))
    assert not audit.verify(store).faults
    assert "cut" in audit.verify(store, head).faults[0]
    path.unlink()
    audit.append(store, some(5))
    assert audit.verify(store, head).faults


def test_half_an_entry_is_cut_off_by_the_next_writer_who_says_so(store: Store) -> None:
    audit.append(store, some(2))
    path = log_of(store)
    data = path.read_bytes()
    for cut in (1, 50, len(data) // 2 - 1):
        path.write_bytes(data[:-cut])
        assert audit.verify(store).faults
        audit.append(store, some(1))
        chain = audit.verify(store)
        assert not chain.faults
        assert [entry.event for entry in audit.entries(store)][-2:] == ["audit_repaired", "query"]


def test_killed_writers_leave_a_chain_that_the_next_one_continues(store: Store) -> None:
    code = f"""
from pathlib import Path
from llmsec_tap.storage import audit, open_store
store = open_store({str(store.root)!r})
while True:
    print(audit.append(store, [("finding", {{"x": "y" * 3000}})]), flush=True)
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    acknowledged = []
    for _ in range(4):
        writers = [subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        for writer in writers:
            assert writer.stdout is not None
            acknowledged.append(writer.stdout.readline().strip())
        time.sleep(0.05)
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
            acknowledged += [line.strip() for line in writer.communicate()[0].splitlines()[:-1]]
    audit.append(store, some(1))
    for head in acknowledged:
        assert not audit.verify(store, head).faults


def test_threads_and_compaction_at_once_make_one_chain(store: Store) -> None:
    threads = [threading.Thread(target=lambda: [audit.append(store, some(1)) for _ in range(20)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    compact(store, time.time_ns(), settled_ns=-(10**18), min_parts=1)
    for thread in threads:
        thread.join()
    chain = audit.verify(store)
    assert (chain.entries, chain.faults) == (80, ())


def test_old_files_go_whole_and_what_is_left_proves_itself(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "FILE_BYTES", 1000)
    for _ in range(20):
        head = audit.append(store, some(3))
    files = sorted((store.root / "audit").glob("*.jsonl"))
    assert len(files) > 5
    assert audit.trim(store, time.time_ns(), days=1) == 0
    assert audit.trim(store, time.time_ns(), max_bytes=3000) > 0
    chain = audit.verify(store, head)
    assert chain.first_seq > 1
    assert not chain.faults
    assert audit.trim(store, time.time_ns() + 2 * 86_400 * 10**9, days=1) > 0
    assert not audit.verify(store).faults


def test_a_fact_that_is_too_long_for_a_line_hides_no_other(store: Store) -> None:
    audit.append(store, [("query", {"user": "eve", "sql": "x" * 100_000, "filter": ["\0" * 9_000, "tenant"], "page": "exchanges"})])
    audit.append(store, [("query", {f"{number}{'n' * 100}": number for number in range(1000)})])
    assert not audit.verify(store).faults
    first, second = (entry.facts for entry in audit.entries(store))
    assert (first["user"], first["page"], first["filter"][1]) == ("eve", "exchanges", "tenant")
    assert first["sql"]["too_long"] > 100_000
    assert second == {"too_long": second["too_long"]}


def test_nothing_is_added_behind_an_entry_that_was_changed(store: Store) -> None:
    audit.append(store, some(1))
    log_of(store).write_bytes(b"rubbish\n")
    with pytest.raises(StorageError, match="was changed"):
        audit.append(store, some(1))


def test_words_that_utf_8_cannot_hold_break_nothing(store: Store) -> None:
    audit.append(store, [("query", {"sql": "\udc80"})])
    assert not audit.verify(store).faults
    assert next(iter(audit.entries(store))).facts == {"sql": "?"}
