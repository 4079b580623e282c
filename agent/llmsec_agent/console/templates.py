"""The templates of pages, and how they write numbers, times and hostile text."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Final

import jinja2

from llmsec_tap import __version__
from llmsec_tap.visible import visible

_FOLDER: Final = Path(__file__).parent / "html"
SPANS: Final = {"1h": "last hour", "24h": "last 24 hours", "7d": "last 7 days", "30d": "last 30 days", "all": "everything"}


def made() -> jinja2.Environment:
    """Everything is escaped; a name that is not given is a fault."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(visible=lambda value: visible(str(value)), number=number, moment=moment, duration=duration)
    environment.globals.update(spans=SPANS, version=__version__)
    return environment


def number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.2f}" if isinstance(value, float) and value < 100 else f"{value:,.0f}"


def moment(value_ns: int | None) -> str:
    """ISO 8601 in UTC; the console's pages show it in the reader's zone."""
    return (
        dt.datetime.fromtimestamp(value_ns // 1000 / 1e6, dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        if value_ns
        else ""
    )


def duration(value_ms: float | None) -> str:
    if value_ms is None:
        return "-"
    return f"{value_ms:,.0f} ms" if value_ms < 10_000 else f"{value_ms / 1000:,.1f} s"
