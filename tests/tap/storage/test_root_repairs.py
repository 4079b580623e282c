"""Root looks into the store of an agent that writes as another user: what it has to write anew stays the agent's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmsec_tap.storage.store import INFO_NAME, create_store, open_store

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="changing owners needs root")
AGENT = 64_100


def test_a_store_that_root_found_at_another_path_can_be_read_by_its_owner(tmp_path: Path) -> None:
    create_store(tmp_path / "in-the-pod")
    moved = (tmp_path / "in-the-pod").rename(tmp_path / "on-the-node")
    for path in (moved, *moved.rglob("*")):
        os.chown(path, AGENT, AGENT)
    before = (moved / INFO_NAME).read_bytes()
    open_store(str(moved))
    assert (moved / INFO_NAME).read_bytes() != before, "its views name the new path"
    assert {path.name: path.stat().st_uid for path in moved.rglob("*") if path.stat().st_uid != AGENT} == {}
