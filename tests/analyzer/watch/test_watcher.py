"""Each kind of deviation: traffic that shows it, told once; and traffic nearby that does not."""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
import pytest

from llmsec_analyzer.settings import AnomalySettings, GlobalRate, RateSettings, TenantRate
from llmsec_analyzer.watch import saved
from llmsec_analyzer.watch.prices import Prices, price_list
from llmsec_analyzer.watch.subjects import Model, Subjects
from llmsec_analyzer.watch.watcher import UpstreamLimit, Watcher, WatchSettings, network_of
from llmsec_tap.model import (
    AnomalyCount,
    Counts,
    Deviation,
    Exchange,
    Finding,
    Location,
    RateLimit,
    Request,
    Taxonomy,
    ToolCall,
    ToolDefinition,
    Usage,
)

S = 1_000_000_000
MINUTE = 60 * S
HOUR = 60 * MINUTE
# A Monday, 00:00 UTC.
MONDAY = 1_780_272_000 * S
PRICES = Prices(price_list(None))


def call(at_ns: int, number: int = 0, **changes: Any) -> Exchange:
    """A chat of gpt-4o: 1,000 tokens in, 100 out, 300 ms to the first of them."""
    fields = {
        "exchange_id": f"e{number}-{at_ns}",
        "client": "10.0.0.9:5000",
        "server": "10.0.0.1:443",
        "started_ns": at_ns - 2 * S,
        "ended_ns": at_ns,
        "ttft_ms": 300.0,
        "provider": "openai",
        "status": 200,
        "streaming": True,
        "request_model": "gpt-4o",
        "input_text": f"question {number}",
        "usage": Usage(input_tokens=1000, output_tokens=100),
        "tenant": "shop",
        "api_key_fingerprint": "k1",
    }
    return Exchange(**{**fields, **changes})


def finding(**changes: Any) -> Finding:
    fields = {
        "finding_id": "f1", "rule_id": "injection.model", "rule_version": "1", "category": "prompt_injection", "type": "x", "severity": "medium",
        "confidence": 0.9, "location": Location(part="request.messages[0]", start=0, end=4), "preview": "", "fingerprint": "p1",
        "taxonomy": Taxonomy(), "explanation": "",
    }  # fmt: skip
    return Finding(**{**fields, **changes})


def told(exchanges: Iterable[Exchange], watcher: Watcher | None = None, **settings: Any) -> list[Deviation]:
    watcher = watcher or Watcher(WatchSettings(**settings), PRICES)
    found = []
    for exchange in exchanges:
        watcher.look(exchange)
        found += exchange.deviations
    return found


def kinds(exchanges: Iterable[Exchange], **settings: Any) -> list[str]:
    return [deviation.kind for deviation in told(exchanges, **settings)]


def steady(hours: float, each_s: float = 20, start: int = MONDAY, **changes: Any) -> Iterator[Exchange]:
    for number in range(int(hours * 3600 / each_s)):
        yield call(start + int(number * each_s * S), number, **changes)


def after(hours: float) -> int:
    return MONDAY + int(hours * HOUR)


def burst(start: int, count: int, each_s: float = 0.1, **changes: Any) -> Iterator[Exchange]:
    for number in range(count):
        yield call(start + int(number * each_s * S), 10_000 + number, **changes)


LOOP = {"tool_calls": [ToolCall(name="search", arguments='{"q": "x"}')], "session_id": "s1"}
LIMIT = {"upstream_limits": {"openai": UpstreamLimit("main", 60, None)}}
TOOL = Request(tools=[ToolDefinition(name="delete_everything")])
PROBE = Request(parameters={"logprobs": True, "top_logprobs": 5})
LEAK = finding(category="system_prompt_leak", rule_id="output.system_prompt")
NEAR = RateLimit(limits=Counts(requests=1000, tokens=None), remaining=Counts(requests=12, tokens=None))

