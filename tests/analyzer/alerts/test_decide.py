"""Who is told what, how often, and when it is over."""

from __future__ import annotations

from typing import Any

import pytest

from llmsec_analyzer.alerts.alert import Alert
from llmsec_analyzer.alerts.decide import Decider
from llmsec_analyzer.alerts.rules import Rule, compile_condition, threshold_rule, wildcards
from llmsec_analyzer.alerts.silences import Silence, Silences
from llmsec_analyzer.expressions import ExpressionError
from llmsec_tap.model import Deviation, Exchange, Suppressed
from support.exchanges import a_finding

S = 1_000_000_000
MINUTE = 60 * S
START = 1_795_000_020 * S  # a whole minute
DESIGN = {
    "high_risk_prompt_injection": "security_score > 90",
    "pii_detected": "pii_types.length > 0",
    "cost_anomaly": "cost_multiplier > 5.0",
    "high_error_rate": "error_rate_5m > 0.1",
}


def rule(name: str, condition: str | None = None, **more: Any) -> Rule:
    written = condition or DESIGN[name]
    return Rule(name, compile_condition(written), written, more.pop("priority", "high"), ("slack",), **more)


def exchange(number: int = 0, **changes: Any) -> Exchange:
    values: dict[str, Any] = {"provider": "openai", "tenant": "acme", "request_model": "gpt-4o"} | changes
    return Exchange(exchange_id=f"e{number}", client="10.0.0.1:5", server="10.0.0.2:443", **values)


def email(number: int = 0, **changes: Any) -> Exchange:
    return exchange(
        number, **{"pii_types": ["EMAIL"], "findings": [a_finding(severity="medium", type="EMAIL")], "security_score": 30} | changes
    )


def shape(alerts: list[Alert]) -> list[tuple[str, str, int]]:
    return [(alert.rule, alert.state, alert.count) for alert in alerts]


@pytest.mark.parametrize(
    ("name", "changes", "gauge"),
    [
        ("high_risk_prompt_injection", {"security_score": 95}, {}),
        ("pii_detected", {"pii_types": ["EMAIL"]}, {}),
        ("cost_anomaly", {}, {"cost_multiplier": 5.1}),
        ("high_error_rate", {}, {"error_rate_5m": 0.11}),
    ],
)
def test_each_of_the_designs_rules_fires_by_itself(name, changes, gauge):
    decider = Decider([rule(each) for each in DESIGN])
    seen = exchange(**changes)
    (alert,) = decider.look(seen, START, **gauge)
    assert (alert.rule, alert.state, alert.condition, alert.channels) == (name, "firing", DESIGN[name], ["slack"])
    assert [(mark.rule, mark.state) for mark in seen.alerts] == [(name, "firing")]
    quiet = exchange(security_score=90, pii_types=[])
    assert Decider([rule(each) for each in DESIGN]).look(quiet, START, cost_multiplier=5.0, error_rate_5m=0.1) == []
    assert quiet.alerts == []


def test_the_same_is_told_once_counted_and_summed_up_at_the_end_of_its_window():
    decider = Decider([rule("pii_detected")])
    told = [decider.look(email(n), START + n * S) for n in range(50)]
    assert shape([alert for some in told for alert in some]) == [("pii_detected", "firing", 1)]
    (more,) = decider.advance(START + 10 * MINUTE)
    assert (more.alert_id, more.count) == (told[0][0].alert_id, 50)
    assert "49 more" in more.summary
    again = decider.look(email(51), START + 11 * MINUTE)
    assert shape(again) == [("pii_detected", "firing", 1)]
    assert again[0].alert_id != more.alert_id
    assert decider.advance(START + 30 * MINUTE) == []  # one exchange needs no summing up


def test_marks_say_what_became_of_each_exchange():
    decider = Decider([rule("pii_detected")])
    seen = [email(n) for n in range(3)]
    for n, each in enumerate(seen):
        decider.look(each, START + n)
    assert [(mark.state, mark.count) for each in seen for mark in each.alerts] == [("firing", 1), ("grouped", 2), ("grouped", 3)]
    assert len({each.alerts[0].alert_id for each in seen}) == 1
    assert seen[0].alerts[0].dedup_key == "pii_detected/tenant=acme"


@pytest.mark.parametrize(("dedup", "expected"), [(None, 2), (("tenant", "model"), 4), (("process",), 1)])
def test_the_key_says_what_is_the_same(dedup, expected):
    decider = Decider([rule("pii_detected", dedup=dedup)])
    told = [
        decider.look(email(request_model=model, tenant=tenant), START) for tenant in ("acme", "globex") for model in ("gpt-4o", "claude")
    ]
    assert sum(map(len, told)) == expected


