"""`db delete` and `db prune` of a ClickHouse database: the work, and the receipts in a folder's audit log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

    from llmsec_agent.config import Loaded
    from llmsec_tap.journal import Journal
    from llmsec_tap.storage.clickhouse.tables import Layout
    from llmsec_tap.storage.erase import Erased, Subject
    from llmsec_tap.storage.retention import Pruned, Retention
    from llmsec_tap.storage.store import Store


def erase(
    location: str, subject: Subject, named: str, loaded: Loaded, receipts: str | None, journal: Journal, *, content: bool, really: bool
) -> Erased:
    """`named`: what the receipt calls the subject."""
    from llmsec_agent.auditing import record
    from llmsec_tap.storage import audit
    from llmsec_tap.storage.clickhouse import erase as work

    with _connected(location, loaded, journal) as (client, layout, database):
        if not really:
            return work.erase(client, layout, subject, content_only=content, really=False)
        log = _receipts(receipts, loaded, journal)
        facts: dict[str, Any] = {"by": subject.kind, "subject": named, "content_only": content, "database": database}
        audit.append(log, [("deletion", {"state": "begun", **facts})])
        erased = work.erase(client, layout, subject, content_only=content)
        record(log, journal, "deletion", state="done", **facts, rows=erased.rows, stripped=erased.stripped)
        return erased


def prune(location: str, keep: Retention, loaded: Loaded, receipts: str | None, journal: Journal) -> Pruned:
    import time

    import msgspec

    from llmsec_agent.auditing import record
    from llmsec_tap.storage import audit
    from llmsec_tap.storage.clickhouse import erase as work

    with _connected(location, loaded, journal) as (client, layout, named):
        log = _receipts(receipts, loaded, journal)
        audit.append(log, [("deletion", {"state": "begun", "by": "retention", "policy": msgspec.to_builtins(keep), "database": named})])
        pruned = work.prune(client, layout, time.time_ns(), keep)
        record(log, journal, "deletion", state="done", by="retention", database=named, **msgspec.to_builtins(pruned))
        return pruned


@contextmanager
def _connected(location: str, loaded: Loaded, journal: Journal) -> Iterator[tuple[Client, Layout, str]]:
    from llmsec_agent.fleet import database_of
    from llmsec_tap.storage.clickhouse.client import connect
    from llmsec_tap.storage.clickhouse.migrations import check_version

    wanted = database_of(loaded.config.storage.clickhouse, location)
    client, node = connect(wanted.address, wanted.limits)
    try:
        if node.note:
            journal.info("clickhouse_port", node.note)
        check_version(client, wanted.layout)
        yield client, wanted.layout, str(wanted.address)
    finally:
        client.close()


def _receipts(folder: str | None, loaded: Loaded, journal: Journal) -> Store:
    """The folder whose audit log keeps them: nothing is deleted without a receipt."""
    from llmsec_tap.errors import ConfigError, StorageError
    from llmsec_tap.storage import create_store, open_store

    if folder is not None:
        return create_store(folder, journal)
    path = loaded.config.storage.path
    try:
        return open_store(path, journal)
    except (StorageError, ConfigError) as fault:
        raise ConfigError(f"no audit log for the receipt: {fault}", "give a folder with --audit; a new one is made") from None
