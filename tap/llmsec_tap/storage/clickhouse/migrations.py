"""Named, ordered steps of a database, recorded in a table of its own; one of a newer version is left alone.

Every step may be repeated, so two hosts that migrate at once end with the same tables.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from llmsec_tap.errors import StorageError
from llmsec_tap.storage.clickhouse.client import code_of, server_error, translated
from llmsec_tap.storage.clickhouse.tables import MIGRATION_TABLE, Layout, add_columns, create_tables, keep_statements
from llmsec_tap.storage.clickhouse.views import view_statements
from llmsec_tap.storage.schema import SCHEMA_VERSION

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

_ABSENT: Final = frozenset({60, 81})  # no such table, no such database


@dataclass(frozen=True)
class Step:
    version: int  # of the store's schema
    name: str
    statements: Callable[[Layout], list[str]]


def _columns_only(_layout: Layout) -> list[str]:
    """New columns, which `migrate` adds anyway; whoever delivers rows that have them is told to migrate first."""
    return []


STEPS: Final = (
    Step(2, "tables", create_tables),
    Step(2, "deviations", _columns_only),
    Step(2, "alerts", _columns_only),
    Step(2, "tls", _columns_only),
)


def applied(client: Client, layout: Layout) -> dict[str, int]:
    """Names of the steps that the database has had, and the schema version of each; empty where it is new."""
    try:
        found = client.query(f"SELECT name, max(version) FROM {layout.table(MIGRATION_TABLE)} GROUP BY name")  # noqa: S608 - a name of ours
    except Exception as fault:  # noqa: BLE001 - as `translated`
        if code_of(fault) in _ABSENT:
            return {}
        raise server_error(fault, layout.database) from None
    return {str(name): int(version) for name, version in found.result_rows}


def check_version(client: Client, layout: Layout) -> None:
    """Raise StorageError where the database is not made, is behind, or is ahead of this program."""
    have = applied(client, layout)
    _refuse_newer(have, layout)
    if missing := [step.name for step in STEPS if step.name not in have]:
        raise StorageError(
            f"the database {layout.database} lacks {', '.join(missing)}",
            "llmsec-analyze db migrate --store clickhouse://… makes its tables",
        )


def _refuse_newer(have: dict[str, int], layout: Layout) -> None:
    newest = max(have.values(), default=0)
    if newest > SCHEMA_VERSION:
        raise StorageError(
            f"the database {layout.database} was made by a newer version (store schema {newest}, this version knows {SCHEMA_VERSION})",
            "upgrade llmsec-trace",
        )


def migrate(client: Client, layout: Layout) -> list[str]:
    """Bring the database up to date: names of what was done, none where nothing was missing. Views and times are always set anew."""
    have = applied(client, layout)
    _refuse_newer(have, layout)
    done: list[str] = []
    for step in STEPS:
        if step.name not in have:
            _run(client, layout, step.statements(layout))
            done.append(step.name)
    lacking = add_columns(layout, _columns(client, layout))
    _run(client, layout, [*lacking, *keep_statements(layout), *view_statements(layout)])
    if lacking:
        done.append(f"{len(lacking)} columns")
    for step in STEPS:
        if have.get(step.name) != SCHEMA_VERSION:
            _insert(client, layout, step.name)
    return done


def _columns(client: Client, layout: Layout) -> frozenset[str]:
    with translated(layout.database):
        found = client.query(
            "SELECT concat(table, '.', name) FROM system.columns WHERE database = {database:String}",
            parameters={"database": layout.database},
        )
    return frozenset(str(row[0]) for row in found.result_rows)


def _run(client: Client, layout: Layout, statements: list[str]) -> None:
    for statement in statements:
        _command(client, layout, statement)


def _insert(client: Client, layout: Layout, name: str) -> None:
    _command(
        client,
        layout,
        f"INSERT INTO {layout.table(MIGRATION_TABLE)} (name, version) SELECT {{name:String}}, {{version:Int64}}",
        {"name": name, "version": SCHEMA_VERSION},
    )


def _command(client: Client, layout: Layout, statement: str, parameters: dict[str, Any] | None = None) -> None:
    with translated(layout.database):
        client.command(statement, parameters=parameters)
