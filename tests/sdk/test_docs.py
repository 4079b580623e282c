"""The examples of docs/sdk.md, those of the original design among them, run as they stand against a local server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from llmsec_trace import InstrumentationConfig, SecurityConfig, TracingConfig
from support.collector import Collector
from support.sniff import free_port
from support.vendor_server import TEXT, vendor_server

pytest.importorskip("openai", reason="in the dependency group `peers`")
PAGE = (Path(__file__).parents[2] / "docs" / "sdk.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.peers
@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example_runs_as_it_stands(number: int, tmp_path: Path) -> None:
    with Collector() as collector, vendor_server(free_port()) as url:
        code = re.sub(r"http://(?:vllm-cluster|vllm|openai-proxy):8000", url, EXAMPLES[number])
        environment = os.environ | {"LLMSEC_TRACING_ENDPOINT": f"{collector.http}/v1/traces"}
        told = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=tmp_path, env=environment, check=False
        )
    assert (told.returncode, told.stderr) == (0, "")
    if "print(response.choices" in code or "print(chunk" in code:
        assert TEXT in told.stdout
    if "destinations=" in code:
        assert "gpt-4 6 complete" in told.stdout
        assert (tmp_path / "llmsec-data" / "exchanges").exists()
    elif "on_finding=" in code:
        assert told.stdout.splitlines()[-1] == "['credit_card']"
        assert told.stdout.startswith("medium credit_card request") or told.stdout.startswith("high credit_card request")
    elif "SecurityPolicy" in code:
        assert told.stdout == "blocked: ssn\n"
    elif "sampling_rate" not in code:
        # Of the fallback the call that was not answered is a record, too.
        assert len(collector.spans) == (10 if "gather" in code else 2 if "fallback" in code else 1)


def test_the_page_names_every_key_with_its_default_and_variable() -> None:
    for kind, prefix in ((InstrumentationConfig, ""), (TracingConfig, "tracing."), (SecurityConfig, "security.")):
        for known in fields(kind):
            if known.metadata["kind"] != "section":
                assert f"`{prefix}{known.name}`" in PAGE
                assert not known.metadata.get("env") or f"`{known.metadata['env']}`" in PAGE
