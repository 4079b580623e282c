"""Alerts beside a run: no disk, file or fault of ours holds up an exchange, and what cannot be written is said and counted."""

from __future__ import annotations

import time

import msgspec

from llmsec_agent.alerts_lane import Alerts, AlertsSink, alert_settings, plan_alerts
from llmsec_agent.config.schema import Config
from llmsec_agent.lane import Lane
from llmsec_agent.outbox import Outbox
from llmsec_agent.stop import Stop
from llmsec_analyzer.typed_files import Checker
from llmsec_tap.journal import Journal
from llmsec_tap.model import Exchange
from llmsec_tap.storage import create_store
from llmsec_tap.storage.audit import entries
from support.exchanges import a_finding

ALERTING = {
    "channels": {"webhook": {"url": "http://h"}},
    "rules": [{"name": "pii", "condition": "pii_types.length > 0", "channels": ["webhook"], "window": "10m"}],
}


def plan():
    found = Checker(lambda _where: None).struct({"alerting": ALERTING}, Config)
    assert found is not None
    return plan_alerts(alert_settings(found))


def exchange(number: int = 0, **changes) -> Exchange:
    values = {"provider": "openai", "tenant": "acme", "pii_types": ["EMAIL"], "ended_ns": time.time_ns()}
    return Exchange(exchange_id=f"e{number}", client="a:1", server="b:2", **(values | changes))


class Said(list):
    def journal(self) -> Journal:
        return Journal(lambda event: self.append(event.name))


def wait_for(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_alert_is_written_poked_and_audited_at_once(tmp_path):
    store, poked = create_store(tmp_path / "s"), []
    box = Outbox(store.root)
    lane = Lane(
        AlertsSink(store, Said().journal(), {"user": "u"}, box, lambda: poked.append(time.time_ns())),
        Said().journal(),
        Stop(),
        max_bytes=1 << 20,
    )
    alerts = Alerts(plan(), Said().journal(), clock=time.time_ns)
    (alert,) = alerts.look(exchange())
    lane.offer(alert)
    wait_for(lambda: lane.written)
    lane.close()
    assert [found.alert_id for found in box.read_new()] == [alert.alert_id]
    assert 0 < (poked[0] - alert.at_ns) / 1e6 < 1000
    assert [(entry.event, entry.facts["alert_id"]) for entry in entries(store)] == [("alert", alert.alert_id)]


def test_a_folder_that_takes_nothing_is_said_once_counted_and_holds_nobody_up(tmp_path):
    store, said = create_store(tmp_path / "s"), Said()
    (tmp_path / "s" / "alerts").write_text("in the way")
    lane = Lane(AlertsSink(store, said.journal(), {}, Outbox(store.root)), said.journal(), Stop(), max_bytes=20_000)
    alerts = Alerts(plan(), said.journal(), clock=time.time_ns)
    (alert,) = alerts.look(exchange())
    begun = time.monotonic()
    for _ in range(500):
        lane.offer(alert)
    assert time.monotonic() - begun < 2
    wait_for(lambda: "sink_failed" in said)
    assert lane.dropped["full"] > 0
    lane.close()
    assert lane.lost
    assert said.count("sink_failed") == 1


def test_a_fault_of_ours_costs_no_exchange(monkeypatch):
    said = Said()
    alerts = Alerts(plan(), said.journal(), clock=time.time_ns)

    def fail(*_args, **_more):
        raise ZeroDivisionError

    monkeypatch.setattr(alerts._decider, "look", fail)
    assert alerts.look(exchange()) == alerts.look(exchange()) == []
    assert said == ["alerts_failed"]
    assert {sample.name: sample.value for sample in alerts.samples()}["llmsec_alert_failures_total"] == 2


def test_a_wrong_file_of_silences_leaves_the_one_before_in_force(tmp_path):
    said, root = Said(), create_store(tmp_path / "s").root
    (root / "alerts").mkdir()
    file = root / "alerts" / "silences.yaml"
    file.write_text("silences: [{match: pii, until: 2099-01-01, reason: r}]\n")
    alerts = Alerts(plan(), said.journal(), clock=time.time_ns, root=root)
    assert alerts.look(exchange(1)) == []
    file.write_text("silences: [{match: pii}]\n")
    alerts.tick()
    alerts.tick()
    assert said == ["silences_refused"]
    assert alerts.look(exchange(2)) == []
    file.unlink()
    alerts.tick()
    assert len(alerts.look(exchange(3))) == 1


def test_another_decoders_alert_is_not_told_again(tmp_path):
    store = create_store(tmp_path / "s")
    first = Alerts(plan(), Said().journal(), clock=time.time_ns)
    second = Alerts(plan(), Said().journal(), clock=time.time_ns, outbox=Outbox(store.root))
    (alert,) = first.look(exchange(1))
    AlertsSink(store, Said().journal(), {}, Outbox(store.root)).write([AlertsSink(store, Said().journal(), {}, None).encode(alert)[0]])
    second.tick()
    seen = exchange(2)
    assert second.look(seen) == []
    assert (seen.alerts[0].alert_id, seen.alerts[0].state) == (alert.alert_id, "grouped")


def test_findings_of_requests_are_bounded_and_told_early_once(monkeypatch):
    monkeypatch.setattr("llmsec_agent.alerts_lane._MAX_REQUESTS", 2)
    alerts = Alerts(plan(), Said().journal(), clock=time.time_ns)
    for number in range(3):
        alerts.request(exchange(number, pii_types=[], input_text="secret text", ended_ns=time.time_ns()))
    finding = a_finding(exchange_id="e2", severity="high", type="EMAIL")
    assert alerts.early(msgspec.structs.replace(finding, exchange_id="e0")) == []
    (told,) = alerts.early(finding)
    assert told.analysis_ms is not None
    assert "secret text" not in msgspec.json.encode(told).decode()
    assert alerts.early(finding) == []
    assert alerts.look(exchange(2)) == []
