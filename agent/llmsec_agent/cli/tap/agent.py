"""`llmsec-tap agent`: a capture described by a file, that runs until it is told to stop."""

from __future__ import annotations

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    app.command()(agent)


def agent(
    config: Annotated[
        str | None,
        typer.Option(
            "--config", metavar="FILE", help="Configuration; else LLMSEC_CONFIG, LLMSEC_CONFIG_PATH, or /etc/llmsec-trace/config.yaml."
        ),
    ] = None,
) -> None:
    """Capture as a configuration file says, until told to stop: for services and DaemonSets.

    SIGTERM ends it in order within two seconds; SIGHUP reads the file again. It answers /health, /ready and /metrics, and notifies
    systemd. Records go to the store; what it has to say goes to standard error. docs/agent.md describes it.

    Example: llmsec-tap agent --config /etc/llmsec-trace/config.yaml
    """
    from llmsec_agent.agent import run_agent

    raise typer.Exit(run_agent(config))
