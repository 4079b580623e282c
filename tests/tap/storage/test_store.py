from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import msgspec
import pytest

from llmsec_tap.errors import ConfigError, StorageError
from llmsec_tap.model import Suppressed
from llmsec_tap.storage import StoreWriter, create_store, open_store
from llmsec_tap.storage.migrations import MIGRATIONS
from llmsec_tap.storage.publish import publishing, write_all
from llmsec_tap.storage.schema import SCHEMA_VERSION


def fill(root, make_exchange, numbers=range(3)):
    with StoreWriter.open(root) as writer:
        for number in numbers:
            writer.add(make_exchange(number))


def test_store_json_tells_version_and_migrations(root):
    create_store(root)
    info = json.loads((root / "store.json").read_text())
    assert info["schema_version"] == SCHEMA_VERSION
    assert info["migrations"] == [step.name for step in MIGRATIONS]
    assert info["created"].endswith("Z")


def test_migrations_are_ordered_and_named_once():
    assert [step.version for step in MIGRATIONS] == list(range(1, SCHEMA_VERSION + 1))
    assert len({step.name for step in MIGRATIONS}) == len(MIGRATIONS)


def test_a_newer_store_is_refused_by_name(root, make_exchange):
    fill(root, make_exchange)
    path = root / "store.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 99}))
    for opened in (open_store, create_store, StoreWriter.open):
        with pytest.raises(StorageError, match=rf"newer version .store schema 99, this version knows {SCHEMA_VERSION}") as caught:
            opened(root)
        assert "upgrade" in caught.value.hint


def test_a_moved_store_answers_at_its_new_place(root, tmp_path, make_exchange):
    fill(root, make_exchange)
    moved = tmp_path / "it's [moved]* here?"
    root.rename(moved)
    before = (moved / "llmsec.duckdb").stat().st_ino
    open_store(moved)
    connection = duckdb.connect(str(moved / "llmsec.duckdb"), read_only=True)
    assert connection.execute("SELECT count(*) FROM exchanges").fetchall() == [(3,)]
    connection.close()
    assert (moved / "llmsec.duckdb").stat().st_ino != before


def test_moving_does_not_need_the_old_database_to_be_free(root, tmp_path, make_exchange):
    fill(root, make_exchange)
    moved = tmp_path / "moved"
    root.rename(moved)
    holder = duckdb.connect(str(moved / "llmsec.duckdb"))  # read-write: nobody else can open this file now
    try:
        fill(moved, make_exchange, range(3, 6))
    finally:
        holder.close()
    connection = duckdb.connect(str(moved / "llmsec.duckdb"), read_only=True)
    assert connection.execute("SELECT count(*) FROM exchanges").fetchall() == [(6,)]
    connection.close()


def test_a_writer_needs_no_database_lock(root, make_exchange):
    fill(root, make_exchange)
    holder = duckdb.connect(str(root / "llmsec.duckdb"))
    try:
        fill(root, make_exchange, range(3, 8))
        assert holder.execute("SELECT count(*) FROM exchanges").fetchall() == [(8,)]
    finally:
        holder.close()


def test_several_writers_at_once(root, reader, make_exchange):
    writers = [StoreWriter.open(root) for _ in range(4)]
    for number in range(100):
        writers[number % 4].add(make_exchange(number))
    for writer in writers:
        writer.close()
    assert reader.count() == 100


def test_processes_that_create_the_same_store_at_once(root, reader):
    script = (
        "import sys; from llmsec_tap.model import Exchange; from llmsec_tap.storage import StoreWriter\n"
        "w = StoreWriter.open(sys.argv[1]); w.add(Exchange(exchange_id=sys.argv[2], client='a', server='b')); w.close()"
    )
    running = [subprocess.Popen([sys.executable, "-c", script, str(root), str(number)], env=environment()) for number in range(4)]
    assert [process.wait() for process in running] == [0] * 4
    assert reader.count() == 4


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def test_only_a_dead_writers_remains_are_removed(root, make_exchange):
    fill(root, make_exchange)
    day = next(root.glob("exchanges/day=*"))
    dead = day / ".part-1.parquet.1.0.tmp"
    dead.write_bytes(b"PAR1 half")
    living = day / ".part-2.parquet.2.0.tmp"
    with living.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        create_store(root)
        assert not dead.exists()
        assert living.exists()
    create_store(root)
    assert not living.exists()


def test_publishing_shows_the_whole_file_or_nothing(tmp_path):
    target = tmp_path / "part"
    with pytest.raises(RuntimeError), publishing(target) as descriptor:  # noqa: PT012
        write_all(descriptor, b"half")
        assert not target.exists()
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with publishing(target) as descriptor:
        write_all(descriptor, b"whole")
        assert not target.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["part"]


