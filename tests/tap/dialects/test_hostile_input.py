"""Whatever a body holds, decoding does not raise."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmsec_tap.dialects.base import Dialect, RequestView, ResponseView
from llmsec_tap.dialects.draft import Draft
from llmsec_tap.dialects.registry import DIALECTS, classify_response
from llmsec_tap.identity.classify import classify
from llmsec_tap.identity.non_inference import auxiliary
from llmsec_tap.identity.who import identify

spec = importlib.util.spec_from_file_location("provider_rows", Path(__file__).with_name("test_dialects.py"))
assert spec is not None
assert spec.loader is not None
rows = importlib.util.module_from_spec(spec)
spec.loader.exec_module(rows)

ATOMS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["text", "error", "index", "tool_calls", "stop", "content_block_delta", "data:image/png;base64,AA", "\ud800"]),
)
KEYS = st.sampled_from(
    [
        "content",
        "text",
        "index",
        "delta",
        "choices",
        "message",
        "type",
        "usage",
        "role",
        "parts",
        "error",
        "id",
        "model",
        "function",
        "arguments",
    ]
)
JSON_VALUES = st.recursive(
    ATOMS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=4), inner, max_size=4), max_leaves=10
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    if isinstance(value, dict):
        for key in value:
            found += places(value[key], (*path, key))
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            found += places(entry, (*path, index))
    return found


def mutated(data: st.DataObject, value: Any) -> Any:
    """The value with one to three of its places replaced by other JSON."""
    value = copy.deepcopy(value)
    for _ in range(data.draw(st.integers(1, 3))):
        where = data.draw(st.sampled_from(places(value)))
        new = data.draw(JSON_VALUES)
        if not where:
            return new
        at = value
        for step in where[:-1]:
            at = at[step]
        at[where[-1]] = new
    return value


def plain(value: Any) -> Any:
    """Row events with names and bytes as JSON values only."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, tuple):
        return plain(value[1])
    return value


def settle(view: RequestView | None, response: ResponseView, draft: Draft, dialect: Dialect | None) -> None:
    identify(view, response, draft, dialect)
    if view is not None:
        auxiliary(view, response)
    for choice in draft.choices.values():
        choice.message()
    draft.tool_calls()
    draft.finish_reasons()


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_mutated_traffic_never_raises(data: st.DataObject):
    _, view, answer, content_type, _, _ = data.draw(st.sampled_from(rows.ROWS))
    request = RequestView(view.method, view.path, view.headers)
    request.body, request.body_is_json = mutated(data, view.body), True
    response = ResponseView(data.draw(st.sampled_from([200, 200, 200, 404])), {"content-type": content_type})
    draft = Draft()
    claimed = classify(request) or classify(view)
    assert claimed is not None
    claimed.framing(request, response)
    claimed.decode_request(request, draft)
    streamed = isinstance(answer, list) and content_type != rows.JSON_TYPE
    if streamed:
        handler = claimed.stream(request, response, draft)
        events = mutated(data, [plain(event) for event in answer])
        names = [event[0] if isinstance(event, tuple) else None for event in answer]
        for at, event in enumerate(events if isinstance(events, list) else [events]):
            handler(at, names[at] if at < len(names) else None, json.dumps(event).encode())
            if isinstance(event, dict):
                classify_response(response, event)
    else:
        body = mutated(data, answer)
        classify_response(response, body)
        claimed.decode_response(request, response, body, 1, draft)
    settle(request, response, draft, claimed)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    dialect=st.sampled_from(DIALECTS),
    body=JSON_VALUES,
    answer=JSON_VALUES,
    raw=st.binary(max_size=30),
    name=st.sampled_from([None, "error", "chunk", "exception:x"]),
)
def test_any_dialect_takes_any_json(dialect: Any, body: Any, answer: Any, raw: bytes, name: str | None):
    request = RequestView("POST", "/v1/model//x/generate", {"host": "h"})
    request.body, request.body_is_json = body, True
    for status in (200, 500):
        response = ResponseView(status, {})
        draft = Draft()
        dialect.claims(request)
        dialect.recognises(response, answer)
        dialect.decode_request(request, draft)
        dialect.decode_response(request, response, answer, 1, draft)
        handler = dialect.stream(None, response, draft)
        handler(1, name, json.dumps(answer).encode())
        handler(2, name, raw)
        settle(request, response, draft, dialect)


@settings(max_examples=100, deadline=None)
@given(path=st.text(max_size=40), method=st.sampled_from(["GET", "POST", "PUT"]), host=st.text(max_size=20), body=JSON_VALUES)
def test_any_request_can_be_classified(path: str, method: str, host: str, body: Any):
    request = RequestView(method, "/" + path, {"host": host})
    request.body = body
    dialect = classify(request)
    draft = Draft()
    if dialect is not None:
        dialect.decode_request(request, draft)
    settle(request, ResponseView(200, {}), draft, dialect)
