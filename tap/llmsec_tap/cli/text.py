"""What the commands print about names that others chose: no control character reaches the terminal."""

from __future__ import annotations

import sys

from llmsec_tap.errors import LLMSecError


def printable(text: str) -> str:
    """Control characters and lone surrogates as escapes."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode() for char in text)


def report(line: str) -> None:
    """One line for the user, on standard error, at once."""
    sys.stderr.write(printable(line) + "\n")
    sys.stderr.flush()


def error_line(fault: LLMSecError) -> str:
    return printable(f"error: {fault}" + (f" ({fault.hint})" if fault.hint else ""))
