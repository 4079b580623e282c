"""One run, of a replay as of a capture: exchanges from a source, through detection, to the sinks, and the counts of it all.

Order at the end, whatever ends it: the source has ended, what was under way is decoded, detection has said what it knows, the lanes
are closed. Each of these has a share of the grace once somebody wants the run to end (stop.py).
"""

from __future__ import annotations

import gc
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol

from llmsec_agent.alerts_lane import Alerts
from llmsec_agent.events import Event, Feed
from llmsec_agent.key_use import KeyUse
from llmsec_agent.lane import Lane, Sink
from llmsec_agent.shares import Shares
from llmsec_agent.stop import Stop
from llmsec_agent.tenants.directory import RemoteDirectory
from llmsec_agent.tenants.policy import Policies
from llmsec_agent.tool_lists import ToolLists
from llmsec_agent.traffic import Traffic
from llmsec_agent.watching import Watch
from llmsec_analyzer.alerts.alert import Alert
from llmsec_analyzer.settings import DetectionSettings
from llmsec_analyzer.watch.watcher import Gauge
from llmsec_tap.counters import Sample, Samples, Snapshot, by_label
from llmsec_tap.dialects.draft import DeltaListener
from llmsec_tap.errors import where
from llmsec_tap.exchange.assembly import REPLAYED, ExchangeAssembly, Origin
from llmsec_tap.identity.credentials import fingerprinter
from llmsec_tap.identity.whose import WhoseSettings
from llmsec_tap.journal import Journal
from llmsec_tap.memory import peak_bytes, resident_bytes
from llmsec_tap.model import AnomalyCount, Exchange, Finding
from llmsec_tap.pipeline import Pipeline, Share
from llmsec_tap.tokens import TokenEstimator
from llmsec_tap.wire.tls.key_log import KeyLog


class Detection(Protocol):
    """What looks at the exchanges on their way. It delivers each one it was given, in their order, now or later."""

    least_pressure: int  # what is left out of every exchange at least (judge/budget.py)

    @property
    def failed(self) -> bool: ...

    @property
    def is_awaited(self) -> bool:
        """Something is being looked at that is wanted at once."""

    def ask(self, exchange: Exchange) -> None:
        """Look at a request whose answer is still out."""

    def listener(self, assembly: ExchangeAssembly) -> DeltaListener | None: ...

    def add(self, exchange: Exchange) -> None: ...

    def tick(self) -> None: ...

    def drain(self) -> None: ...

    def hurry(self) -> None: ...

    def reload(self, settings: DetectionSettings) -> None: ...

    def close(self) -> None: ...

    def samples(self) -> Iterable[Sample]: ...

    def summary(self) -> list[str]: ...


class Source(Protocol):
    """Where traffic comes from. `run` returns when it has ended or was stopped; it calls `run.step` often. Raises SourceError."""

    def run(self, run: Run) -> None: ...

    def samples(self) -> Iterable[Sample]: ...


# Alerts that wait for a slow disk.
_ALERT_BYTES: Final = 4 << 20

Deliver = Callable[[Exchange], None]
OnEarly = Callable[[Finding], None]


