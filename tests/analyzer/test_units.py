"""Durations and sizes of configuration files."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsec_analyzer.units import parse_duration, parse_size, show_duration, show_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("100ms", 0.1), ("30s", 30.0), ("5m", 300.0), ("1.5h", 5400.0), ("7d", 604_800.0), (" 2 s ", 2.0), ("0s", 0.0), ("0.00001s", 0.00001)],
)
def test_durations(text, seconds):
    assert parse_duration(text) == pytest.approx(seconds)
    assert parse_duration(show_duration(seconds)) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "size"), [("8KB", 8000), ("50MB", 50_000_000), ("2GB", 2 * 10**9), ("16MiB", 16 << 20), ("1.5kib", 1536), ("1B", 1)]
)
def test_sizes(text, size):
    assert parse_size(text) == size
    assert parse_size(show_size(size)) == size


@pytest.mark.parametrize("text", ["", "30", "s", "-1s", "1e3s", "1 fortnight", "infs", "nan s", "30S", "1m30s", "٣s", "1" * 40 + "s"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["", "30", "MB", "-1MB", "1XB", "1 M", "0x10B", "1" * 40 + "B"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="not a size"):
        parse_size(text)


@given(st.integers(0, 1 << 50))
def test_a_size_that_is_shown_is_read_as_the_same(size):
    assert parse_size(show_size(size)) == size


@given(st.integers(0, 10**9))
def test_a_duration_that_is_shown_is_read_as_the_same(milliseconds):
    assert parse_duration(show_duration(milliseconds / 1000)) == pytest.approx(milliseconds / 1000)
