"""`llmsec-analyze findings`: what detection found in what is stored, why, and that some of it counts no longer."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from llmsec_agent.cli.analyze.query import OwnStoreOption, StoreOption
from llmsec_agent.cli.analyze.scan import CategoryChoice, ConfigOption, SeverityChoice, SuppressionsOption
from llmsec_tap.storage import DEFAULT_STORE


class FindingsFormat(StrEnum):
    TABLE = "table"
    JSONL = "jsonl"
    SARIF = "sarif"
    OCSF = "ocsf"


class ExplainFormat(StrEnum):
    TEXT = "text"
    JSON = "json"


class By(StrEnum):
    FINGERPRINT = "fingerprint"
    RULE = "rule"
    TENANT = "tenant"
    PLACE = "place"


group = typer.Typer(invoke_without_command=True, rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]})

FindingArgument = Annotated[str, typer.Argument(help="The finding's id, or its beginning where that is unique.", metavar="ID")]


def register(app: typer.Typer) -> None:
    app.add_typer(group, name="findings")


@group.callback()
def list_findings(
    context: typer.Context,
    store: StoreOption = DEFAULT_STORE,
    severity: Annotated[SeverityChoice | None, typer.Option(help="At least this severe.")] = None,
    category: Annotated[CategoryChoice | None, typer.Option(help="Of this category.")] = None,
    rule: Annotated[str | None, typer.Option(help="Rule id; * and ? are wildcards.")] = None,
    exchange: Annotated[str | None, typer.Option(help="How the exchange's id begins.")] = None,
    fingerprint: Annotated[str | None, typer.Option(help="The same match wherever it was seen.")] = None,
    since: Annotated[
        str | None, typer.Option(help="Exchanges started at or after: 30m, 2h, 7d ago, or 2026-11-24T10:00 (UTC).", metavar="TIME")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="How many at most; exports hold all unless told.")] = None,
    output: Annotated[
        FindingsFormat, typer.Option("--format", help="jsonl, sarif (2.1.0) and ocsf are for other programs.")
    ] = FindingsFormat.TABLE,
    fail_on: Annotated[
        SeverityChoice | None, typer.Option("--fail-on", help="Exit with 1 if one that is listed is at least this severe.")
    ] = None,
    suppressed: Annotated[bool, typer.Option("--suppressed", help="Also those that count no longer, marked.")] = False,
    suppressions: SuppressionsOption = None,
    config: ConfigOption = None,
) -> None:
    """List findings, gravest first, or export them; `findings explain ID` explains one, `findings suppress ID` has it count no longer.

    Suppressions of the configuration count here also where the finding was stored before them.

    Example: llmsec-analyze findings --severity high --since 2h --format sarif
    """
    context.obj = store
    if context.invoked_subcommand is not None:
        return
    import dataclasses
    import json

    from llmsec_agent.auditing import record_reading
    from llmsec_agent.cli.analyze.streams import results
    from llmsec_agent.config import load_config
    from llmsec_agent.journals import journal
    from llmsec_agent.suppressing import marking, suppressions_of, with_suppressions
    from llmsec_agent.text import report
    from llmsec_analyzer.export.ocsf import ocsf
    from llmsec_analyzer.export.sarif import write_sarif
    from llmsec_analyzer.risk import rank
    from llmsec_analyzer.show.finding_rows import stored_line
    from llmsec_analyzer.show.results import or_no_rows, write_lines
    from llmsec_analyzer.stored import findings as stored
    from llmsec_analyzer.stored.exchanges import parse_time
    from llmsec_analyzer.stored.stores import open_session

    table = output is FindingsFormat.TABLE
    wanted = stored.FindingFilter(
        severity=severity.value if severity else None,
        category=category.value if category else None,
        rule=rule,
        exchange=exchange,
        fingerprint=fingerprint,
        since_ns=parse_time(since, "--since") if since else None,
        limit=limit if limit is not None else 100 if table else None,
        suppressed=suppressed,
    )
    worst = -1
    log = journal()
    entries = suppressions_of(with_suppressions(load_config(config, report).security, suppressions), log)

    with results(), open_session(store, log) as session:
        mark = marking(entries)
        asked = {name: value for name, value in dataclasses.asdict(wanted).items() if value}
        record_reading(session, log, "query" if table else "export", command="findings", format=output.value, filter=asked)

        def watched() -> Iterator[dict[str, Any]]:
            nonlocal worst
            for row in stored.stored_findings(session, wanted, mark):
                if row["suppressed"] is None:
                    worst = max(worst, rank(row["severity"]))
                yield row

        if output is FindingsFormat.SARIF:
            write_sarif(watched(), sys.stdout)
        elif output is FindingsFormat.OCSF:
            write_lines((json.dumps(ocsf(row)) for row in watched()), sys.stdout)
        elif output is FindingsFormat.JSONL:
            write_lines((json.dumps(stored.plain(row)) for row in watched()), sys.stdout)
        else:
            for line in or_no_rows(map(stored_line, watched())):
                print(line)  # noqa: T201 - the result
    if fail_on is not None and worst >= rank(fail_on.value):
        raise typer.Exit(1)


@group.command()
def explain(
    context: typer.Context,
    finding_id: FindingArgument,
    store: OwnStoreOption = None,
    output: Annotated[ExplainFormat, typer.Option("--format", help="json: the finding and its rule in one object.")] = ExplainFormat.TEXT,
    config: ConfigOption = None,
) -> None:
    """Explain one finding: its rule, why, what its hiding was, where it stands in the text, what to do, how to suppress it.

    Example: llmsec-analyze findings explain 5f1c
    """
    import shlex

    import msgspec

    from llmsec_agent.auditing import record_reading
    from llmsec_agent.cli.analyze.streams import results
    from llmsec_agent.config import load_config
    from llmsec_agent.journals import journal
    from llmsec_agent.suppressing import marked, suppressions_of
    from llmsec_agent.text import report
    from llmsec_analyzer.judge.rule_set import rule_set
    from llmsec_analyzer.rules.load import load_builtin
    from llmsec_analyzer.show.explanation import explanation
    from llmsec_analyzer.show.results import write_lines
    from llmsec_analyzer.stored.findings import find_finding
    from llmsec_analyzer.stored.stores import open_session
    from llmsec_tap.identity.credentials import fingerprinter
    from llmsec_tap.install_key import install_key
    from llmsec_tap.visible import visible

    log = journal()
    security = load_config(config, report).security
    rules = {rule.id: rule for rule in load_builtin()} | rule_set(security).by_id
    entries = suppressions_of(security, log)
    location = store or context.obj
    with results(), open_session(location, log) as session:
        finding, exchange = find_finding(session, finding_id)
        record_reading(session, log, "query", command="findings explain", finding_id=finding.finding_id, exchange_id=exchange.exchange_id)
    (finding,) = marked(msgspec.structs.replace(exchange, findings=[finding]), entries)
    with results():
        if output is ExplainFormat.JSON:
            made = {"finding": finding, "rule": rules.get(finding.rule_id)}
            write_lines([msgspec.json.encode(made).decode()], sys.stdout)
            return
        for line in explanation(finding, exchange, rules, fingerprinter(install_key(log))):
            print(line)  # noqa: T201 - the result
        here = "" if location == DEFAULT_STORE else f" --store {visible(shlex.quote(location))}"
        print(f"to suppress: llmsec-analyze findings suppress {finding.finding_id}{here} --reason … --owner … --until 90d")  # noqa: T201 - the result


@group.command()
def suppress(
    context: typer.Context,
    finding_id: FindingArgument,
    reason: Annotated[str, typer.Option("--reason", help="Why it counts no longer.", metavar="TEXT")],
    owner: Annotated[str, typer.Option("--owner", help="Who says so.", metavar="NAME")],
    until: Annotated[str, typer.Option("--until", help="Last day on which it holds: 2027-01-31 (UTC), or 90d from today.", metavar="DAY")],
    by: Annotated[
        list[By] | None,
        typer.Option(
            "--by", help="What of the finding others must have, too; may be repeated. Default: fingerprint and rule, the same match."
        ),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", help="Add it there. Default: the configuration's, if it names one; else it is printed.")
    ] = None,
    store: OwnStoreOption = None,
    config: ConfigOption = None,
) -> None:
    """Have a finding, and those like it, count no longer: an entry is added to the file of suppressions, or printed.

    The file's own text and comments stay as they are. Findings go on being recorded, marked as suppressed; they add to no score, alert or
    exit code until the day is over.

    Example: llmsec-analyze findings suppress 5f1c --reason "test card of the sandbox" --owner payments --until 90d
    """
    from llmsec_agent.auditing import record_reading
    from llmsec_agent.cli.analyze.streams import results
    from llmsec_agent.config import load_config
    from llmsec_agent.journals import journal
    from llmsec_agent.suppressing import append, day_of, entry_of, written
    from llmsec_agent.text import report
    from llmsec_analyzer.stored.findings import find_finding
    from llmsec_analyzer.stored.stores import open_session
    from llmsec_tap.errors import ConfigError
    from llmsec_tap.visible import visible

    log = journal()
    day = day_of(until)
    files = load_config(config, report).security.suppressions
    if file is None and len(files) > 1:
        raise ConfigError("the configuration names several files of suppressions", f"choose one with --file: {', '.join(files)}")
    with open_session(store or context.obj, log) as session:
        finding, exchange = find_finding(session, finding_id)
        entry = entry_of(finding, exchange, reason=reason, owner=owner, until=day, by=[choice.value for choice in by or ()])
        target = file or (Path(files[0]) if files else None)
        with results():
            if target is None:
                typer.echo("suppressions:\n" + visible(written(entry), keep_lines=True), nl=False)
                return
            append(target, entry)
        facts = {"file": str(target), "rule_id": finding.rule_id, "finding_id": finding.finding_id, "owner": owner, "until": day}
        record_reading(session, log, "configuration", state="suppression added", **facts)
    report(f"added to {target}: {finding.rule_id} ({finding.type}) counts no longer until {day}")
    if str(target) not in files:
        report("note: the configuration does not name this file: security.suppressions")
