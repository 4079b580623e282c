"""Files of decisions, on full disks and where somebody put something else in their place."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmsec_agent.console import triage
from llmsec_agent.console.triage import FILE, Triage, acknowledged
from llmsec_agent.suppressing import append
from llmsec_analyzer.judge.suppressions import Entry
from llmsec_tap.errors import StorageError
from llmsec_tap.storage import create_store


def entry(rule: str) -> Entry:
    return Entry(reason="r", owner="o", until="2100-01-01", rule=rule)


@pytest.mark.parametrize("kind", ["pipe", "link", "folder"])
def test_what_is_no_file_of_decisions_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    store = create_store(tmp_path / "store")
    path = store.root / FILE
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "link":
            path.symlink_to(tmp_path / "elsewhere")
            (tmp_path / "elsewhere").write_bytes(b"")
        case _:
            path.mkdir()
    with pytest.raises(StorageError, match=FILE):
        acknowledged(store)


def test_suppressions_are_read_again_where_a_file_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = 0
    load = triage.load_suppressions

    def counted(names: list[str]) -> object:
        nonlocal read
        read += 1
        return load(names)

    monkeypatch.setattr(triage, "load_suppressions", counted)
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    append(first, entry("a"))
    made = Triage(second, (str(first), str(second)))

    def rules() -> list[str | None]:
        return [given.entry.rule for given in made.entries().entries]

    assert [rules() for _ in range(3)] == [["a"]] * 3
    assert read == 1
    append(second, entry("b"))
    assert [rules(), rules()] == [["a", "b"]] * 2
    assert read == 2
    first.write_text(first.read_text().replace('"a"', '"c"'))
    assert rules() == ["c", "b"]
    second.unlink()
    assert rules() == ["c"]
    first.unlink()
    with pytest.raises(Exception, match="cannot be read"):
        made.entries()
