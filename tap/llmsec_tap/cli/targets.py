"""`llmsec-tap targets`: what on this host can be observed."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    app.command()(targets)


def targets() -> None:
    """List the processes with a TLS library or a model server: what can be probed, what cannot, and why.

    Example: llmsec-tap targets
    """
