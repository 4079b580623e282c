"""`llmsec-tap deliver`: a folder's records to ClickHouse, in a process of its own."""

from __future__ import annotations

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    app.command()(deliver)


def deliver(
    config: Annotated[
        str | None,
        typer.Option(
            "--config", metavar="FILE", help="Configuration; else LLMSEC_CONFIG, LLMSEC_CONFIG_PATH, or /etc/llmsec-trace/config.yaml."
        ),
    ] = None,
    store: Annotated[str | None, typer.Option("--store", help="The folder. Default: storage.path.", metavar="FOLDER")] = None,
    once: Annotated[bool, typer.Option("--once", help="Deliver what is there now, and end; exit 4 if some of it waits on.")] = False,
    alerts: Annotated[
        bool,
        typer.Option(
            "--alerts", help="Send the folder's alerts to alerting.channels instead; with --once, exit 4 if one could not be sent."
        ),
    ] = False,
) -> None:
    """Deliver a folder's exchanges to the database that storage.clickhouse names, or its alerts to alerting.channels, until told to stop.

    The agent starts this itself; the command is for a service of its own, and for folders that replays wrote. It needs to read and write
    the folder and no other right. What was sent is remembered in the folder, and what is sent twice is stored once.

    Example: llmsec-tap deliver --config config.yaml --store llmsec-data --once
    """
    from llmsec_agent.config import load_config
    from llmsec_agent.deliver import deliver as run
    from llmsec_agent.deliver import plan_of
    from llmsec_agent.journals import journal
    from llmsec_agent.text import report
    from llmsec_tap.errors import ConfigError

    loaded = load_config(config, report)
    storage = loaded.storage
    if alerts:
        from llmsec_agent.alerting.plan import plan_of as alert_plan_of
        from llmsec_agent.alerting.process import send_here

        plan = alert_plan_of(store or storage.path, loaded.alerting)
        if not plan.channels:
            raise ConfigError("no channel to send alerts to", "name one in alerting.channels of the configuration")
        raise typer.Exit(send_here(plan, journal(), once=once))
    if storage.clickhouse is None:
        raise ConfigError("no database to deliver to", "name one in storage.clickhouse of the configuration")
    raise typer.Exit(run(plan_of(store or storage.path, storage.clickhouse), journal(), once=once))
