"""Levels of degradation: up at once, down one at a time after calm, told once."""

from __future__ import annotations

import pytest

from llmsec_agent.degradation import THRESHOLDS, CPUShare, Degradation, Level
from support.journal import Said


class Time:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("shares", "level"),
    [
        ({"queue": 0.0, "memory": 0.5, "cpu": 0.5, "disk": 0.9}, Level.NORMAL),
        ({"queue": 0.5, "memory": 0.0}, Level.REDUCED),
        ({"queue": 0.0, "memory": 0.85}, Level.ESSENTIAL),
        ({"queue": 1.0, "memory": 0.0}, Level.EMERGENCY),
        ({"cpu": 1.0, "queue": 0.0}, Level.ESSENTIAL),
        ({"disk": 1.0, "queue": 0.0}, Level.ESSENTIAL),
        ({"queue": 5.0, "memory": 0.75}, Level.EMERGENCY),
    ],
)
def test_the_worst_resource_decides(shares: dict[str, float], level: Level) -> None:
    assert Degradation(Said(), Time()).look(shares) == level


def test_a_step_up_is_taken_at_once_and_a_step_down_after_calm_one_at_a_time() -> None:
    clock, journal = Time(), Said()
    degradation = Degradation(journal, clock)
    assert degradation.look({"queue": 1.2}) == Level.EMERGENCY
    seen = []
    for _ in range(200):
        clock.now += 0.5
        seen.append(degradation.look({"queue": 0.1}))
    changes = [number / 2 for number in range(1, 200) if seen[number] != seen[number - 1]]
    assert [int(level) for level in dict.fromkeys(seen)] == [3, 2, 1, 0]
    assert all(9 <= later - earlier <= 11 for earlier, later in zip([0, *changes], changes, strict=False))
    assert [event.facts["level"] for event in journal.events] == ["emergency", "essential", "reduced", "normal"]


def test_a_load_that_swings_about_a_threshold_changes_the_level_once() -> None:
    clock, journal = Time(), Said()
    degradation = Degradation(journal, clock)
    for number in range(1_000):
        clock.now += 0.5
        degradation.look({"queue": 0.52 if number % 4 == 0 else 0.46})
    assert degradation.level == Level.REDUCED
    assert len(journal.events) == 1


def test_traffic_costs_no_texts_and_a_full_disk_does() -> None:
    degradation = Degradation(Said(), Time())
    degradation.look({"queue": 2.0, "memory": 2.0, "cpu": 1.0, "disk": 0.5})
    assert degradation.level_of("disk") == Level.NORMAL
    degradation.look({"queue": 0.0, "memory": 0.0, "cpu": 0.0, "disk": 0.99})
    assert degradation.level_of("disk") == Level.ESSENTIAL


def test_every_threshold_grows_with_its_level() -> None:
    for bounds in THRESHOLDS.values():
        assert list(bounds) == sorted(bounds)


def test_a_busy_core_is_seen_within_seconds_and_a_short_burst_is_not() -> None:
    clock = Time()
    used = Time()
    share = CPUShare(used, clock)
    for _ in range(2):
        clock.now += 0.5
        used.now += 0.5
        share.look()
    assert share.look() < 0.2
    for _ in range(100):
        clock.now += 0.5
        used.now += 0.5
        share.look()
    assert share.look() > 0.98
