"""Labels of metrics, whose values strangers choose: a bounded number of them, and of bounded length."""

from __future__ import annotations

from typing import Final

from llmsec_tap.model import Exchange

# Clients choose model names, so there may be any number of them: those beyond are counted together.
_MAX_VALUES: Final = 100
_MAX_CHARACTERS: Final = 128
OTHER: Final = "other"


class Values:
    """The first values of a label as they are, later ones as `other`."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def __call__(self, value: str | None) -> str:
        if not value:
            return ""
        value = value[:_MAX_CHARACTERS].encode("utf-8", "replace").decode()
        if value in self._known or len(self._known) < _MAX_VALUES:
            self._known.add(value)
            return value
        return OTHER


def error_of(exchange: Exchange) -> str | None:
    """The error that an exchange ended in, by the answer's own name for it or its status; None for none."""
    return exchange.error_type or (str(exchange.status) if (exchange.status or 0) >= 400 else None)
