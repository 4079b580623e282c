"""`llmsec-tap top`: a live view in the terminal."""

from __future__ import annotations

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    app.command()(top)


def top(
    events: Annotated[
        str | None, typer.Argument(metavar="[-]", help="`-` reads the lines of `capture --format events` from standard input.")
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            "--store", envvar="LLMSEC_STORE", metavar="STORE", help="A store to follow: a folder, or clickhouse://user@host/database."
        ),
    ] = None,
) -> None:
    """Watch who asks which model what, as it happens: processes and models with rates, the latest exchanges and findings, and what was lost.

    It follows the store that a capture or an agent writes, without root; opening a record is in the store's audit log. Needs the extra `top`,
    and 80 x 24 characters. Keys: q quits, p pauses, / filters, Enter opens, s sorts, ? tells the others.

    Example: llmsec-tap top --store llmsec-data
    """
    from llmsec_agent.top.terminal import check_terminal
    from llmsec_tap.errors import ConfigError

    if events not in (None, "-"):
        raise ConfigError(f"top takes `-` or nothing, not {events!r}", "llmsec-tap top --store FOLDER follows a store")
    if events is None and store is None:
        raise ConfigError(
            "nothing to watch", "name a store (--store), or pipe `llmsec-tap capture --format events` into `llmsec-tap top -`"
        )
    check_terminal(takes_input=events == "-")
    try:
        from llmsec_agent.top import watch
    except ImportError as fault:
        raise ConfigError(f"the live view needs the package {fault.name}", "pip install 'llmsec-trace[top]'") from None
    if events == "-":
        watch.watch_input()
    else:
        watch.watch_store(store or "")
