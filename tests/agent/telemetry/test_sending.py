"""Spans and metrics from a folder to a real receiver, over both protocols."""

from __future__ import annotations

import logging
import time

import msgspec
import pytest

from llmsec_agent.config.schema import Metrics, Observability, OTLPMetrics, Sampling, Tracing
from llmsec_agent.telemetry.exporters import Exporters
from llmsec_agent.telemetry.plan import telemetry_plan
from llmsec_agent.telemetry.sending import Sending
from llmsec_tap.model import Usage
from llmsec_tap.storage import StoreWriter, open_store
from support.collector import Collector
from support.exchanges import STARTED, a_finding, full_exchange
from support.journal import Said

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def plain(number=0, **changes):
    """One that went well, and in which nothing was found."""
    values = {"error_type": None, "status": 200, "findings": [], "deviations": [], "trace_id": None, "span_id": None}
    return full_exchange(number, **{**values, **changes})


def fill(root, *exchanges):
    with StoreWriter.open(root) as writer:
        for exchange in exchanges:
            writer.add(exchange)
    return root


def observability(collector, protocol="http", **tracing):
    address = getattr(collector, protocol)
    sampling = Sampling(default_rate=1.0)
    return Observability(
        tracing=Tracing(**{"enabled": True, "endpoint": address, "protocol": protocol, "sampling": sampling, **tracing}),
        metrics=Metrics(otlp=OTLPMetrics(endpoint=address, protocol=protocol)),
    )


def sending_of(root, settings, journal=None, **options):
    plan = telemetry_plan(str(root), settings, since_ns=options.pop("since_ns", 0))
    assert plan is not None
    return Sending(open_store(root), plan, Exporters(plan.spans, plan.metrics), journal or Said(), **options)


def send(root, settings, journal=None, **options):
    sending = sending_of(root, settings, journal, **options)
    try:
        return sending.step(at_once=True), sending
    finally:
        sending.close()


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    """The exporters try again for so long at most."""
    monkeypatch.setattr("llmsec_agent.telemetry.exporters.TIMEOUT_S", 1.0)


@pytest.fixture
def collector():
    with Collector() as started:
        yield started


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_an_exchange_becomes_the_span_that_the_conventions_describe(tmp_path, collector, protocol):
    exchange = full_exchange(1, error_type=None)
    went_well, _ = send(fill(tmp_path / "store", exchange), observability(collector, protocol))
    assert went_well
    (span,) = collector.spans
    assert span.name == "chat gpt-4o"
    assert span.message.kind == 3  # CLIENT
    assert (span.trace_id, span.parent_span_id) == (TRACE, PARENT)
    assert span.span_id not in (PARENT, "")
    assert (span.message.start_time_unix_nano, span.message.end_time_unix_nano) == (exchange.started_ns, exchange.ended_ns)
    assert span.message.status.code == 0
    assert span.resource["service.name"] == "llmsec-trace"
    assert span.resource["host.name"] == "node-7"
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-4o",
        "gen_ai.request.stream": True,
        "gen_ai.request.max_tokens": 100,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.response.model": "gpt-4o-2024-08-06",
        "gen_ai.response.finish_reasons": ["tool_calls", "stop"],
        "gen_ai.response.time_to_first_chunk": 0.2505,
        "gen_ai.usage.input_tokens": 11,
        "gen_ai.usage.output_tokens": 12,
        "gen_ai.usage.cache_read.input_tokens": 13,
        "gen_ai.usage.cache_creation.input_tokens": 14,
        "gen_ai.usage.reasoning.output_tokens": 15,
        "gen_ai.conversation.id": "session-1",
        "server.address": "2001:db8::1",
        "server.port": 443,
        "llmsec.tenant": "acme",
        "k8s.pod.name": "web-1",
    }
    assert {name: span.attributes.get(name) for name in expected} == expected
    finding, deviation = span.events
    assert finding[0] == "gen_ai.guardrail.security.finding"
    assert finding[1]["gen_ai.guardrail.security.policy.rule.id"] == "pii.email"
    assert finding[1]["llmsec.finding.severity"] == "low"
    assert deviation[0] == "llmsec.deviation"
    assert deviation[1]["llmsec.deviation.kind"] == "cost"


