"""`llmsec-tap check`: whether live capture can work here."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    app.command()(check)


def check() -> None:
    """Tell what live capture needs of this host, what is missing, and the one thing to do about it.

    Example: llmsec-tap check
    """
