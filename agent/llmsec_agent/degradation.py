"""How far a live run is degraded: one level out of what fills up, with hysteresis, and the steps that each level asks for.

| level | detection | connections |
|---|---|---|
| normal | everything | all |
| reduced | without the model (`detection_without_model`) | all |
| essential | secrets and unsafe output only (`detection_secrets_only`) | all |
| emergency | as essential | those that have not begun are left out (`tap_overload`): the queue and the memory watch do that at the same bounds |

Where it is the disk that asks for essential, texts are left out of what is kept (`content_degraded`); counts and findings stay. A flood of
traffic must not cost anybody's texts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from enum import IntEnum
from typing import Final

from llmsec_tap.counters import Sample
from llmsec_tap.journal import Journal


class Level(IntEnum):
    NORMAL = 0
    REDUCED = 1
    ESSENTIAL = 2
    EMERGENCY = 3


_NEVER: Final = float("inf")
# Shares of its bound at which a resource asks for reduced, essential, emergency. The queue's bound is where it leaves out connections
# that have not begun, memory's where it begins none above three quarters of the cap. A busy core or a full disk alone is no emergency.
THRESHOLDS: Final[Mapping[str, tuple[float, float, float]]] = {
    "queue": (0.5, 0.75, 1.0),
    "memory": (0.7, 0.85, 1.0),
    "cpu": (0.9, 0.98, _NEVER),
    "disk": (0.95, 0.98, _NEVER),
}
# A level is left for the next better one when the resource has stayed below this share of its threshold for so long.
_CALM_SHARE: Final = 0.9
_CALM_S: Final = 10.0


class _Resource:
    """One resource's level: a step up is taken at once, a step down after calm, one at a time."""

    def __init__(self, name: str, now: float) -> None:
        self._thresholds = THRESHOLDS[name]
        self._calm_since = now
        self.share = 0.0
        self.level = Level.NORMAL

    def look(self, share: float, now: float) -> None:
        self.share = share
        asked = Level(sum(share >= threshold for threshold in self._thresholds))
        if asked >= self.level or share >= _CALM_SHARE * self._thresholds[self.level - 1]:
            self.level = max(self.level, asked)
            self._calm_since = now
        elif now - self._calm_since >= _CALM_S:
            self.level = Level(self.level - 1)
            self._calm_since = now


class Degradation:
    """`look` at the shares now and then; `level` is the worst of what they ask for."""

    def __init__(self, journal: Journal, clock: Callable[[], float] = time.monotonic) -> None:
        self._journal = journal
        self._clock = clock
        self._resources: dict[str, _Resource] = {}
        self.level = Level.NORMAL

    def look(self, shares: Mapping[str, float]) -> Level:
        """`shares`: of each resource of THRESHOLDS that is known, how much of its bound is used."""
        now = self._clock()
        for name, share in shares.items():
            self._resources.setdefault(name, _Resource(name, now)).look(share, now)
        worst = max(self._resources, key=lambda name: self._resources[name].level)
        level = self._resources[worst].level
        if level != self.level:
            names = level.name.lower(), self.level.name.lower()
            reason = f"{worst} at {self._resources[worst].share:.0%} of its bound" if level > self.level else f"calm for {_CALM_S:.0f} s"
            self._journal.warning(
                "degradation",
                f"degradation level {names[0]} (before: {names[1]}): {reason}",
                level=names[0],
                before=names[1],
                resource=worst,
            )
            self.level = level
        return level

    def level_of(self, resource: str) -> Level:
        found = self._resources.get(resource)
        return found.level if found is not None else Level.NORMAL

    def samples(self) -> Iterable[Sample]:
        yield Sample("llmsec_degradation_level", float(self.level))
        for name, resource in self._resources.items():
            yield Sample("llmsec_resource_used_ratio", resource.share, (("resource", name),))


class CPUShare:
    """The share of one core that this process used lately: an average that forgets with a time of some seconds."""

    _FORGET_S: Final = 10.0

    def __init__(self, used_s: Callable[[], float] = time.process_time, clock: Callable[[], float] = time.monotonic) -> None:
        self._used_s, self._clock = used_s, clock
        self._last = used_s(), clock()
        self._share = 0.0

    def look(self) -> float:
        used, now = self._used_s(), self._clock()
        passed = now - self._last[1]
        if passed > 0:
            weight = min(1.0, passed / self._FORGET_S)
            self._share += weight * ((used - self._last[0]) / passed - self._share)
            self._last = used, now
        return self._share