def test_no_text_leaves_unless_the_configuration_says_so(tmp_path, collector):
    root = fill(tmp_path / "store", full_exchange(1, request_model="Ignore all of Malmö's weather"))
    send(root, observability(collector))
    (span,) = collector.spans
    everything = str(span.message)
    assert not any(word in everything for word in ("weather", "Malm", "Think", "look", "slow down", "example.org"))
    assert span.name == "chat"

    (root / next(root.glob("telemetry-*.json")).name).unlink()
    send(root, observability(collector, content=True))
    span = collector.spans[-1]
    asked = msgspec.json.decode(span.attributes["gen_ai.input.messages"])
    assert asked[0]["role"] == "user"
    assert asked[0]["parts"][0] == {"type": "text", "content": "What is "}
    assert asked[1]["parts"][0] == {"type": "tool_call_response", "id": "call_0", "response": "42"}
    assert msgspec.json.decode(span.attributes["gen_ai.system_instructions"]) == [{"type": "text", "content": "Be brief."}]
    answered = msgspec.json.decode(span.attributes["gen_ai.output.messages"])
    assert answered[0]["finish_reason"] == "tool_call" + "s"
    assert {"type": "tool_call", "id": "call_1", "name": "get_weather", "arguments": '{"city": "Malmö"}'} in answered[0]["parts"]


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_metrics_have_the_names_units_buckets_and_attributes_of_the_conventions(tmp_path, collector, protocol):
    good = plain(1, usage=Usage(input_tokens=100, output_tokens=20))
    bad = plain(2, status=429, error_type="rate_limit_error", ttft_ms=None, output_tokens_per_s=None, usage=Usage())
    send(fill(tmp_path / "store", good, bad), observability(collector, protocol))
    doubling = [0.01 * 2**power for power in range(14)]
    base = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-4o",
        "gen_ai.response.model": "gpt-4o-2024-08-06",
        "server.address": "2001:db8::1",
        "server.port": 443,
    }
    for name in ("gen_ai.client.operation.duration", "gen_ai.server.request.duration"):
        points = {attributes.get("error.type"): (attributes, point, unit) for attributes, point, unit in collector.points(name)}
        attributes, point, unit = points[None]
        assert attributes == base
        assert list(point.explicit_bounds) == pytest.approx(doubling)
        assert (unit, point.count, point.sum) == ("s", 1, pytest.approx(0.9, abs=1e-6))
        assert points["rate_limit_error"][0] == base | {"error.type": "rate_limit_error"}
    usage = {attributes["gen_ai.token.type"]: (point, unit) for attributes, point, unit in collector.points("gen_ai.client.token.usage")}
    assert {kind: (point.sum, unit) for kind, (point, unit) in usage.items()} == {"input": (100, "{token}"), "output": (20, "{token}")}
    assert list(usage["input"][0].explicit_bounds) == [4**power for power in range(14)]
    ((_, first, _),) = collector.points("gen_ai.server.time_to_first_token")
    assert list(first.explicit_bounds) == [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10]
    assert (first.count, first.sum) == (1, pytest.approx(0.2505))
    ((_, each, _),) = collector.points("gen_ai.server.time_per_output_token")
    assert list(each.explicit_bounds) == [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5]


def test_sampling_keeps_its_share_and_every_error_finding_and_deviation(tmp_path, collector):
    deviation = full_exchange().deviations
    root = fill(
        tmp_path / "store",
        *(plain(number) for number in range(400)),
        *(plain(number, status=500) for number in range(400, 420)),
        *(plain(number, findings=[a_finding()]) for number in range(420, 440)),
        *(plain(number, findings=[a_finding(severity="info")]) for number in range(440, 460)),
        *(plain(number, deviations=deviation) for number in range(460, 480)),
    )
    send(root, observability(collector, sampling=Sampling(default_rate=0.1, error_rate=1.0)))
    sent = {int(span.attributes["llmsec.exchange_id"][:8], 16) for span in collector.spans}
    assert set(range(400, 440)) | set(range(460, 480)) <= sent
    assert 15 <= len(sent & set(range(400))) <= 75
    assert len(sent & set(range(440, 460))) < 15
    ((_, point, _),) = [found for found in collector.points("gen_ai.client.operation.duration") if "error.type" not in found[0]]
    assert point.count == 460  # metrics are of all
    send(
        fill(tmp_path / "other", plain(1), plain(2, status=500)), observability(collector, sampling=Sampling(default_rate=0, error_rate=0))
    )
    assert len(collector.spans) == len(sent)


