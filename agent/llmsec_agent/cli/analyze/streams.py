"""Standard output as pipes expect it."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from llmsec_tap.errors import StorageError

# What a write to standard output says where what it leads to takes no more.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def results() -> Iterator[None]:
    """Wrap what writes results: flushes at the end, and a reader that closed the pipe (`| head`) ends the command quietly.

    Raises StorageError where what standard output leads to is full.
    """
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        # Results are UTF-8 wherever they go; a terminal with another locale shows replacement characters, not a traceback.
        reconfigure(encoding="utf-8", errors="replace")
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        _leave()
        raise typer.Exit(0) from None
    except OSError as fault:
        if fault.errno not in _FULL:
            raise
        _leave()
        raise StorageError(f"standard output cannot be written: {fault.strerror}") from None


def _leave() -> None:
    """The interpreter flushes standard output once more at exit; give it somewhere to go."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
