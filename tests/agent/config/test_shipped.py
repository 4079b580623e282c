"""The files of config/ are right, and `config check` and `config show` do what their help says, as a user runs them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.classifiers import bert

ROOT = Path(__file__).parents[3]
SHIPPED = sorted((ROOT / "config").glob("*.yaml"))


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LLMSEC_")} | variables
    program = Path(sys.executable).with_name("llmsec-analyze")
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False, env=environment, timeout=60)


def test_there_is_a_file_for_every_way_to_deploy():
    assert {path.stem for path in SHIPPED} == {"dev", "prod", "daemonset", "sidecar", "gateway", "host"}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_each_shipped_file_is_right(path):
    done = run("config", "check", str(path))
    assert done.returncode == 0, done.stderr
    assert "0 errors" in done.stdout
    # A file that ships names nothing that does nothing.
    assert [line for line in done.stdout.splitlines() if "not in this version" in line or ": a tap " in line] == []


def test_check_tells_all_errors_on_standard_error_and_exits_with_2(tmp_path):
    (tmp_path / "c.yaml").write_text("server: {max_connections: 0}\nsecurity: {budget: {share: 7}}\n")
    done = run("config", "check", str(tmp_path / "c.yaml"), LLMSEC_BATCH_SIZE="no")
    assert done.returncode == 2
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("error: ") for line in lines)


@pytest.mark.parametrize(
    "security", ["{pii_detection: {patterns: {mine: {regex: '('}}}}", "{disabled_rules: [secret.gihub]}", "{rules: [no-such-folder]}"]
)
def test_check_looks_into_rules_and_patterns(tmp_path, security):
    (tmp_path / "c.yaml").write_text(f"security: {security}\n")
    done = run("config", "check", str(tmp_path / "c.yaml"))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")


def test_show_says_where_each_value_comes_from(tmp_path):
    (tmp_path / "c.yaml").write_text("server:\n  bind_address: 'h:1'\n")
    done = run("config", "show", str(tmp_path / "c.yaml"), LLMSEC_TENANT_ID="t-1")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["bind_address:", '"h:1"', "#", f"{tmp_path}/c.yaml:2"] in lines
    assert ["default:", '"t-1"', "#", "environment", "LLMSEC_TENANT_ID"] in lines
    assert ["ring_size:", '"16MiB"', "#", "default"] in lines
    found = json.loads(run("config", "show", str(tmp_path / "c.yaml"), "--format", "json").stdout)
    assert found["config"]["server"]["bind_address"] == "h:1"
    assert found["origins"]["server.bind_address"] == f"{tmp_path}/c.yaml:2"


def test_scan_uses_the_file_that_a_variable_names(tmp_path):
    (tmp_path / "c.yaml").write_text("security: {pii_detection: {patterns: {badge: {regex: 'BADGE-[0-9]{6}'}}}}\n")
    (tmp_path / "text").write_text("show BADGE-123456\n")
    done = run("scan", str(tmp_path / "text"), "--format", "jsonl", "--no-model", LLMSEC_CONFIG_PATH=str(tmp_path / "c.yaml"))
    assert [finding["rule_id"] for finding in json.loads(done.stdout)["findings"]] == ["custom.badge"]


def test_the_examples_of_the_detection_page_are_right(tmp_path):
    page = (ROOT / "docs" / "detection.md").read_text()
    examples = re.findall(r"```yaml\n(security:\n.*?)```", page, re.DOTALL)
    bert(tmp_path / "models" / "prompt-guard")
    (tmp_path / "my-rules").mkdir()
    (tmp_path / "my-model.onnx").touch()
    (tmp_path / "suppressions.yaml").touch()
    assert len(examples) == 2
    for example in examples:
        (tmp_path / "c.yaml").write_text(example)
        done = run("config", "check", str(tmp_path / "c.yaml"))
        assert "0 errors, 0 notes" in done.stdout, done.stderr