def test_a_folder_with_other_things_is_no_store(tmp_path):
    (tmp_path / "thesis.tex").write_text("important")
    with pytest.raises(StorageError, match="neither empty nor a store"):
        create_store(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("opened", [open_store])
def test_reading_what_is_no_store(tmp_path, opened):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(StorageError, match="is not a store"):
            opened(path)
    assert list(tmp_path.iterdir()) == []


def test_other_kinds_of_store_are_refused():
    with pytest.raises(ConfigError, match="clickhouse"):
        create_store("clickhouse://user:secret@host/db")


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "store"):
        with pytest.raises(StorageError, match="cannot write"):
            create_store(path)


def test_damaged_store_json(root, make_exchange):
    fill(root, make_exchange)
    (root / "store.json").write_text("{")
    with pytest.raises(StorageError, match=r"store\.json is damaged"):
        open_store(root)


def test_a_lost_store_json_is_made_anew(root, reader, make_exchange):
    fill(root, make_exchange)
    (root / "store.json").unlink()
    (root / "llmsec.duckdb").unlink()
    fill(root, make_exchange, range(3, 6))
    assert reader.count() == 6


def test_parts_of_an_older_version_without_some_columns_still_read(root, reader, make_exchange):
    import pyarrow.parquet as pq

    fill(root, make_exchange)
    (part,) = reader.parts()
    table = pq.read_table(part).drop_columns(["reasoning_text", "first_byte_ns"])
    request = table.column_names.index("usage")
    usage = pq.read_table(part)["usage"].combine_chunks().flatten()[:2]
    import pyarrow as pa

    narrow = pa.StructArray.from_arrays(usage, names=["input_tokens", "output_tokens"])
    table = table.set_column(request, "usage", narrow)
    part.unlink()
    pq.write_table(table, part)
    assert reader.rows("SELECT reasoning_text, input_tokens, reasoning_tokens FROM exchanges LIMIT 1") == [(None, 11, None)]
    fill(root, make_exchange, range(10, 12))
    assert reader.rows("SELECT count(*), count(reasoning_text), count(reasoning_tokens) FROM exchanges") == [(5, 2, 2)]


def test_findings_of_an_older_version_without_a_field_still_read(root, reader, make_exchange):
    import pyarrow as pa
    import pyarrow.parquet as pq

    fill(root, make_exchange)
    (part,) = reader.parts()
    table = pq.read_table(part)
    kind = table.schema.field("findings").type.value_type
    older = pa.list_(pa.struct([field for field in kind if field.name != "suppressed"]))
    rows = [
        [{name: value for name, value in row.items() if name != "suppressed"} for row in found] for found in table["findings"].to_pylist()
    ]
    part.unlink()
    pq.write_table(table.set_column(table.column_names.index("findings"), "findings", pa.array(rows, older)), part)
    assert reader.rows("SELECT count(*), count(suppressed), count(rule_id) FROM findings") == [(3, 0, 3)]
    with StoreWriter.open(root) as writer:
        (finding,) = make_exchange(20).findings
        mark = Suppressed(reason="r", owner="o", until="2999-12-31")
        writer.add(make_exchange(20, findings=[msgspec.structs.replace(finding, suppressed=mark)]))
    assert reader.rows("SELECT suppressed.owner, count(*) FROM findings GROUP BY 1 ORDER BY 2") == [("o", 1), (None, 3)]


def test_read_only_folder_can_be_queried(root, reader, make_exchange, tmp_path):
    fill(root, make_exchange)
    moved = tmp_path / "moved"
    shutil.move(root, moved)
    for path in [moved, *moved.rglob("*")]:
        path.chmod(0o500 if path.is_dir() else 0o400)
    try:
        open_store(moved)
    finally:
        for path in [moved, *moved.rglob("*")]:
            path.chmod(0o700 if path.is_dir() else 0o600)


def test_an_ordinary_user_without_permission_gets_one_line(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("runs as root to become another user")
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o755)
    for parent in [tmp_path, *tmp_path.parents][:-2]:
        if parent.stat().st_uid == 0 and parent != Path("/tmp"):
            parent.chmod(parent.stat().st_mode | 0o055)
    script = (
        "import os, sys; from llmsec_tap.storage import create_store; from llmsec_tap.errors import StorageError\n"
        "import llmsec_tap.storage.parquet, llmsec_tap.storage.views\n"
        "os.setuid(65534)\n"
        "try: create_store(sys.argv[1])\n"
        "except StorageError as fault: print(fault, '|', fault.hint, '|', fault.exit_code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder / "store")], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith(f"cannot write {folder}/store: permission denied | run as"), done
    assert done.stdout.rstrip().endswith("| 4")


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's folder needs root")
def test_root_reads_anothers_moved_store_and_leaves_its_files_to_their_owner(tmp_path: Path) -> None:
    """As on a node: the agent knows its folder by a path of the container, and root asks by the host's. The agent must start again."""
    owner = 12_345
    create_store(tmp_path / "inside")
    moved = (tmp_path / "inside").rename(tmp_path / "outside")
    for path in (moved, *moved.rglob("*")):
        os.chown(path, owner, owner)
    open_store(moved)
    assert {path.stat().st_uid for path in (moved, *moved.rglob("*"))} == {owner}
