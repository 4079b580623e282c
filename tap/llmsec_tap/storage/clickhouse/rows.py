"""Rows as ClickHouse gives them back."""

from __future__ import annotations

from typing import Any


def null_if_empty(value: Any) -> Any:
    """A struct without any value is an absent one: ClickHouse has no null for it. Inside lists each stands as it is."""
    if isinstance(value, dict):
        inner = {name: null_if_empty(item) for name, item in value.items()}
        return None if all(item is None or item == [] for item in inner.values()) else inner
    if isinstance(value, list):
        return [{name: null_if_empty(item) for name, item in entry.items()} if isinstance(entry, dict) else entry for entry in value]
    return value
