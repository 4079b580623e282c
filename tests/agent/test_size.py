"""What a load takes, by the constants: it grows with the load, says what is a guess, and refuses what is no load."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from llmsec_agent.shares import decoders
from llmsec_agent.size import CONSTANTS, Load, size
from llmsec_tap.errors import ConfigError

ROOT = Path(__file__).parents[2]
USUAL = Load(requests_per_second=20, tokens_per_second=5000, request_kb=1, streams=100)


def test_what_the_chart_was_measured_with_fits_into_its_limits() -> None:
    found = size(USUAL)
    assert found.nodes == 1
    assert found.decoders_a_node == 1
    # bench/deployed.py saw 0.61 cores and 156 MB in its limit of 1280 MiB
    assert found.cores.least <= 0.61 <= found.cores.most <= 2
    assert found.memory.least <= 156e6 <= found.memory.most
    assert 156e6 < found.memory_limit_a_node <= 1280 << 20


@pytest.mark.parametrize("field", ["requests_per_second", "tokens_per_second", "request_kb"])
def test_more_takes_more(field: str) -> None:
    more = size(replace(USUAL, **{field: 50 * getattr(USUAL, field)}))
    assert more.cores.most > size(USUAL).cores.most
    assert more.disk_a_node * more.nodes > size(USUAL).disk_a_node


def test_the_designs_greatest_scenario_is_many_nodes_and_no_node_has_more_than_it_can_decode() -> None:
    found = size(Load(requests_per_second=5000, tokens_per_second=2_500_000, request_kb=1.2))
    assert found.nodes > 100
    assert found.cores.most / found.nodes <= 2.01
    assert any("is not enough" in note for note in found.notes)


def test_large_nodes_get_decoders_and_the_memory_that_these_need() -> None:
    found = size(Load(requests_per_second=1000, tokens_per_second=300_000, cores_per_node=64))
    assert found.nodes < 3
    assert found.decoders_a_node >= 4
    assert decoders(found.decoders_a_node, found.memory_cap_a_node, 64) == found.decoders_a_node
    assert any("capture.decoders" in note for note in found.notes)


def test_texts_that_are_not_stored_take_no_disk() -> None:
    bare = size(replace(USUAL, content=False, clickhouse=True))
    assert bare.disk_a_node == bare.clickhouse_bytes == 20 * 86_400 * 30 * 53
    assert size(USUAL).clickhouse_bytes is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"requests_per_second": 0.0},
        {"requests_per_second": -1.0},
        {"requests_per_second": float("nan")},
        {"tokens_per_second": float("inf")},
        {"tokens_per_second": -0.1},
        {"request_kb": -1.0},
        {"days": 0.0},
        {"streams": -5},
        {"cores_per_node": 0.0},
        {"cores_per_node": float("nan")},
    ],
)
def test_what_is_no_load_is_refused_by_the_name_of_its_option(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="--" + next(iter(wrong)).replace("_", "-")) as refused:
        size(replace(USUAL, **wrong))
    assert refused.value.hint


def test_each_constant_names_a_bench_that_exists_or_says_that_it_is_a_guess() -> None:
    for constant in CONSTANTS.values():
        assert 0 < constant.least <= constant.most
        named = [word.rstrip(";") for word in constant.command.split() if word.startswith("bench/")]
        assert all((ROOT / name).is_file() for name in named)
        assert named or constant.is_extrapolated


def test_the_command_prints_one_object_and_one_line_of_error() -> None:
    command = [sys.executable, "-m", "llmsec_agent.cli.tap.app", "size", "--tokens-per-second", "100", "--requests-per-second"]
    done = subprocess.run([*command, "2", "--json", "--constants"], capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    assert told["size"]["nodes"] == 1
    assert told["constants"].keys() == CONSTANTS.keys()
    done = subprocess.run([*command, "nan"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_the_benches_of_the_design_run_by_name_and_write_one_document(tmp_path: Path) -> None:
    names = ["streaming_response", "pii_detection", "High Throughput - Small Prompts"]
    command = [sys.executable, ROOT / "bench/scenarios.py", *names, "--seconds", "2", "--requests", "3", "--out", tmp_path]
    subprocess.run(command, capture_output=True, check=True)
    (file,) = tmp_path.iterdir()
    assert len(file.stem) == len("20261127-020000")
    results = json.loads(file.read_text())["results"]
    assert [result["scenario_name"] for result in results] == names
    assert all(result["error_rate"] == 0 and result["throughput_achieved"] > 0 and result["requests"] >= 1 for result in results)
    assert results[1]["found"] == 3 * results[1]["requests"]
    assert 0 < results[2]["scale"] < 1 < results[2]["cores_for_design"]
