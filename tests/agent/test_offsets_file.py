"""An agent takes places of TLS functions from a file, as `capture --offsets-file` does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(("text", "said"), [(None, "cannot read"), ('"ab" = { read = "x" }', "Write one line each")])
def test_a_wrong_file_is_one_line_before_anything_begins(tmp_path: Path, text: str | None, said: str) -> None:
    offsets, config = tmp_path / "offsets.toml", tmp_path / "config.yaml"
    if text is not None:
        offsets.write_text(text)
    config.write_text(f"capture: {{all: true, offsets_file: {offsets}}}\nstorage: {{path: {tmp_path / 'store'}}}\n")
    command = [sys.executable, "-m", "llmsec_agent.cli.tap.app", "agent", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert str(offsets) in done.stderr
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
