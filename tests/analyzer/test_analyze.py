"""Detection over a store: what was left out is examined once, in the place of what was there, and never what was stored without texts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmsec_analyzer.stored.session import QuerySession
from llmsec_tap.model import AnomalyCount, Exchange, Message, Part, Request, Response
from llmsec_tap.storage import StoreWriter
from support.exchanges import full_exchange


def asked(number: int, text: str, *marks: str, **changes: Any) -> Exchange:
    request = Request(messages=[Message(role="user", parts=[Part(type="text", content=text)])], body_bytes=100)
    anomalies = [AnomalyCount(name=mark, count=1) for mark in marks]
    plain: dict[str, Any] = {"other_texts": [], "tags": {}, "response": Response(), "findings": [], "risk_score": None, "risk_reasons": []}
    return full_exchange(number, **{"request": request, "anomalies": anomalies, **plain, **changes})


@pytest.fixture
def store(tmp_path: Path) -> Path:
    root = tmp_path / "store"
    with StoreWriter.open(root) as writer:
        writer.add(asked(1, "card 4111 1111 1111 1111", "detection_skipped", "http_resync"))
        writer.add(asked(2, "card 4111 1111 1111 1111"))
        writer.add(asked(3, "card 4111 1111 1111 1111", "detection_skipped").without_content())
        writer.add(asked(4, "nothing here", "detection_secrets_only"))
    return root


def rows(root: Path) -> list[tuple[Any, ...]]:
    with QuerySession.open(root) as session:
        found = session.select(
            "SELECT list_transform(findings, lambda f: f.rule_id), risk_score, list_transform(anomalies, lambda a: a.name), pii_types FROM exchanges ORDER BY started_ns"
        )
        return list(found.rows())


def test_what_was_left_out_is_examined_once(store: Path, run: Callable[..., Any]) -> None:
    done = run("analyze", "--store", store)
    assert (done.returncode, done.stdout) == (0, "")
    assert "examined 2 exchanges: 2 changed, 1 were stored without texts" in done.stderr
    first, untouched, without, plain = rows(store)
    assert (first[0], first[2], first[3]) == (["credit_card"], ["http_resync"], ["CREDIT_CARD"])
    assert first[1] > 0
    assert untouched[0] == []
    assert without[2] == ["detection_skipped"]
    assert (plain[0], plain[1], plain[2]) == ([], 0, [])
    assert "examined 0 exchanges" in run("analyze", "--store", store).stderr


def test_all_of_it_with_other_rules(store: Path, run: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("security: {pii_detection: {patterns: {word: {regex: 'nothing', severity: high}}}}")
    options = ("analyze", "--store", store, "--all", "--config", tmp_path / "c.yaml")
    assert "examined 3 exchanges: 3 changed" in run(*options).stderr
    assert [row[0] for row in rows(store)] == [["credit_card"], ["credit_card"], [], ["custom.word"]]
    assert "examined 3 exchanges: 0 changed" in run(*options).stderr


def test_no_store_is_one_line(tmp_path: Path, run: Callable[..., Any]) -> None:
    done = run("analyze", "--store", tmp_path / "none")
    assert done.returncode == 4
    assert "is not a store" in done.stderr
    assert "Traceback" not in done.stderr
