"""How far a live run is degraded: one level out of what fills up, with hysteresis, and the steps that each level asks for.

| level | detection | texts | connections |
|---|---|---|---|
| normal | everything | kept | all |
| reduced | without the model (`detection_without_model`) | kept | all |
| essential | secrets and unsafe output only (`detection_secrets_only`) | left out of what is kept (`content_degraded`); counts and findings stay | all |
| emergency | as essential | as essential | those that have not begun are left out (`tap_overload`): the queue and the memory watch do that at the same bounds |
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
# A level is left for the next better one when everything has stayed below this share of its threshold for so long.
_CALM_SHARE: Final = 0.9
_CALM_S: Final = 30.0


class Degradation:
    """`look` at the shares now and then; `level` is what they ask for. A step up is taken at once, a step down after calm, one at a time."""

    def __init__(self, journal: Journal, clock: Callable[[], float] = time.monotonic) -> None:
        self._journal = journal
        self._clock = clock
        self._shares: dict[str, float] = {}
        self._calm_since = clock()
        self.level = Level.NORMAL

    def look(self, shares: Mapping[str, float]) -> Level:
        """`shares`: of each resource of THRESHOLDS that is known, how much of its bound is used."""
        self._shares = dict(shares)
        wanted, resource = max((_asked(name, share), name) for name, share in shares.items())
        now = self._clock()
        if wanted > self.level:
            self._change(wanted, f"{resource} at {shares[resource]:.0%} of its bound", resource)
        if any(share >= _CALM_SHARE * THRESHOLDS[name][self.level - 1] for name, share in shares.items()) if self.level else True:
            self._calm_since = now
        elif now - self._calm_since >= _CALM_S:
            self._calm_since = now
            self._change(Level(self.level - 1), f"calm for {_CALM_S:.0f} s", None)
        return self.level

    def samples(self) -> Iterable[Sample]:
        yield Sample("llmsec_degradation_level", float(self.level))
        for resource, share in self._shares.items():
            yield Sample("llmsec_resource_used_ratio", share, (("resource", resource),))

    def _change(self, level: Level, reason: str, resource: str | None) -> None:
        names = self.level.name.lower(), level.name.lower()
        self._journal.warning(
            "degradation",
            f"degradation level {names[1]} (before: {names[0]}): {reason}",
            level=names[1],
            before=names[0],
            resource=resource,
        )
        self.level = level


def _asked(name: str, share: float) -> Level:
    return Level(sum(share >= threshold for threshold in THRESHOLDS[name]))


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
