"""What a capture loads: its memory is bounded, and it shares it with what it holds of the traffic."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["llmsec_agent.agent", "llmsec_agent.capture_run"])
def test_a_capture_loads_no_database_engine_and_no_numpy(module):
    code = f"import sys, {module}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert not {"numpy", "duckdb", "pyarrow", "clickhouse_connect", "chdb", "onnxruntime"} & set(done.stdout.split())
