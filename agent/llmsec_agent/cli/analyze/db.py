"""`llmsec-analyze db`: the care of a store. Each command is a module of its own and adds itself here."""

from __future__ import annotations

import typer

from llmsec_agent.cli.analyze import db_migrate, db_verify

group = typer.Typer(no_args_is_help=True, rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]})


@group.callback()
def db() -> None:
    """The care of a store: make its tables, bring them up to date, compare both ends."""


for _module in (db_migrate, db_verify):
    _module.register(group)


def register(app: typer.Typer) -> None:
    app.add_typer(group, name="db")
