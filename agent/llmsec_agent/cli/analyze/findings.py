"""`llmsec-analyze findings`: what detection found in what is stored."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Any

import typer

from llmsec_agent.cli.analyze.query import StoreOption
from llmsec_agent.cli.analyze.scan import SeverityChoice
from llmsec_tap.storage import DEFAULT_STORE


class FindingsFormat(StrEnum):
    TABLE = "table"
    JSONL = "jsonl"
    SARIF = "sarif"
    OCSF = "ocsf"


def register(app: typer.Typer) -> None:
    app.command()(findings)


def findings(
    store: StoreOption = DEFAULT_STORE,
    severity: Annotated[SeverityChoice | None, typer.Option(help="At least this severe.")] = None,
    category: Annotated[str | None, typer.Option(help="secret, pii, prompt_injection, jailbreak, …")] = None,
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
) -> None:
    """List findings, gravest first, or export them.

    Example: llmsec-analyze findings --severity high --since 2h --format sarif
    """
    import json

    from llmsec_agent.cli.analyze.streams import results
    from llmsec_agent.journals import journal
    from llmsec_analyzer.export.ocsf import ocsf
    from llmsec_analyzer.export.sarif import write_sarif
    from llmsec_analyzer.risk import rank
    from llmsec_analyzer.show.finding_rows import stored_line
    from llmsec_analyzer.show.results import write_lines
    from llmsec_analyzer.stored import findings as stored
    from llmsec_analyzer.stored.exchanges import parse_time
    from llmsec_analyzer.stored.session import QuerySession

    table = output is FindingsFormat.TABLE
    wanted = stored.FindingFilter(
        severity=severity.value if severity else None,
        category=category,
        rule=rule,
        exchange=exchange,
        fingerprint=fingerprint,
        since_ns=parse_time(since, "--since") if since else None,
        limit=limit if limit is not None else 100 if table else None,
    )
    worst = -1

    with results(), QuerySession.open(store, journal()) as session:

        def watched() -> Iterator[dict[str, Any]]:
            nonlocal worst
            for row in stored.stored_findings(session, wanted):
                worst = max(worst, rank(row["severity"]))
                yield row

        if output is FindingsFormat.SARIF:
            write_sarif(watched(), sys.stdout)
        elif output is FindingsFormat.OCSF:
            write_lines((json.dumps(ocsf(row)) for row in watched()), sys.stdout)
        elif output is FindingsFormat.JSONL:
            write_lines((json.dumps(stored.plain(row)) for row in watched()), sys.stdout)
        else:
            for row in watched():
                print(stored_line(row))  # noqa: T201 - the result
    if fail_on is not None and worst >= rank(fail_on.value):
        raise typer.Exit(1)
