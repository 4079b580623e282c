"""`llmsec-analyze report`: a store's time range as one HTML file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from llmsec_agent.cli.analyze.query import StoreOption
from llmsec_tap.errors import ConfigError, StorageError
from llmsec_tap.storage import DEFAULT_STORE


def register(app: typer.Typer) -> None:
    app.command()(report)


def report(
    store: StoreOption = DEFAULT_STORE,
    since: Annotated[
        str | None, typer.Option(help="Started at or after: 30m, 2h, 7d ago, or 2026-11-24T10:00 (UTC).", metavar="TIME")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Started before; as --since.", metavar="TIME")] = None,
    tenant: Annotated[str | None, typer.Option(help="Of this tenant alone.")] = None,
    content: Annotated[
        bool, typer.Option("--content/--no-content", help="Show findings one by one, redacted; without, only counts.")
    ] = True,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="Where it goes; .pdf is printed by an installed Chromium.")
    ] = "-",
) -> None:
    """Make a report of what a store holds: figures, charts, findings with OWASP and ATLAS, and what was not seen.

    One HTML file that needs nothing else and runs nothing. --output NAME.pdf prints it with Chromium or Chrome.

    Example: llmsec-analyze report --since 7d --output week.html
    """
    import datetime as dt

    from llmsec_agent.auditing import record_reading
    from llmsec_agent.cli.analyze.streams import results
    from llmsec_agent.console.figures import Span
    from llmsec_agent.journals import journal
    from llmsec_analyzer.stored.exchanges import parse_time
    from llmsec_analyzer.stored.stores import open_session
    from llmsec_tap.storage.publish import publishing, write_all

    try:
        from llmsec_agent.console.printing import to_pdf
        from llmsec_agent.console.report import ReportSettings
        from llmsec_agent.console.report import report as made
    except ImportError as fault:
        raise ConfigError(f"a report needs the package {fault.name}", "pip install 'llmsec-trace[console]'") from None
    span = Span(parse_time(since, "--since") if since else None, parse_time(until, "--until") if until else None)
    shown = store if "://" not in store else store.split("@")[-1]
    log = journal()
    with open_session(store, log) as session:
        record_reading(session, log, "export", command="report", tenant=tenant, content=content)
        text = made(session, ReportSettings(shown, span, tenant, content), dt.datetime.now(dt.UTC))
    if output == "-":
        with results():
            sys.stdout.write(text)
        return
    target = Path(output)
    try:
        data = to_pdf(text) if target.suffix.lower() == ".pdf" else text.encode(errors="replace")
        if target.exists() and not target.is_file():  # a device, a pipe
            target.write_bytes(data)
            return
        with publishing(target) as file:  # whole or not at all, and for its owner alone
            write_all(file, data)
    except OSError as fault:
        raise StorageError(f"cannot write {output}: {fault.strerror}", "name a file that you may write") from None
