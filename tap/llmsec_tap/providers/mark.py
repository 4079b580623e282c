"""The one format of the tables in this room."""

from __future__ import annotations

import re
from typing import NamedTuple


class Mark(NamedTuple):
    """A piece of evidence: what `where` names has a value that `pattern` fits, so `provider` serves it.

    The provider's name is OpenTelemetry's where it has one (gen_ai.provider.name), else the vendor's own.
    """

    where: str
    pattern: re.Pattern[str]
    provider: str


def marks(*rows: tuple[str, str, str]) -> tuple[Mark, ...]:
    """Rows of (where, pattern, provider). An empty pattern fits any value: that it is there is enough."""
    return tuple(Mark(where, re.compile(pattern), provider) for where, pattern, provider in rows)
