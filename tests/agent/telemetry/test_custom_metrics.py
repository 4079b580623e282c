"""Metrics that the configuration makes: what they count, by which labels, and that strangers cannot make them grow."""

from __future__ import annotations

import pytest

from llmsec_agent import custom_metrics
from llmsec_agent.config import read_config
from llmsec_agent.config.custom import COUNTED, OBSERVED
from llmsec_agent.config.schema import CustomMetric
from llmsec_agent.custom_metrics import MAX_SERIES, families
from llmsec_agent.metrics import exposition
from llmsec_agent.traffic import Traffic
from llmsec_analyzer.typed_files import FileError
from llmsec_tap.counters import Snapshot
from support.exchanges import full_exchange

DESIGN = """
observability:
  metrics:
    prometheus:
      custom_metrics:
        - {name: llmsec_requests_total, type: counter, labels: [tenant_id, backend, model]}
        - {name: llmsec_request_duration_seconds, type: histogram, labels: [tenant_id, backend], buckets: [0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0]}
"""


def page(traffic, *metrics):
    return exposition(traffic.samples(), custom=families(metrics))[0].decode()


def test_the_original_designs_metrics_are_what_it_says(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(DESIGN)
    metrics = read_config(str(path)).config.observability.metrics.custom_metrics
    traffic = Traffic(metrics)
    traffic.observe(full_exchange())
    text = page(traffic, *metrics)
    assert 'llmsec_requests_total{backend="openai",model="gpt-4o-2024-08-06",tenant_id="acme"} 1.0' in text
    assert text.count("\nllmsec_requests_total{") == 1
    assert 'llmsec_request_duration_seconds_bucket{backend="openai",le="0.5",tenant_id="acme"} 0.0' in text
    assert 'llmsec_request_duration_seconds_bucket{backend="openai",le="1",tenant_id="acme"} 1.0' in text
    assert text.count('le="+Inf"') == text.count("_count{")


def test_a_metric_of_ones_own_is_typed_and_labelled_as_configured():
    metrics = (
        CustomMetric(name="shop_findings_total", type="counter", measures="findings", labels=("namespace", "status")),
        CustomMetric(name="shop_output_tokens", type="histogram", measures="output_tokens", labels=("process",), buckets=(10.0, 100.0)),
    )
    traffic = Traffic(metrics)
    traffic.observe(full_exchange())
    text = page(traffic, *metrics)
    assert "# TYPE shop_findings_total counter" in text
    assert 'shop_findings_total{namespace="shop",status="200"} 1.0' in text
    assert "# TYPE shop_output_tokens histogram" in text
    assert 'shop_output_tokens_bucket{le="10",process="python"} 0.0' in text
    assert 'shop_output_tokens_bucket{le="100",process="python"} 1.0' in text


def test_labels_of_one_metric_replace_the_built_in_ones():
    metrics = (CustomMetric(name="llmsec_requests_total", type="counter", labels=("node",)),)
    traffic = Traffic(metrics)
    traffic.observe(full_exchange())
    assert 'llmsec_requests_total{node="node-7"} 1.0' in page(traffic, *metrics)
    assert page(traffic, *metrics).count("\nllmsec_requests_total{") == 1


def test_names_that_clients_choose_make_a_bounded_number_of_series():
    metric = CustomMetric(name="x_total", type="counter", labels=("model", "tenant_id", "process"))
    traffic = Traffic((metric,))
    for number in range(6000):
        traffic.observe(full_exchange(number, response_model=f"m{number % 100}", tenant=f"t{number // 100}"))
    for number in range(300):
        traffic.observe(full_exchange(number, response_model=f"another{number}"))
    found = Snapshot([traffic.samples])
    series = [labels for name, labels in found.values if name == "x_total"]
    assert len(series) <= MAX_SERIES + 1
    assert found.get("x_total") == 6300  # and none is lost
    assert max(len(value) for labels in series for _, value in labels) <= 128


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("{name: 9x, type: histogram}", "is no name of a Prometheus metric"),
        ("{name: llmsec_gaps_total, type: counter}", "has this name already"),
        ("{name: llmsec_requests_total, type: histogram}", "has this name already"),
        ("{name: x, type: counter}", "ends with _total"),
        ("{name: x_total, type: histogram}", "has no such end"),
        ("{name: x_total, type: counter, measures: ttft}", "cannot be of it"),
        ("{name: x, type: histogram, measures: requests}", "cannot be of it"),
        ("{name: x_total, type: counter, labels: [node, node]}", "named twice"),
        ("{name: x_total, type: counter, labels: [api_key]}", "labels"),
        ("{name: x, type: histogram, buckets: [1, 1]}", "must grow"),
        ("{name: x_total, type: counter, buckets: [1]}", "a counter has none"),
    ],
)
def test_a_wrong_metric_is_one_line(tmp_path, metric, said):
    path = tmp_path / "c.yaml"
    path.write_text(f"observability:\n  metrics:\n    custom_metrics:\n      - {metric}\n")
    with pytest.raises(FileError) as raised:
        read_config(str(path))
    assert said in str(raised.value)
    assert "custom_metrics" in str(raised.value)


def test_what_can_be_measured_is_what_the_check_allows():
    assert tuple(custom_metrics.COUNTED) == COUNTED
    assert tuple(custom_metrics.OBSERVED) == OBSERVED
