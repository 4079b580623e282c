"""Options of `llmsec-tap` that would choose nothing are refused in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support.agent import environment


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("targets", "--pid", "999999999"), 3, "error: there is no process 999999999 ("),
        (("capture", "--all", "--port", "80", "--store", "none"), 2, "error: --port needs --iface ("),
        (("top", "--all", "--port", "80"), 2, "error: --port needs --iface ("),
    ],
)
def test_a_choice_that_chooses_nothing(arguments: tuple[str, ...], code: int, said: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "llmsec_agent.cli.tap.app", *arguments]
    done = subprocess.run(command, env=environment(), cwd=tmp_path, capture_output=True, text=True, check=False, timeout=50)
    assert done.returncode == code
    assert done.stderr.startswith(said)
    assert done.stdout == ""
