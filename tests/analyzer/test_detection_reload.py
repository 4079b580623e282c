"""Other settings while it runs: a second process takes over once it is ready, nothing is lost or overtaken, wrong ones change nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from llmsec_analyzer.settings import DetectionSettings, PatternAction, PIISettings
from llmsec_analyzer.worker.child import ChildDetector
from llmsec_analyzer.worker.client import DetectionProcess
from llmsec_analyzer.worker.running import Bounds
from llmsec_tap.counters import Snapshot
from llmsec_tap.model import Exchange, Message, Part, Request
from support.detectors import Detectors, FakeClock, FakeDetector
from support.journal import Said

OLD = DetectionSettings(plugins=False)
NEW = DetectionSettings(plugins=False, disabled_rules=("email",))
WRONG = DetectionSettings(plugins=False, rules=("wrong",))


def prompt(name: str, text: str = "hello") -> Exchange:
    message = Message(role="user", parts=[Part(type="text", content=text)])
    return Exchange(exchange_id=name, client="10.0.0.1:1", server="s:1", provider="openai", request=Request(messages=[message]))


class Reloading:
    def __init__(self) -> None:
        self.clock, self.detectors, self.journal = FakeClock(), Detectors(), Said()
        self.delivered: list[Exchange] = []
        self.detection = DetectionProcess(
            OLD, b"k" * 32, self.delivered.append, may_wait=False, journal=self.journal, start=self.detectors, clock=self.clock
        )
        self.settle()

    def settle(self) -> None:
        for _ in range(4):
            self.detection.tick()
            self.detectors.work()
        self.detection.tick()

    def add(self, *names: str) -> None:
        for name in names:
            self.detection.add(prompt(name, f"text {name}"))
        self.detection.tick()

    @property
    def order(self) -> list[str]:
        return [exchange.exchange_id for exchange in self.delivered]

    def reloads(self, result: str) -> int:
        return Snapshot([self.detection.samples]).get("llmsec_detection_reloads_total", result=result)

    def marks(self, name: str) -> list[str]:
        found = next(exchange for exchange in self.delivered if exchange.exchange_id == name)
        return [anomaly.name for anomaly in found.anomalies]

    def examined(self, detector: FakeDetector) -> list[str]:
        return [message.exchange_id for message in detector.examined]


@pytest.fixture
def run() -> Iterator[Reloading]:
    run = Reloading()
    yield run
    for detector in run.detectors.all:
        detector.kill()


def test_the_second_process_takes_over_when_it_is_ready_and_order_is_kept(run: Reloading):
    (old,) = run.detectors.all
    run.add("1", "2")
    run.detection.reload(NEW)
    run.add("3")
    new = run.detectors.all[1]
    assert not new.examined, "it is not ready"
    run.detection.tick()
    new.work()
    run.detection.tick()  # it takes over
    run.add("4", "5")
    new.work()
    run.detection.tick()
    assert run.examined(new) == ["4", "5"]
    assert run.order == [], "what came later waits for what came first"
    run.settle()
    assert run.order == ["1", "2", "3", "4", "5"]
    assert run.examined(old) == ["1", "2", "3"]
    assert not old.is_alive
    assert new.is_alive
    assert run.reloads("accepted") == 1
    assert all(run.marks(name) == [] for name in run.order)


def test_settings_that_are_wrong_change_nothing(run: Reloading):
    run.detection.reload(WRONG)
    run.settle()
    run.add("1")
    run.settle()
    old, refused = run.detectors.all
    assert run.examined(old) == ["1"]
    assert old.is_alive
    assert not refused.is_alive
    assert (run.reloads("refused"), run.reloads("accepted")) == (1, 0)
    (event,) = [event for event in run.journal.events if event.name == "detection_reload_refused"]
    assert "rules.yaml:3" in event.text
    assert "did you mean severity?" in event.text


def test_a_second_process_that_cannot_start_or_hangs_or_dies_changes_nothing(run: Reloading):
    run.detectors.refuses = True
    run.detection.reload(NEW)
    assert run.reloads("failed") == 1
    run.detectors.refuses = False
    run.detection.reload(NEW)
    run.clock.now += Bounds().start_s + 1
    run.detection.tick()
    assert run.reloads("failed") == 2
    run.detection.reload(NEW)
    run.detectors.all[-1].die()
    run.detection.tick()
    assert run.reloads("failed") == 3
    run.add("1")
    run.settle()
    assert run.examined(run.detectors.all[0]) == ["1"]
    assert run.order == ["1"]


def test_of_several_reloads_the_last_one_holds(run: Reloading):
    run.detection.reload(WRONG)
    run.detection.tick()
    run.detection.reload(NEW)
    run.settle()
    run.detection.reload(OLD)
    run.settle()
    run.add("1")
    run.settle()
    last = run.detectors.all[-1]
    assert run.examined(last) == ["1"]
    assert last.started is not None
    assert last.started.settings == OLD
    assert sum(detector.is_alive for detector in run.detectors.all) == 1
    assert (run.reloads("refused"), run.reloads("accepted")) == (0, 2)


def test_a_process_that_dies_before_it_has_answered_all_costs_one_exchange(run: Reloading):
    old = run.detectors.all[0]
    run.add("1", "2", "3")
    run.detection.reload(NEW)
    run.detection.tick()
    run.detectors.all[1].work()
    run.detection.tick()
    old.die()
    run.settle()
    assert run.order == ["1", "2", "3"]
    assert run.marks("1") == ["detection_fault"]
    assert run.examined(run.detectors.all[1]) == ["2", "3"]


def test_a_process_that_never_answers_what_it_was_sent_is_ended(run: Reloading):
    run.add("1", "2")
    run.detection.reload(NEW)
    run.detection.tick()
    new = run.detectors.all[1]
    new.work()
    run.detection.tick()
    run.clock.now += Bounds().patience_s + 1
    run.settle()
    assert run.order == ["1", "2"]
    assert run.marks("1") == ["detection_fault"]
    assert run.marks("2") == []


def test_a_reload_ends_a_pause_after_many_deaths(run: Reloading):
    for number in range(5):
        run.detectors.all[-1].die()
        run.add(f"{number}")
        run.settle()
    assert run.marks("4") == ["detection_skipped"]
    run.detection.reload(NEW)
    run.settle()
    run.add("after")
    run.settle()
    assert run.marks("after") == []


def test_an_answer_that_streams_meanwhile_is_scanned_whole(run: Reloading):
    listener = run.detection.listener(None)  # type: ignore[arg-type]
    listener.delta(0, "text", 0, "one")
    run.clock.now += 1
    run.detection.tick()
    run.detection.reload(NEW)
    run.settle()
    listener.delta(0, "text", 0, "two")
    run.clock.now += 1
    run.detection.tick()
    exchange = prompt("1")
    listener.finished(exchange)
    run.detection.add(exchange)
    run.settle()
    (message,) = run.detectors.all[1].examined
    assert message.stream == 0
    assert run.detectors.all[1].streams == set()


def test_real_processes_change_over_without_a_gap():
    settings = DetectionSettings(
        plugins=False, pii_detection=PIISettings(patterns={"credit_card": PatternAction(action="alert_and_redact")})
    )
    delivered: list[Exchange] = []
    detection = DetectionProcess(OLD, b"k" * 32, delivered.append, may_wait=True, journal=Said(), start=ChildDetector)
    text = "card 4111 1111 1111 1111"
    detection.await_ready()
    detection.reload(settings)
    number = 0
    while Snapshot([detection.samples]).get("llmsec_detection_reloads_total", result="accepted") == 0 or number % 50:
        detection.add(prompt(f"{number}", text))
        detection.tick()
        if number % 50 == 49:
            detection.drain()
        number += 1
    detection.add(prompt("last", text))
    detection.close()
    assert [exchange.exchange_id for exchange in delivered] == [*map(str, range(number)), "last"]
    assert all(exchange.findings for exchange in delivered)
    masked = ["4111" not in str(exchange.request.messages) for exchange in delivered]
    assert not masked[0]
    assert masked[-1]
    assert masked == sorted(masked)