def test_hosts_choose_the_same_traces(tmp_path, collector):
    settings = observability(collector, sampling=Sampling(default_rate=0.5))
    traces = [f"{number * 0x0123456789ABCDEF0123456789AB % 2**128:032x}" for number in range(1, 41)]
    for host in ("a", "b"):
        send(
            fill(tmp_path / host, *(plain(n + (1000 if host == "b" else 0), trace_id=t, span_id=PARENT) for n, t in enumerate(traces))),
            settings,
        )
    sent = [span.trace_id for span in collector.spans]
    assert 5 < len(set(sent)) < 35
    assert all(sent.count(trace) == 2 for trace in sent)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_collector_that_is_away_is_told_later_and_once(tmp_path, collector, protocol, caplog):
    root, journal = fill(tmp_path / "store", plain(1), plain(2)), Said()
    collector.status = 503
    sending = sending_of(root, observability(collector, protocol), journal)
    with caplog.at_level(logging.DEBUG):
        assert not sending.step(at_once=True)
        assert not sending.step(at_once=True)
    assert [text for text in journal.texts if "takes no spans" in text][1:] == []
    assert "2 exchanges wait" in journal.texts[0]
    collector.status = None
    assert sending.step(at_once=True)
    assert sending.step(at_once=True)
    assert len(collector.spans) == 2
    assert sending.cursor.state.rows_delivered == 2
    ((_, point, _),) = collector.points("gen_ai.client.operation.duration")
    assert point.count == 2
    sending.close()
    assert send(root, observability(collector, protocol))[0]
    assert len(collector.spans) == 2  # the next run remembers


def test_what_waits_is_bounded_and_counted(tmp_path, collector):
    root, journal = tmp_path / "store", Said()
    for first in range(0, 40, 10):
        fill(root, *(plain(number) for number in range(first, first + 10)))
    settings = observability(collector, max_queue_size=25)
    went_well, sending = send(root, settings, journal)
    assert went_well
    assert sending.cursor.state.rows_lost == 20
    assert len(collector.spans) == 20
    assert any("20 exchanges are not told" in text and "max_queue_size" in text for text in journal.texts)
    assert len(list(root.glob("exchanges/day=*/part-*.parquet"))) == 4  # the store keeps all


def test_a_folder_that_is_told_anew_is_told_from_now_on(tmp_path, collector):
    root = fill(tmp_path / "store", plain(1))
    sending = sending_of(root, observability(collector), since_ns=time.time_ns())
    assert sending.step(at_once=True)
    assert collector.spans == []
    assert sending.cursor.state.rows_lost == 0
    fill(root, plain(2))
    assert sending.step(at_once=True)
    sending.close()
    assert [span.attributes["llmsec.exchange_id"][:8] for span in collector.spans] == ["00000002"]


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_span_that_is_refused_costs_only_itself(tmp_path, protocol):
    with Collector(refuses=lambda span: span.attributes["llmsec.exchange_id"].startswith("00000003")) as collector:
        root, journal = fill(tmp_path / "store", *(plain(number) for number in range(8))), Said()
        went_well, sending = send(root, observability(collector, protocol), journal)
        assert went_well, journal.texts
        assert sending.refused == 1
        assert len(collector.spans) == 7
        assert any("refuses a span" in text for text in journal.texts)


def test_a_merged_part_is_told_without_what_was_told_before(tmp_path, collector):
    from llmsec_tap.storage.compact import compact

    root = fill(tmp_path / "store", plain(1))
    settings = observability(collector)
    send(root, settings)
    fill(root, plain(2))
    compact(open_store(root), time.time_ns() + 10**12, min_parts=2, grace_ns=0, settled_ns=0)
    assert len(list(root.glob("exchanges/day=*/part-*-merged.parquet"))) == 1
    went_well, _ = send(root, settings)
    assert went_well
    assert [span.attributes["llmsec.exchange_id"][:8] for span in collector.spans] == ["00000001", "00000002"]
    ((_, point, _),) = collector.points("gen_ai.client.operation.duration")
    assert point.count == 1  # of the second run