SHOWN: dict[str, tuple[Any, dict[str, Any]]] = {
    "cost": (lambda: [*steady(2), *burst(after(2), 60, 1, usage=Usage(input_tokens=90_000, output_tokens=9000))], {}),
    "request_rate": (lambda: burst(MONDAY, 1100, 0.03), {}),
    "tenant_limit": (lambda: burst(MONDAY, 80, 0.5), {"tenant_requests_per_minute": {"shop": 60}}),
    "token_velocity": (lambda: burst(MONDAY, 60, 0.5), {}),
    "rate_limit": (
        lambda: burst(MONDAY, 400, 0.001),
        {"rates": RateSettings(everyone=GlobalRate(requests_per_second=10, burst_size=10), per_tenant=TenantRate(default_rps=10_000, default_burst=10_000))},
    ),
    "error_rate": (lambda: [*steady(1), *burst(after(1), 10, 1, status=400, error_type="invalid_request_error")], {}),
    "upstream_unhealthy": (lambda: burst(MONDAY, 3, 1, status=502), {}),
    "upstream_degraded": (lambda: [*burst(MONDAY, 40, 1), *burst(MONDAY + 50 * S, 4, 1, status=429)], {}),
    "upstream_requests_limit": (lambda: burst(MONDAY, 70, 0.5), LIMIT),
    "requests_limit_near": (lambda: [call(MONDAY, rate_limit=NEAR)], {}),
    "first_token_time": (lambda: [*steady(3), *burst(after(3), 30, 1, ttft_ms=2000.0)], {}),
    "latency": (
        lambda: [*steady(3, streaming=False, ttft_ms=None), *(call(after(3) + n * S, started_ns=after(3) + n * S - 9 * S, streaming=False, ttft_ms=None) for n in range(30))],
        {},
    ),
    "refusal_rate": (lambda: [*steady(3), *burst(after(3), 60, 5, refusal_text="I can't help with that.")], {}),
    "injection_rate": (lambda: [*steady(3), *burst(after(3), 60, 5, findings=[finding()])], {}),
    "new_model": (lambda: [*steady(1), call(after(1), request_model="gpt-4.1")], {}),
    "new_tool": (lambda: [*steady(1), call(after(1), request=TOOL)], {}),
    "new_network": (lambda: [*steady(1, client="8.8.8.8:40000"), call(after(1), client="1.1.1.1:40000")], {}),
    "new_workload": (lambda: [*steady(1), call(after(1), anomalies=[AnomalyCount(name="key_new_workload", count=1)])], {}),
    "model_extraction": (lambda: burst(MONDAY, 260, 1, request=PROBE), {}),
    "system_prompt_scraping": (lambda: burst(MONDAY, 3, 20, findings=[LEAK]), {}),
    "agent_loop": (lambda: burst(MONDAY, 6, 2, **LOOP), {}),
    "agent_loop_lasting": (lambda: burst(MONDAY, 20, 2, **LOOP), {}),
    "canary_again": (lambda: burst(MONDAY, 2, 5, findings=[finding(rule_id="output.canary", category="system_prompt_leak")]), {}),
}  # fmt: skip


@pytest.mark.parametrize("kind", SHOWN)
def test_what_shows_it_is_told_once_with_its_figures(kind):
    make, settings = SHOWN[kind]
    found = told(make(), **settings)
    (one,) = [deviation for deviation in found if deviation.kind == kind]
    assert one.explanation
    if one.line is not None and kind not in ("requests_limit_near", "rate_limit"):
        assert one.value >= one.line


