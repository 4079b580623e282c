"""A sentence in any place of any body that the table of dialects knows is on the record: instead of a value, in an object and in a list."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from support.fuzz_targets import left_over

spec = importlib.util.spec_from_file_location("rows_of_dialects", Path(__file__).with_name("test_dialects.py"))
assert spec is not None
assert spec.loader is not None
rows = importlib.util.module_from_spec(spec)
spec.loader.exec_module(rows)

SENTENCE = "this sentence is planted here"


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in members:
        found += places(item, (*path, key))
    return found


def planted(value: Any, where: tuple[Any, ...], new: Any) -> Any:
    value = copy.deepcopy(value)
    at = value
    for step in where[:-1]:
        at = at[step]
    at[where[-1]] = new
    return value


def events_of(answer: Any, content_type: str) -> list[Any]:
    if isinstance(answer, list) and content_type != rows.JSON_TYPE:
        return [event[1] if isinstance(event, tuple) else event for event in answer]
    return [answer]


ROWS = [row for row in rows.ROWS if not any(isinstance(event, bytes) for event in events_of(row[2], row[3]))]


@pytest.mark.parametrize(("view", "answer", "content_type"), [row[1:4] for row in ROWS], ids=[row[0] for row in ROWS])
def test_a_sentence_in_any_place_is_kept(view: Any, answer: Any, content_type: str) -> None:
    line = f"POST {view.path}{'?' + view.query_string if view.query_string else ''}"
    events = events_of(answer, content_type)

    def look(body: Any, answers: list[Any]) -> None:
        left_over("\n".join([line, json.dumps(body), *map(json.dumps, answers)]).encode())

    for new in (SENTENCE, {"said": SENTENCE}, [SENTENCE]):
        for where in places(view.body):
            look(planted(view.body, where, new), events[:1])
        for number, event in enumerate(events):
            for where in places(event):
                look(view.body, [*events[max(0, number - 2) : number], planted(event, where, new)])
