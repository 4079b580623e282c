"""Whether a text is one statement that only reads. The judge is DuckDB's own parser, not a pattern.

The statement's kind alone is not enough: `WITH x AS (COPY … TO 'file') FROM x` is a SELECT to DuckDB and writes the file,
`EXPLAIN ANALYZE COPY …` runs what it explains, and some table functions run SQL given as text. So the parse tree is
walked: every query node and every table function must be on a list of those known to read nothing but the views.
The connection is locked as well (query.py); this module is what keeps a statement from writing into the store's folder,
which that lock must leave open for reading.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import duckdb

from llmsec_analyzer.stored.sql_errors import sql_error
from llmsec_tap.errors import ConfigError

_HINT = "one SELECT, WITH, FROM, DESCRIBE, SHOW, SUMMARIZE, EXPLAIN, PIVOT or VALUES; write results with --format and >"

_QUERY_NODES = frozenset({"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"})

_TABLE_FUNCTIONS = frozenset(
    {
        "duckdb_columns",
        "duckdb_functions",
        "duckdb_keywords",
        "duckdb_tables",
        "duckdb_types",
        "duckdb_views",
        "generate_series",
        "histogram",
        "histogram_values",
        "json_each",
        "json_tree",
        "pg_timezone_names",
        "pragma_show",
        "pragma_table_info",
        "range",
        "repeat",
        "repeat_row",
        "summary",
        "unnest",
    }
)
# Words that a PIVOT with values found at run time must not contain unquoted: DuckDB shows no parse tree for it.
_WRITING_WORDS = frozenset({"copy", "insert", "update", "delete", "merge", "create", "drop", "alter", "attach", "set", "call"})
_PIVOT_STARTS = ("pivot", "from", "select", "with", "(")


def check_read_only(sql: str) -> None:
    """Raise ConfigError unless `sql` is exactly one statement that only reads the views."""
    parser = duckdb.connect()
    try:
        _check(parser, sql)
    finally:
        parser.close()


def _check(parser: duckdb.DuckDBPyConnection, sql: str) -> None:
    try:
        statements = parser.extract_statements(sql)
    except duckdb.Error as fault:
        raise sql_error(fault) from None
    if len(statements) != 1:
        raise ConfigError("no statement given" if not statements else f"{len(statements)} statements given, not one", _HINT)
    kind = statements[0].type.name
    if kind == "EXPLAIN":
        inner = _explained(sql)
        if inner is None:
            raise ConfigError("cannot tell what this EXPLAIN would run", _HINT)
        _check(parser, inner)
    elif kind == "MULTI":
        _check_pivot(parser, sql)
    elif kind == "SELECT":
        _check_tree(parser, sql)
    else:
        raise ConfigError(f"{kind} is not a statement that only reads", _HINT)


def _check_tree(parser: duckdb.DuckDBPyConnection, sql: str) -> None:
    row = parser.execute("SELECT json_serialize_sql($1::VARCHAR)", [sql]).fetchone()
    try:
        tree = json.loads(row[0]) if row else {"error": True}
    except RecursionError:
        raise ConfigError("the statement is nested too deeply to be checked", "split it with WITH") from None
    if tree["error"]:
        raise ConfigError(f"cannot check this statement: {tree.get('error_message', 'no parse tree')}", _HINT)
    for node in _objects(tree):
        kind = node.get("type")
        if isinstance(kind, str) and kind.endswith("_NODE") and kind not in _QUERY_NODES:
            raise ConfigError(f"{kind.split('_', 1)[0]} inside a query is not reading", _HINT)
        if kind == "TABLE_FUNCTION":
            name = str(node.get("function", {}).get("function_name", "")).lower()
            if name not in _TABLE_FUNCTIONS:
                raise ConfigError(f"table function {name} is not allowed: a query reads the store's views only", _HINT)


def _objects(tree: Any) -> Iterator[dict[str, Any]]:
    """Every object of the tree; without recursion, for a deeply nested statement must not end in a traceback."""
    waiting = [tree]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            yield item
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)


def _words(sql: str) -> list[tuple[int, str]]:
    """The tokens that are no comments, with their offsets."""
    tokens = duckdb.tokenize(sql)
    ends = [offset for offset, _ in tokens[1:]] + [len(sql.encode())]
    data = sql.encode()
    return [
        (offset, data[offset:end].decode("utf-8", "replace").strip())
        for (offset, kind), end in zip(tokens, ends, strict=True)
        if kind.name != "comment"
    ]


def _explained(sql: str) -> str | None:
    """What stands after EXPLAIN [ANALYZE] [(options)]."""
    words = _words(sql)
    if not words or words[0][1].lower() != "explain":
        return None
    at = 1
    if at < len(words) and words[at][1].lower() in ("analyze", "analyse"):
        at += 1
    if at + 1 < len(words) and words[at][1] == "(" and words[at + 1][1].lower() in ("analyze", "analyse", "format", "codegen"):
        while at < len(words) and not words[at][1].startswith(")"):
            at += 1
        at += 1
    if at >= len(words):
        return None
    return sql.encode()[words[at][0] :].decode()


def _check_pivot(parser: duckdb.DuckDBPyConnection, sql: str) -> None:
    words = [word.lower() for _, word in _words(sql)]
    if not words or not words[0].startswith(_PIVOT_STARTS):
        raise ConfigError(f"{words[0].upper() if words else 'this'} is not a statement that only reads", _HINT)
    rows = parser.execute("SELECT DISTINCT function_name FROM duckdb_functions() WHERE function_type LIKE 'table%'").fetchall()
    refused = {name for (name,) in rows} - _TABLE_FUNCTIONS
    for word, following in zip(words, [*words[1:], ""], strict=True):
        bare = re.sub(r'^"|"$', "", word)
        if word in _WRITING_WORDS or (following.startswith("(") and bare in refused):
            raise ConfigError(f"{bare} is not allowed here", _HINT)