def test_a_state_is_told_once_and_over_after_a_whole_window_without_it():
    decider = Decider([rule("high_error_rate", window_ns=5 * MINUTE)])
    told = [alert for n in range(30) for alert in decider.look(exchange(n), START + n * MINUTE, error_rate_5m=0.5)]
    assert shape(told) == [("high_error_rate", "firing", 1)]
    assert decider.look(exchange(30), START + 31 * MINUTE, error_rate_5m=0.01) == []
    (over,) = decider.advance(START + 34 * MINUTE)
    assert (over.state, over.alert_id, over.count) == ("resolved", told[0].alert_id, 30)
    assert over.summary.startswith("over: ")
    assert decider.advance(START + 99 * MINUTE) == []


def deviation(kind: str, subject: str = "10.0.0.2:443") -> Deviation:
    return Deviation(kind=kind, severity="high", scope="upstream", subject=subject, value=3, explanation=f"upstream {subject} {kind}")


def test_an_upstream_that_serves_again_ends_its_alert_and_no_other():
    decider = Decider([rule("failover", 'deviation_kinds contains "upstream_unhealthy"')])
    (told,) = decider.look(exchange(1, deviations=[deviation("upstream_unhealthy")]), START)
    assert "upstream 10.0.0.2:443 upstream_unhealthy" in told.summary
    assert told.dedup_key == "failover/server=10.0.0.2:443"
    assert decider.advance(START + 30 * MINUTE) == []  # nothing says that it is well
    assert decider.look(exchange(2, deviations=[deviation("upstream_healthy", "10.9.9.9:1")]), START + 31 * MINUTE) == []
    last = exchange(3, deviations=[deviation("upstream_healthy")])
    (over,) = decider.look(last, START + 32 * MINUTE)
    assert (over.state, over.alert_id) == ("resolved", told.alert_id)
    assert last.alerts[0].state == "resolved"


def test_a_minute_of_a_rule_is_bounded_and_the_rest_is_one_message():
    decider = Decider([rule("pii_detected", per_minute=10)])
    told = [alert for n in range(1000) for alert in decider.look(email(n, tenant=f"t{n}"), START + n)]
    assert len(told) == 10
    rest = decider.advance(START + MINUTE)
    assert shape(rest) == [("pii_detected", "firing", 990)]
    assert rest[0].dedup_key == "pii_detected/*"
    assert rest[0].tenant is None


def test_what_was_left_out_is_never_said_to_be_over():
    decider = Decider([rule("high_error_rate", per_minute=1)])
    decider.look(exchange(1, tenant="a"), START, error_rate_5m=0.5)
    decider.look(exchange(2, tenant="b"), START, error_rate_5m=0.5)
    assert [(alert.state, alert.tenant) for alert in decider.advance(START + 60 * MINUTE)] == [("firing", None), ("resolved", "a")]


def test_suppressed_findings_never_alert():
    mark = Suppressed(reason="r", owner="o", until="2099-01-01")
    decider = Decider(
        [rule("grave", 'severity >= "info" or categories contains "pii"'), threshold_rule(["slack"])], threshold=lambda _: "info"
    )
    assert decider.look(exchange(findings=[a_finding(severity="critical", suppressed=mark)]), START) == []
    assert decider.early(exchange(), [a_finding(severity="critical", suppressed=mark)], START) == []


@pytest.mark.parametrize(
    ("threshold", "severity", "expected"),
    [
        ("high", "medium", None),
        ("high", "high", "high"),
        ("low", "critical", "critical"),
        (None, "critical", None),
        ("info", "info", "low"),
    ],
)
def test_a_tenants_threshold_alerts_as_gravely_as_the_finding(threshold, severity, expected):
    decider = Decider([threshold_rule(["email"])], threshold=lambda _: threshold)
    told = decider.look(exchange(findings=[a_finding(severity=severity)]), START)
    assert [alert.priority for alert in told] == ([expected] if expected else [])


def test_a_silence_holds_for_a_rule_or_a_key_until_its_end():
    decider = Decider([rule("pii_detected")])
    decider.silences = Silences([Silence(match="pii_*/tenant=acme", until="2026-11-18T10:00:00Z", reason="test")])
    seen = email()
    assert decider.look(seen, START - 40 * 365 * 24 * 60 * MINUTE) == []
    assert seen.alerts[0].state == "silenced"
    assert len(decider.look(email(tenant="globex"), START - 40 * 365 * 24 * 60 * MINUTE)) == 1
    assert len(decider.look(email(), START + 10**9 * S)) == 1


def test_tenants_have_rules_and_channels_of_their_own():
    decider = Decider(
        [rule("pii_detected", for_tenants=wildcards(["ac*"]))], route=lambda tenant: ("email",) if tenant == "acme-eu" else None
    )
    told = [alert for tenant in ("acme", "acme-eu", "globex", None) for alert in decider.look(email(tenant=tenant), START)]
    assert [(alert.tenant, alert.channels) for alert in told] == [("acme", ["slack"]), ("acme-eu", ["email"])]


