"""What the live view shows, apart from how: rates by process and by model, the latest exchanges and findings, and what was lost.

No clock and no terminal: events come in with their times, and all that is kept is bounded. Names are made harmless here, once.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final, Literal

from llmsec_agent.top.facts import AlertFacts, Deviated, Ended, Event, ExchangeFacts, Found, Lost, ProcessFacts, Started, UsageFacts
from llmsec_agent.top.windows import Rates, Sample, Windows
from llmsec_tap.visible import visible

MAX_LATEST: Final = 500
# Requests that are out; what is beyond is a count that is too low, never memory.
_MAX_OPEN: Final = 20_000
# Findings of one exchange that have a line of their own.
_MAX_FINDINGS: Final = 20
_MAX_NAME: Final = 200
_MAX_LOSSES: Final = 32

Kind = Literal["exchange", "finding", "deviation", "alert"]


@dataclass(frozen=True, slots=True)
class Line:
    """One of the latest. Texts are harmless and short."""

    key: str
    exchange_id: str
    kind: Kind
    at_ns: int
    process: str
    model: str
    note: str
    tenant: str = ""
    status: str = ""
    input_tokens: str = ""
    output_tokens: str = ""
    ttft_ms: float | None = None
    risk: int | None = None
    is_open: bool = False
    is_error: bool = False
    severity: str = ""

    def has(self, word: str) -> bool:
        """`word` is in lower case."""
        return any(word in text.lower() for text in (self.process, self.model, self.tenant, self.note))


@dataclass(frozen=True, slots=True)
class _Open:
    process: str
    model: str


class Board:
    """Give it events in the order they come; times are epoch nanoseconds, those of the events. One that is ahead counts as of now."""

    def __init__(
        self,
        now_ns: int | None = None,
        *,
        reach_ns: int = 0,
        monotonic: Callable[[], int] = time.monotonic_ns,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        """`now_ns`: where events are of now; none of them moves it. Without it events say when it is, up to this machine's clock: a file of events is played as
        of its own time.

        `reach_ns`: so far before now the first events are of, as of a store.
        """
        self._monotonic = monotonic
        self._clock = clock
        self._is_played = now_ns is None
        self._anchor = (now_ns, monotonic())
        began = (now_ns or 0) - reach_ns
        self.processes = Windows(began)
        self.models = Windows(began)
        self._open: OrderedDict[str, _Open] = OrderedDict()
        self._latest: OrderedDict[str, Line] = OrderedDict()
        self.exchanges = 0
        self.errors = 0
        self.findings = 0
        self.damaged = 0  # exchanges that the capture saw in part
        self.unscanned = 0
        self.lost: dict[str, int] = {}
        self.not_shown = 0
        self.changes = 0

    @property
    def open(self) -> int:
        return len(self._open)

    @property
    def now_ns(self) -> int:
        """When it began, or the time of the newest event that is played, and what passed since."""
        at_ns, seen = self._anchor
        return (at_ns or 0) + (self._monotonic() - seen)

    def take(self, event: Event) -> None:
        self.changes += 1
        self._see(event.ts_ns)
        match event:
            case Started():
                self._started(event)
            case Found():
                self._found(event)
            case Ended():
                self._ended(event.exchange, event.ts_ns)
            case Deviated():
                kind = _name(event.kind)
                note = f"{event.severity.upper()} {kind} {_name(event.explanation or event.subject)}"
                self._tell("deviation", event.exchange_id, kind, event.ts_ns, note, event.severity)
            case AlertFacts():
                rule, priority = _name(event.rule), _name(event.priority)
                self._tell("alert", event.exchange_id or "", rule, event.ts_ns, f"{priority.upper()} alert {rule}", priority)
            case Lost():
                name = _name(event.what)
                if name not in self.lost and len(self.lost) >= _MAX_LOSSES:
                    name = "other losses"
                self.lost[name] = self.lost.get(name, 0) + max(0, event.count)

    def take_stored(self, rows: Iterable[ExchangeFacts]) -> None:
        """Of a store, which has findings on the record."""
        for exchange in rows:
            at_ns = exchange.ended_ns or exchange.started_ns or self.now_ns
            self.take(Ended(ts_ns=at_ns, exchange=exchange))
            for finding in exchange.findings[:_MAX_FINDINGS]:
                if finding.suppressed is None:
                    self._found(
                        Found(
                            ts_ns=at_ns,
                            exchange_id=exchange.exchange_id,
                            finding_id=finding.finding_id,
                            rule_id=finding.rule_id,
                            severity=finding.severity,
                            preview=finding.preview,
                        )
                    )

    def latest(self, word: str = "", limit: int = MAX_LATEST) -> list[Line]:
        """Newest first."""
        word = word.lower()
        found: list[Line] = []
        for line in reversed(self._latest.values()):
            if not word or line.has(word):
                found.append(line)
                if len(found) == limit:
                    break
        return found

    def line(self, key: str) -> Line | None:
        return self._latest.get(key)

    def of_exchange(self, exchange_id: str) -> list[Line]:
        """What is known of one, oldest first."""
        return [line for line in self._latest.values() if line.exchange_id == exchange_id]

    # --- events -------------------------------------------------------------------------------------------------------

    def _see(self, ts_ns: int) -> None:
        if not self._is_played:
            return
        now_ns = min(ts_ns, self._clock())
        if self._anchor[0] is None:
            self.processes, self.models = Windows(now_ns), Windows(now_ns)
        if self._anchor[0] is None or now_ns > self.now_ns:
            self._anchor = (now_ns, self._monotonic())

    def _started(self, event: Started) -> None:
        process, model = _process(event.process, event.client), _model(event.request_model, event.provider)
        now_ns = self.now_ns
        known = _Open(self.processes.name_of(process, now_ns), self.models.name_of(model, now_ns))
        if event.exchange_id in self._open:
            return
        self._open[event.exchange_id] = known
        self.processes.begin(known.process)
        self.models.begin(known.model)
        if len(self._open) > _MAX_OPEN:
            self._close(next(iter(self._open)))
        self._put(
            Line(
                key=f"e{event.exchange_id}", exchange_id=event.exchange_id, kind="exchange", at_ns=event.ts_ns, process=process, model=model,
                note="open", tenant=_name(event.tenant or ""), is_open=True,
            )
        )  # fmt: skip

    def _close(self, exchange_id: str) -> None:
        known = self._open.pop(exchange_id, None)
        if known is not None:
            self.processes.end(known.process)
            self.models.end(known.model)

    def _found(self, event: Found) -> None:
        self.findings += 1
        key = f"f{event.exchange_id}/{event.finding_id}"
        while_open = f" at token {event.at_output_token}" if event.at_output_token is not None else ""
        note = f"{event.severity.upper()} {_name(event.rule_id)}{while_open} {_name(event.preview)}".rstrip()
        self._tell("finding", event.exchange_id, key, event.ts_ns, note, event.severity)

    def _tell(self, kind: Kind, exchange_id: str, what: str, at_ns: int, note: str, severity: str) -> None:
        of = self._latest.get(f"e{exchange_id}")
        self._put(
            Line(
                key=f"{kind}{exchange_id}/{what}", exchange_id=exchange_id, kind=kind, at_ns=at_ns, note=note, severity=severity,
                process=of.process if of else "", model=of.model if of else "", tenant=of.tenant if of else "",
            )
        )  # fmt: skip

    def _ended(self, exchange: ExchangeFacts, at_ns: int) -> None:
        known = self._open.get(exchange.exchange_id)
        self._close(exchange.exchange_id)
        process, model = _process(exchange.process, exchange.client), _what(exchange)
        counts, estimates = exchange.usage or UsageFacts(), exchange.usage_estimated or UsageFacts()
        tokens_in = _first(counts.input_tokens, estimates.input_tokens)
        tokens_out = _first(counts.output_tokens, estimates.output_tokens)
        is_error = exchange.error_type is not None or (exchange.status or 0) >= 400
        self.exchanges += 1
        self.errors += is_error
        self.damaged += exchange.completeness not in ("complete", "aborted")
        self.unscanned += exchange.risk_score is None and exchange.provider is not None
        sample = Sample(
            input_tokens=max(0, tokens_in or 0), output_tokens=max(0, tokens_out or 0), ttft_ms=exchange.ttft_ms, is_error=is_error, risk=exchange.risk_score or 0
        )  # fmt: skip
        now_ns = self.now_ns
        counted_ns = min(at_ns, now_ns)
        self.processes.add(known.process if known else self.processes.name_of(process, now_ns), sample, counted_ns)
        self.models.add(self.models.name_of(model, now_ns), sample, counted_ns)
        note = exchange.error_type or (exchange.completeness if exchange.completeness != "complete" else "")
        self._put(
            Line(
                key=f"e{exchange.exchange_id}", exchange_id=exchange.exchange_id, kind="exchange", at_ns=at_ns, process=process, model=model,
                note=_name(note), tenant=_name(exchange.tenant or ""), status=str(exchange.status or "-"),
                input_tokens=_count(counts.input_tokens, tokens_in), output_tokens=_count(counts.output_tokens, tokens_out),
                ttft_ms=exchange.ttft_ms, risk=exchange.risk_score, is_error=is_error,
            )
        )  # fmt: skip

    def _put(self, line: Line) -> None:
        before = self._latest.get(line.key)
        if before is not None and line.kind == "exchange" and not line.tenant:
            line = replace(line, tenant=before.tenant)
        self._latest[line.key] = line
        self._latest.move_to_end(line.key)
        while len(self._latest) > MAX_LATEST:
            self._latest.popitem(last=False)


SORTS: Final = ("rate", "tokens", "first token", "errors", "risk", "name")


def sorted_rates(rates: Iterable[Rates], by: str, word: str = "") -> list[Rates]:
    """The largest first, names in their order; those whose name has `word`."""
    word = word.lower()
    kept = sorted((one for one in rates if not word or word in one.name.lower()), key=lambda one: one.name)
    keys: dict[str, Callable[[Rates], float]] = {
        "rate": lambda one: one.requests + one.open / 1000,
        "tokens": lambda one: one.input_tokens + one.output_tokens,
        "first token": lambda one: one.ttft_p95_ms or 0.0,
        "errors": lambda one: one.error_share or 0.0,
        "risk": lambda one: one.risk,
    }
    return kept if by not in keys else sorted(kept, key=keys[by], reverse=True)


def _name(text: str) -> str:
    return visible(text[:_MAX_NAME])[:_MAX_NAME]


def _process(process: ProcessFacts | None, client: str) -> str:
    """`comm[pid]`, with its pod where there is one; of packets, which know no process, the client's address without its port."""
    if process is None:
        return _name(client.rpartition(":")[0] or client or "-")
    where = f" {process.namespace}/{process.pod}" if process.pod else f" {process.container_id[:12]}" if process.container_id else ""
    return _name(f"{process.comm or '?'}[{process.pid}]{where}")


def _model(model: str | None, provider: str | None) -> str:
    return _name(model or (f"({provider})" if provider else "-"))


def _what(exchange: ExchangeFacts) -> str:
    if exchange.tls is not None and exchange.tls.client_bytes is not None:
        return _name(f"(closed) {exchange.tls.server_name or exchange.server}")
    if exchange.provider is None:
        return "(not a model)"
    return _model(exchange.response_model or exchange.request_model, exchange.provider)


def _first(stated: int | None, estimated: int | None) -> int | None:
    return stated if stated is not None else estimated


def _count(stated: int | None, known: int | None) -> str:
    """As lists have it: `~` marks an estimate."""
    if known is None:
        return ""
    return f"{known}" if stated is not None else f"~{known}"