BESIDE: dict[str, tuple[Any, dict[str, Any]]] = {
    "an hour of the same": (lambda: steady(5), {}),
    "a tenth of a minute's requests": (lambda: burst(MONDAY, 900, 0.06, usage=Usage(input_tokens=10, output_tokens=1)), {}),
    "one failure": (lambda: [*steady(1), call(after(1), status=502)], {}),
    "a client that leaves": (lambda: burst(MONDAY, 5, 1, status=200, completeness="aborted"), {}),
    "one slow answer": (lambda: [*steady(3), call(after(3), ttft_ms=90_000.0), *steady(1, start=after(3) + MINUTE)], {}),
    "tools called with other arguments": (
        lambda: [
            call(
                MONDAY + n * S,
                tool_calls=[ToolCall(name="search", arguments=f'{{"q": {n}}}')],
                session_id="s1",
                usage=Usage(input_tokens=9),
            )
            for n in range(50)
        ],
        {},
    ),
    "probabilities of one text": (
        lambda: burst(MONDAY, 300, 2, request=PROBE, input_text="the same", usage=Usage(input_tokens=9, output_tokens=1)),
        {},
    ),
    "a canary twice in one exchange": (
        lambda: [call(MONDAY, findings=[finding(rule_id="output.canary"), finding(rule_id="output.canary", finding_id="f2")])],
        {},
    ),
    "no language model": (lambda: burst(MONDAY, 3000, 0.001, provider=None, status=502), {}),
    "switched off": (lambda: burst(MONDAY, 3000, 0.001, status=502), {"anomalies": AnomalySettings(enabled=False)}),
}


@pytest.mark.parametrize("name", BESIDE)
def test_what_is_near_it_is_not(name):
    make, settings = BESIDE[name]
    assert kinds(make(), **settings) == []


def test_an_upstream_that_serves_again_is_told():
    found = told([*burst(MONDAY, 3, 1, status=502), call(MONDAY + 120 * S)])
    assert [(each.kind, each.severity) for each in found] == [("upstream_unhealthy", "high"), ("upstream_healthy", "info")]


