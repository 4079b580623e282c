"""The dashboard and the alert rules that are shipped name only what /metrics serves, and the rules are rules."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from llmsec_agent.metrics import CATALOGUE, metric_of
from llmsec_agent.traffic import Traffic
from llmsec_tap.counters import Snapshot
from support.exchanges import a_finding, full_exchange
from support.needs import program

ROOT = Path(__file__).resolve().parents[3]
RULES = ROOT / "deploy/prometheus/rules.yaml"
DASHBOARD = ROOT / "deploy/grafana/llmsec-trace.json"
# What Prometheus adds, and what of a histogram comes with its buckets.
ADDED = {"instance", "job", "le"}
_METRIC = re.compile(r"\b(?:llmsec|gen_ai|security|process)_[a-z0-9_]+\b")
_SELECTOR = re.compile(r"\{([^{}]*)\}")
_MATCHER = re.compile(r"([a-zA-Z_]\w*)\s*(?:=~|!~|!=|=)")
_GROUPING = re.compile(r"\b(?:by|on|without|ignoring)\s*\(([^)]*)\)")


def expressions():
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]
    dashboard = json.loads(DASHBOARD.read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    for variable in dashboard["templating"]["list"]:
        found = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable.get("definition", ""))
        if found:
            yield variable["name"], f"sum by ({found[2]}) ({found[1]})"


def names_in(expression):
    bare = _GROUPING.sub("", _SELECTOR.sub("", expression))
    metrics = set(_METRIC.findall(bare))
    labels = {label for selector in _SELECTOR.findall(expression) for label in _MATCHER.findall(selector)}
    labels |= {label.strip() for grouping in _GROUPING.findall(expression) for label in grouping.split(",")}
    return metrics, labels


def legend_labels():
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"], set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))


@pytest.mark.parametrize(("where", "expression"), list(expressions()), ids=lambda value: str(value)[:40])
def test_every_metric_and_label_is_one_that_the_agent_serves(where, expression):
    metrics, labels = names_in(expression)
    assert metrics, expression
    known = {name: CATALOGUE.get(metric_of(name)) for name in metrics}
    assert None not in known.values(), known
    for name, metric in known.items():
        if name.endswith("_bucket"):
            assert metric.kind == "histogram"
        if name.endswith("_total"):
            assert metric.kind == "counter"
    served = ADDED | {label for metric in known.values() for label in metric.labels}
    assert labels <= served, labels - served


def test_a_legend_names_labels_that_the_expression_keeps():
    for expression, legend in legend_labels():
        assert legend <= names_in(expression)[1] | {"instance"}, expression


def test_what_rules_say_of_an_alert_uses_labels_that_it_has():
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        for rule in group["rules"]:
            used = set(re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])))
            metrics, labels = names_in(rule["expr"])
            has = (
                labels
                if " by " in rule["expr"]
                else {"instance", *(label for name in metrics for label in CATALOGUE[metric_of(name)].labels)}
            )
            assert used <= has, rule["alert"]


def test_promtool_takes_the_rules(tmp_path):
    promtool = program("promtool", "prometheus")
    checked = subprocess.run([promtool, "check", "rules", str(RULES)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_rules_fire_when_they_should_and_only_then(tmp_path):
    promtool = program("promtool", "prometheus")
    shutil.copy(RULES, tmp_path)
    shutil.copy(Path(__file__).with_name("rules_test.yaml"), tmp_path)
    tested = subprocess.run([promtool, "test", "rules", "rules_test.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_traffic_has_the_labels_that_the_catalogue_says():
    traffic = Traffic()
    traffic.observe(full_exchange(findings=[a_finding()]))
    found = Snapshot([traffic.samples])
    seen = set()
    for name, labels in found.values:
        metric = CATALOGUE[metric_of(name)]
        assert {label for label, _ in labels} - {"le"} == set(metric.labels), name
        seen.add(metric_of(name))
    assert {"llmsec_cost_usd_total", "llmsec_exchange_findings_total", "llmsec_requests_total"} <= seen
