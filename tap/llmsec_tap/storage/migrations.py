"""Named, ordered steps from one schema version to the next; store.json records which ones a store has had.

Parts are never rewritten for a new column: the views read all parts by column name, and a column that an older part does
not have is null. So most steps only renew the schema part and the views, which `Store.open` does for any store that is behind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


def _first(root: Path) -> None:
    """Version 1 is what a new store is made with."""
    (root / "exchanges").mkdir(mode=0o700, exist_ok=True)


def _columns_only(root: Path) -> None:
    """New columns: the views and the schema part, which are renewed anyway."""


@dataclass(frozen=True)
class Migration:
    version: int
    name: str
    apply: Callable[[Path], None]


MIGRATIONS: tuple[Migration, ...] = (Migration(1, "exchanges", _first), Migration(2, "other_texts", _columns_only))


def pending(applied: list[str]) -> list[Migration]:
    return [step for step in MIGRATIONS if step.name not in applied]
