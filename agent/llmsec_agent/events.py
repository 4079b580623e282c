"""What happens in a run, as it happens, for sinks that do not wait for whole exchanges: `--format events` (docs/formats/events.md)."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec

from llmsec_analyzer.alerts.alert import Alert
from llmsec_tap.counters import Snapshot
from llmsec_tap.model import Deviation, Exchange, Finding, Process

# What is lost before or after decoding; each says it on the record that it touched, where there is one.
_LOSSES: Final = (
    "llmsec_kernel_lost_records_total",
    "llmsec_queue_left_out_records_total",
    "llmsec_packets_dropped_total",
    "llmsec_shed_connections_total",
    "llmsec_store_lost_rows_total",
    "llmsec_sink_dropped_records_total",
)
# Exchanges that have not ended and of which something was said; beyond them a finding may be said twice.
_MAX_OPEN: Final = 65_536


class Started(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="exchange_started"):
    """The last byte of a request is in."""

    ts_ns: int
    exchange_id: str
    client: str
    server: str
    process: Process | None
    provider: str | None
    api: str | None
    request_model: str | None
    tenant: str | None


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """A finding is known: of a request while its answer is out, of an answer while it streams, or with the whole exchange."""

    ts_ns: int
    finding: Finding


class Ended(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="exchange"):
    """The whole record."""

    ts_ns: int
    exchange_id: str
    exchange: Exchange


class Deviated(msgspec.Struct, frozen=True, kw_only=True):
    """The exchange that ended showed it."""

    ts_ns: int
    exchange_id: str
    deviation: Deviation


class Alerted(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody is told of it, as the configuration's rules say."""

    ts_ns: int
    alert: Alert


class Lost(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="loss"):
    """`count` more of `what` (a counter of docs/metrics.md) since it was said last."""

    ts_ns: int
    what: str
    count: int
    exchange_id: None = None


Event = Started | Found | Ended | Deviated | Alerted | Lost

_encoder = msgspec.json.Encoder()


def to_line(event: Event) -> bytes:
    """One line of JSON, without the newline."""
    if isinstance(event, Deviated):
        head: dict[str, Any] = {"event": "deviation", "ts_ns": event.ts_ns, "exchange_id": event.exchange_id}
        return _encoder.encode(head | msgspec.structs.asdict(event.deviation))
    if isinstance(event, Alerted):
        return _encoder.encode({"event": "alert", "ts_ns": event.ts_ns} | msgspec.structs.asdict(event.alert))
    if not isinstance(event, Found):
        return _encoder.encode(event)
    finding = event.finding
    fields: dict[str, Any] = {"event": "finding", "ts_ns": event.ts_ns, "exchange_id": finding.exchange_id}
    return _encoder.encode(fields | msgspec.structs.asdict(finding))


class Feed:
    """Makes the events of a run and hands them to `offer`. Each finding is said once; with `content` off, without its surroundings."""

    def __init__(self, offer: Callable[[Event], None], *, content: bool) -> None:
        self._offer = offer
        self._content = content
        self._said: OrderedDict[str, set[str]] = OrderedDict()  # exchange -> findings
        self._lost: dict[str, int] = {}

    def started(self, exchange: Exchange) -> None:
        shown = exchange if self._content else exchange.without_content()
        self._offer(
            Started(
                ts_ns=exchange.ended_ns or time.time_ns(),
                exchange_id=exchange.exchange_id,
                client=exchange.client,
                server=exchange.server,
                process=exchange.process,
                provider=exchange.provider,
                api=exchange.api,
                request_model=shown.request_model,
                tenant=exchange.tenant,
            )
        )

    def found(self, finding: Finding) -> None:
        said = self._said.get(finding.exchange_id)
        if said is None:
            said = self._said[finding.exchange_id] = set()
            if len(self._said) > _MAX_OPEN:
                self._said.popitem(last=False)
        if finding.finding_id not in said:
            said.add(finding.finding_id)
            self._offer(Found(ts_ns=time.time_ns(), finding=finding if self._content else msgspec.structs.replace(finding, preview="")))

    def alerted(self, alert: Alert) -> None:
        self._offer(Alerted(ts_ns=time.time_ns(), alert=alert))

    def ended(self, exchange: Exchange, alerts: Iterable[Alert] = ()) -> None:
        """As it goes to the other sinks. `alerts`: what somebody is told now."""
        said = self._said.pop(exchange.exchange_id, set())
        now_ns = time.time_ns()
        for finding in exchange.findings:
            if finding.finding_id not in said and finding.suppressed is None:
                known = finding if finding.exchange_id else msgspec.structs.replace(finding, exchange_id=exchange.exchange_id)
                self._offer(Found(ts_ns=now_ns, finding=known))
        for deviation in exchange.deviations:
            self._offer(Deviated(ts_ns=now_ns, exchange_id=exchange.exchange_id, deviation=deviation))
        for alert in alerts:
            self._offer(Alerted(ts_ns=now_ns, alert=alert))
        self._offer(Ended(ts_ns=now_ns, exchange_id=exchange.exchange_id, exchange=exchange))

    def look(self, counts: Snapshot) -> None:
        """Say what was lost since the last look."""
        for what in _LOSSES:
            count = counts.get(what)
            more = count - self._lost.get(what, 0)
            if more > 0:
                self._lost[what] = count
                self._offer(Lost(ts_ns=time.time_ns(), what=what, count=more))
