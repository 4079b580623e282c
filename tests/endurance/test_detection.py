"""Detection over hours, without the hours: it dies again and again and comes back, nothing is lost, and nothing grows."""

from __future__ import annotations

import gc
from collections import Counter
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

from llmsec_analyzer.settings import DetectionSettings
from llmsec_analyzer.worker.client import DetectionProcess
from llmsec_tap.counters import Snapshot
from llmsec_tap.model import Exchange, Message, Part, Request
from support.detectors import Detectors, FakeClock, FakeDetector
from support.journal import Said

EXCHANGES = 100_000
DEATHS = 20
STEP_S = 0.3  # in all more than eight hours
# Each deadly text comes four times in a row: twice it ends the process, then it is set aside.
DEADLY = EXCHANGES // (2 * DEATHS)

_NOT_ITS_OWN = (type, ModuleType, FunctionType, BuiltinFunctionType, Said, Detectors, FakeDetector)


def prompt(number: int, text: str) -> Exchange:
    """From an address of its own, with a key of its own."""
    return Exchange(
        exchange_id=f"e{number}",
        client=f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}:1",
        server="s:1",
        provider="openai",
        api_key_fingerprint=f"k{number}",
        request=Request(messages=[Message(role="user", parts=[Part(type="text", content=text)])]),
    )


def held(root: Any) -> int:
    """The objects that hang on it, the program itself left out."""
    seen = {id(root)}
    waiting = [root]
    while waiting:
        for found in gc.get_referents(waiting.pop()):
            if id(found) not in seen and not isinstance(found, _NOT_ITS_OWN):
                seen.add(id(found))
                waiting.append(found)
    return len(seen)


def test_twenty_deaths_and_a_hundred_thousand_exchanges():
    clock, detectors, journal = FakeClock(), Detectors(), Said()
    order, marks = [], Counter()

    def deliver(exchange: Exchange) -> None:
        order.append(int(exchange.exchange_id[1:]))
        marks.update(anomaly.name for anomaly in exchange.anomalies)

    detection = DetectionProcess(
        DetectionSettings(plugins=False), b"k" * 32, deliver, may_wait=False, journal=journal, start=detectors, clock=clock
    )
    sizes = []
    most_waiting = 0
    for number in range(EXCHANGES):
        clock.now += STEP_S
        text = f"poison {number // DEADLY // 4}" if number % DEADLY == 500 else f"text {number}"
        if number % 5 == 0:
            listener = detection.listener(None)  # type: ignore[arg-type]
            listener.delta(0, "text", 0, "an answer")
            detection.tick()
            listener.finished(exchange := prompt(number, text))
            detection.add(exchange)
        else:
            detection.add(prompt(number, text))
        if number % 8 == 7:
            detection.tick()
            detectors.work()
            detection.tick()
            most_waiting = max(most_waiting, number + 1 - len(order))
        if number % 10_000 == 9_999:
            sizes.append(held(detection))
    detection.tick()
    detectors.work()
    detection.tick()
    counts = Snapshot([detection.samples])
    for detector in detectors.all:
        detector.kill()

    assert order == list(range(EXCHANGES)), "all delivered, in their order"
    assert counts.get("llmsec_detection_up") == 1, "never off for good"
    assert counts.get("llmsec_detection_deaths_total") == DEATHS
    assert counts.get("llmsec_detection_set_aside_texts_total") == DEATHS // 2
    assert sum(event.name == "detection_text_set_aside" for event in journal.events) == DEATHS // 2
    assert marks == {"detection_fault": DEATHS, "detection_set_aside": DEATHS}
    assert most_waiting < 100
    assert max(sizes) < 400_000
    assert sizes[-1] < 1.2 * max(sizes[:5]), "nothing grows"


def test_ever_new_deadly_texts_cost_pauses_and_never_the_rest():
    clock, detectors, journal = FakeClock(), Detectors(), Said()
    marks: list[list[str]] = []
    detection = DetectionProcess(
        DetectionSettings(plugins=False),
        b"k" * 32,
        lambda exchange: marks.append([anomaly.name for anomaly in exchange.anomalies]),
        may_wait=False,
        journal=journal,
        start=detectors,
        clock=clock,
    )
    deaths = 0
    number = 0
    while deaths < DEATHS:
        clock.now += 10.0
        number += 1
        detection.add(prompt(number, f"poison {number}" if number % 10 == 0 else f"text {number}"))
        for _ in range(3):
            detection.tick()
            detectors.work()
        deaths = Snapshot([detection.samples]).get("llmsec_detection_deaths_total")
        assert number < 10_000
    clock.now += 600.0
    detection.add(prompt(number + 1, "after"))
    for _ in range(3):
        detection.tick()
        detectors.work()
    detection.tick()
    for detector in detectors.all:
        detector.kill()
    assert len(marks) == number + 1
    assert marks[-1] == []
    assert clock.now - 1000.0 > 2 * 3600, "after three in an hour, each costs a pause"
    assert sum(mark == ["detection_fault"] for mark in marks) == DEATHS
