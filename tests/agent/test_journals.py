from __future__ import annotations

import json

import pytest

from llmsec_agent.journals import StandardError, Style
from llmsec_tap.journal import Level

NAME = "a\x9b31m\u202e\ud800 name"


def test_a_hostile_name_reaches_no_terminal_and_json_stays_json(capsys: pytest.CaptureFixture[str]) -> None:
    for as_json in (False, True):
        StandardError(Style(Level.INFO, as_json=as_json)).info("probing", f"probing {NAME}", file=NAME)
    lines, entry = capsys.readouterr().err.splitlines()
    assert lines.isascii()
    assert entry.isascii()
    assert json.loads(entry)["file"] == NAME
