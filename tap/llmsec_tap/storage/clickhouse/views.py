"""The views of storage/views.py in ClickHouse's SQL: the same names and columns over the tables of tables.py."""

from __future__ import annotations

from typing import Final

from llmsec_tap.storage.clickhouse.tables import EXCHANGE_TABLE, TAP_TABLE, Layout, quoted
from llmsec_tap.storage.schema import EXCHANGE_COLUMNS, TAP_COLUMNS, TAPS
from llmsec_tap.storage.views import VIEWS, View, ViewColumn

_TEXT: Final = "arrayStringConcat(arrayMap(p -> ifNull(p.content, ''), arrayFilter(p -> ifNull(p.type = 'text', 0), e.m.parts)), '')"


def _time(of: str) -> str:
    return f"fromUnixTimestamp64Micro(intDiv({of}, 1000), 'UTC')"


# What is not a stored column, or is written another way than in DuckDB.
_EXPRESSIONS: Final = {
    "exchanges.started": _time("r.started_ns"),
    "exchanges.ended": _time("r.ended_ns"),
    "exchanges.day": f"toDate({_time('r.started_ns')}, 'UTC')",
    "exchanges.duration_ms": "(r.ended_ns - r.started_ns) / 1e6",
    "exchanges.model": "coalesce(r.response_model, r.request_model)",
    **{
        f"exchanges.{name}": f"r.usage.{name}"
        for name in ("input_tokens", "output_tokens", "cached_input_tokens", "cache_write_tokens", "reasoning_tokens")
    },
    "messages.side": "e.side",
    "messages.message_index": "CAST(e.i AS Int64) - 1",
    "messages.role": "tupleElement(e.m, 'role')",
    "messages.finish_reason": "tupleElement(e.m, 'finish_reason')",
    "messages.text": _TEXT,
    "messages.parts": "tupleElement(e.m, 'parts')",
    "tool_calls.call_index": "CAST(e.i AS Int64) - 1",
    "tool_calls.call_id": "tupleElement(e.x, 'id')",
    **{f"{TAPS}.{name}": _time(f"t.{name}_ns") for name in ("started", "heartbeat", "stopped")},
}
_STORED: Final = {
    **{f"exchanges.{name}": f"r.{quoted(name)}" for name, _ in EXCHANGE_COLUMNS},
    **{f"{TAPS}.{name}": f"t.{quoted(name)}" for name, _ in TAP_COLUMNS},
}


def _expression(view: View, column: ViewColumn) -> str:
    name = f"{view.name}.{column.name}"
    if name in _EXPRESSIONS:
        return _EXPRESSIONS[name]
    if name in _STORED:
        return _STORED[name]
    if column.name in ("exchange_id", "started"):
        return f"e.{column.name}"
    return f"tupleElement(e.x, '{column.name}')"


def _source(view: View, layout: Layout) -> str:
    exchanges = layout.table("exchanges")
    if view.name == "exchanges":
        # FINAL: rows that were delivered again and that the server has not merged yet count once.
        return f"{layout.table(EXCHANGE_TABLE)} AS r FINAL"
    if view.name == TAPS:
        return f"{layout.table(TAP_TABLE)} AS t FINAL"
    if view.name == "messages":
        sides = (
            f"SELECT exchange_id, started, '{side}' AS side, m, i FROM {exchanges} "  # noqa: S608 - names of ours
            f"ARRAY JOIN {side}.messages AS m, arrayEnumerate({side}.messages) AS i"
            for side in ("request", "response")
        )
        return f"({' UNION ALL '.join(sides)}) AS e"
    of = quoted(view.name)
    return f"(SELECT exchange_id, started, x, i FROM {exchanges} ARRAY JOIN {of} AS x, arrayEnumerate({of}) AS i) AS e"  # noqa: S608 - names of ours


def view_statements(layout: Layout) -> list[str]:
    statements = []
    for view in VIEWS:
        columns = ",\n  ".join(f"{_expression(view, column)} AS {quoted(column.name)}" for column in view.columns)
        statements.append(
            f"CREATE OR REPLACE VIEW {layout.table(view.name)}{layout.on_cluster} AS SELECT\n  {columns}\nFROM {_source(view, layout)}"
        )
    return statements
