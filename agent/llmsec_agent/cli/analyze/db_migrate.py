"""`llmsec-analyze db migrate`: make a store, or bring it up to date."""

from __future__ import annotations

from typing import Annotated

import typer

from llmsec_agent.cli.analyze.scan import ConfigOption


def register(group: typer.Typer) -> None:
    group.command()(migrate)


def migrate(
    store: Annotated[
        str | None,
        typer.Option(
            "--store", help="The store: clickhouse://user@host/database, or a folder. Default: storage.clickhouse.", metavar="STORE"
        ),
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Make a store's tables and views, or bring those of an older version up to date; a store of a newer version is refused.

    Nothing that is stored is rewritten. The user needs the right to create; those who write and read do not.

    Example: llmsec-analyze db migrate --store clickhouse://admin@clickhouse-1/llmsec_traces
    """
    from llmsec_agent.config import load_config
    from llmsec_agent.fleet import database_of
    from llmsec_agent.text import report
    from llmsec_tap.storage import open_store
    from llmsec_tap.storage.clickhouse.address import is_clickhouse
    from llmsec_tap.storage.clickhouse.client import connect
    from llmsec_tap.storage.clickhouse.migrations import migrate as bring_up_to_date

    if store is not None and not is_clickhouse(store):
        found = open_store(store)
        report(f"{found.shown} has schema {found.info.schema_version}: {', '.join(found.info.migrations)}")
        return
    wanted = database_of(load_config(config, report).storage.clickhouse, store)
    client, node = connect(wanted.address, wanted.limits, database=False)
    if node.note:
        report(node.note)
    try:
        done = bring_up_to_date(client, wanted.layout)
    finally:
        client.close()
    report(f"{wanted.layout.database} on {node}: " + (f"made {', '.join(done)}" if done else "up to date"))
