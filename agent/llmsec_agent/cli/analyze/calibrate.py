"""`llmsec-analyze calibrate`: the threshold of the injection model for one's own traffic."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from llmsec_agent.cli.analyze.query import FolderOption
from llmsec_agent.cli.analyze.scan import ConfigOption
from llmsec_tap.storage import DEFAULT_STORE


class CalibrateFormat(StrEnum):
    TEXT = "text"
    JSON = "json"


def register(app: typer.Typer) -> None:
    app.command()(calibrate)


def calibrate(
    store: FolderOption = DEFAULT_STORE,
    target: Annotated[
        float,
        typer.Option("--target-false-alarms", min=0.000001, max=0.5, help="Share of harmless texts that may count as injection."),
    ] = 0.001,
    labels: Annotated[
        Path | None,
        typer.Option(
            "--labels", metavar="FILE.jsonl", help="Texts of your own: lines of text, label (attack or harmless) and perhaps role."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="PATH", help="Another model than the configuration's: a file or a folder.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Texts at most, the oldest first.")] = 50_000,
    output: Annotated[CalibrateFormat, typer.Option("--format", help="json: one object.")] = CalibrateFormat.TEXT,
    config: ConfigOption = None,
) -> None:
    """Judge the texts of stored requests and print the threshold for a share of false alarms, as lines of the configuration.

    All of them count as harmless but for those that are labelled; look at the highest before you believe that. With labels, a classifier's
    scores also become chances (Platt). Nothing is stored.

    Example: llmsec-analyze calibrate --store llmsec-data --model my-classifier --target-false-alarms 0.001
    """
    import msgspec

    from llmsec_agent import calibrate as calibrating
    from llmsec_agent.auditing import record_reading
    from llmsec_agent.cli.analyze.streams import results
    from llmsec_agent.config import load_config
    from llmsec_agent.journals import journal
    from llmsec_agent.text import report
    from llmsec_analyzer.show.results import write_lines
    from llmsec_analyzer.show.terminal import visible
    from llmsec_analyzer.stored.session import QuerySession

    security = load_config(config, report).security
    chosen = security.prompt_injection.model
    if model is not None:
        chosen = msgspec.structs.replace(chosen, path=str(Path(model).absolute()))
        security = msgspec.structs.replace(security, prompt_injection=msgspec.structs.replace(security.prompt_injection, model=chosen))
    labelled = calibrating.read_labels(labels) if labels is not None else []
    log = journal()
    with QuerySession.open(store, log) as session:
        made = calibrating.calibrate(session, security, target, labelled, limit)
        record_reading(session, log, "query", command="calibrate", format=output.value)
    for note in made.notes:
        report(f"note: {note}")
    with results():
        if output is CalibrateFormat.JSON:
            write_lines([msgspec.json.encode(made).decode()], sys.stdout)
            return
        for line in (
            f"# {made.model}: {made.harmless:,} texts taken for harmless, {made.attacks:,} labelled attacks",
            "# scores of the harmless: " + ", ".join(f"{share} of them below {score:.4f}" for share, score in made.quantiles.items()),
            *(f"# {one.score:.4f}  {one.exchange_id[:12]} {one.part}" for one in made.highest),
            f"# over the threshold: {made.share:.4%} of them (below {made.at_most:.4%} with a certainty of 95 %)"
            + (f", {made.found:.1%} of the attacks" if made.found is not None else ""),
            *calibrating.configuration(made, chosen).splitlines(),
        ):
            typer.echo(visible(line))
