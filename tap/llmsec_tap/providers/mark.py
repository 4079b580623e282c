"""The one format of the tables in this room, and how they are asked.

Nearly everything that is asked fits no row, so a table says that first: by one pattern, or one look at names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Mark(NamedTuple):
    """A piece of evidence: what `where` names has a value that `pattern` fits, so `provider` serves it.

    The provider's name is OpenTelemetry's where it has one (gen_ai.provider.name), else the vendor's own.
    """

    where: str
    pattern: str
    """A regular expression. Empty: any value fits, that it is there is enough."""
    provider: str


Table = tuple[Mark, ...]


def marks(*rows: tuple[str, str, str]) -> Table:
    """Rows of (where, pattern, provider); the first that fits counts."""
    return tuple(Mark(*row) for row in rows)


def by_value(table: Table) -> Callable[[str], str | None]:
    """A question to a table whose rows are all about one thing: who is shown by this value? Patterns fit from its first character on."""
    # Options of a row are written `(?i:…)`: without the colon they would be those of all rows.
    find = re.compile("|".join(f"(?P<row{number}>{row.pattern})" for number, row in enumerate(table))).match
    providers = {f"row{number}": row.provider for number, row in enumerate(table)}

    def ask(value: str) -> str | None:
        found = find(value)
        return providers[found.lastgroup] if found is not None and found.lastgroup is not None else None

    return ask


def by_part(table: Table) -> Callable[[str], str | None]:
    """The same where a pattern may fit anywhere in the value. One by one: each begins with letters, which are found faster than a choice."""
    rows = [(re.compile(row.pattern).search, row.provider) for row in table]

    def ask(value: str) -> str | None:
        for find, provider in rows:
            if find(value) is not None:
                return provider
        return None

    return ask


def by_name(table: Table) -> Callable[[Mapping[str, Any]], str | None]:
    """A question to a table whose rows name headers or fields: who is shown by these? Patterns are searched for in values that are text."""
    names = frozenset(row.where for row in table)
    rows = [(row.where, re.compile(row.pattern).search if row.pattern else None, row.provider) for row in table]

    def ask(values: Mapping[str, Any]) -> str | None:
        if names.isdisjoint(values):
            return None
        for name, find, provider in rows:
            if name in values:
                value = values[name]
                if find is None or (isinstance(value, str) and find(value)):
                    return provider
        return None

    return ask
