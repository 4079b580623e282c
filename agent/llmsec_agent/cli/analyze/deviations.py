"""`llmsec-analyze deviations`: traffic that was not as it was, or beyond a limit, of what is stored."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated

import typer

from llmsec_agent.cli.analyze.query import StoreOption
from llmsec_agent.cli.analyze.scan import SeverityChoice
from llmsec_tap.storage import DEFAULT_STORE


class DeviationsFormat(StrEnum):
    TABLE = "table"
    JSONL = "jsonl"


def register(app: typer.Typer) -> None:
    app.command()(deviations)


def deviations(
    store: StoreOption = DEFAULT_STORE,
    severity: Annotated[SeverityChoice | None, typer.Option(help="At least this severe.")] = None,
    kind: Annotated[str | None, typer.Option(help="cost, error_rate, upstream_*, …; * and ? are wildcards.")] = None,
    subject: Annotated[str | None, typer.Option(help="The tenant, key, client, upstream or model; * and ? are wildcards.")] = None,
    since: Annotated[
        str | None, typer.Option(help="Exchanges started at or after: 30m, 2h, 7d ago, or 2026-11-24T10:00 (UTC).", metavar="TIME")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="How many at most; 100 in a table.")] = None,
    output: Annotated[DeviationsFormat, typer.Option("--format", help="jsonl is for other programs.")] = DeviationsFormat.TABLE,
) -> None:
    """List deviations, newest first: cost, rates, errors, upstreams, latency, keys and clients that were not as they were.

    Example: llmsec-analyze deviations --severity high --since 1d
    """
    import json

    from llmsec_agent.cli.analyze.streams import results
    from llmsec_agent.journals import journal
    from llmsec_analyzer.show.finding_rows import deviation_line
    from llmsec_analyzer.show.results import or_no_rows, write_lines
    from llmsec_analyzer.stored import deviations as stored
    from llmsec_analyzer.stored.exchanges import parse_time
    from llmsec_analyzer.stored.findings import plain
    from llmsec_analyzer.stored.stores import open_session

    table = output is DeviationsFormat.TABLE
    wanted = stored.DeviationFilter(
        severity=severity.value if severity else None,
        kind=kind,
        subject=subject,
        since_ns=parse_time(since, "--since") if since else None,
        limit=limit if limit is not None else 100 if table else None,
    )
    with results(), open_session(store, journal()) as session:
        rows = stored.stored_deviations(session, wanted)
        write_lines(or_no_rows(map(deviation_line, rows)) if table else (json.dumps(plain(row)) for row in rows), sys.stdout)
