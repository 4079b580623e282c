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
    """Compare a folder with the database that it is delivered to: what the folder holds is there, or waits, or is declared lost and named.

    What the folder's taps said they saw (the view taps) is the other side: it is in the database, or waits, or was declared lost, deleted or
    not stored, or it is missing. Exit 4 where an exchange of the folder is not in the database, and where one is missing of taps that have ended. With --chain: prove that the folder's audit log is whole, every entry, and
    none taken out, moved or put in; exit 1 where it is not. It prints the last hash. Note that elsewhere: --expect then finds a log that was
    cut at its end or written anew.

    Example: llmsec-analyze db verify --store llmsec-data --to clickhouse://llmsec@clickhouse-1/llmsec_traces
    """
    if chain:
        _verify_chain(store, expect, config)
        return
    from llmsec_agent.both_ends import look_at
    from llmsec_agent.config import load_config
    from llmsec_agent.fleet import database_of
    from llmsec_agent.journals import journal
    from llmsec_agent.text import report
    from llmsec_tap.storage import open_store

    storage = load_config(config, report).storage
    log = journal()
    ends = look_at(open_store(store or storage.path, log), database_of(storage.clickhouse, to, option="--to"), log)
    for line in ends.lines():
        report(line)
    ends.check()


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
