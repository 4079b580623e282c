"""`llmsec-analyze db`: what is done with a store as a whole."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated

import typer

from llmsec_agent.cli.analyze import db_migrate, db_verify
from llmsec_agent.cli.analyze.query import StoreOption
from llmsec_agent.cli.analyze.scan import ConfigOption
from llmsec_tap.storage import DEFAULT_STORE


class AuditFormat(StrEnum):
    TABLE = "table"
    JSONL = "jsonl"


group = typer.Typer(no_args_is_help=True, rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]})


for _module in (db_migrate, db_verify):
    _module.register(group)


def register(app: typer.Typer) -> None:
    app.add_typer(group, name="db", help="The care of a store: its tables, retention, deletion, the audit log, whether both ends agree.")


ReceiptsOption = Annotated[
    str | None,
    typer.Option("--audit", help="Of a database: the folder whose audit log keeps the receipt. Default: storage.path.", metavar="FOLDER"),
]


@group.command()
def prune(
    store: StoreOption = DEFAULT_STORE,
    days: Annotated[float | None, typer.Option("--days", min=0, help="Delete days of exchanges that are older.")] = None,
    size: Annotated[
        str | None, typer.Option("--bytes", metavar="SIZE", help="Delete the oldest parts beyond this size, such as 20GiB.")
    ] = None,
    content_days: Annotated[
        float | None, typer.Option("--content-days", min=0, help="Delete texts that are older; counts, names and times stay.")
    ] = None,
    findings_days: Annotated[float | None, typer.Option("--findings-days", min=0, help="Delete findings that are older.")] = None,
    damaged: Annotated[bool, typer.Option("--damaged", help="Delete the parts that were set aside as damaged.")] = False,
    receipts: ReceiptsOption = None,
    config: ConfigOption = None,
) -> None:
    """Delete what a store need not keep: by these options, or else by the configuration, or else by the policy of its last capture.

    Days are whole days (UTC): one goes when all of it is older. Prints what went, which is in the audit log, too. Of a database whole days go
    as partitions, also for --bytes, and only these options say what: what it deletes by itself is storage.clickhouse.ttl.

    Example: llmsec-analyze db prune --content-days 7 --days 90 --bytes 50GiB
    """
    import time

    import msgspec

    from llmsec_agent.auditing import record
    from llmsec_agent.cli.analyze.streams import results
    from llmsec_agent.config import load_all
    from llmsec_agent.config.retention import retention_of
    from llmsec_agent.journals import journal
    from llmsec_agent.text import report
    from llmsec_analyzer.units import parse_size
    from llmsec_tap.errors import ConfigError
    from llmsec_tap.storage import audit, create_store, open_store
    from llmsec_tap.storage.clickhouse.address import is_clickhouse
    from llmsec_tap.storage.erase import WAIT_S, damaged_parts
    from llmsec_tap.storage.retention import Keep, Retention, read_policy
    from llmsec_tap.storage.retention import prune as run

    log = journal()
    try:
        max_bytes = parse_size(size) if size is not None else None
    except ValueError as fault:
        raise ConfigError(f"--bytes: {fault}", "for example 20GiB") from None
    keep = Retention(days=days, max_bytes=max_bytes, keep=Keep(content=content_days, findings=findings_days))
    if is_clickhouse(store):
        from llmsec_agent.cli.analyze import db_clickhouse

        if damaged or not keep.is_bounded:
            raise ConfigError("of a database --days, --bytes, --content-days and --findings-days say what to delete", "give one of them")
        went = db_clickhouse.prune(store, keep, load_all(config, report), receipts, log)
        with results():
            typer.echo(
                f"deleted {went.parts} days and {went.rows} exchanges, stripped {went.stripped} exchanges; {went.bytes:,} bytes in days"
            )
        return
    opened = create_store(open_store(store, log).root, log)
    if not keep.is_bounded and not damaged:
        loaded = load_all(config, report)
        keep = retention_of(loaded.config) if loaded.sets("storage.retention") else read_policy(opened)
        if not keep.is_bounded:
            raise ConfigError(
                "nothing says what to delete", "give --days, --bytes or --content-days, or storage.retention in the configuration"
            )
    # Of each deletion the log has the beginning and the end, so that one that was killed is there, too.
    policy = msgspec.to_builtins(keep)
    audit.append(opened, [("deletion", {"state": "begun", "by": "retention", "policy": policy, "damaged": damaged})])
    pruned = run(opened, time.time_ns(), keep, log, wait_s=WAIT_S)
    gone = damaged_parts(opened) if damaged else []
    for path in gone:
        path.unlink(missing_ok=True)
    audit.trim(opened, time.time_ns(), days=keep.audit_days, max_bytes=keep.audit_bytes)
    facts = {"parts": pruned.parts, "rows": pruned.rows, "stripped": pruned.stripped, "bytes": pruned.bytes, "damaged": len(gone)}
    record(opened, log, "deletion", state="done", by="retention", **facts)
    with results():
        typer.echo(
            f"deleted {pruned.parts} parts, {pruned.rows} exchanges out of parts that stay, and {len(gone)} damaged parts; "
            f"stripped {pruned.stripped} exchanges; {pruned.bytes:,} bytes free"
        )


@group.command()
def delete(
    store: StoreOption = DEFAULT_STORE,
    tenant: Annotated[str | None, typer.Option("--tenant", help="All exchanges of this tenant.")] = None,
    end_user: Annotated[
        str | None, typer.Option("--end-user", help="All exchanges of this end user: the name that clients send, or its fingerprint.")
    ] = None,
    exchange: Annotated[
        str | None, typer.Option("--exchange", help="This exchange: its id, or its beginning where that is unique.", metavar="ID")
    ] = None,
    content: Annotated[bool, typer.Option("--content", help="Delete only the texts; counts, names and times stay.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count, and change nothing.")] = False,
    receipts: ReceiptsOption = None,
    config: ConfigOption = None,
) -> None:
    """Delete the records of one tenant, end user or exchange from every part of a store, or from a database. The audit log keeps the receipt.

    Only this store is changed: delete from the folders of the hosts and from the database that they deliver to. What a running capture has not stored yet comes later: run it again then. Parts that were set aside as damaged
    cannot be searched; `db prune --damaged` deletes them.

    Example: llmsec-analyze db delete --end-user jo@example.org
    """
    from llmsec_agent.auditing import record
    from llmsec_agent.cli.analyze import db_clickhouse
    from llmsec_agent.cli.analyze.streams import results
    from llmsec_agent.config import load_all
    from llmsec_agent.journals import journal
    from llmsec_agent.text import report
    from llmsec_analyzer.stored import exchanges as listing
    from llmsec_analyzer.stored.stores import open_session
    from llmsec_tap.errors import ConfigError
    from llmsec_tap.identity.credentials import fingerprinter
    from llmsec_tap.install_key import install_key
    from llmsec_tap.storage import audit, create_store, open_store
    from llmsec_tap.storage.clickhouse.address import is_clickhouse
    from llmsec_tap.storage.erase import Subject, erase

    if sum(value is not None for value in (tenant, end_user, exchange)) != 1:
        raise ConfigError("say whose records to delete", "give one of --tenant, --end-user and --exchange")
    if "" in (tenant, end_user, exchange):
        raise ConfigError("an empty name is nobody's", "give a name or an id")
    said = journal()
    in_database = is_clickhouse(store)
    root = None if in_database else open_store(store, said).root
    named: str
    if tenant is not None:
        subject, named = Subject("tenant", frozenset((tenant,))), tenant
    elif end_user is not None:
        # The receipt must not keep the name that was to be forgotten.
        named = fingerprinter(install_key(said))(end_user)
        subject = Subject("end_user", frozenset((end_user, named)))
    else:
        with open_session(store, said) as session:
            named = listing.find(session, exchange or "").exchange_id
        subject = Subject("exchange_id", frozenset((named,)))
    did = "would be" if dry_run else "are"
    if root is None:
        gone = db_clickhouse.erase(store, subject, named, load_all(config, report), receipts, said, content=content, really=not dry_run)
        with results():
            typer.echo(f"{gone.rows} stored rows {did} deleted, {gone.stripped} {did} without texts")
        return
    opened = create_store(root, said)
    facts = {"by": subject.kind, "subject": named, "content_only": content}
    if not dry_run:
        audit.append(opened, [("deletion", {"state": "begun", **facts})])
    erased = erase(opened, subject, said, content_only=content, really=not dry_run)
    if not dry_run:
        counts = {"rows": erased.rows, "stripped": erased.stripped, "parts": erased.parts, "damaged": erased.damaged}
        record(opened, said, "deletion", state="done", **facts, **counts)
    with results():
        typer.echo(f"{erased.rows} stored rows {did} deleted, {erased.stripped} {did} without texts, in {erased.parts} parts")
    if erased.damaged:
        said.warning("damaged_unsearched", f"{erased.damaged} damaged parts could not be searched; `db prune --damaged` deletes them")


@group.command("audit")
def show_audit(
    store: StoreOption = DEFAULT_STORE,
    event: Annotated[
        str | None, typer.Option("--event", help="finding, alert, configuration, deletion, export, query, or one of the log itself.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="The newest so many.")] = 100,
    output: Annotated[AuditFormat, typer.Option("--format", help="jsonl: whole entries, one a line.")] = AuditFormat.TABLE,
) -> None:
    """List the audit log, oldest first: what was found, deleted, exported, who read content, when the configuration changed.

    Example: llmsec-analyze db audit --event deletion
    """
    from collections import deque

    import msgspec

    from llmsec_agent.cli.analyze.streams import results
    from llmsec_agent.journals import journal
    from llmsec_analyzer.show.results import write_lines
    from llmsec_tap.storage import audit, open_store
    from llmsec_tap.visible import visible

    newest = deque((entry for entry in audit.entries(open_store(store, journal())) if event in (None, entry.event)), maxlen=limit)
    with results():
        if output is AuditFormat.JSONL:
            write_lines((msgspec.json.encode(entry).decode() for entry in newest), sys.stdout)
            return
        for entry in newest:
            facts = " ".join(f"{name}={value}" for name, value in entry.facts.items())
            when = _utc(entry.ts_ns)
            typer.echo(visible(f"{entry.seq:>6} {when} {entry.event:<14} {entry.actor.get('user', '?')}  {facts}"))


def _utc(ts_ns: int) -> str:
    import time

    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(ts_ns // 1_000_000_000))
    except (OverflowError, ValueError, OSError):
        return "?"
