"""How events of the journal are written: as lines for people, or as JSON for machines; always on standard error, never content."""

from __future__ import annotations

import datetime as dt
import sys
import threading
from collections.abc import Iterable
from typing import Any, Final, TextIO

import msgspec

from llmsec_agent.text import printable
from llmsec_tap.journal import Event, Journal, Level

_PREFIX: Final = {Level.DEBUG: "debug: ", Level.INFO: "", Level.WARNING: "warning: ", Level.ERROR: "error: "}


def journal(out: TextIO | None = None, *, level: Level = Level.INFO, as_json: bool = False, fields: Iterable[str] | None = None) -> Journal:
    """`fields`: of the facts, those that JSON has; all of them where none are named."""
    wanted = frozenset(fields) if fields is not None else None
    lock = threading.Lock()

    def write(event: Event) -> None:
        if event.level < level:
            return
        line = _json(event, wanted) if as_json else _PREFIX[event.level] + printable(event.text)
        with lock:
            stream = out or sys.stderr
            stream.write(line + "\n")
            stream.flush()

    return Journal(write)


def _json(event: Event, wanted: frozenset[str] | None) -> str:
    facts: dict[str, Any] = {name: value for name, value in event.facts.items() if wanted is None or name in wanted}
    time = dt.datetime.fromtimestamp(event.ts_ns / 1e9, dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    entry = {"time": time, "level": event.level.name.lower(), "event": event.name, "message": event.text, **facts}
    return printable(msgspec.json.encode(entry).decode())
