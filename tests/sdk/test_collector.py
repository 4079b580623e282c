"""Records as spans to a collector: the default of the design."""

from __future__ import annotations

import time
from typing import Any

import pytest

from llmsec_tap.identity.credentials import fingerprinter
from llmsec_trace import InstrumentationConfig, TracingConfig
from llmsec_trace.clients import hooks_in
from llmsec_trace.instrumenting import destinations_of
from llmsec_trace.recorder import Recorder
from support.collector import Collector
from support.replay import KEY
from support.sniff import free_port
from support.vendor_server import vendor_server

httpx = pytest.importorskip("httpx", reason="in the dependency group `peers`")
pytestmark = pytest.mark.filterwarnings("default")
BODY: Any = {"model": "m", "messages": [{"role": "user", "content": "a text that nobody else may read"}]}


def recorder_to(url: str) -> Recorder:
    tracing = TracingConfig(endpoint_url=url, flush_interval_seconds=0.05, headers={"X-Key": "abc"}, timeout_seconds=5)
    config = InstrumentationConfig(service_name="shop", tenant_id="t1", tracing=tracing)
    return Recorder(config, destinations_of(config), fingerprinter(KEY), grace_s=0)


def call(recorder: Recorder, url: str) -> None:
    with httpx.Client() as client:
        for hook, owner in hooks_in(client):
            hook.put(owner, recorder, again=True)
        assert client.post(f"{url}/v1/chat/completions", json=BODY).status_code == 200


def test_without_another_place_records_are_spans_to_the_collector() -> None:
    with Collector() as collector, vendor_server(free_port()) as url:
        recorder = recorder_to(f"{collector.http}/v1/traces")
        for _ in range(3):
            call(recorder, url)
            assert recorder.flush(10)
        recorder.close()
    assert len(collector.spans) == 3
    span = collector.spans[0]
    attributes = span.attributes
    assert span.resource["service.name"] == "shop"
    assert attributes["llmsec.tenant"] == "t1"
    assert attributes["llmsec.capture.kind"] == "sdk"
    assert attributes["gen_ai.request.model"] == "m"
    assert "nobody else" not in str(span.message)
    assert collector.headers[0]["X-Key"] == "abc"


def test_a_collector_that_is_down_costs_the_application_nothing_and_gets_the_record_when_it_is_up() -> None:
    with Collector(status=503) as collector, vendor_server(free_port()) as url:
        recorder = recorder_to(f"{collector.http}/v1/traces")
        start = time.monotonic()
        call(recorder, url)
        assert time.monotonic() - start < 5
        assert not recorder.flush(1)
        assert collector.requests > 0
        collector.status = None
        assert recorder.flush(20)
        recorder.close()
    assert len(collector.spans) == 1
    assert recorder.stats().dropped == 0


def test_what_the_collector_refuses_is_counted_and_given_up() -> None:
    with Collector(status=400) as collector, vendor_server(free_port()) as url:
        recorder = recorder_to(f"{collector.http}/v1/traces")
        call(recorder, url)
        assert recorder.flush(10)
        assert recorder.stats().dropped == 1
        assert "answers 400" in recorder.lanes[0].last_error
        recorder.close()
