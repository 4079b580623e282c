from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsec_tap.wire.ndjson import JSONArrayParser, NDJSONParser
from support.streams import feed_every_way


def lines(pieces: list[bytes]) -> tuple[list[bytes], list[str], bool]:
    return _run(NDJSONParser, pieces)


def elements(pieces: list[bytes]) -> tuple[list[bytes], list[str], bool]:
    return _run(JSONArrayParser, pieces)


def _run(make: type, pieces: list[bytes]) -> tuple[list[bytes], list[str], bool]:
    events: list[bytes] = []
    anomalies: list[str] = []
    parser = make(lambda _ts, _name, data: events.append(data), anomalies.append)
    for piece in pieces:
        parser.feed(0, piece)
    parser.end(0)
    return events, anomalies, parser.unfinished


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b'{"a":1}\n{"a":2}\n', [b'{"a":1}', b'{"a":2}']),
        (b'{"a":1}\r\n\r\n{"a":2}\r\n', [b'{"a":1}', b'{"a":2}']),
        (b'{"a":1}\n{"a":2}', [b'{"a":1}', b'{"a":2}']),
        (b'{"a":1}\0{"a":2}\0', [b'{"a":1}', b'{"a":2}']),
        (b"\n \n", []),
    ],
    ids=["lines", "CRLF and empty lines", "no line end", "NUL ended", "blank"],
)
def test_ndjson(data: bytes, expected: list[bytes]) -> None:
    assert feed_every_way(lines, data) == (expected, [], False)


def test_ndjson_gap_drops_the_torn_line() -> None:
    events: list[bytes] = []
    parser = NDJSONParser(lambda _ts, _name, data: events.append(data), lambda _name: None)
    parser.feed(0, b'{"a":1}\n{"a"')
    parser.gap()
    parser.feed(0, b':2}\n{"a":3}\n')
    parser.end(0)
    assert events == [b'{"a":1}', b'{"a":3}']


def test_ndjson_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmsec_tap.wire.ndjson.MAX_EVENT_BYTES", 50)
    events, anomalies, _ = lines([b"1\n", b"x" * 60, b"x" * 60 + b"\n", b"2\n"])
    assert events == [b"1", b"2"]
    assert anomalies == ["event_limit"]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b'[{"a":1},{"b":[1,2]}]', [b'{"a":1}', b'{"b":[1,2]}']),
        (b'[{"a":"]},{\\"["}\n,\r\n{"b":2}]\n', [b'{"a":"]},{\\"["}', b'{"b":2}']),
        (b"[]", []),
        (b'[1, "x", null, [2]]', [b"1", b'"x"', b"null", b"[2]"]),
        (b'{"error":{"code":404}}', [b'{"error":{"code":404}}']),
        (b'  [ {"a":1} ] ', [b'{"a":1}']),
        (b'[{"a":"\\\\"},{"b":2}]', [b'{"a":"\\\\"}', b'{"b":2}']),
    ],
    ids=["objects", "brackets in strings", "empty", "scalars", "no array", "white space", "escaped backslash"],
)
def test_json_array(data: bytes, expected: list[bytes]) -> None:
    assert feed_every_way(elements, data) == (expected, [], False)


def test_an_object_element_is_given_without_waiting_for_the_comma() -> None:
    seen: list[int] = []
    parser = JSONArrayParser(lambda ts, _name, _data: seen.append(ts), lambda _name: None)
    for ts, piece in enumerate([b'[{"a":1}', b'\n,{"b"', b":2}", b"]"]):
        parser.feed(ts, piece)
    assert seen == [0, 2]


def test_json_array_after_a_gap_finds_a_later_element() -> None:
    events: list[bytes] = []
    parser = JSONArrayParser(lambda _ts, _name, data: events.append(data), lambda _name: None)
    parser.feed(0, b'[{"a":1},{"b":')
    parser.gap()
    parser.feed(0, b'"x"}\n,{"c":3}\n,{"d":4}]')
    parser.end(0)
    assert events[0] == b'{"a":1}'
    assert b'{"d":4}' in events


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=12
)


@given(st.lists(_json, max_size=6), st.integers(1, 9))
def test_any_array_comes_out_element_by_element(values: list[object], size: int) -> None:
    data = json.dumps(values).encode()
    events, anomalies, _ = elements([data[i : i + size] for i in range(0, len(data), size)])
    assert [json.loads(event) for event in events] == values
    assert anomalies == []


@given(st.lists(st.binary(max_size=30), max_size=10))
def test_any_bytes_in_any_cut_never_raise_and_agree(pieces: list[bytes]) -> None:
    assert lines(pieces) == lines([b"".join(pieces)])
    assert elements(pieces) == elements([b"".join(pieces)])
