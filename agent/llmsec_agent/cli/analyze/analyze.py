"""`llmsec-analyze analyze`: detection over what a store holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from llmsec_agent.cli.analyze.query import StoreOption
from llmsec_agent.cli.analyze.scan import ConfigOption, SuppressionsOption
from llmsec_tap.storage import DEFAULT_STORE

if TYPE_CHECKING:
    from llmsec_analyzer.settings import Handling
    from llmsec_tap.model import Exchange


def register(app: typer.Typer) -> None:
    app.command()(analyze)


def analyze(
    store: StoreOption = DEFAULT_STORE,
    everything: Annotated[bool, typer.Option("--all", help="Every exchange: for new rules, or another model.")] = False,
    jobs: Annotated[int, typer.Option("--jobs", min=1, max=64, help="Detection processes that work side by side.", metavar="N")] = 1,
    suppressions: SuppressionsOption = None,
    config: ConfigOption = None,
) -> None:
    """Examine the exchanges of a store that detection has left out.

    A flood, a budget or a fault leaves marks (detection_skipped and the like). These exchanges are looked at now, without a time limit, and
    their findings, scores and marks are stored. It may be ended or killed at any time and called again: with the same rules it goes on where it was.

    Example: llmsec-analyze analyze --store llmsec-data --jobs 2
    """
    from dataclasses import asdict

    from llmsec_agent.analyze import analyze as run
    from llmsec_agent.config import load_config
    from llmsec_agent.config.retention import audited_severity
    from llmsec_agent.journals import journal
    from llmsec_agent.suppressing import with_suppressions
    from llmsec_agent.tenants.policy import Policies, file_policies
    from llmsec_agent.tenants.resolver import directory_of
    from llmsec_agent.text import report
    from llmsec_tap.install_key import install_key

    log = journal()
    loaded = load_config(config, report)
    security = with_suppressions(loaded.security, suppressions)
    directory = directory_of(loaded.storage, log)
    policies = Policies(file_policies(loaded), directory)

    def handling(exchange: Exchange) -> Handling:
        if directory is not None and exchange.api_key_fingerprint is not None:
            directory.whose(exchange.api_key_fingerprint)  # what holds for a tenant comes with the answer
        return policies.handling(exchange)

    counts, code = run(
        store,
        security,
        install_key(log),
        log,
        everything=everything,
        jobs=jobs,
        audited=audited_severity(loaded),
        handling=handling,
    )
    beside = f", {counts.without_texts:,} were stored without texts" if counts.without_texts else ""
    if counts.not_examined:
        beside += f", {counts.not_examined:,} could not be examined and stay as they were"
    begun = "went on where the last one was; " if counts.resumed else ""
    ended = "; interrupted: call it again to go on" if counts.interrupted else ""
    text = f"{begun}examined {counts.examined:,} exchanges: {counts.changed:,} changed{beside}{ended}"
    log.info("analyzed", text, **asdict(counts))
    raise typer.Exit(code)