def test_a_week_with_days_and_nights_gives_no_high_deviation_and_an_attack_after_it_does():
    """Traffic of working days and quiet nights, drawn anew each minute; then, on the second Monday's morning, ten times the cost."""
    draw = random.Random(7)
    watcher = Watcher(WatchSettings(), PRICES)
    found: list[Deviation] = []

    def minute(at_ns: int, times: float = 1.0) -> None:
        hour, day = at_ns // HOUR % 24, (at_ns - MONDAY) // (24 * HOUR) % 7
        rate = (6 * math.exp(-(((hour - 13) / 4) ** 2)) + 0.4) * (0.3 if day >= 5 else 1.0)
        for number in range(_poisson(draw, rate)):
            tokens = int(draw.lognormvariate(6.5, 0.5) * times)
            exchange = call(
                at_ns + number, number, usage=Usage(input_tokens=tokens, output_tokens=tokens // 8),
                ttft_ms=draw.lognormvariate(5.5, 0.3), status=200 if draw.random() > 0.01 else 500,
            )  # fmt: skip
            watcher.look(exchange)
            found.extend(exchange.deviations)

    for number in range(7 * 24 * 60):
        minute(MONDAY + number * MINUTE)
    assert [each for each in found if each.severity in ("high", "critical")] == []
    assert len(found) <= 3
    found.clear()
    for number in range(20):
        minute(MONDAY + (7 * 24 + 10) * HOUR + number * MINUTE, times=10)
    assert ("cost", "high") in [(each.kind, each.severity) for each in found]


def _poisson(draw: random.Random, mean: float) -> int:
    limit, product, count = math.exp(-mean), draw.random(), 0
    while product > limit:
        product *= draw.random()
        count += 1
    return count


def test_a_cold_start_is_said_and_is_never_high():
    found = told(SHOWN["cost"][0]())
    (one,) = [each for each in found if each.kind == "cost"]
    assert one.severity == "medium"
    assert "cold start" in one.explanation
    assert one.observations is not None
    assert one.observations >= 10


def test_the_gauge_says_what_conditions_of_alerts_ask_for():
    watcher = Watcher(WatchSettings(), PRICES)
    told([*steady(2), *burst(after(2), 60, 1, usage=Usage(input_tokens=90_000, output_tokens=9000))], watcher)
    assert watcher.gauge.cost_multiplier is not None
    assert watcher.gauge.cost_multiplier > 5
    assert watcher.gauge.error_rate_5m == 0.0
    told([call(after(3), provider=None)], watcher)
    assert watcher.gauge.cost_multiplier is None


def test_a_long_name_is_known_by_a_short_one():
    """Who chooses names does not choose how much of them is kept."""
    subjects = Subjects()
    long = "m" * 1_000_000
    assert subjects.of(Model, long) is subjects.of(Model, long)
    assert subjects.of(Model, long) is not subjects.of(Model, long + "x")
    assert max(len(name) for name, _ in subjects.items()) <= 256


def test_what_is_known_goes_on_after_a_restart(tmp_path):
    path = tmp_path / "watch.state"
    before = Watcher(WatchSettings(), PRICES)
    assert told(steady(2), before) == []
    saved.save(before.subjects, path)
    subjects, problem = saved.load(path)
    assert problem == ""
    found = told(burst(after(2), 60, 1, usage=Usage(input_tokens=90_000, output_tokens=9000)), Watcher(WatchSettings(), PRICES, subjects))
    assert "cost" in [each.kind for each in found]


def test_a_state_is_saved_piece_by_piece_while_exchanges_come(tmp_path):
    """What a live capture does: no step writes more than a thousand subjects."""
    watcher, path = Watcher(WatchSettings(), PRICES), tmp_path / "watch.state"
    told((call(MONDAY + n * S, n, api_key_fingerprint=f"k{n}", tenant=f"t{n}", client=f"10.0.{n % 256}.1:1") for n in range(1500)), watcher)
    saving, steps = saved.Saving(watcher.subjects, path), 0
    while not saving.step():
        steps += 1
        assert not path.exists()
        told([call(MONDAY + 2000 * S, tenant=f"late{steps}")], watcher)
    assert steps == -(-len(saved.load(path)[0]) // 1000)
    assert saved.load(path)[1] == ""


def test_a_run_with_less_memory_reads_back_those_seen_last(tmp_path):
    watcher, path = Watcher(WatchSettings(), PRICES), tmp_path / "watch.state"
    told((call(MONDAY + n * S, n, api_key_fingerprint=f"k{n}", tenant=f"t{n}") for n in range(100)), watcher)
    saved.save(watcher.subjects, path)
    subjects, problem = saved.load(path, 20)
    assert (len(subjects), problem) == (20, "")
    assert "t99" in {name for name, _ in subjects.items()}


def piece(value: Any) -> bytes:
    data = msgspec.msgpack.encode(value)
    return struct.pack("<I", len(data)) + data


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\xff" * 100, "damaged"),
        (piece({"version": 99, "subjects": []}), "another version"),
        (piece({"version": 1, "subjects": [["x", {"type": "Tenant", "usual_cost": {"recent": b"abc"}}]]}), "damaged"),
        (piece({"version": 1, "subjects": [["x", {"type": "Model", "first_tokens": "no"}]]}), "damaged"),
        (piece({"version": 1, "subjects": [["x", {"type": "Tenant"}]]}) + b"\0\0", "damaged"),
        (piece({"version": 1, "subjects": [["x", {"type": "Tenant"}]]})[:-3], "damaged"),
        (struct.pack("<I", 5000) + b"\x91" * 5000, "damaged"),
    ],
)
def test_a_damaged_state_is_left_aside(tmp_path, data, said):
    path = tmp_path / "watch.state"
    path.write_bytes(data)
    subjects, problem = saved.load(path)
    assert said in problem
    assert len(subjects) == 0


def test_a_link_in_the_states_place_is_not_followed(tmp_path):
    (tmp_path / "other").write_bytes(piece({"version": 1, "subjects": []}))
    (tmp_path / "watch.state").symlink_to(tmp_path / "other")
    assert saved.load(tmp_path / "watch.state")[1]


