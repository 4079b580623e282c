"""`llmsec-analyze alerts`: who was told what, what is silenced, and whether a channel works."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmsec_agent.cli.analyze.query import FolderOption, StoreOption
from llmsec_agent.cli.analyze.scan import ConfigOption
from llmsec_tap.errors import ConfigError
from llmsec_tap.storage import DEFAULT_STORE

if TYPE_CHECKING:
    from llmsec_tap.storage.store import Store


class AlertsFormat(StrEnum):
    TABLE = "table"
    JSONL = "jsonl"


class ShowFormat(StrEnum):
    TEXT = "text"
    JSON = "json"


class PriorityChoice(StrEnum):
    CRITICAL = "critical"
    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


group = typer.Typer(invoke_without_command=True, rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]})

AlertArgument = Annotated[str, typer.Argument(help="The alert's id, or its beginning where that is unique.", metavar="ID")]


def register(app: typer.Typer) -> None:
    app.add_typer(group, name="alerts")


@group.callback()
def alerts(context: typer.Context, store: StoreOption = DEFAULT_STORE) -> None:
    """Alerts: who was told what, silences, trying a channel (docs/alerts.md). Alone it lists them; `alerts list` has filters.

    Example: llmsec-analyze alerts --store llmsec-data
    """
    if context.invoked_subcommand is None:
        list_alerts(store)
        return
    source = context.get_parameter_source("store")
    if source is not None and source.name == "COMMANDLINE":
        raise ConfigError(f"--store stands before `{context.invoked_subcommand}`", f"alerts {context.invoked_subcommand} --store {store}")


@group.command("list")
def list_alerts(
    store: StoreOption = DEFAULT_STORE,
    rule: Annotated[str | None, typer.Option(help="Name of the rule; * and ? are wildcards.")] = None,
    key: Annotated[str | None, typer.Option(help="Key of the alert; * and ? are wildcards.")] = None,
    priority: Annotated[PriorityChoice | None, typer.Option(help="Of this priority.")] = None,
    since: Annotated[
        str | None, typer.Option(help="Exchanges started at or after: 30m, 2h, 7d ago, or 2026-11-24T10:00 (UTC).", metavar="TIME")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="How many at most; 100 in a table.")] = None,
    output: Annotated[AlertsFormat, typer.Option("--format", help="jsonl is for other programs.")] = AlertsFormat.TABLE,
) -> None:
    """List alerts, newest first, a line each, with the number of exchanges that it stands for and what became of it at its channels.

    Example: llmsec-analyze alerts list --rule 'pii_*' --since 1d
    """
    import json

    from llmsec_agent.cli.analyze.streams import results
    from llmsec_agent.journals import journal
    from llmsec_analyzer.show.alert_rows import alert_line
    from llmsec_analyzer.show.results import or_no_rows, write_lines
    from llmsec_analyzer.stored import alerts as stored
    from llmsec_analyzer.stored.exchanges import parse_time
    from llmsec_analyzer.stored.stores import open_session

    table = output is AlertsFormat.TABLE
    wanted = stored.AlertFilter(
        rule=rule,
        key=key,
        priority=priority.value if priority else None,
        since_ns=parse_time(since, "--since") if since else None,
        limit=limit if limit is not None else 100 if table else None,
    )
    with results(), open_session(store, journal()) as session:
        known = _Known(_folder(store))
        rows = (known.added(row) for row in stored.stored_alerts(session, wanted))
        write_lines(or_no_rows(map(alert_line, rows)) if table else (json.dumps(_plain(row)) for row in rows), sys.stdout)


@group.command()
def show(
    alert_id: AlertArgument,
    store: StoreOption = DEFAULT_STORE,
    output: Annotated[ShowFormat, typer.Option("--format", help="json: all of it in one object.")] = ShowFormat.TEXT,
) -> None:
    """Show one alert: its rule and condition, what it rests on, its exchanges, and each attempt to send it.

    Example: llmsec-analyze alerts show 3f9a
    """
    import msgspec

    from llmsec_agent.cli.analyze.streams import results
    from llmsec_agent.journals import journal
    from llmsec_analyzer.show.alert_rows import alert_lines
    from llmsec_analyzer.show.results import write_lines
    from llmsec_analyzer.stored.alerts import find_alert
    from llmsec_analyzer.stored.stores import open_session
    from llmsec_tap.errors import ConfigError

    prefix = alert_id.strip()
    if not prefix:
        raise ConfigError("an empty id matches everything", "give at least its first characters")
    known = _Known(_folder(store))
    with results(), open_session(store, journal()) as session:
        found = find_alert(session, prefix)
        alert = known.alert(found[0]["alert_id"] if found is not None else prefix)
        if found is None and alert is None:
            raise ConfigError(f"no alert with an id that begins with {prefix!r}", "llmsec-analyze alerts list has their ids")
        row, exchanges = found if found is not None else ({}, [])
        row = known.added({"alert_id": alert.alert_id if alert is not None else "", **row})
        attempts = known.attempts(row["alert_id"])
        if output is ShowFormat.JSON:
            made = {**_plain(row), "alert": alert, "exchanges": [exchange for exchange, _ in exchanges], "attempts": attempts}
            write_lines([msgspec.json.encode(made).decode()], sys.stdout)
            return
        write_lines(alert_lines(row, alert, exchanges, attempts), sys.stdout)


@group.command()
def silence(
    target: Annotated[str, typer.Argument(help="Name of a rule, or key of an alert; * and ? are wildcards.", metavar="RULE|KEY")],
    until: Annotated[str, typer.Option("--until", help="When it ends: 8h or 7d from now, 2027-01-31 (UTC), or a time.", metavar="TIME")],
    reason: Annotated[str, typer.Option("--reason", help="Why.", metavar="TEXT")],
    by: Annotated[str | None, typer.Option("--by", help="Who says so. Default: your user.", metavar="NAME")] = None,
    store: FolderOption = DEFAULT_STORE,
) -> None:
    """Have nobody told of a rule's alerts, or of one key's, until a time. They are still counted, and stand on their exchanges.

    Example: llmsec-analyze alerts silence 'pii_detected/tenant=acme' --until 8h --reason 'load test'
    """
    import getpass

    from llmsec_agent.auditing import record
    from llmsec_agent.journals import journal
    from llmsec_agent.text import report
    from llmsec_agent.told import add_silence, folder_only, until_of
    from llmsec_analyzer.alerts.silences import MAX_WORDS, Silence
    from llmsec_tap.errors import ConfigError
    from llmsec_tap.storage.store import open_store

    folder_only(store)
    for name, text in (("RULE|KEY", target), ("--reason", reason), ("--by", by or "x")):
        if not text.strip() or len(text) > MAX_WORDS:
            raise ConfigError(f"{name}: empty, or longer than {MAX_WORDS} characters")
    log = journal()
    opened = open_store(store, log)
    made = Silence(match=target, until=until_of(until), reason=reason, by=by or getpass.getuser())
    path = add_silence(opened, made)
    record(opened, log, "configuration", state="silence added", match=made.match, until=made.until, by=made.by)
    report(f"added to {path}: {made.match} is silent until {made.until}")


@group.command()
def silences(
    store: FolderOption = DEFAULT_STORE,
    output: Annotated[AlertsFormat, typer.Option("--format", help="jsonl is for other programs.")] = AlertsFormat.TABLE,
) -> None:
    """List silences, those that have ended with a note; `alerts/silences.yaml` in the folder is edited by hand.

    Example: llmsec-analyze alerts silences --store /var/lib/llmsec-trace
    """
    import time

    import msgspec

    from llmsec_agent.cli.analyze.streams import results
    from llmsec_agent.journals import journal
    from llmsec_agent.told import folder_only
    from llmsec_agent.told import silences as stored
    from llmsec_analyzer.alerts.silences import end_ns
    from llmsec_analyzer.show.alert_rows import silence_line
    from llmsec_analyzer.show.results import write_lines
    from llmsec_tap.storage.store import open_store

    folder_only(store)
    now_ns = time.time_ns()
    entries = stored(open_store(store, journal()))
    with results():
        if output is AlertsFormat.JSONL:
            write_lines((msgspec.json.encode(entry).decode() for entry in entries), sys.stdout)
        else:
            write_lines((silence_line(entry, is_over=(end_ns(entry.until) or 0) <= now_ns) for entry in entries), sys.stdout)


@group.command()
def resend(
    alert_id: AlertArgument,
    channel: Annotated[list[str] | None, typer.Option("--channel", help="Only there; may be repeated.", metavar="CHANNEL")] = None,
    store: FolderOption = DEFAULT_STORE,
    config: ConfigOption = None,
) -> None:
    """Have an alert sent once more, by the agent that sends from this folder.

    Example: llmsec-analyze alerts resend 3f9a --channel slack
    """
    import msgspec

    from llmsec_agent.auditing import record
    from llmsec_agent.journals import journal
    from llmsec_agent.outbox import Outbox, line_of
    from llmsec_agent.text import report
    from llmsec_agent.told import find_decided, folder_only
    from llmsec_tap.storage.store import open_store

    folder_only(store)
    log = journal()
    opened = open_store(store, log)
    alert = find_decided(opened, alert_id.strip())
    if channel:
        _check_channels(channel, config)
        alert = msgspec.structs.replace(alert, channels=channel)
    Outbox(opened.root, opened.shown).append([line_of(alert)])
    record(opened, log, "alert", state="resent", alert_id=alert.alert_id, rule=alert.rule, channels=alert.channels)
    report(f"{alert.alert_id} goes to {', '.join(alert.channels)} again; `alerts show {alert.alert_id}` says what becomes of it")


@group.command("test")
def try_channel(
    channel: Annotated[str, typer.Argument(help="A channel of alerting.channels.", metavar="CHANNEL")],
    wait: Annotated[float, typer.Option("--wait", min=0, max=600, help="Seconds to wait for what becomes of it.")] = 10.0,
    store: FolderOption = DEFAULT_STORE,
    config: ConfigOption = None,
) -> None:
    """Send a test alert to one channel, by the agent that sends from this folder, and say what became of it. Exit 4 if it was not sent.

    Example: llmsec-analyze alerts test slack --store /var/lib/llmsec-trace
    """
    from llmsec_agent.auditing import record
    from llmsec_agent.journals import journal
    from llmsec_agent.outbox import Outbox, line_of
    from llmsec_agent.text import report
    from llmsec_agent.told import await_outcome, folder_only, trial
    from llmsec_tap.errors import StorageError
    from llmsec_tap.storage.store import open_store
    from llmsec_tap.visible import visible

    folder_only(store)
    _check_channels([channel], config)
    log = journal()
    opened = open_store(store, log)
    alert = trial(channel)
    Outbox(opened.root, opened.shown).append([line_of(alert)])
    record(opened, log, "alert", state="test", alert_id=alert.alert_id, rule=alert.rule, channels=alert.channels)
    found = await_outcome(opened, alert, wait)
    if found is None:
        report(f"{channel}: nobody has tried to send it within {wait:g} s: does an agent with this channel write {store}?")
    elif found.outcome == "sent":
        report(f"{channel}: sent, attempt {found.attempt}")
        return
    else:
        more = "given up" if found.outcome == "dead" else f"attempt {found.attempt}, it is tried again"
        report(f"{channel}: not sent ({more}): {visible(found.error)}")
    raise typer.Exit(StorageError.exit_code)


def _check_channels(names: list[str], config: str | None) -> None:
    from llmsec_agent.config import load_config
    from llmsec_agent.text import report
    from llmsec_analyzer.typed_files import nearest
    from llmsec_tap.errors import ConfigError

    channels = load_config(config, report).alerting.channels
    given = [name for name in channels.__struct_fields__ if getattr(channels, name)]
    for name in names:
        if name not in given:
            raise ConfigError(
                f"{name!r} is no channel of alerting.channels", nearest(name, given) or "the configuration has none; name it with --config"
            )


def _folder(location: str) -> Store | None:
    """None for a database: what it has is on the exchanges."""
    from llmsec_agent.journals import journal
    from llmsec_tap.storage.clickhouse.address import is_clickhouse
    from llmsec_tap.storage.store import open_store

    return None if is_clickhouse(location) else open_store(location, journal())


class _Known:
    """What the folder knows beside the records."""

    def __init__(self, store: Store | None) -> None:
        from llmsec_agent.told import attempts, decided

        self._alerts = {alert.alert_id: alert for alert in decided(store)} if store is not None else {}
        self._attempts: dict[str, list[Any]] = {}
        for attempt in attempts(store) if store is not None else ():
            self._attempts.setdefault(attempt.alert_id, []).append(attempt)

    def alert(self, prefix: str) -> Any:
        exact = self._alerts.get(prefix)
        return exact or next((alert for name, alert in self._alerts.items() if name.startswith(prefix)), None)

    def attempts(self, alert_id: str) -> list[Any]:
        return self._attempts.get(alert_id, [])

    def added(self, row: dict[str, Any]) -> dict[str, Any]:
        """With its last state, and what became of it by channel."""
        from llmsec_agent.told import outcomes

        alert = self._alerts.get(row["alert_id"])
        more: dict[str, Any] = {"sent": {name: last.outcome for name, last in outcomes(self.attempts(row["alert_id"])).items()}}
        if alert is not None:
            names = ("rule", "priority", "dedup_key", "summary", "channels")
            more |= {name: getattr(alert, name) for name in names if name not in row}
            more["state"] = alert.state if alert.state == "resolved" else row.get("state", alert.state)
            more["count"] = max(alert.count, row.get("count", 0))
        return {"summary": "", "channels": [], "started": None, "ended": None, **row, **more}


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return row | {name: row[name].isoformat() + "Z" if row[name] is not None else None for name in ("started", "ended")}
