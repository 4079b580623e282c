"""`llmsec-analyze db verify`: whether a folder's audit log is whole, and its exchanges in the database that it is delivered to."""

from __future__ import annotations

from typing import Annotated

import typer

from llmsec_agent.cli.analyze.scan import ConfigOption


def register(group: typer.Typer) -> None:
    group.command()(verify)


def verify(
    store: Annotated[str | None, typer.Option("--store", help="The folder. Default: storage.path.", metavar="FOLDER")] = None,
    to: Annotated[
        str | None, typer.Option("--to", help="clickhouse://user@host/database. Default: storage.clickhouse.", metavar="URL")
    ] = None,
    chain: Annotated[bool, typer.Option("--chain", help="Walk the hash chain of the folder's audit log instead.")] = False,
    expect: Annotated[
        str | None, typer.Option("--expect", help="With --chain: a hash that was noted earlier, which must be in the log.", metavar="HASH")
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Compare a folder with the database that it is delivered to: what the folder holds is there, or waits, or is lost and named.

    Exit 4 where an exchange of the folder is not in the database. With --chain: prove that the folder's audit log is whole, every entry, and
    none taken out, moved or put in; exit 1 where it is not. It prints the last hash. Note that elsewhere: --expect then finds a log that was
    cut at its end or written anew.

    Example: llmsec-analyze db verify --store llmsec-data --to clickhouse://llmsec@clickhouse-1/llmsec_traces
    """
    if chain:
        _verify_chain(store, expect, config)
        return
    from llmsec_agent.config import load_config
    from llmsec_agent.fleet import database_of
    from llmsec_agent.journals import journal
    from llmsec_agent.text import report
    from llmsec_analyzer.stored.session import QuerySession
    from llmsec_tap.errors import StorageError
    from llmsec_tap.storage import open_store
    from llmsec_tap.storage.clickhouse.client import READ_ONLY, connect
    from llmsec_tap.storage.clickhouse.migrations import check_version
    from llmsec_tap.storage.clickhouse.verify import compare
    from llmsec_tap.storage.cursor import Cursor
    from llmsec_tap.storage.rows import row_key

    storage = load_config(config, report).storage
    wanted = database_of(storage.clickhouse, to)
    log = journal()
    opened = open_store(store or storage.path, log)
    state = Cursor(opened, str(wanted.address)).state
    client, _ = connect(wanted.address, wanted.limits, READ_ONLY)
    try:
        check_version(client, wanted.layout)
        with QuerySession(opened, log) as session:
            ids = (row[0] for row in session.select("SELECT exchange_id FROM exchanges").rows())
            compared = compare(((found, row_key(found)) for found in ids), client, wanted.layout)
    finally:
        client.close()
    waiting = sum(state.waiting.values())
    report(
        f"{opened.shown}: {compared.folder} exchanges, of which {compared.database} are in {wanted.address}; "
        f"{waiting} rows wait in {len(state.waiting)} parts; {state.rows_lost} rows lost in {len(state.lost)} parts"
    )
    for name, why in state.lost.items():
        report(f"lost: {name}: {why}")
    if not compared.is_whole:
        some = ", ".join(compared.missing)
        raise StorageError(
            f"{compared.folder - compared.database} exchanges of the folder are not in the database: {some}",
            "llmsec-tap deliver --once sends what waits",
        )


def _verify_chain(store: str | None, expect: str | None, config: str | None) -> None:
    from llmsec_agent.cli.analyze.streams import results
    from llmsec_agent.config import load_config
    from llmsec_agent.journals import journal
    from llmsec_agent.text import report
    from llmsec_tap.storage import audit, open_store
    from llmsec_tap.visible import visible

    walked = audit.verify(open_store(store or load_config(config, report).storage.path, journal()), expect)
    with results():
        for fault in walked.faults:
            typer.echo(visible(fault))
        typer.echo(
            f"{walked.entries} entries, {walked.first_seq} to {walked.last_seq}, {len(walked.faults)} faults; last hash {walked.head}"
        )
    if walked.faults:
        raise typer.Exit(1)
