"""`llmsec-analyze`: the root of its commands, and where every fault becomes one line and an exit code."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from llmsec_agent.cli.analyze import (
    alerts,
    analyze,
    calibrate,
    config,
    db,
    deviations,
    exchanges,
    findings,
    query,
    replay,
    report,
    rules,
    scan,
    serve,
    tenants,
)
from llmsec_agent.cli.closed_streams import replace_closed_streams
from llmsec_agent.text import report_fault
from llmsec_tap import __version__
from llmsec_tap.errors import LLMSecError

# Plain help: rich takes 0.1 s to import. No pretty tracebacks: they print local variables, which are captured content.
app = typer.Typer(
    name="llmsec-analyze",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# Each module of commands adds its own.
for _module in (
    replay,
    scan,
    analyze,
    exchanges,
    findings,
    deviations,
    alerts,
    query,
    rules,
    calibrate,
    config,
    db,
    tenants,
    serve,
    report,
):
    _module.register(app)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"llmsec-analyze {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")] = False,
) -> None:
    """Exchanges with language models: replay captures, search what is stored, find what is dangerous.

    Results go to standard output, diagnostics to standard error. Exit: 0 done; 1 findings at or above --fail-on; 2 usage or
    configuration; 3 the source could not be read; 4 the store could not be read or written.
    """


def main() -> None:
    replace_closed_streams()
    try:
        app()
    except LLMSecError as fault:
        report_fault(fault)
        sys.exit(fault.exit_code)


if __name__ == "__main__":
    main()