class Run:
    """Make it once no right is left that it should not have: it starts threads. `store_fault` and `stop` decide the exit code."""

    def __init__(
        self,
        journal: Journal,
        stop: Stop,
        *,
        key: bytes,
        sinks: Sequence[Sink],
        shares: Shares,
        memory_cap_bytes: int,
        may_wait: bool,
        follows: bool = False,
        ports: frozenset[int] | None = None,
        content: bool = True,
        estimator: TokenEstimator | None = None,
        traffic: Traffic | None = None,
        origin: Origin = REPLAYED,
        whose: WhoseSettings | None = None,
        key_use: KeyUse | None = None,
        watch: Watch | None = None,
        alerts: Alerts | None = None,
        directory: RemoteDirectory | None = None,
        policies: Policies | None = None,
        share: Share | None = None,
        keys: KeyLog | None = None,
        start_detection: Callable[[Deliver, OnEarly], Detection] | None = None,
    ) -> None:
        """`may_wait`: the source can (files), or cannot (live). `follows`: it may be live all the same, so nothing is kept for company.

        `key_use` watches who uses which key, `watch` what deviates, `alerts` decides what somebody is told. `directory` knows whose keys are, `policies` what holds for a tenant. `keys` opens TLS in packets.
        `sinks` take each exchange in their order.
        """
        self._follows = follows
        self.journal = journal
        self.stop = stop
        self._content = content
        self._key_use = key_use
        self._tool_lists = ToolLists()
        self._watch = watch
        self.alerts = alerts
        self._policies = policies or Policies()
        self.keeps_texts = True  # degradation leaves them out
        self.traffic = traffic
        self._defects: Counter[str] = Counter()
        self._completeness: Counter[str] = Counter()
        self.lanes = [Lane(sink, journal, stop, max_bytes=shares.lane, may_wait=may_wait) for sink in sinks]
        self._event_lanes = [lane for lane in self.lanes if lane.sink.takes_events]
        self._record_lanes = [lane for lane in self.lanes if not lane.sink.takes_events]
        self._alert_lane: Lane | None = None
        if alerts is not None and alerts.sink is not None:
            self._alert_lane = Lane(alerts.sink, journal, stop, max_bytes=min(shares.lane, _ALERT_BYTES), may_wait=may_wait)
            self.lanes.append(self._alert_lane)
        self.events = Feed(self._offer_event, content=content) if self._event_lanes else None
        self.detection = start_detection(self._deliver, self._early) if start_detection is not None else None
        if self.detection is not None:
            stop.on_request(self.detection.hurry)
        self.fingerprint = fingerprinter(key)
        self.pipeline = Pipeline(
            self.add,
            self.fingerprint,
            ports=ports,
            on_defect=self._defect,
            listener_factory=self.detection.listener if self.detection is not None else None,
            on_request=self._request if self.events is not None or not may_wait or follows else None,
            estimate=estimator.estimate if estimator is not None else None,
            memory_cap_bytes=memory_cap_bytes,
            origin=origin,
            whose=whose,
            directory=directory,
            share=share,
            keys=keys,
        )
        self._samples: list[Samples] = [self.samples, self.pipeline.samples, *(lane.samples for lane in self.lanes)]
        if self.detection is not None:
            self._samples.append(self.detection.samples)
        if traffic is not None:
            self._samples.append(traffic.samples)
        if watch is not None:
            self._samples.append(watch.samples)
        if alerts is not None:
            self._samples.append(alerts.samples)
        if directory is not None:
            self._samples.append(directory.samples)

    def run(self, source: Source) -> None:
        """To the source's end. Raises what it raises; everything before that is delivered."""
        self._samples.append(source.samples)
        # Exchanges free themselves (their cycles are cut), so collections of the garbage collector find nothing: make them rare.
        gc.freeze()
        gc.set_threshold(50_000, 50, 100)
        try:
            source.run(self)
        finally:
            self.pipeline.close()
            if self.detection is not None:
                self.detection.close()
            self.look_for_losses()
            if self._watch is not None:
                self._watch.save()
            if self.alerts is not None:
                self._tell(self.alerts.close())
            for lane in self.lanes:
                lane.close()

    @property
    def is_awaited(self) -> bool:
        """Detection looks at something that is wanted at once: `step` should be called again soon."""
        return self.detection is not None and self.detection.is_awaited

    def step(self) -> None:
        """Called often: what was just decoded goes to detection, what that knows comes back."""
        if self.detection is not None:
            self.detection.tick()

    def look_for_losses(self) -> None:
        """Call it about twice a second: whoever takes events is told."""
        if self.events is not None:
            self.events.look(self.snapshot())
        if self._watch is not None:
            self._watch.tick()
        if self.alerts is not None:
            self._tell(self.alerts.tick())

    @property
    def lost(self) -> bool:
        """A sink did not take everything."""
        return any(lane.lost for lane in self.lanes)

    # --- counts -------------------------------------------------------------------------------------------------------

    def samples(self) -> Iterable[Sample]:
        yield from by_label("llmsec_decoder_failures_total", "decoder", self._defects)
        yield from by_label("llmsec_exchanges_delivered_total", "completeness", self._completeness)
        yield Sample("process_resident_memory_bytes", resident_bytes())
        yield Sample("llmsec_peak_resident_memory_bytes", peak_bytes())

    def snapshot_samples(self) -> list[Sample]:
        """What `snapshot` is made of, for another process."""
        return [sample for samples in self._samples for sample in samples()]

    def snapshot(self) -> Snapshot:
        return Snapshot(self._samples)

    # --- an exchange's way --------------------------------------------------------------------------------------------

    def add(self, exchange: Exchange) -> None:
        """A whole exchange, on the thread that decodes."""
        if self._key_use is not None:
            self._key_use.look(exchange)
        self._tool_lists.look(exchange)
        if self.detection is not None:
            self.detection.add(exchange)
            if self._follows:
                self.detection.drain()
        else:
            self._deliver(exchange)

    def _request(self, exchange: Exchange) -> None:
        if self.events is not None:
            self.events.started(exchange)
        if self.alerts is not None:
            self.alerts.request(exchange)
        if self.detection is not None:
            self.detection.ask(exchange)
            if self._follows:
                self.detection.drain()

    def _early(self, finding: Finding) -> None:
        if self.events is not None:
            self.events.found(finding)
        if self.alerts is not None:
            self._tell(self.alerts.early(finding))

    def _tell(self, alerts: Iterable[Alert]) -> None:
        for alert in alerts:
            self._send(alert)
            if self.events is not None:
                self.events.alerted(alert)

    def _send(self, alert: Alert) -> None:
        if self._alert_lane is not None:
            self._alert_lane.offer(alert)

    def _offer_event(self, event: Event) -> None:
        for lane in self._event_lanes:
            lane.offer(event)

    def _deliver(self, exchange: Exchange) -> None:
        self._completeness[exchange.completeness] += 1
        if self._watch is not None:
            self._watch.look(exchange)
        if self.traffic is not None:
            self.traffic.observe(exchange)
        if not self._content or self._is_bare(exchange):
            exchange = exchange.without_content()
        elif not self.keeps_texts and exchange.provider is not None:
            exchange = exchange.without_content()
            exchange.anomalies = [*exchange.anomalies, AnomalyCount(name="content_degraded", count=1)]
        alerts = self._alerted(exchange)
        for lane in self._record_lanes:
            lane.offer(exchange)
        if self.events is not None:
            self.events.ended(exchange, alerts)

    def _alerted(self, exchange: Exchange) -> list[Alert]:
        """What somebody is told of it, which is on its way before the exchange is."""
        if self.alerts is None:
            return []
        gauge = self._watch.gauge if self._watch is not None else Gauge()
        alerts = self.alerts.look(exchange, cost_multiplier=gauge.cost_multiplier, error_rate_5m=gauge.error_rate_5m)
        for alert in alerts:
            self._send(alert)
        return alerts

    def _is_bare(self, exchange: Exchange) -> bool:
        """Its tenant's texts are not kept, or are to be masked and nobody looks at them."""
        content = self._policies.of(exchange).content
        return content == "none" or (content == "redacted" and self.detection is None)

    def _defect(self, decoder: str) -> None:
        """A decoder of ours failed: report it once, with where; never with what it read."""
        fault = sys.exc_info()[1]
        if decoder not in self._defects and fault is not None:
            self.journal.warning(
                "decoder_failed",
                f"the {decoder} decoder failed ({type(fault).__name__} at {where(fault)}); please report this",
                decoder=decoder,
                fault=type(fault).__name__,
                where=where(fault),
            )
        self._defects[decoder] += 1
