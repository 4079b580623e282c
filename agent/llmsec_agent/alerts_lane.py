"""Alerts of a run: decided on the decoding thread, written to the outbox by a lane of its own, so that no disk holds up an exchange.

A request is judged while its answer is out (`request`, `early`), an exchange when it is delivered (`look`). A fault of ours here costs an
alert, never an exchange.
"""

from __future__ import annotations

import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from llmsec_agent.config.schema import AlertRule, Config
from llmsec_agent.outbox import FOLDER, Outbox, line_of
from llmsec_agent.tenants.policy import Policies
from llmsec_analyzer.alerts.alert import Alert
from llmsec_analyzer.alerts.decide import Decider
from llmsec_analyzer.alerts.rules import NS_PER_S, Rule, compile_condition, threshold_rule, wildcards
from llmsec_analyzer.alerts.silences import Silence, Silences, parse_silences
from llmsec_analyzer.yaml_files import read_text
from llmsec_tap.counters import Sample
from llmsec_tap.errors import ConfigError, StorageError, where
from llmsec_tap.journal import Journal
from llmsec_tap.model import Exchange, Finding, Request, Response
from llmsec_tap.storage import audit
from llmsec_tap.storage.store import Store

SILENCES_NAME: Final = f"{FOLDER}/silences.yaml"
# Requests whose answers are out; beyond them a request's alert comes with its answer.
_MAX_REQUESTS: Final = 8_192
_MAX_FINDINGS: Final = 64
_TRIM_EVERY_S: Final = 600.0


@dataclass(frozen=True)
class AlertPlan:
    """What the configuration says of alerts, without where they go."""

    rules: tuple[Rule, ...]
    routes: tuple[tuple[Any, tuple[str, ...]], ...] = ()  # patterns of tenants, and their channels
    previews: bool = False
    keep_days: float | None = None  # what is to be sent, and what was

    @property
    def may_be_early(self) -> bool:
        return any(rule.is_early for rule in self.rules)

    def route(self, tenant: str | None) -> tuple[str, ...] | None:
        return next((channels for pattern, channels in self.routes if pattern.fullmatch(tenant or "")), None)


class AlertSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Of the configuration, without secrets: it goes to the decoder when the file was read again."""

    rules: tuple[AlertRule, ...] = ()
    tenant_channels: dict[str, tuple[str, ...]] = {}
    channels: tuple[str, ...] = ()  # all that are given
    has_thresholds: bool = False
    content: bool = False
    keep_days: float | None = None


def alert_settings(config: Config) -> AlertSettings:
    alerting = config.alerting
    known = alerting.channels
    return AlertSettings(
        rules=alerting.rules,
        tenant_channels={tenant: tuple(channels) for tenant, channels in alerting.tenant_channels.items()},
        channels=tuple(name for name in known.__struct_fields__ if getattr(known, name)),
        has_thresholds=config.storage.postgres is not None or any(rule.alert_threshold is not None for rule in config.tenants.rules),
        content=alerting.content and config.storage.content != "none",
        keep_days=config.storage.retention.alerts.days,
    )


def plan_alerts(settings: AlertSettings) -> AlertPlan:
    """The conditions were checked with the rest of the file."""
    rules = [
        Rule(
            name=given.name,
            condition=compile_condition(given.condition),
            written=given.condition,
            priority=given.priority,
            channels=tuple(given.channels),
            dedup=given.dedup,
            window_ns=int(given.window * NS_PER_S),
            per_minute=given.max_per_minute,
            for_tenants=wildcards(given.for_tenants),
        )
        for given in settings.rules
    ]
    if settings.has_thresholds:
        rules.append(threshold_rule(settings.channels))
    routes = tuple((wildcards([tenant])[0], channels) for tenant, channels in settings.tenant_channels.items())
    return AlertPlan(tuple(rules), routes, settings.content, settings.keep_days)


class AlertsSink:
    """To the outbox and the audit log of a store. `outbox` None: only decided, not sent. `poke` wakes who sends, at once and without fail."""

    name = "alerts"
    takes_events = False

    def __init__(
        self, store: Store, journal: Journal, actor: dict[str, Any], outbox: Outbox | None, poke: Callable[[], None] | None = None
    ) -> None:
        self._store = store
        self._journal = journal
        self._actor = actor
        self._outbox = outbox
        self._poke = poke
        self._is_audited = True
        self._trim_at = 0.0

    def encode(self, alert: Alert) -> tuple[tuple[bytes, Alert], int]:
        line = line_of(alert)
        return (line, msgspec.structs.replace(alert, findings=[], deviations=[])), 2 * len(line)

    def write(self, items: Sequence[tuple[bytes, Alert]]) -> int:
        if self._outbox is not None:
            self._outbox.append([line for line, _ in items])
            if self._poke is not None:
                self._poke()
        self._audit([alert for _, alert in items])
        return len(items)

    def _audit(self, alerts: Sequence[Alert]) -> None:
        """Who is told waits for no log, and is not told twice because of one."""
        try:
            audit.append(self._store, [("alert", facts_of(alert)) for alert in alerts], self._actor)
            self._is_audited = True
        except StorageError as fault:
            if self._is_audited:
                self._journal.warning("not_audited", f"not in the audit log: {fault}")
            self._is_audited = False

    def tick(self) -> None:
        if self._outbox is not None and time.monotonic() >= self._trim_at:
            self._trim_at = time.monotonic() + _TRIM_EVERY_S
            self._outbox.trim()

    def close(self) -> None:
        """Nothing is held back."""

    def samples(self) -> Iterable[Sample]:
        if self._outbox is not None:
            yield Sample("llmsec_alert_outbox_files_left_out_total", self._outbox.left_out)


def facts_of(alert: Alert) -> dict[str, Any]:
    names = ("alert_id", "rule", "priority", "state", "dedup_key", "count", "exchange_id", "tenant", "channels")
    return {name: getattr(alert, name) for name in names}


class Alerts:
    """What a run asks. `clock` gives the time of a live run, epoch nanoseconds; without, time is the capture's.

    `root`: the store's folder, for silences; `outbox`: what was told before, by an earlier run and by other decoders.
    """

    def __init__(
        self,
        plan: AlertPlan,
        journal: Journal,
        *,
        policies: Policies | None = None,
        sink: AlertsSink | None = None,
        root: Path | None = None,
        outbox: Outbox | None = None,
        clock: Callable[[], int] | None = None,
    ) -> None:
        policies = policies or Policies()
        self._decider = Decider(
            plan.rules, threshold=lambda exchange: policies.of(exchange).alert_threshold, route=plan.route, previews=plan.previews
        )
        self._may_be_early = plan.may_be_early
        self._journal = journal
        self._root = root
        self._outbox = outbox
        self._clock = clock
        self._requests: OrderedDict[str, tuple[Exchange, list[Finding]]] = OrderedDict()
        self._silences_are: tuple[int, int] | None = None
        self._has_outbox_failed = False
        self._faults = 0
        self.sink = sink
        self._look_at_files()

    def reload(self, plan: AlertPlan) -> None:
        self._decider.reload(plan.rules, route=plan.route, previews=plan.previews)
        self._may_be_early = plan.may_be_early

    def request(self, exchange: Exchange) -> None:
        """It is whole, and its answer is out."""
        if exchange.provider is None or not self._may_be_early:
            return
        # Without texts: it is kept until the answer has ended.
        bare = msgspec.structs.replace(exchange, request=Request(), response=Response(), input_text=None, other_texts=[], tags={})
        self._requests[exchange.exchange_id] = bare, []
        if len(self._requests) > _MAX_REQUESTS:
            self._requests.popitem(last=False)

    def early(self, finding: Finding) -> list[Alert]:
        known = self._requests.get(finding.exchange_id)
        if known is None or finding.suppressed is not None or len(known[1]) >= _MAX_FINDINGS:
            return []
        exchange, findings = known
        if any(finding.finding_id == other.finding_id for other in findings):
            return []
        findings.append(finding)
        at_ns = self._at(exchange)
        return self._guarded(lambda: self._decider.early(exchange, findings, at_ns, analysis_ms=self._since(exchange, at_ns)))

    def look(self, exchange: Exchange, *, cost_multiplier: float | None = None, error_rate_5m: float | None = None) -> list[Alert]:
        """Sets `alerts` of the exchange."""
        self._requests.pop(exchange.exchange_id, None)
        at_ns = self._at(exchange)
        return self._guarded(
            lambda: self._decider.look(
                exchange,
                at_ns,
                cost_multiplier=cost_multiplier,
                error_rate_5m=error_rate_5m,
                analysis_ms=self._since(exchange, at_ns),
            )
        )

    def tick(self) -> list[Alert]:
        """Call it about twice a second."""
        self._look_at_files()
        clock = self._clock
        return self._guarded(lambda: self._decider.advance(clock())) if clock is not None else []

    def close(self) -> list[Alert]:
        return self._guarded(self._decider.close)

    def samples(self) -> Iterable[Sample]:
        yield from self._decider.samples()
        yield Sample("llmsec_alert_failures_total", self._faults)

    def _at(self, exchange: Exchange) -> int:
        return self._clock() if self._clock is not None else exchange.ended_ns or exchange.started_ns or 0

    def _since(self, exchange: Exchange, at_ns: int) -> float | None:
        """Milliseconds since its last byte."""
        return round((at_ns - exchange.ended_ns) / 1e6, 3) if self._clock is not None and exchange.ended_ns else None

    def _guarded(self, decide: Callable[[], list[Alert]]) -> list[Alert]:
        try:
            return decide()
        except Exception:  # noqa: BLE001 - a fault of ours costs an alert, not the exchange
            self._faults += 1
            fault = sys.exc_info()[1]
            if self._faults == 1 and fault is not None:
                text = f"deciding about alerts failed ({type(fault).__name__} at {where(fault)}); please report this"
                self._journal.error("alerts_failed", text)
            return []

    # --- what others wrote into the store's folder ------------------------------------------------------------------------

    def _look_at_files(self) -> None:
        if self._outbox is not None:
            try:
                now_ns = self._clock() if self._clock is not None else 0
                for alert in self._outbox.read_new():
                    self._decider.adopt(alert, now_ns)
                self._has_outbox_failed = False
            except OSError as fault:
                if not self._has_outbox_failed:
                    self._journal.warning("alerts_outbox", f"what was told before is not known: {FOLDER}: {fault.strerror or fault}")
                self._has_outbox_failed = True
        if self._root is None:
            return
        path = self._root / SILENCES_NAME
        try:
            found = path.stat()
        except OSError:
            self._silences_are, self._decider.silences = None, Silences()
            return
        seen = found.st_mtime_ns, found.st_size
        if seen != self._silences_are:
            self._silences_are = seen
            try:
                self._decider.silences = Silences(read_silences(path))
            except ConfigError as fault:
                self._journal.error("silences_refused", f"{fault}; the silences before it stay in force")


def read_silences(path: Path) -> list[Silence]:
    """Raises ConfigError with its lines."""
    return parse_silences(read_text(path), str(path))
