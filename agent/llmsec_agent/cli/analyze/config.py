"""`llmsec-analyze config`: whether a configuration is right, and what of it counts."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class ShowFormat(StrEnum):
    YAML = "yaml"
    JSON = "json"


group = typer.Typer(no_args_is_help=True, rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]})

FileArgument = Annotated[
    str | None,
    typer.Argument(
        help="Default: LLMSEC_CONFIG, LLMSEC_CONFIG_PATH, or /etc/llmsec-trace/config.yaml.", metavar="[FILE]", show_default=False
    ),
]


def register(app: typer.Typer) -> None:
    app.add_typer(group, name="config", help="Check the configuration, and show what of it counts.")


@group.command("check")
def check(file: FileArgument = None) -> None:
    """Check a configuration (YAML, JSON or TOML) with the environment: all errors at once, and notes.

    A note names a key that does less than it may seem to: one that only a proxy in the request path could honour, or that this
    version does not act on yet. Exits with 2 if there are errors, with 0 if there are notes only.

    Example: llmsec-analyze config check config/prod.yaml
    """
    from llmsec_agent.cli.analyze.streams import results
    from llmsec_agent.config import read_config
    from llmsec_agent.config.rules import check_rules
    from llmsec_tap.visible import visible

    loaded = read_config(file, strict=True)
    notes = [note.sentence() for note in loaded.notes] + check_rules(loaded)
    with results():
        for note in notes:
            typer.echo(visible(f"note: {note}"))
        typer.echo(visible(f"{loaded.file or 'no file, defaults'}: 0 errors, {len(notes)} notes"))


@group.command("show")
def show(
    file: FileArgument = None,
    output: Annotated[ShowFormat, typer.Option("--format", help="json: with all origins and notes in one object.")] = ShowFormat.YAML,
) -> None:
    """Show every setting that counts, with where it comes from: flag, environment, file and line, or default.

    Secrets are shown as references, never as what they are.

    Example: llmsec-analyze config show config/prod.yaml
    """
    from llmsec_agent.cli.analyze.streams import results
    from llmsec_agent.config import read_config
    from llmsec_agent.config.show import as_json, as_yaml
    from llmsec_tap.visible import json_visible, visible

    loaded = read_config(file, strict=True)
    with results():
        if output is ShowFormat.JSON:
            for line in as_json(loaded).split("\n"):
                typer.echo(json_visible(line))
        else:
            for line in as_yaml(loaded):
                typer.echo(visible(line))
