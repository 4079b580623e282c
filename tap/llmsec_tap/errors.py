"""What can go wrong on our side. Wire bytes never raise: whatever arrives is data and becomes an anomaly (anomalies.py).

The hierarchy is one level deep on purpose; the command line maps each class to one exit code (docs/cli.md).
"""

from __future__ import annotations

from pathlib import Path


class LLMSecError(Exception):
    """A fault that ends a command: one line saying what and where, and `hint`, one sentence on what to do."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint
        if hint:
            self.add_note(hint)  # what a traceback in somebody's application shows

    def lines(self) -> list[str]:
        """What a command prints: a line for each thing that is wrong, with its hint."""
        return [f"{self}" + (f" ({self.hint})" if self.hint else "")]


class ConfigError(LLMSecError):
    """Wrong use: a bad option, an unknown key, a bad rule, a statement that is not read-only SQL."""

    exit_code = 2


class SourceError(LLMSecError):
    """The source of packets cannot be opened, or ended where it must not."""

    exit_code = 3


class KernelError(SourceError):
    """A capability, BTF, a symbol or a library that live capture needs is missing. `is_refusal`: the kernel forbids it to every loader."""

    def __init__(self, message: str, hint: str = "", *, is_refusal: bool = False) -> None:
        super().__init__(message, hint)
        self.is_refusal = is_refusal


class StorageError(LLMSecError):
    """The store cannot be read or written. `retryable` says whether the same write may succeed later."""

    exit_code = 4

    def __init__(self, message: str, hint: str = "", *, retryable: bool = False) -> None:
        super().__init__(message, hint)
        self.retryable = retryable


def where(fault: BaseException) -> str:
    """The place of a fault in our code, for a report that must not carry what was read."""
    frame = fault.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return f"{Path(frame.tb_frame.f_code.co_filename).name}:{frame.tb_lineno}" if frame is not None else "?"
