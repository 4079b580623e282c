"""`llmsec-tap telemetry`: a folder's exchanges as spans and metrics of OpenTelemetry, in a process of its own."""

from __future__ import annotations

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    app.command()(telemetry)


def telemetry(
    config: Annotated[
        str | None,
        typer.Option(
            "--config", metavar="FILE", help="Configuration; else LLMSEC_CONFIG, LLMSEC_CONFIG_PATH, or /etc/llmsec-trace/config.yaml."
        ),
    ] = None,
    store: Annotated[str | None, typer.Option("--store", help="The folder. Default: storage.path.", metavar="FOLDER")] = None,
    once: Annotated[bool, typer.Option("--once", help="Send what is there now, and end; exit 4 if some of it waits on.")] = False,
) -> None:
    """Send a folder's exchanges to the collector that observability.tracing and observability.metrics.otlp name, until told to stop.

    The agent starts this itself, from what it stores on; the command is for a service of its own, and for folders that replays wrote,
    of which it sends everything. It needs to read and write the folder and no other right. What was sent is remembered in the folder.

    Example: llmsec-tap telemetry --config config.yaml --store llmsec-data --once
    """
    from llmsec_agent.config import load_config
    from llmsec_agent.journals import journal
    from llmsec_agent.telemetry.plan import telemetry_plan
    from llmsec_agent.telemetry.process import send
    from llmsec_agent.text import report
    from llmsec_tap.errors import ConfigError

    loaded = load_config(config, report)
    plan = telemetry_plan(store or loaded.storage.path, loaded.observability, since_ns=0)
    if plan is None:
        raise ConfigError("no collector to send to", "set observability.tracing.enabled, or name observability.metrics.otlp")
    raise typer.Exit(send(plan, journal(), once=once))
