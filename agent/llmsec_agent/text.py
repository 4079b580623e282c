"""What the commands print about names that others chose: no control character reaches the terminal."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from llmsec_tap.errors import LLMSecError
from llmsec_tap.visible import visible


def report(line: str) -> None:
    """One line for the user, on standard error, at once."""
    sys.stderr.write(visible(line) + "\n")
    sys.stderr.flush()


def report_fault(fault: LLMSecError) -> None:
    """A line for each thing that is wrong."""
    for line in fault.lines():
        report(f"error: {line}")


def leave(run: Callable[[], int | None]) -> NoReturn:
    """Run a forked process to its end and leave by its exit code: what the parent set up for its own exit is not run twice."""
    code = 1
    try:
        code = run() or 0
    except LLMSecError as fault:
        report_fault(fault)
        code = fault.exit_code
    except BaseException as raised:  # noqa: BLE001 - typer.Exit carries the code; anything else is a bug in this project
        code = getattr(raised, "exit_code", 1)
        if not hasattr(raised, "exit_code"):
            traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
        finally:
            os._exit(code)