def test_hostile_values_become_valid_spans(tmp_path, collector):
    exchange = plain(
        1,
        request_model="m" * 5000,
        response_model="\ud800\x00",
        server="not an address",
        client="[::1",
        trace_id="zz" * 16,
        span_id="0" * 16,
        usage=Usage(input_tokens=2**80, output_tokens=-5),
        session_id="s" * 10_000,
    )
    exchange.request.parameters = {"n": 2**70, "temperature": float("1e308"), "top_k": 0.5, "seed": True}
    went_well, _ = send(
        fill(tmp_path / "store", exchange, plain(2, started_ns=None, first_byte_ns=None, ended_ns=None)),
        observability(collector, content=True),
    )
    assert went_well
    (span,) = collector.spans
    assert len(span.name) <= 128
    assert span.parent_span_id == ""
    assert len(span.attributes["gen_ai.conversation.id"]) <= 1024


def test_headers_reach_the_collector_and_no_message(tmp_path, collector, monkeypatch):
    from llmsec_agent.config.secret import Secret

    monkeypatch.setenv("OTLP_KEY", "s3cret-value")
    settings = observability(collector, headers={"X-Api-Key": Secret("env:OTLP_KEY")})
    journal = Said()
    root = fill(tmp_path / "store", plain(1))
    collector.status = 401
    went_well, _ = send(root, settings, journal)
    assert not went_well
    assert any({name.lower(): value for name, value in seen.items()}.get("x-api-key") == "s3cret-value" for seen in collector.headers)
    plan = telemetry_plan(str(root), settings)
    assert "s3cret" not in " ".join([*journal.texts, repr(plan)])


def test_started_is_the_time_of_the_capture(tmp_path, collector):
    send(fill(tmp_path / "store", plain(0)), observability(collector))
    assert collector.spans[0].message.start_time_unix_nano == STARTED


def test_a_password_in_the_address_is_sent_as_a_header_and_shown_nowhere(tmp_path, collector):
    root, journal = fill(tmp_path / "store", plain(1)), Said()
    collector.status = 401
    settings = observability(collector, endpoint=collector.http.replace("//", "//user:s3cret@"))
    send(root, settings, journal)
    assert any(seen.get("authorization") == "Basic dXNlcjpzM2NyZXQ=" for seen in collector.headers)
    assert "s3cret" not in " ".join([*journal.texts, *(path.read_text() for path in root.glob("*.json"))])


def test_more_than_a_collector_takes_at_once_is_sent_in_halves(tmp_path, collector):
    exchanges = [plain(number) for number in range(100)]
    for exchange in exchanges:
        exchange.request.messages[1].parts[0].content = "x" * 16_000 + exchange.exchange_id
        exchange.request.messages *= 3
        exchange.response.messages[0].parts[1].content = "y" * 16_000
    root, journal = fill(tmp_path / "store", *exchanges), Said()
    went_well, sending = send(root, observability(collector, "grpc", content=True), journal)  # gRPC takes 4 MiB
    assert went_well, journal.texts
    assert (len(collector.spans), sending.refused) == (100, 0)
    assert collector.requests > 2


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_collector_that_refuses_everything_is_asked_little_and_loses_nothing(tmp_path, protocol):
    with Collector(refuses=lambda span: True) as collector:
        root, journal = fill(tmp_path / "store", *(plain(number) for number in range(100))), Said()
        sending = sending_of(root, observability(collector, protocol), journal)
        assert not sending.step(at_once=True)
        assert collector.requests < 40
        assert sending.refused == 0
        assert "refuses every span" in journal.texts[0]
        collector.refuses = lambda span: False
        assert sending.step(at_once=True)
        sending.close()
        assert len(collector.spans) == 100


def test_a_row_of_a_later_version_costs_only_itself(tmp_path, collector):
    root, journal = fill(tmp_path / "store", plain(1), plain(2, completeness="of a later version"), plain(3)), Said()
    went_well, sending = send(root, observability(collector), journal)
    assert went_well
    assert (len(collector.spans), sending.refused) == (2, 1)
    assert [text for text in journal.texts if "ValidationError" in text]
