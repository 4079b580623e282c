"""The watcher of a run: made of the configuration, kept over restarts, and shielded, so that a fault of it costs no exchange."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llmsec_agent.config.schema import Config
from llmsec_analyzer.watch import saved
from llmsec_analyzer.watch.prices import PriceList, Prices, price_list
from llmsec_analyzer.watch.subjects import MAX_SUBJECTS, Subjects
from llmsec_analyzer.watch.watcher import Gauge, UpstreamLimit, Watcher, WatchSettings
from llmsec_tap.counters import Sample
from llmsec_tap.errors import where
from llmsec_tap.journal import Journal
from llmsec_tap.model import Exchange

FILE_NAME: Final = "watch.state"
# A subject takes 1.6 kB; a fifth of a run's memory is for all of them.
_CAP_FOR_EACH: Final = 8000
_SAVE_EVERY_S: Final = 300.0
# How the original design calls upstreams, and how records do.
_PROVIDERS: Final = {"azure_openai": "azure.ai.openai", "aws_bedrock": "aws.bedrock"}


@dataclass(frozen=True)
class WatchPlan:
    settings: WatchSettings
    prices: PriceList


def plan_watch(config: Config) -> WatchPlan:
    """Raises ConfigError where the price list is wrong."""
    security, limits = config.security, {}
    for name, backend in config.backends.items():
        rate = backend.rate_limiting
        if rate is not None:
            limits[_PROVIDERS.get(backend.type, backend.type)] = UpstreamLimit(name, rate.requests_per_minute, rate.tokens_per_minute)
    own = {rule.tenant: rule.rate_limit.requests_per_minute for rule in config.tenants.rules if rule.rate_limit is not None}
    return WatchPlan(
        WatchSettings(security.anomaly_detection, security.rate_limiting, own, limits), price_list(security.anomaly_detection.prices)
    )


class Watch:
    """`path`: where what is known is kept; None keeps nothing."""

    def __init__(
        self,
        plan: WatchPlan,
        journal: Journal,
        path: Path | None = None,
        *,
        memory_cap_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._journal = journal
        self._path = path
        self._clock = clock
        self._save_at = clock() + _SAVE_EVERY_S
        self._has_failed = False
        self._saving: saved.Saving | None = None
        self._faults = 0
        most = min(MAX_SUBJECTS, memory_cap_bytes // _CAP_FOR_EACH)
        subjects, problem = saved.load(path, most) if path is not None else (Subjects(most), "")
        if problem:
            journal.warning("watch_state", f"{FILE_NAME} is left aside, and baselines begin anew: {problem}")
        self._watcher = Watcher(plan.settings, Prices(plan.prices), subjects)

    @property
    def gauge(self) -> Gauge:
        """Of the exchange that was looked at last."""
        return self._watcher.gauge

    def look(self, exchange: Exchange) -> None:
        try:
            self._watcher.look(exchange)
        except Exception:  # noqa: BLE001 - a fault of ours costs a deviation, not the exchange
            self._faults += 1
            fault = sys.exc_info()[1]
            if self._faults == 1 and fault is not None:
                self._journal.warning("watch_failed", f"the watcher failed ({type(fault).__name__} at {where(fault)}); please report this")

    def tick(self) -> None:
        """Called about twice a second: a piece of what is known is written where it is time, so that no exchange waits for it."""
        if self._path is None:
            return
        if self._saving is None and self._clock() >= self._save_at:
            self._saving = saved.Saving(self._watcher.subjects, self._path)
        if self._saving is not None and self._try(self._saving.step):
            self._saving = None
            self._save_at = self._clock() + _SAVE_EVERY_S

    def save(self) -> None:
        """All of it, at the end."""
        path = self._path
        if path is not None:
            self._try(lambda: saved.save(self._watcher.subjects, path))

    def _try(self, write: Callable[[], bool | None]) -> bool:
        """Whether it is over, one way or the other."""
        try:
            is_done = write() is not False
        except OSError as fault:
            if not self._has_failed:
                self._journal.warning("watch_state", f"cannot write {FILE_NAME}: {fault.strerror or fault}")
            self._has_failed = True
            return True
        self._has_failed = self._has_failed and not is_done
        return is_done

    def samples(self) -> Iterable[Sample]:
        yield from self._watcher.samples()
        yield Sample("llmsec_watch_failures_total", self._faults)
