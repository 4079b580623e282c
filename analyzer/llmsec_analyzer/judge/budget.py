"""How much time scanning may take, and what is left out when it takes more: first the model, then some exchanges, then all but secrets.

Two things ask for a step: the share of the time that passes (a setting), and the queue before the scanner (`pressure`), which
follows from how full it is. Degradation is immediate; recovery
happens only after the load has stayed well below the budget, so that the level does not swing.
"""

from __future__ import annotations

from collections.abc import Callable

FULL, WITHOUT_MODEL, SAMPLED, SECRETS_ONLY = range(4)
_WINDOW_S = 5.0
_CALM_SHARE = 0.5  # of the budget: below this for a whole window, one step up
_SAMPLE_EVERY = 4


class Budget:
    """`step` is where we are; `skips()` is asked once for each exchange. `pressure` is set from outside."""

    def __init__(self, share: float | None, clock: Callable[[], float]) -> None:
        self.share = share
        self._clock = clock
        self._since = clock()
        self._spent = 0.0
        self._count = 0
        self._own_step = FULL
        self.pressure = FULL

    @property
    def step(self) -> int:
        return max(self._own_step, self.pressure)

    @property
    def without_model(self) -> bool:
        return self.step >= WITHOUT_MODEL

    @property
    def lean(self) -> bool:
        return self.step >= SECRETS_ONLY

    def skips(self) -> bool:
        """Whether this exchange is left out: at step `SAMPLED` all but one in four are."""
        self._count += 1
        return self.step == SAMPLED and self._count % _SAMPLE_EVERY != 0

    def spent(self, seconds: float) -> None:
        if self.share is None:
            return
        self._spent += seconds
        passed = self._clock() - self._since
        over = self._spent > self.share * max(passed, _WINDOW_S)
        if over and self._own_step < SECRETS_ONLY:
            self._own_step += 1
        elif passed >= _WINDOW_S and self._spent < self.share * passed * _CALM_SHARE and self._own_step > FULL:
            self._own_step -= 1
        if over or passed >= _WINDOW_S:
            self._since, self._spent = self._clock(), 0.0
