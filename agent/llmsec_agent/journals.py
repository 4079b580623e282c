"""How events of the journal are written: as lines for people, or as JSON for machines; always on standard error, never content."""

from __future__ import annotations

import datetime as dt
import json
import sys
import threading
from typing import Any, Final, NamedTuple

from llmsec_tap.journal import Event, Journal, Level
from llmsec_tap.visible import json_visible, visible

_PREFIX: Final = {Level.DEBUG: "debug: ", Level.INFO: "", Level.WARNING: "warning: ", Level.ERROR: "error: "}


class Style(NamedTuple):
    """`fields`: of an event's facts, those that JSON lines have; all of them where none are named."""

    level: Level = Level.INFO
    as_json: bool = False
    fields: tuple[str, ...] = ()


class StandardError(Journal):
    """`style` may be replaced while it is in use."""

    def __init__(self, style: Style) -> None:
        super().__init__(self._line)
        self.style = style
        self._lock = threading.Lock()

    def _line(self, event: Event) -> None:
        style = self.style
        if event.level < style.level:
            return
        line = _json(event, style.fields) if style.as_json else _PREFIX[event.level] + visible(event.text)
        with self._lock:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()


def journal(style: Style | None = None) -> StandardError:
    return StandardError(style or Style())


def _json(event: Event, fields: tuple[str, ...]) -> str:
    facts: dict[str, Any] = {name: value for name, value in event.facts.items() if not fields or name in fields}
    time = dt.datetime.fromtimestamp(event.ts_ns / 1e9, dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    entry = {"time": time, "level": event.level.name.lower(), "event": event.name, "message": event.text, **facts}
    return json_visible(json.dumps(entry, ensure_ascii=False, separators=(",", ":")))
