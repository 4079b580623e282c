"""DuckDB's many-line messages as one line: what, where, and what was probably meant."""

from __future__ import annotations

import itertools
import re

import duckdb

from llmsec_tap.errors import ConfigError, LLMSecError, StorageError
from llmsec_tap.storage.views import VIEWS

_HINT_LINE = re.compile(r"^(Candidate bindings|Candidates|Did you mean|Hint)", re.IGNORECASE)


def sql_error(fault: duckdb.Error) -> LLMSecError:
    """ConfigError for a statement that is wrong, StorageError for parts that cannot be read."""
    lines = str(fault).splitlines()
    message = re.sub(r"^(Parser|Binder|Catalog|Invalid Input|Conversion) Error: ", "", lines[0] if lines else type(fault).__name__)
    where = _place(lines)
    hints = [line for line in lines[1:] if _HINT_LINE.match(line)]
    if isinstance(fault, duckdb.CatalogException) and message.startswith("Table with name"):
        hints = ["tables: " + ", ".join(view.name for view in VIEWS)]
    elif isinstance(fault, duckdb.BinderException) and not hints:
        hints = ["DESCRIBE exchanges lists the columns"]
    if isinstance(fault, duckdb.PermissionException):
        return ConfigError(message + where, "a query reads the store's views only")
    if isinstance(fault, duckdb.IOException):
        return StorageError(message, "a part may be damaged or was removed while it was read: try again", retryable=True)
    if isinstance(fault, duckdb.OutOfMemoryException):
        return ConfigError(message, "ask for less at a time: fewer columns, or a filter on started_ns")
    return ConfigError(message + where, "; ".join(hints))


def _place(lines: list[str]) -> str:
    for line, carets in itertools.pairwise(lines):
        found = re.match(r"LINE (\d+): ", line)
        if found and "^" in carets:
            near = line[carets.index("^") : carets.rindex("^") + 1]
            at = f" at line {found[1]}"
            if not line[found.end() :].startswith("..."):
                at += f", column {carets.index('^') - found.end() + 1}"
            return f"{at}, near {near!r}" if near.strip() else at
    return ""
