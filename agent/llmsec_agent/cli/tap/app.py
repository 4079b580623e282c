"""`llmsec-tap`: the root of its commands, and where every fault becomes one line and an exit code."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from llmsec_agent.cli.closed_streams import replace_closed_streams
from llmsec_agent.cli.tap import agent, capture, check, deliver, size, targets, telemetry, top
from llmsec_agent.text import report_fault
from llmsec_tap import __version__
from llmsec_tap.errors import LLMSecError

# Plain help: rich takes 0.1 s to import. No pretty tracebacks: they print local variables, which are captured content.
app = typer.Typer(
    name="llmsec-tap",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for _module in (capture, agent, top, deliver, telemetry, targets, check, size):
    _module.register(app)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"llmsec-tap {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")] = False,
) -> None:
    """See the exchanges with language models of this host's processes, decrypted, without touching them.

    Results go to standard output, diagnostics to standard error. Exit: 0 done; 2 usage or configuration; 3 the source could not
    be read (kernel, permission, process); 4 the store could not be written.
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
