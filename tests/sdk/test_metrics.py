"""Metrics to a collector: those of the agent for the same records, and what the SDK counts of itself."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from llmsec_agent.config.schema import Metrics, Observability, OTLPMetrics, Tracing
from llmsec_agent.telemetry import names
from llmsec_agent.telemetry.exporters import Exporters
from llmsec_agent.telemetry.plan import telemetry_plan
from llmsec_agent.telemetry.sending import Sending
from llmsec_tap.identity.credentials import fingerprinter
from llmsec_tap.model import Exchange
from llmsec_tap.storage import StoreWriter, open_store
from llmsec_trace import Callback, InstrumentationConfig, TracingConfig
from llmsec_trace.clients import hooks_in
from llmsec_trace.instrumenting import destinations_of
from llmsec_trace.recorder import Recorder
from support.collector import Collector
from support.journal import Said
from support.replay import KEY
from support.sniff import free_port
from support.vendor_server import vendor_server

httpx = pytest.importorskip("httpx", reason="in the dependency group `peers`")
pytestmark = pytest.mark.filterwarnings("default")
CHAT: Any = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
CALLS: Any = (
    ("/v1/chat/completions", CHAT),
    ("/v1/chat/completions", CHAT | {"stream": True}),
    ("/v1/messages", {"model": "claude", "max_tokens": 5, "messages": CHAT["messages"]}),
    ("/v1/messages", {"model": "claude", "max_tokens": 5, "stream": True, "messages": CHAT["messages"]}),
    ("/api/embed", {"model": "e", "input": ["x"]}),
    ("/elsewhere", {"no": "model"}),
)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with vendor_server(free_port()) as url:
        yield url


@pytest.fixture
def collector() -> Iterator[Any]:
    with Collector() as started:
        yield started


def recorder_to(collector: Any, records: list[Exchange] | None = None, **tracing: Any) -> Recorder:
    settings = {"endpoint_url": f"{collector.http}/v1/traces", "flush_interval_seconds": 0.05, "timeout_seconds": 5, **tracing}
    config = InstrumentationConfig(service_name="shop", tracing=TracingConfig(**settings))
    more = [Callback(records.append)] if records is not None else []
    return Recorder(config, [*destinations_of(config), *more], fingerprinter(KEY), grace_s=0)


def call(recorder: Recorder, url: str, *calls: Any) -> None:
    with httpx.Client() as client:
        for hook, owner in hooks_in(client):
            hook.put(owner, recorder, again=True)
        for path, body in calls:
            client.post(url + path, json=body)


def figures(collector: Any) -> dict[str, Any]:
    """Of all histograms, by attributes."""
    return {
        name: {
            tuple(sorted(attributes.items())): (point.count, point.sum, list(point.bucket_counts), list(point.explicit_bounds), unit)
            for attributes, point, unit in collector.points(name)
        }
        for name, *_ in names.HISTOGRAMS
    }


def counts(collector: Any) -> dict[str, int]:
    return {
        metric.name.removeprefix(names.SDK_COUNTS): point.as_int
        for resource in collector.metrics[-1].resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name.startswith(names.SDK_COUNTS)
        for point in getattr(metric, metric.WhichOneof("data")).data_points
    }


def instances(collector: Any) -> list[str]:
    return [
        attribute.value.string_value
        for export in collector.metrics
        for resource in export.resource_metrics
        for attribute in resource.resource.attributes
        if attribute.key == "service.instance.id"
    ]


def test_figures_are_those_that_an_agent_sends_of_the_same_records(server: str, collector: Any, tmp_path: Path) -> None:
    records: list[Exchange] = []
    recorder = recorder_to(collector, records)
    for one in CALLS * 2:  # in batches of their own
        call(recorder, server, one)
        assert recorder.flush(20)
    with pytest.raises(httpx.ConnectError):
        call(recorder, "http://127.0.0.1:1", CALLS[0])
    recorder.close()
    with StoreWriter.open(tmp_path / "store") as writer:
        for record in records:
            writer.add(record)
    with Collector() as agent_s:
        settings = Observability(
            tracing=Tracing(enabled=True, endpoint=agent_s.http), metrics=Metrics(otlp=OTLPMetrics(endpoint=agent_s.http))
        )
        plan = telemetry_plan(str(tmp_path / "store"), settings, since_ns=0)
        assert plan is not None
        sending = Sending(open_store(tmp_path / "store"), plan, Exporters(plan.spans, plan.metrics), Said())
        assert sending.step(at_once=True)
        sending.close()
        wanted = figures(agent_s)
    assert figures(collector) == wanted
    assert sum(count for count, *_ in wanted[names.OPERATION_DURATION].values()) == len(records) == 11
    assert all(wanted.values())
    assert "httpx.ConnectError" in str(wanted)


def test_what_the_sdk_counts_is_as_of_the_sending(server: str, collector: Any) -> None:
    recorder = recorder_to(collector)
    call(recorder, server, *CALLS)
    assert recorder.flush(20)
    told = counts(collector)
    assert told == asdict(recorder.stats())
    assert (told["calls"], told["recorded"], told["other"], told["sent"]) == (6, 5, 1, 5)
    exports = len(collector.metrics)
    assert recorder.flush(20)
    assert len(collector.metrics) == exports  # nothing has changed
    recorder._stats.gaps += 3
    recorder.close()
    assert counts(collector)["gaps"] == 3
    (resource,) = collector.metrics[-1].resource_metrics
    assert {one.key: one.value.string_value for one in resource.resource.attributes}["service.name"] == "shop"
    sums = [metric.sum for metric in resource.scope_metrics[0].metrics if metric.name == "llmsec.sdk.calls"]
    assert [(one.is_monotonic, one.aggregation_temporality) for one in sums] == [(True, 2)]  # cumulative, as the agent's


def test_metrics_go_by_themselves_while_nothing_is_recorded(server: str, collector: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmsec_trace.lane.REPORT_S", 0.05)
    recorder = recorder_to(collector)
    call(recorder, server, CALLS[0])
    until = time.monotonic() + 20
    while (not collector.metrics or counts(collector)["sent"] < 1) and time.monotonic() < until:
        time.sleep(0.01)
    recorder._stats.dropped += 7
    while counts(collector)["dropped"] < 7 and time.monotonic() < until:
        time.sleep(0.01)
    assert counts(collector)["dropped"] == 7
    recorder.close()


def test_what_a_collector_that_was_down_has_missed_is_in_the_next_export(server: str) -> None:
    with Collector(status=503) as collector:
        recorder = recorder_to(collector)
        call(recorder, server, CALLS[0])
        assert not recorder.flush(1)
        assert recorder.stats().failures >= 2  # spans and metrics
        assert collector.metrics == []
        collector.status = None
        assert recorder.flush(20)
        call(recorder, server, CALLS[0])
        assert recorder.flush(20)
        recorder.close()
        assert counts(collector)["sent"] == 2
        ((_, point, _),) = collector.points(names.OPERATION_DURATION)
        assert point.count == 2


def test_a_collector_that_takes_no_metrics_is_told_of_once_and_costs_no_span(
    server: str, collector: Any, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = recorder_to(collector, metrics_endpoint_url=f"{collector.http}/nowhere")
    for _ in range(3):
        call(recorder, server, CALLS[0])
        assert recorder.flush(20)
    recorder.close()
    assert len(collector.spans) == 3
    assert recorder.stats().failures >= 3
    assert recorder.stats().dropped == 0
    assert caplog.text.count("does not take metrics: it answers 404") == 1


def test_records_whose_spans_are_refused_count_in_the_metrics(server: str) -> None:
    with Collector(refuses=lambda _span: True) as collector:
        recorder = recorder_to(collector)
        call(recorder, server, CALLS[0])
        assert recorder.flush(20)
        recorder.close()
        assert counts(collector)["dropped"] == 1
        ((_, point, _),) = collector.points(names.OPERATION_DURATION)
        assert point.count == 1


@pytest.mark.parametrize("how", [{"metrics": False}, {"endpoint_url": "/x/v1/traces/"}])
def test_nothing_is_sent_where_nobody_asked_for_it(server: str, collector: Any, how: Any) -> None:
    if "endpoint_url" in how:
        how = {"endpoint_url": collector.http + how["endpoint_url"]}
    recorder = recorder_to(collector, **how)
    call(recorder, server, CALLS[0])
    recorder.flush(20)
    recorder.close()
    assert collector.requests == 1
    assert collector.metrics == []


PROGRAM = """
import os, sys, httpx
from llmsec_trace import instrument
client = instrument(httpx.Client())
client.post(sys.argv[1], json={"model": "m", "messages": [{"role": "user", "content": "x"}]})
if os.fork() == 0:
    for _ in range(2):
        client.post(sys.argv[1], json={"model": "child", "messages": [{"role": "user", "content": "x"}]})
    sys.exit(0)
assert os.wait()[1] == 0
"""


def test_metrics_go_out_at_the_end_of_each_process_each_an_instance_with_its_own_counts(server: str, collector: Any) -> None:
    environment = os.environ | {"LLMSEC_TRACING_ENDPOINT": f"{collector.http}/v1/traces", "LLMSEC_SECURITY_ENABLED": "false"}
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, f"{server}/v1/chat/completions"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)
    assert (told.returncode, told.stderr) == (0, "")
    assert len(set(instances(collector))) == len(collector.metrics) == 2
    seen = []
    while collector.metrics:
        ((attributes, point, _),) = collector.points(names.OPERATION_DURATION)
        seen.append((attributes["gen_ai.request.model"], point.count, counts(collector)["sent"]))
        collector.metrics.pop()
    assert seen == [("m", 1, 1), ("child", 2, 2)]  # the child ended first
