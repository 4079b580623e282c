"""`llmsec-analyze query`: SQL over a store."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated

import typer

from llmsec_tap.storage import DEFAULT_STORE


class Format(StrEnum):
    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    PARQUET = "parquet"


def _reached(store: str | None) -> str | None:
    if store is not None:
        from llmsec_agent.store_rights import reach

        reach(store)
    return store


_STORE = "The store: a folder, or clickhouse://user@host/database."
StoreOption = Annotated[str, typer.Option("--store", envvar="LLMSEC_STORE", help=_STORE, metavar="STORE", callback=_reached)]
ShownStoreOption = Annotated[str, typer.Option("--store", envvar="LLMSEC_STORE", help=_STORE, metavar="STORE")]
"""Of a command that opens other files, as the caller, before it goes over to rights for the store."""
OwnStoreOption = Annotated[str | None, typer.Option("--store", help=_STORE, metavar="STORE", callback=_reached)]
"""Of a command in a group that has one, too."""
FolderOption = Annotated[
    str, typer.Option("--store", envvar="LLMSEC_STORE", help="The store's folder.", metavar="FOLDER", callback=_reached)
]


def register(app: typer.Typer) -> None:
    app.command()(query)


def query(
    sql: Annotated[str, typer.Argument(help="One statement that only reads; - reads it from standard input.", metavar="SQL")],
    store: StoreOption = DEFAULT_STORE,
    output: Annotated[Format, typer.Option("--format", help="json is one object per line; all but table stream.")] = Format.TABLE,
    csv_safe: Annotated[
        bool, typer.Option("--csv-safe", help="CSV for a spreadsheet: ' before texts that it would take for formulas.")
    ] = False,
    max_rows: Annotated[int, typer.Option("--max-rows", min=1, help="Rows that a table shows at most.")] = 200,
) -> None:
    """Run one read-only SQL statement over the store.

    The views are exchanges, messages, tool_calls, anomalies and findings; `DESCRIBE exchanges` lists columns. The statement
    can reach nothing but the store: no other file, no network, no extension. To a ClickHouse store the statement is ClickHouse's SQL,
    over the same views; the server refuses whatever writes.

    Example: llmsec-analyze query "SELECT model, count(*), sum(output_tokens) FROM exchanges GROUP BY model"
    """
    from llmsec_agent.auditing import record_reading, statement
    from llmsec_agent.cli.analyze.streams import results
    from llmsec_agent.journals import journal
    from llmsec_analyzer.show import results as outputs
    from llmsec_analyzer.stored.stores import open_session

    if sql == "-":
        sql = sys.stdin.read()
    log = journal()
    with results(), open_session(store, log) as session:
        event = "query" if output is Format.TABLE else "export"
        record_reading(session, log, event, command="query", format=output.value, sql=statement(sql))
        if output is Format.PARQUET:
            outputs.write_parquet(session, sql)
            return
        result = session.run(sql)
        if output is Format.JSON:
            outputs.write_json(result, sys.stdout)
        elif output is Format.CSV:
            outputs.write_csv(result, sys.stdout, safe=csv_safe)
        else:
            outputs.write_table(result, sys.stdout, max_rows=max_rows)
