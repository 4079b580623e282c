"""Every evasion of the adversarial review is read or marked. Its captures are made by its own script, outside the repository."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmsec_tap.model import to_json
from support import needs
from support.replay import replay

pytestmark = pytest.mark.shared
# No server takes the first; the second is no API of a model, and nothing in its answer says otherwise.
_NOT_OURS = frozenset(("http2_preface_then_h1", "path_unknown_echo"))


@pytest.fixture(scope="module")
def captures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    script = needs.shared("data", "hostile", "evade.py")
    folder = tmp_path_factory.mktemp("evasions")
    environment = {**os.environ, "PYTHONPATH": str(script.parent)}
    subprocess.run([sys.executable, str(script), str(folder)], check=True, env=environment)
    return sorted(folder.glob("*.pcap"))


def test_each_is_read_or_marked(captures: list[Path]) -> None:
    assert len(captures) >= 140
    silent = []
    for capture in captures:
        records, pipeline = replay(capture)
        if any(b"SECRETPROMPT" in to_json(record) for record in records):
            continue
        is_marked = any(record.provider is not None and record.completeness != "complete" for record in records)
        if not is_marked and capture.stem not in _NOT_OURS:
            silent.append((capture.stem, [record.completeness for record in records], dict(pipeline.anomalies)))
    assert not silent
