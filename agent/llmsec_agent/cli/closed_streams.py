"""Standard streams that whoever started the command has closed (`<&-`, `>&-`)."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from llmsec_tap.errors import LLMSecError, SourceError, StorageError


def replace_closed_streams() -> None:
    """Call it before a file is opened, which would get the number of a closed stream, and what is meant for the stream.

    Who reads standard input or writes standard output is told that it is closed; what is written to standard error is dropped.
    """
    for stream, number, flags in ((sys.stdin, 0, os.O_WRONLY), (sys.stdout, 1, os.O_RDONLY), (sys.stderr, 2, os.O_WRONLY)):
        if stream is None:
            os.open(os.devnull, flags)  # it gets the lowest free number; reading 0 and writing 1 fail
            os.set_inheritable(number, True)
    if sys.stdin is None:
        sys.stdin = _Closed(SourceError("standard input is closed", "Name a file, or pipe something in."))
    if sys.stdout is None:
        sys.stdout = _Closed(StorageError("standard output is closed", "Send it to a file, a pipe or /dev/null."))
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 - for as long as the process lives


class _Closed:
    """Flushing it does nothing, which the interpreter does at its end; whatever else is asked of it raises the fault."""

    closed = True

    def __init__(self, fault: LLMSecError) -> None:
        self._fault = fault

    def isatty(self) -> bool:
        return False

    def flush(self) -> None:
        pass

    def __getattr__(self, name: str) -> NoReturn:
        raise self._fault
