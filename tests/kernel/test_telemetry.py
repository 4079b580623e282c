"""An agent that tells a collector of what it saw: from a process without rights, over both protocols, and to another after a reload."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from llmsec_agent.metrics import CATALOGUE, Metric, metric_of
from support.collector import Collector
from support.https_calls import ask_once
from support.running_agent import agent, who_connects
from support.tls_front import Certificate


def settings(collector: Collector, protocol: str) -> dict[str, Any]:
    sampling = {"default_rate": 1.0}
    return {
        "enabled": True,
        "endpoint": getattr(collector, protocol),
        "protocol": protocol,
        "flush_interval": "200ms",
        "sampling": sampling,
    }


def test_what_it_saw_is_told_by_a_process_without_rights_and_a_reload_changes_to_whom(
    echo: tuple[int, int], certificate: Certificate, tmp_path: Path
) -> None:
    pid, port = echo
    with Collector() as first, Collector() as second:
        custom = [{"name": "shop_requests_total", "type": "counter", "labels": ["capture_kind"]}]
        metrics = {"custom_metrics": custom, "otlp": {"endpoint": first.http, "interval": "1s"}}
        storage = {"flush_interval": "200ms"}
        with agent(tmp_path, pid, tracing=settings(first, "grpc"), storage=storage, metrics=metrics) as running:
            running.ready()
            for number in range(3):
                ask_once(port, certificate.cert, f"question {number}")
            running.until(lambda: len(first.spans) == 3, "three spans did not come")
            running.until(lambda: bool(first.metrics), "no metrics came")
            running.until(lambda: running.value("llmsec_telemetry_exchanges_total") == 3, "the metric does not say so")
            assert running.value("llmsec_telemetry_up") == 1
            connected = who_connects(running.process.pid, urlsplit(first.grpc).port or 0)
            assert list(connected.values()) == ["0000000000000000"]
            custom_metric = Metric("counter", "", labels=("capture_kind",))
            page = running.get(running.metrics, "/metrics")[1]
            assert 'shop_requests_total{capture_kind="tls"} 3.0' in page
            samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
            served = {(metric_of(sample.name), label) for sample in samples for label in sample.labels}
            unknown = {(name, label) for name, label in served if label != "le" and label not in CATALOGUE.get(name, custom_metric).labels}
            assert not unknown
            running.config["observability"]["tracing"] = settings(second, "http")
            running.hang_up()
            running.until(lambda: len(second.spans) == 3, "the second collector did not get them")
            assert "needs a restart" not in running.said
            assert running.stop() < 6
            assert running.process.returncode == 0, running.said
    assert {span.attributes["gen_ai.operation.name"] for span in second.spans} == {"chat"}
