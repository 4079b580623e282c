"""Looks at content: none without an entry in the audit log, and no address keeps the user's name out of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from starlette.testclient import TestClient

from llmsec_agent.console.access import Access, hashed
from llmsec_agent.console.app import console
from llmsec_agent.console.triage import Triage
from llmsec_tap.storage import StoreWriter, audit, create_store
from llmsec_tap.storage.store import Store
from support.hostile import exchange, finding
from support.journal import Said

PASSWORD, SECRET = "correct horse", "malachite and onyx"
LOOKS = (
    "/exchanges",
    "/exchanges.jsonl",
    "/exchanges.csv",
    f"/exchanges/{1:032x}",
    f"/exchanges/{1:032x}/record.json",
    "/findings?since=all",
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = create_store(tmp_path / "store")
    writer = StoreWriter(made)
    found = [msgspec.structs.replace(finding("request.messages[0].parts[0]", 0, 2), finding_id="f1")]
    writer.add(msgspec.structs.replace(exchange(1, SECRET), findings=found))
    writer.close()
    return made


def browser(store: Store, name: str = "admin", **options: Any) -> TestClient:
    access = Access(None, {role: (hashed(PASSWORD), role) for role in ("viewer", "analyst", "admin")})  # type: ignore[misc]
    made = TestClient(console(str(store.root), "store", access, Said(), is_secure=False, **options), follow_redirects=False)
    assert made.post("/login", data={"name": name, "password": PASSWORD}).status_code == 303
    return made


@pytest.fixture
def full(store: Store) -> Iterator[Store]:
    """Nothing can be written to its audit log."""
    folder = store.root / "audit"
    if folder.exists():
        folder.rename(store.root / "audit.before")
    folder.write_bytes(b"")
    return store


@pytest.mark.parametrize("page", LOOKS)
def test_nothing_is_shown_that_cannot_be_audited(full: Store, page: str) -> None:
    with browser(full, "analyst") as made:
        answer = made.get(page)
    assert (answer.status_code, SECRET in answer.text) == (503, False)
    assert "cannot write" in answer.text
    assert "serve --audit FOLDER" in answer.text


def test_figures_are_shown_all_the_same(full: Store) -> None:
    with browser(full, "viewer") as made:
        assert made.get("/exchanges").status_code == 200
        assert made.get(f"/exchanges/{1:032x}").status_code == 200


@pytest.mark.parametrize("do", ["suppress", "acknowledge"])
def test_nothing_is_decided_that_cannot_be_audited(full: Store, tmp_path: Path, do: str) -> None:
    file = tmp_path / "suppressions.yaml"
    given = {"do": do, "reason": "a drill", "until": "9d", "by_rule": "1"}
    with browser(full, triage=Triage(file, (str(file),))) as made:
        csrf = made.get("/taps").text.split('name="csrf" value="')[1].split('"')[0]
        assert made.post(f"/exchanges/{1:032x}/findings/f1", data={**given, "csrf": csrf}).status_code == 503
    assert not file.exists()
    assert not (full.root / "triage.jsonl").exists()


def test_another_folder_has_the_audit_log_where_one_is_named(full: Store, tmp_path: Path) -> None:
    other = create_store(tmp_path / "other")
    with browser(full, "analyst", log=other) as made:
        assert made.get(f"/exchanges/{1:032x}").status_code == 200
    assert [entry.event for entry in audit.entries(other)] == ["login", "query"]


@pytest.mark.parametrize("page", LOOKS[:3])
def test_no_address_keeps_the_user_out_of_it(store: Store, page: str) -> None:
    odd = "&".join(f"{'%00' * 30}{number}=1" for number in range(300))
    with browser(store, "analyst") as made:
        assert made.get(f"{page}?{odd}&model=*&has_error=&{'x' * 9_000}=1").status_code == 200
    facts = list(audit.entries(store))[-1].facts
    assert (facts["user"], facts["filter"]) == ("analyst", ["model"])