def test_a_prompt_alerts_while_its_answer_is_out_and_not_again_at_its_end():
    decider = Decider([rule("high_risk_prompt_injection"), rule("high_error_rate"), rule("failed", "status >= 500")])
    found = a_finding(severity="critical", confidence=1.0, category="prompt_injection", type="override")
    (told,) = decider.early(exchange(7), [found], START)
    assert (told.rule, told.security_score, told.findings[0].type) == ("high_risk_prompt_injection", 100, "override")
    assert decider.early(exchange(7), [found, found], START + 1) == []
    ended = exchange(7, findings=[found], security_score=100, status=500)
    assert shape(decider.look(ended, START + 5 * S)) == [("failed", "firing", 1)]
    early = ended.alerts[0]
    assert (early.rule, early.alert_id, early.count) == ("high_risk_prompt_injection", told.alert_id, 1)


def test_what_another_decoder_or_an_earlier_run_told_is_not_told_again():
    first, second = Decider([rule("pii_detected")]), Decider([rule("pii_detected")])
    (told,) = first.look(email(1), START)
    second.adopt(told, START)
    seen = email(2)
    assert second.look(seen, START + MINUTE) == []
    assert seen.alerts[0].alert_id == told.alert_id
    assert len(second.look(email(3), START + 11 * MINUTE)) == 2  # how many there were, and the next


def test_reading_its_own_words_again_tells_nothing_more():
    decider = Decider([rule("pii_detected"), rule("high_error_rate")])
    now, written = START, []
    for step in range(4):  # a finding and a failure every hour, and what was written is read after each second
        now = START + step * 60 * MINUTE
        for number in range(3):
            told = decider.look(email(number), now + number, error_rate_5m=0.5)
            written += told
            for alert in told:
                decider.adopt(alert, now + S)
        for minute in range(1, 50):
            told = decider.advance(now + minute * MINUTE)
            written += told
            for alert in told:
                decider.adopt(alert, now + minute * MINUTE + S)
    assert [shape(written).count(each) for each in (("pii_detected", "firing", 1), ("pii_detected", "firing", 3))] == [4, 4]
    assert [shape(written).count(("high_error_rate", state, count)) for state, count in (("firing", 1), ("resolved", 3))] == [4, 4]
    assert len(written) == 16


def test_a_state_that_was_told_before_a_restart_is_ended_after_it():
    (told,) = Decider([rule("high_error_rate")]).look(exchange(1), START, error_rate_5m=0.5)
    later = Decider([rule("high_error_rate")])
    later.adopt(told, START + 99 * MINUTE)
    assert [alert.state for alert in later.advance(START + 99 * MINUTE)] == ["resolved"]


def test_other_rules_keep_what_those_of_their_name_told():
    decider = Decider([rule("pii_detected"), rule("high_error_rate")])
    decider.look(email(1), START, error_rate_5m=0.5)
    decider.reload([rule("cost_anomaly"), rule("pii_detected")], route=lambda _: ("email",), previews=False)
    seen = email(2)
    told = decider.look(seen, START + S, cost_multiplier=9.0, error_rate_5m=0.5)
    assert [(alert.rule, alert.channels) for alert in told] == [("cost_anomaly", ["email"])]
    assert [(mark.rule, mark.state) for mark in seen.alerts] == [("cost_anomaly", "firing"), ("pii_detected", "grouped")]


def test_windows_are_bounded(monkeypatch):
    monkeypatch.setattr("llmsec_analyzer.alerts.decide.MAX_OPEN", 100)
    decider = Decider([rule("pii_detected", per_minute=10**6)])
    for n in range(500):
        decider.look(email(n, tenant=f"t{n}"), START + n)
    counts = {sample.name: sample.value for sample in decider.samples()}
    assert counts["llmsec_alert_windows"] == 100


def test_names_of_strangers_are_bounded_and_steer_no_terminal():
    (told,) = Decider([rule("pii_detected")]).look(email(tenant="\x1b[2J" + "x" * 5000, request_model="a\nb"), START)
    assert "\x1b" not in told.summary + (told.tenant or "") + told.dedup_key
    assert "\n" not in told.summary + (told.model or "")
    assert len(told.tenant or "") <= 128
    assert len(told.summary) < 1000


def test_previews_go_with_an_alert_only_where_they_are_asked_for():
    for previews, expected in ((False, ""), (True, "a***@example.org")):
        seen = email(findings=[a_finding(preview="a***@example.org")])
        (told,) = Decider([rule("pii_detected")], previews=previews).look(seen, START)
        assert told.findings[0].preview == expected


@pytest.mark.parametrize(
    ("condition", "column"),
    [("security_score > 'x'", 16), ("pii_type.length > 0", 1), ("severity == 'grave'", 13), ("cost_multiplier >", 18), ("tenant", 1)],
)
def test_a_wrong_condition_is_told_with_its_column(condition, column):
    with pytest.raises(ExpressionError, match=f"column {column}:"):
        compile_condition(condition)
