"""Conditions: what they answer, and that whatever is wrong with one is told when it is read, with its column."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsec_analyzer.expressions import MAX_CHARS, MAX_DEPTH, ExpressionError, Kind, Words, compile_expression

FIELDS: dict[str, Kind] = {
    "severity": Words(("info", "low", "medium", "high", "critical")),
    "tenant": "text",
    "path": "text",
    "score": "number",
    "cost_multiplier": "number",
    "streaming": "bool",
    "pii_types": "texts",
    "usage.input_tokens": "number",
}
VALUES: dict[str, Any] = {
    "severity": "high",
    "tenant": "acme",
    "path": "/v1/chat",
    "score": 95,
    "streaming": True,
    "pii_types": ["EMAIL", "SSN"],
    "usage.input_tokens": 10,
}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("score > 90", True),
        ("score>95", False),
        ("score >= 95 and score <= 95", True),
        ("pii_types.length > 0", True),
        ("tenant.length == 4", True),
        ("usage.input_tokens < 10.5", True),
        ("score == -1", False),
        ("severity >= 'high'", True),
        ("severity > 'high'", False),
        ("'low' < severity", True),
        ("severity == 'critical' or tenant == \"acme\"", True),
        ("tenant != 'acme' || streaming", True),
        ("!streaming && true", False),
        ("not streaming or streaming", True),
        ("not (streaming or streaming)", False),
        ("true or false and false", True),
        ("not tenant == 'x' and streaming", True),
        ("tenant in ['x', 'acme']", True),
        ("tenant not in ['x', 'acme']", False),
        ("score in [1, 95.0]", True),
        ("severity in ['low', 'high']", True),
        ("'SSN' in pii_types", True),
        ("pii_types contains 'SSN'", True),
        ("pii_types contains 'SS'", False),
        ("path contains 'v1'", True),
        ("path matches '^/v[0-9]+/'", True),
        ("path matches '^v'", False),
        ("pii_types matches '^EM'", True),
        ("tenant == 'a\\'c'", False),
        # What is not known equals null alone.
        ("cost_multiplier > 5.0", False),
        ("cost_multiplier <= 5.0", False),
        ("cost_multiplier == null", True),
        ("cost_multiplier != 5", True),
        ("tenant != null", True),
        ("cost_multiplier in [1]", False),
        ("cost_multiplier not in [1]", True),
    ],
)
def test_answers(source: str, expected: bool) -> None:
    assert compile_expression(source, FIELDS)(VALUES) is expected


@pytest.mark.parametrize("source", ["tenant contains 'a'", "tenant matches 'a'", "severity > 'info'", "'a' in pii_types", "streaming"])
def test_of_what_is_not_known_nothing_holds(source: str) -> None:
    assert compile_expression(source, FIELDS)({}) is False
    assert compile_expression("pii_types.length == 0 and tenant.length == 0", FIELDS)({}) is True


def test_the_fields_that_it_asks_for() -> None:
    assert compile_expression("tenant == 'a' or pii_types.length > 1", FIELDS).fields == {"tenant", "pii_types"}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "column 1: a value is missing"),
        ("score >", "column 8: a value is missing"),
        ("score > 'a'", "column 7: `>` cannot stand between a number and text"),
        ("score", "column 1: a number where a truth value should stand"),
        ("true and tenant", "column 10: text where a truth value should stand"),
        ("not score", "column 5: a number where a truth value should stand"),
        ("scores > 1", "column 1: there is no field `scores`"),
        ("score.length > 1", "column 1: there is no field `score.length`"),
        ("score > 1 score", "column 11: something after the end of the condition"),
        ("1 < score < 3", "column 11: `<` cannot stand between a truth value and a number"),
        ("(score > 1", "column 11: `)` is missing"),
        ("tenant == 'a", "column 11: a text without its closing quotation mark"),
        ("score > 1; x", "column 10: a character that means nothing here"),
        ("severity == 'hgih'", "column 13: not one of info, low, medium, high, critical"),
        ("severity in ['high', 'x']", "column 13: not one of info, low, medium, high, critical"),
        ("tenant < 'b'", "column 8: `<` cannot stand between text and text"),
        ("pii_types == pii_types", "column 11: `==` cannot stand between a list of texts and a list of texts"),
        ("tenant matches '(?=a)'", "column 16: not a pattern of RE2"),
        ("tenant matches path", "column 16: a pattern is written out, in quotation marks"),
        ("tenant in []", "column 11: an empty list"),
        ("tenant in ['a', 1]", "column 17: a list holds numbers or texts that are written out, all of one type"),
        ("tenant in [path]", "column 12: a list holds numbers or texts that are written out, all of one type"),
        ("tenant in 'a'", "column 8: `in` cannot stand between text and text"),
        ("tenant not 'a'", "column 12: `in` is missing"),
        ("score > 1 and", "column 14: a value is missing"),
        ("and", "column 1: `and` where a value should stand"),
    ],
)
def test_what_is_wrong_is_told_with_its_column(source: str, message: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        compile_expression(source, FIELDS)
    assert str(caught.value) == message


def test_a_near_miss_is_named() -> None:
    with pytest.raises(ExpressionError) as caught:
        compile_expression("tenent == 'a'", FIELDS)
    assert caught.value.hint == "did you mean tenant?"


@pytest.mark.parametrize(
    "source",
    [
        "(" * (MAX_DEPTH + 1) + "true" + ")" * (MAX_DEPTH + 1),
        "!" * (MAX_DEPTH + 1) + "true",
        "true or " * MAX_CHARS + "true",
        f"score in [{', '.join(['1'] * 300)}]",
    ],
)
def test_length_and_depth_are_bounded(source: str) -> None:
    with pytest.raises(ExpressionError):
        compile_expression(source, FIELDS)


def test_a_long_chain_is_no_depth() -> None:
    assert compile_expression(" or ".join(["!true"] * 450 + ["streaming"]), FIELDS)(VALUES)
    assert compile_expression(" && ".join(["streaming"] * 300), FIELDS)(VALUES)


def test_surrogates_are_matched() -> None:
    assert compile_expression("tenant matches 'a'", FIELDS)({"tenant": "\ud800a"})


WORDS = [
    "score",
    "tenant",
    "severity",
    "pii_types",
    "and",
    "or",
    "not",
    "in",
    "(",
    ")",
    "[",
    "]",
    ",",
    "==",
    ">",
    "'a'",
    "1",
    "null",
    "!",
    ".length",
    "\x00",
]


@given(st.lists(st.sampled_from(WORDS), max_size=12))
def test_any_words_are_read_or_refused(words: list[str]) -> None:
    try:
        condition = compile_expression(" ".join(words), FIELDS)
    except ExpressionError:
        return
    assert condition(VALUES) in (True, False)
    assert condition({}) in (True, False)