def test_subjects_are_bounded_and_the_longest_unseen_go():
    watcher = Watcher(WatchSettings(), PRICES, Subjects(most=50))
    told((call(MONDAY + n * S, n, api_key_fingerprint=f"k{n}", tenant=f"t{n}", client=f"10.0.{n}.1:1") for n in range(200)), watcher)
    assert len(watcher.subjects) == 50
    assert watcher.subjects.forgotten_total > 0


def test_a_clock_that_jumps_does_not_blind():
    """A packet of the year 2100 in a file of others: what comes after it is watched as before."""
    far = call(4_102_444_800 * S)
    assert "upstream_unhealthy" in kinds([far, *burst(MONDAY, 3, 1, status=502)])
    assert "request_rate" in kinds([far, *burst(MONDAY, 1100, 0.03)])


def test_the_same_traffic_tells_the_same():
    make = SHOWN["cost"][0]
    assert told(make()) == told(make())


@pytest.mark.parametrize(
    ("model", "usage", "changes", "usd"),
    [
        ("gpt-4o", Usage(input_tokens=1_000_000, output_tokens=100_000), {}, 3.5),
        ("gpt-4o-2024-08-06", Usage(input_tokens=1_000_000, output_tokens=0), {}, 2.5),
        ("gpt-4o", Usage(input_tokens=1_000_000, output_tokens=0, cached_input_tokens=400_000), {}, 2.0),
        ("o3", Usage(input_tokens=0, output_tokens=1_000_000, reasoning_tokens=900_000), {}, 8.0),
        (
            "claude-sonnet-4-5-20250929",
            Usage(input_tokens=1_000_000, output_tokens=0, cached_input_tokens=1_000_000, cache_write_tokens=1_000_000),
            {"provider": "anthropic"},
            7.05,
        ),
        ("us.anthropic.claude-3-haiku-20240307-v1:0", Usage(input_tokens=1_000_000, output_tokens=0), {"provider": "aws.bedrock"}, 0.25),
        ("models/gemini-2.5-flash-preview-09-2025", Usage(input_tokens=1_000_000, output_tokens=0), {}, 0.3),
        ("gpt-4o-audio", Usage(input_tokens=1000, output_tokens=1), {}, None),
        ("claude-opus-4-9", Usage(input_tokens=1000, output_tokens=1), {}, None),
        ("llama3", Usage(input_tokens=1000, output_tokens=1), {}, None),
        ("gpt-4o", Usage(), {}, None),
        ("gpt-4o", Usage(input_tokens=-5, output_tokens=10), {}, 0.0001),
        ("x" * 100_000, Usage(input_tokens=1), {}, None),
    ],
)
def test_prices(model, usage, changes, usd):
    exchange = call(MONDAY, request_model=model, usage=usage, **changes)
    cost = PRICES.cost_usd(exchange)
    assert cost is None if usd is None else cost == pytest.approx(usd)


def test_a_file_of_prices_counts_before_ours_and_its_faults_are_named(tmp_path):
    file = tmp_path / "prices.yaml"
    file.write_text("as_of: '2026-11-01'\nmodels:\n  gpt-4o: {input: 1, output: 2}\n  mine: {input: 0}\n")
    listed = price_list(str(file))
    assert (listed.models["gpt-4o"].input, listed.models["mine"].output, "o3" in listed.models) == (1, 0, True)
    file.write_text("as_of: '2026-11-01'\nmodels:\n  gpt-4o: {input: -1, cheap: yes}\n")
    with pytest.raises(Exception, match=r"prices\.yaml") as fault:
        price_list(str(file))
    assert "input" in str(fault.value)


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("8.8.4.4:53", "8.8.0.0/16"),
        ("8.8.4.4", "8.8.0.0/16"),
        ("[2001:4860:4860::8888]:443", "2001:4860::/32"),
        ("2001:4860:4860::8888", "2001:4860::/32"),
        ("10.1.2.3:9", None),
        ("127.0.0.1:9", None),
        ("unix", None),
        ("", None),
    ],
)
def test_networks(address, network):
    assert network_of(address) == network
