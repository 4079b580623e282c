"""`llmsec-analyze analyze`: detection over what a store holds."""

from __future__ import annotations

from typing import Annotated

import typer

from llmsec_agent.cli.analyze.scan import ConfigOption, SuppressionsOption
from llmsec_tap.storage import DEFAULT_STORE


def register(app: typer.Typer) -> None:
    app.command()(analyze)


def analyze(
    store: Annotated[str, typer.Option("--store", envvar="LLMSEC_STORE", metavar="FOLDER", help="The store's folder.")] = DEFAULT_STORE,
    everything: Annotated[bool, typer.Option("--all", help="Every exchange: for new rules, or another model.")] = False,
    suppressions: SuppressionsOption = None,
    config: ConfigOption = None,
) -> None:
    """Examine the exchanges of a store that detection has left out.

    A flood, a budget or a fault leaves marks (detection_skipped and the like). These exchanges are looked at now, without a time limit, and
    their findings, scores and marks are stored. It may be ended at any time and called again.

    Example: llmsec-analyze analyze --store llmsec-data
    """
    from llmsec_agent.analyze import analyze as run
    from llmsec_agent.config import load_config
    from llmsec_agent.journals import journal
    from llmsec_agent.suppressing import suppressions_of, with_suppressions
    from llmsec_agent.text import report
    from llmsec_analyzer.judge.scanner import Scanner
    from llmsec_tap.identity.credentials import fingerprinter
    from llmsec_tap.install_key import install_key

    log = journal()
    security = with_suppressions(load_config(config, report).security, suppressions)
    scanner = Scanner(security, fingerprinter(install_key(log)))
    counts = run(store, scanner, log, everything=everything, suppressions=suppressions_of(security, log))
    beside = f", {counts.without_texts:,} were stored without texts" if counts.without_texts else ""
    log.info("analyzed", f"examined {counts.examined:,} exchanges: {counts.changed:,} changed{beside}", **counts._asdict())
