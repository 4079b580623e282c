"""Recorded traffic of public test suites, where LLMSEC_SHARED names its folder."""

from __future__ import annotations

import pytest

from support import needs
from support.corpus import score


@pytest.mark.shared
def test_recorded_exchanges_are_found_and_decoded():
    needs.shared("data", "wire", "exchanges.jsonl.gz")
    result = score(needs.shared("data", "wire"))
    assert sum(result.found.values()) >= 0.998 * sum(result.expected.values())
    assert sum(result.right.values()) >= 0.999 * sum(result.asked.values())
    assert result.false_llm == []
