"""Events of a stream whose data is JSON, as nearly all dialects have them."""

from __future__ import annotations

from collections.abc import Callable

from llmsec_tap.dialects.base import JSON, EventHandler, NotJSON, parse_json
from llmsec_tap.dialects.draft import Draft
from llmsec_tap.dialects.failures import FAILURE_NAMES, FAILURE_NAMES_BESIDE_TEXT, read_stated_failure


def json_events(draft: Draft, on_object: Callable[[int, str | None, dict[str, JSON]], None]) -> EventHandler:
    """A handler that gives each event's object to `on_object` (capture time, event name or None, object).

    `[DONE]` ends the stream. Where an event holds several lines and each is JSON of its own, each is an event: some servers part events by
    one line feed, not two. Other data is kept as unread (`event_bad_json`); JSON that is neither object nor list of objects says nothing.
    """
    overlooked = draft.overlooked

    def read(ts_ns: int, name: str | None, value: dict[str, JSON], size: int) -> None:
        before = draft.chars
        on_object(ts_ns, name, value)
        taken = draft.chars - before
        if not (FAILURE_NAMES_BESIDE_TEXT if taken else FAILURE_NAMES).isdisjoint(value):
            read_stated_failure(value, draft)
        if overlooked is not None:
            overlooked.event(name, value, size, taken)

    def on_event(ts_ns: int, name: str | None, data: bytes) -> None:
        try:
            value = parse_json(data, draft)
        except NotJSON:
            for value in _lines(data, draft):
                if isinstance(value, dict):
                    read(ts_ns, name, value, len(data))
            return
        if isinstance(value, dict):
            read(ts_ns, name, value, len(data))
        elif isinstance(value, list):  # some gateways put chunks together
            for entry in value:
                if isinstance(entry, dict):
                    read(ts_ns, name, entry, len(data))

    return on_event


def _lines(data: bytes, draft: Draft) -> list[JSON]:
    """The values of an event's lines; nothing, and a note on the draft, where one of them is neither JSON nor `[DONE]`."""
    lines = [line for line in data.split(b"\n") if line.strip()]
    values: list[JSON] = []
    ends = [line for line in lines if line.strip() == b"[DONE]"]
    is_read = len(lines) > 1 or bool(ends) or not lines  # one line was tried as a whole
    for line in lines if is_read else ():
        if line in ends:
            continue
        try:
            values.append(parse_json(line, draft))
        except NotJSON:
            is_read = False
            break
    if not is_read:
        draft.unread_event(data)
        return []
    draft.terminated = draft.terminated or bool(ends)
    return values
