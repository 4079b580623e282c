"""Each golden capture gives the records that stand beside it, and is what its generator writes."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from llmsec_tap.model import to_json
from support.replay import replay

FIXTURES = Path(__file__).parents[2] / "fixtures" / "pcap"
GOLDEN = FIXTURES / "golden"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.pcap"))


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_generator", FIXTURES / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["golden_generator"] = module
    spec.loader.exec_module(module)
    return module


def test_every_case_is_written(generator: ModuleType) -> None:
    assert sorted(generator.CASES) == NAMES
    for name, make in generator.CASES.items():
        assert (GOLDEN / f"{name}.pcap").read_bytes() == make(), f"{name}: run fixtures/pcap/generate.py"


@pytest.mark.parametrize("name", NAMES)
def test_records(name: str, request: pytest.FixtureRequest) -> None:
    exchanges, pipeline = replay(GOLDEN / f"{name}.pcap")
    summary = {
        "connections": pipeline.tcp.opened,
        "gaps": pipeline.tcp.gaps,
        "gap_bytes": pipeline.tcp.gap_bytes,
        "anomalies": dict(sorted(pipeline.anomalies.items())),
        "other_protocols": dict(sorted(pipeline.protocols.items())),
    }
    lines = [json.dumps(json.loads(to_json(exchange)), ensure_ascii=False, indent=1) for exchange in exchanges]
    lines.append(json.dumps(summary, indent=1))
    text = "\n".join(lines) + "\n"
    expected = GOLDEN / f"{name}.json"
    if request.config.getoption("--update-golden"):
        expected.write_text(text, encoding="utf-8")
    assert text == expected.read_text(encoding="utf-8")
