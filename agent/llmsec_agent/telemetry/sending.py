"""From the parts of a folder to a collector: spans of those exchanges that are sampled, metrics of all of them.

A collector that is away costs nothing but what it misses: parts stay where they are, up to a number of exchanges they are sent later, beyond
it the oldest are counted as lost. Nobody keeps a part for it (the cursor is none of backlog.py's).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from llmsec_agent.telemetry.exporters import Exporters
from llmsec_agent.telemetry.meters import Meters
from llmsec_agent.telemetry.plan import Collector, TelemetryPlan
from llmsec_agent.telemetry.spans import is_sampled, span_of
from llmsec_tap.errors import StorageError, where
from llmsec_tap.journal import Journal
from llmsec_tap.model import Exchange
from llmsec_tap.storage.compact import seq_of
from llmsec_tap.storage.cursor import DAMAGED, Cursor
from llmsec_tap.storage.rows import exchange_of
from llmsec_tap.storage.schema import EXCHANGE_COLUMNS
from llmsec_tap.storage.store import Store

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

OVER_QUEUE: Final = "beyond max_queue_size"
# Rows that are decoded at once, with and without their texts.
_READ_ROWS: Final = 200
_READ_TEXTS: Final = 20
# Spans of a batch that are refused, and none taken, before it counts as a collector that takes none: a try costs as many requests.
_MAX_REFUSALS: Final = 8
# Texts are most of a row, and read only where they are sent.
_TEXTS: Final = frozenset(
    ("input_text", "output_text", "reasoning_text", "refusal_text", "tool_calls", "other_texts", "response", "tags", "rate_limit")
)


@dataclass
class _Tally:
    """Of one batch."""

    sent: int = 0
    refused: int = 0
    why: str = ""


class Sending:
    """One folder to one place. `step` is called again and again, by one thread."""

    def __init__(
        self,
        store: Store,
        plan: TelemetryPlan,
        exporters: Exporters,
        journal: Journal,
        *,
        is_bounded: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`is_bounded`: what waits beyond `max_queue_size` is not sent. Raises StorageError where the cursor cannot be read."""
        self.store = store
        self._plan = plan
        self._exporters = exporters
        self._journal = journal
        self._is_bounded = is_bounded
        self._clock = clock
        self.cursor = Cursor(store, plan.target, "telemetry")
        self._is_fresh = not self.cursor.path.exists()
        self._meters = Meters(plan.tracing.service_name) if plan.metrics is not None else None
        self._export_at = clock() + plan.interval_s
        self._has_news = False
        self._waiting_since: float | None = None
        self._done: dict[str, int] = {}  # rows of a part that were sent before its sending failed
        self.metrics_fault = ""  # why the last export of metrics failed
        self.fault = ""  # why the last sending failed, where it did
        self.failures = 0
        self.spans = 0
        self.refused = 0
        self._has_failed = False

    def step(self, *, at_once: bool = False) -> bool:
        """Send what is due; `at_once`: all that waits. False where it failed, which the journal has heard of."""
        try:
            waiting = self._look()
            if not waiting:
                self._waiting_since = None
            elif self._waiting_since is None:
                self._waiting_since = self._clock()
            age_s = self._clock() - self._waiting_since if self._waiting_since is not None else 0.0
            settings = self._plan.tracing
            if waiting and (at_once or age_s >= settings.flush_interval or sum(waiting.values()) >= settings.batch_size):
                for name in waiting:
                    self._send(name)
                self._waiting_since = None
            went_well = True
        except StorageError as fault:
            self.failures += 1
            is_first, self.fault = not self.fault, str(fault)  # the words of a library differ from try to try
            if is_first:
                rows = sum(self.cursor.state.waiting.values())
                self._journal.warning("telemetry_failed", f"{fault}; {rows} exchanges wait", rows=rows)
            went_well = False
        if went_well and self.fault:
            self._journal.info("telemetry_resumed", f"{self._plan.spans} takes spans again")
            self.fault = ""
        return self._send_metrics(at_once=at_once) and went_well

    def close(self) -> None:
        self._exporters.close()
        if self._meters is not None:
            self._meters.close()

    def _look(self) -> dict[str, int]:
        with self.cursor.changing() as state:
            waiting = self.cursor.look()
            if self._is_fresh:
                self._is_fresh = False
                self.cursor.deliver({name: 0 for name in waiting if seq_of(Path(name)) < self._plan.since_ns})
            waiting = self.cursor.waiting()
            over = sum(waiting.values()) - self._plan.tracing.max_queue_size
            for name in list(waiting)[:-1] if self._is_bounded else ():  # a part that is alone is sent, however large
                if over <= 0:
                    break
                over -= self.cursor.lose(name, OVER_QUEUE)
            lost = self.cursor.tell()
            if lost:
                rows = sum(part.rows for part in lost.values())
                why = ", ".join(sorted({part.why for part in lost.values()}))
                self._journal.warning(
                    "telemetry_lost", f"{rows} exchanges are not told to {self._plan.spans or self._plan.metrics}: {why}", rows=rows
                )
            self._done = {name: rows for name, rows in self._done.items() if name in state.waiting}
            return self.cursor.waiting()

    def _send(self, name: str) -> None:
        """Raises StorageError where it is to be tried later."""
        import pyarrow as pa  # type: ignore[import-untyped]

        batch: list[ReadableSpan] = []
        waiting: list[Exchange | None] = []  # those of the batch, and those between them that are not sampled
        rows = 0
        try:
            for number, exchange in enumerate(self._rows(name)):
                if number < self._done.get(name, 0):
                    continue
                span = self._span(exchange) if exchange is not None else None
                if span is not None:
                    batch.append(span)
                # What waits for the metrics keeps no texts.
                waiting.append(exchange.without_content() if exchange is not None and self._plan.tracing.content else exchange)
                rows += 1
                if len(batch) >= self._plan.tracing.batch_size or len(waiting) >= 10 * self._plan.tracing.batch_size:
                    self._flush(name, batch, waiting)
                    batch, waiting = [], []
            self._flush(name, batch, waiting)
        except (OSError, ValueError, pa.ArrowException):
            # Removed since it was listed, or damaged: the next look says which.
            if (self.store.exchanges / name).exists():
                with self.cursor.changing():
                    self.cursor.lose(name, DAMAGED)
            return
        with self.cursor.changing():
            self.cursor.deliver({name: self._done.pop(name, 0)})

    def _span(self, exchange: Exchange) -> ReadableSpan | None:
        tracing = self._plan.tracing
        if self._plan.spans is None or not exchange.is_request or not is_sampled(exchange, tracing.sampling):
            return None
        try:
            return span_of(exchange, tracing.service_name, content=tracing.content)
        except Exception as fault:  # noqa: BLE001 - a fault of ours costs this span, not those after it
            self._fault_of_ours(fault)
            return None

    def _fault_of_ours(self, fault: Exception) -> None:
        self.refused += 1
        if not self._has_failed:
            self._has_failed = True
            self._journal.warning(
                "telemetry_left_out",
                f"an exchange is not told to collectors ({type(fault).__name__} at {where(fault)}); please report this",
            )

    def _flush(self, name: str, batch: list[ReadableSpan], exchanges: list[Exchange | None]) -> None:
        """Acknowledged when it returns; only then do the exchanges count, so that none counts twice."""
        if batch:
            self._export(batch)
        if self._meters is not None:
            for exchange in exchanges:
                if exchange is not None:
                    self._meters.observe(exchange)
        self._has_news |= bool(exchanges)
        self._done[name] = self._done.get(name, 0) + len(exchanges)

    def _export(self, batch: list[ReadableSpan]) -> None:
        """Acknowledged when it returns, but for what is counted as refused. Raises StorageError where it is to be tried later."""
        tally = _Tally()
        self._halve(batch, tally)
        self.spans += tally.sent
        if tally.refused and not self.refused:
            self._journal.warning("span_refused", f"{self._plan.spans} refuses a span: {tally.why}; such spans are counted and left out")
        self.refused += tally.refused

    def _halve(self, batch: list[ReadableSpan], tally: _Tally) -> None:
        outcome = self._exporters.send_spans(batch)
        if outcome.kind == "later":
            raise StorageError(f"{self._plan.spans} takes no spans: {outcome.why}")
        if outcome.kind == "sent":
            tally.sent += len(batch)
        elif len(batch) > 1:  # one of them, or all together are too large
            middle = len(batch) // 2
            self._halve(batch[:middle], tally)
            self._halve(batch[middle:], tally)
        else:
            tally.refused, tally.why = tally.refused + 1, outcome.why
            if not tally.sent and tally.refused >= _MAX_REFUSALS:
                raise StorageError(f"{self._plan.spans} refuses every span: {outcome.why}")

    def _rows(self, name: str) -> Iterator[Exchange | None]:
        """None for one that cannot be read, such as a later version may have written."""
        import pyarrow.parquet as pq  # type: ignore[import-untyped]

        is_new = self.cursor.is_new(name)
        leave_out = frozenset[str]() if self._plan.tracing.content else _TEXTS
        wanted = [column for column, _ in EXCHANGE_COLUMNS if column not in leave_out]
        if not self._plan.tracing.content:
            wanted[wanted.index("request")] = "request.parameters"
        with pq.ParquetFile(self.store.exchanges / name, memory_map=False) as file:
            for piece in file.iter_batches(
                batch_size=_READ_TEXTS if self._plan.tracing.content else _READ_ROWS, columns=[*wanted, "stored_seq"], use_threads=False
            ):
                yield from (self._exchange(row) for row in piece.to_pylist() if is_new(row.get("stored_seq")))

    def _exchange(self, row: dict[str, Any]) -> Exchange | None:
        row.pop("stored_seq", None)
        try:
            return exchange_of(row)
        except (msgspec.MsgspecError, ValueError) as fault:
            self._fault_of_ours(fault)
            return None

    def _send_metrics(self, *, at_once: bool) -> bool:
        if self._meters is None or not self._has_news or not (at_once or self._clock() >= self._export_at):
            return True
        self._export_at = self._clock() + self._plan.interval_s
        data = self._meters.data()
        outcome = self._exporters.send_metrics(data) if data is not None else None
        if outcome is None or outcome.kind == "sent":
            self._has_news, self.metrics_fault = False, ""
            return True
        self.failures += 1
        is_first, self.metrics_fault = not self.metrics_fault, outcome.why
        if is_first:
            self._journal.warning(
                "telemetry_failed", f"{self._plan.metrics} takes no metrics: {outcome.why}; the next export has these, too"
            )
        return False


def rehearse() -> None:
    """Have the libraries load what they load at their first use, by a request that nobody answers."""
    nobody = Collector("http://127.0.0.1:9/", "http")  # discard, which no host serves; what it is sent is made up
    exchange = Exchange(exchange_id="", client="", server="", started_ns=0, ended_ns=1, provider="none")
    exporters, meters = Exporters(nobody, nobody, timeout_s=0.2), Meters("")
    meters.observe(exchange)
    span, data = span_of(exchange, "", content=True), meters.data()
    if span is not None and data is not None:
        exporters.send_spans([span])
        exporters.send_metrics(data)
    exporters.close()
    meters.close()
