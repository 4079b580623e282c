"""The table of docs/concepts.md, row by row: the first that holds."""

from __future__ import annotations

from typing import Any

import pytest

from llmsec_tap.exchange.completeness import completeness_of

WHOLE: dict[str, Any] = {
    "has_request": True,
    "is_gapped": False,
    "is_truncated": False,
    "is_unread": False,
    "request_ended": "complete",
    "response_ended": "complete",
    "is_terminated": False,
}
ALL_BAD: dict[str, Any] = {"is_gapped": True, "is_truncated": True, "is_unread": True, "response_ended": "fin"}


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({}, "complete"),
        # each is found before what stands below it
        ({"has_request": False, **ALL_BAD}, "midstream"),
        (ALL_BAD, "gapped"),
        ({**ALL_BAD, "is_gapped": False}, "truncated"),
        ({**ALL_BAD, "is_gapped": False, "is_truncated": False}, "aborted"),
        ({"is_unread": True}, "unreadable"),
        # how a message ended
        ({"response_ended": "damage"}, "gapped"),
        ({"request_ended": "damage"}, "gapped"),
        ({"response_ended": None}, "truncated"),
        ({"response_ended": "capture_end"}, "truncated"),
        ({"response_ended": "expired"}, "truncated"),
        ({"response_ended": "memory"}, "truncated"),
        ({"request_ended": "memory"}, "truncated"),
        ({"response_ended": "fin"}, "aborted"),
        ({"response_ended": "reset"}, "aborted"),
        ({"response_ended": "closed"}, "aborted"),
        ({"request_ended": "reset"}, "aborted"),
        ({"request_ended": "fin", "response_ended": "capture_end"}, "truncated"),
        # the stream's own last event makes good for an answer that did not end, and for nothing else
        ({"is_terminated": True, "response_ended": "fin"}, "complete"),
        ({"is_terminated": True, "response_ended": "capture_end"}, "complete"),
        ({"is_terminated": True, "response_ended": "expired", "is_unread": True}, "unreadable"),
        ({"is_terminated": True, "response_ended": "memory"}, "truncated"),
        ({"is_terminated": True, "response_ended": "damage"}, "gapped"),
        ({"is_terminated": True, "response_ended": None}, "truncated"),
        ({"is_terminated": True, "is_gapped": True}, "gapped"),
        ({"is_terminated": True, "is_truncated": True}, "truncated"),
        ({"is_terminated": True, "request_ended": "reset", "response_ended": "fin"}, "aborted"),
        ({"is_terminated": True, "request_ended": "fin", "response_ended": "fin"}, "aborted"),
        ({"is_terminated": True, "request_ended": "capture_end", "response_ended": "capture_end"}, "truncated"),
    ],
)
def test_the_first_that_holds(facts: dict[str, Any], expected: str) -> None:
    assert completeness_of(**{**WHOLE, **facts}) == expected
