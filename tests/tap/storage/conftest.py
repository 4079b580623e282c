from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest

from llmsec_tap.model import Exchange
from support.exchanges import full_exchange


@pytest.fixture
def make_exchange() -> Callable[..., Exchange]:
    return full_exchange


@dataclasses.dataclass
class Reader:
    """Any DuckDB client: opens llmsec.duckdb read-only for each statement."""

    root: Path

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        connection = duckdb.connect(str(self.root / "llmsec.duckdb"), read_only=True)
        try:
            return connection.execute(sql).fetchall()
        finally:
            connection.close()

    def count(self, view: str = "exchanges") -> int:
        return int(self.rows(f"SELECT count(*) FROM {view}")[0][0])

    def parts(self) -> list[Path]:
        return sorted(self.root.glob("exchanges/day=*/part-*.parquet"))

    def records(self) -> list[Exchange]:
        from llmsec_tap.storage.rows import exchange_of
        from llmsec_tap.storage.schema import EXCHANGE_COLUMNS

        names = [name for name, _ in EXCHANGE_COLUMNS]
        rows = self.rows(f"SELECT {', '.join(names)} FROM exchanges ORDER BY started_ns NULLS FIRST, exchange_id")
        return [exchange_of(dict(zip(names, row, strict=True))) for row in rows]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def reader(root: Path) -> Reader:
    return Reader(root)
