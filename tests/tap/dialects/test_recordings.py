"""Recorded traffic of public test suites, where it is present beside the repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.corpus import score

FOLDER = Path(__file__).parents[4] / "shared" / "data" / "wire"


@pytest.mark.shared
def test_recorded_exchanges_are_found_and_decoded():
    if not (FOLDER / "exchanges.jsonl.gz").exists():
        pytest.skip("the recorded corpus is not beside this repository")
    result = score(FOLDER)
    assert sum(result.found.values()) >= 0.998 * sum(result.expected.values())
    assert sum(result.right.values()) >= 0.999 * sum(result.asked.values())
    assert result.false_llm == []
