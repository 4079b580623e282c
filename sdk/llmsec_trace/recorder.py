"""What is between the application's threads and the destinations: a bounded queue of references, and one thread that decodes.

The application's thread appends to the queue and goes on; it never waits for this one. Where the queue is full, pieces of answers are left
out first and shown as gaps on their records; a call that finds no room at its beginning is left out whole. Both are counted.
Collection of garbage may end a call while the same thread appends for another, so the lock is one that its owner may take again, and the
thread is woken by releasing a lock, which no thread waits for.
"""

from __future__ import annotations

import _thread
import atexit
import contextlib
import logging
import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final

import msgspec

from llmsec_analyzer.worker.child import ChildDetector, StartDetector
from llmsec_tap.identity.credentials import Fingerprinter
from llmsec_tap.identity.secret_shapes import is_secret_name, mask_vendor_forms
from llmsec_tap.model import AnomalyCount, Exchange
from llmsec_trace.call import Asked, Call, Item, Kind
from llmsec_trace.config import InstrumentationConfig
from llmsec_trace.decoding import Decoder
from llmsec_trace.decoding import Examiner as Examiner  # noqa: PLC0414 - part of what this module offers
from llmsec_trace.describe import NOT_A_MODEL, describe
from llmsec_trace.destinations.base import Destination
from llmsec_trace.lane import Lane
from llmsec_trace.policy import Guard, Screening, put_on
from llmsec_trace.suppressing import is_suppressed, suppress
from llmsec_trace.telling import Telling, Traces
from llmsec_trace.trace import MAX_VALUE_CHARS, TraceContext, current, is_sampled, new_trace_id

if TYPE_CHECKING:
    from llmsec_trace.detection import Detection

log = logging.getLogger("llmsec_trace")
log.addHandler(logging.NullHandler())  # the application decides what is printed

MAX_QUEUED_BYTES: Final = 64 << 20
MAX_QUEUED_ITEMS: Final = 200_000
_BEGINNINGS: Final = (Kind.REQUEST, Kind.CONNECTED)
_LEFT_OUT: Final = (Kind.DATA, Kind.REQUEST_DATA, Kind.SENT, *_BEGINNINGS)  # where there is no room
_ITEM_COST_BYTES: Final = 200
# A record waits so long for tags that are set after its call.
GRACE_S: Final = 1.0
EXIT_S: Final = 5.0
_LEAST_LANE_S: Final = 1.0  # detection may have taken the rest
_POLL_S: Final = 0.05
_IDLE_S: Final = 0.5
# What a connection asked, as rules and policies are asked to look at it: they do not.
_NOT_WHOLE: Final = Asked("", "", (), None, "")
# The decoding thread lets others run after each item, as long as no more than this waits.
_POLITE_ITEMS: Final = 2_000


@dataclass
class Stats:
    """Counts since the start of this process.

    calls       requests that were seen and sampled; a WebSocket is one, however many records it becomes
    recorded    records made; other: calls to what is no language model, of which no record is made; unsampled: left out by sampling_rate
    sent        records that destinations took (each destination counts)
    dropped     calls that found no room in the queue, and records that found none at a destination, or that it would not take
    gaps        pieces of answers that found no room
    failures    requests to destinations that failed: what they held is tried again, unless it is counted as dropped
    late_tags   tags that came after their record was handed on
    faults      faults of ours, each of which cost at most one record
    waiting     records and calls under way now
    blocked     requests that a rule or a policy kept from leaving
    unchecked   requests that rules and policies did not look at, or not in time: they went on
    policy_faults  what a policy or on_finding raised
    untold      findings that found no room on their way to on_finding; they are on their records
    undetected  records that detection did not look at whole (`risk_score` is null, or an anomaly `detection_…` says what was left out)
    """

    calls: int = 0
    recorded: int = 0
    other: int = 0
    unsampled: int = 0
    sent: int = 0
    dropped: int = 0
    gaps: int = 0
    failures: int = 0
    late_tags: int = 0
    faults: int = 0
    waiting: int = 0
    blocked: int = 0
    unchecked: int = 0
    policy_faults: int = 0
    untold: int = 0
    undetected: int = 0

    def __add__(self, more: Stats) -> Stats:
        return Stats(**{item.name: getattr(self, item.name) + getattr(more, item.name) for item in fields(Stats)})


class Recorder:
    """One configuration's. Any thread may call the methods of its first half."""

    def __init__(
        self,
        config: InstrumentationConfig,
        destinations: list[Destination],
        fingerprint: Fingerprinter,
        *,
        examiner: Examiner | None = None,
        detects: bool = False,
        start_detector: StartDetector = ChildDetector,
        max_queued_bytes: int = MAX_QUEUED_BYTES,
        grace_s: float = GRACE_S,
        shield: bool = True,
    ) -> None:
        """`detects`: by `config.security`, in a process of its own; `examiner`: an examiner instead of that one. `shield=False` lets faults of decoders through to the count of faults with a traceback (tests)."""
        self.config = config
        self._fingerprint = fingerprint
        self._examiner = examiner
        self._max_queued_bytes = max_queued_bytes
        self._grace_s = grace_s
        self._shield = shield
        if config.debug:
            log.setLevel(logging.DEBUG)
        tracing = config.tracing
        self.lanes = [
            Lane(
                one, self.stats, batch_size=tracing.batch_size, interval_s=tracing.flush_interval_seconds, max_items=tracing.max_queue_size
            )
            for one in destinations
        ]
        security = config.security
        self._telling = Telling(security.on_finding) if security.on_finding is not None else None
        self._traces = Traces(self._telling)
        self._detection: Detection | None = None
        if detects and security.enabled:
            from llmsec_trace.detection import Detection  # noqa: PLC0415 - RE2 and more, where it is needed

            self._detection = Detection(security, self._hand_on, self._traces.found, start_detector)
        has_policy = security.enabled and (bool(security.custom_rules) or security.policy_class is not None)
        self._guard = Guard(security) if has_policy else None
        self._offset_ns = time.time_ns() - time.monotonic_ns()
        self._generation = 0
        self._stats = Stats()
        self._clear()
        _recorders.add(self)

    def _clear(self) -> None:
        self._lock = threading.RLock()
        self._wake = _thread.allocate_lock()
        self._items: list[Item] = []
        self._bytes = 0
        self._thread: threading.Thread | None = None
        self._closing = False
        self._is_idle = False
        self._decoder = Decoder(
            self._ended,
            self._fingerprint,
            tenant=self.config.tenant_id,
            examiner=self._examiner or self._detection,
            on_open=self._opened,
            on_defect=self._defect,
            shield=self._shield,
        )
        self._screenings: dict[str, Screening] = {}  # of records that detection has
        self._done: deque[tuple[float, Call, Exchange]] = deque()  # for the moment that tags may still come

    def forked(self) -> None:
        """In a child: calls that are under way are the parent's."""
        self._generation += 1
        self._stats = Stats()
        self._traces.clear()
        for part in (self._detection, self._guard, self._telling):
            if part is not None:
                part.forked()
        self._clear()
        for lane in self.lanes:
            lane.forked()

    def begin(self, asked: Asked, trace_id: str | None = None) -> Call | None:
        """None where the call is not recorded. The trace is the current one of this thread or task from here on."""
        return self._begin(asked, trace_id, Kind.REQUEST)

    def connect(self, asked: Asked) -> Call | None:
        """As `begin`, for a connection of which all bytes are told; `asked` is only for its trace, which all of its exchanges share."""
        return self._begin(asked, None, Kind.CONNECTED)

    def _begin(self, asked: Asked, trace_id: str | None, kind: Kind) -> Call | None:
        if is_suppressed.get():
            return None
        trace_id = trace_id or new_trace_id()
        if not is_sampled(trace_id, self.config.sampling_rate):
            self._stats.unsampled += 1
            current.set(None)
            return None
        trace = TraceContext(trace_id, lambda: self._describe(asked), self._late)
        current.set(trace)
        call = Call(self, asked, trace, self._generation, is_connection=kind is Kind.CONNECTED)
        self._stats.calls += 1
        self.put(call, kind, asked, len(asked.body or b"") + 1024)
        return call

    def screen(self, asked: Asked, call: Call | None) -> Screening | None:
        """Have the application's rules and policy look at a request. Given back is what the caller is to wait for; None: nothing."""
        guard = self._guard
        if guard is None or is_suppressed.get() or (call is None and not guard.may_block):
            return None
        screening = guard.screen(asked)
        if call is not None:
            call.screening = screening
        return screening if guard.may_block else None

    def put(self, call: Call, kind: Kind, payload: Any, size: int) -> None:
        now_ns = time.monotonic_ns() + self._offset_ns
        with self._lock:
            if call.generation != self._generation or self._closing:
                return
            items = self._items
            is_full = self._bytes + size > self._max_queued_bytes or len(items) >= MAX_QUEUED_ITEMS
            if is_full and kind in _LEFT_OUT:
                if kind in _BEGINNINGS:
                    call.is_over = True
                    self._stats.dropped += 1
                else:
                    if kind is Kind.SENT:
                        call.lost_sent += size
                    else:
                        call.lost_bytes += size
                    self._stats.gaps += 1
                return
            if call.lost_bytes:
                items.append((call, Kind.GAP, now_ns, call.lost_bytes))
                call.lost_bytes = 0
            if call.lost_sent:
                items.append((call, Kind.SENT_GAP, now_ns, call.lost_sent))
                call.lost_sent = 0
            items.append((call, kind, now_ns, payload))
            self._bytes += size + _ITEM_COST_BYTES
            if self._thread is None and not self._start():
                call.is_over = True
                self._stats.dropped += kind in _BEGINNINGS
                return
        # While calls come, the thread looks by itself: waking it costs the caller more than all the rest.
        if self._is_idle or self._bytes > self._max_queued_bytes // 4:
            self._is_idle = False
            self._awake()

    def fault(self) -> None:
        """A fault of ours on the application's thread; called in its except block."""
        self._stats.faults += 1
        log.debug("a call is not recorded", exc_info=True)  # noqa: LOG014 - see above

    def flush(self, timeout_s: float) -> bool:
        """Hand on all records of calls that have ended. False where some still wait."""
        until = time.monotonic() + timeout_s
        done = threading.Event()
        with self._lock:
            if self._thread is None or self._closing:
                return True
            self._items.append((None, Kind.FLUSH, 0, (done, until)))
        self._awake()
        is_done = done.wait(timeout_s)
        flushed = [lane.flush(max(0.05, until - time.monotonic())) for lane in self.lanes]
        if self._telling is not None:
            flushed.append(self._telling.flush(max(0.05, until - time.monotonic())))
        return is_done and all(flushed)

    def close(self, timeout_s: float = EXIT_S) -> bool:
        """Hand on everything, calls that are under way as far as they came. Nothing is recorded from now on."""
        until = time.monotonic() + timeout_s
        with self._lock:
            self._closing = True
            thread = self._thread
        if thread is not None:
            self._awake()
            thread.join(timeout_s)
        closed = [lane.close(max(_LEAST_LANE_S, until - time.monotonic())) for lane in self.lanes]
        return all(closed)

    def stats(self) -> Stats:
        own = self._stats
        lanes = sum((Stats(sent=lane.sent, dropped=lane.dropped, failures=lane.failures) for lane in self.lanes), Stats())
        detecting = self._detection.waiting if self._detection is not None else 0
        waiting = Stats(waiting=len(self._decoder) + len(self._done) + detecting + sum(lane.waiting for lane in self.lanes))
        total = own + lanes + waiting
        if self._guard is not None:
            guard = self._guard.stats
            total += Stats(blocked=guard.blocked, unchecked=guard.unchecked, policy_faults=guard.policy_faults)
        telling = self._telling
        return total + Stats(policy_faults=telling.faults, untold=telling.untold) if telling is not None else total

    def _late(self) -> None:
        self._stats.late_tags += 1

    def _defect(self, _decoder: str) -> None:
        self._stats.faults += 1
        log.warning("a decoder failed; the record is marked decoder_error. Please report this", exc_info=True)  # noqa: LOG014 - called inside the except block

    @staticmethod
    def _describe(asked: Asked) -> tuple[str, str | None]:
        try:
            return describe(asked)
        except Exception:  # noqa: BLE001 - asked by the application, which must not pay for a fault of ours
            return NOT_A_MODEL

    def _awake(self) -> None:
        with contextlib.suppress(RuntimeError):  # it is awake
            self._wake.release()

    def _start(self) -> bool:
        """False where no thread can be started: then what was queued is left out."""
        self._thread = threading.Thread(target=self._run, name="llmsec-record", daemon=True)
        try:
            for lane in self.lanes:
                lane.start()
            if self._telling is not None:
                self._telling.start()
            self._thread.start()
        except RuntimeError:  # the interpreter is ending, or there is no room for a thread
            self._thread = None
            self._items.clear()
            self._bytes = 0
            return False
        # A child of multiprocessing ends without atexit.
        util = sys.modules.get("multiprocessing.util")
        if self._generation and util is not None:
            util.Finalize(self, self.close, args=(EXIT_S,), exitpriority=10)
        return True

    # --- the recorder's thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        suppress()
        generation = self._generation
        while not self._closing and generation == self._generation:
            is_busy = bool(self._items) or len(self._decoder) > 0 or (self._detection is not None and self._detection.waiting > 0)
            self._is_idle = not is_busy
            self._wake.acquire(timeout=_POLL_S if is_busy else _IDLE_S)
            if not is_busy and not self._closing:
                self._wake.acquire(timeout=_POLL_S)  # what is under way on the caller's side goes first
            self._step()
        self._step()
        self._decoder.close(time.monotonic_ns() + self._offset_ns)
        self._seal(everything=True)
        if self._detection is not None and generation == self._generation:
            self._guarded(self._detection.close)

    def _step(self) -> None:
        with self._lock:
            items, self._items = self._items, []
            self._bytes = 0
            if not items and not len(self._decoder):
                self._offset_ns = time.time_ns() - time.monotonic_ns()  # the wall clock may have been set
        is_polite = len(items) < _POLITE_ITEMS and not self._closing
        for call, kind, ts_ns, payload in items:
            if call is None:
                self._seal(everything=True)
                done, until = payload
                if self._detection is not None:
                    self._guarded(self._detection.drain, until)
                done.set()
                continue
            try:
                self._decoder.feed(call, kind, ts_ns, payload)
            except Exception:
                self._stats.faults += 1
                log.warning("a call could not be decoded. Please report this", exc_info=True)
            if is_polite:
                time.sleep(0)
        self._seal()
        if self._detection is not None:
            self._guarded(self._detection.tick)

    def _guarded(self, act: Callable[..., Any], *args: Any) -> None:
        try:
            act(*args)
        except Exception:
            self._stats.faults += 1
            log.warning("detection failed. Please report this", exc_info=True)

    def _opened(self, call: Call, exchange_id: str) -> None:
        self._traces.add(exchange_id, call.trace)

    def _ended(self, call: Call, exchange: Exchange) -> None:
        call.asked = None
        if exchange.is_request:
            self._stats.recorded += 1
            self._opened(call, exchange.exchange_id)
            self._done.append((time.monotonic() + self._grace_s, call, exchange))
        else:
            self._stats.other += 1

    def _seal(self, *, everything: bool = False) -> None:
        now = time.monotonic()
        sealed: list[Exchange] = []
        while self._done and (everything or self._done[0][0] <= now or len(self._done) > self.config.tracing.max_queue_size // 2):
            _, call, exchange = self._done.popleft()
            try:
                self._tag(call, exchange)
            except Exception:  # noqa: BLE001 - a record without its tags is worth more than none
                self._stats.faults += 1
            screening = call.screening
            if call.is_connection and self._guard is not None:
                screening = self._guard.screen(_NOT_WHOLE)
            if screening is not None:
                self._screenings[exchange.exchange_id] = screening
            sealed.append(exchange)
        if sealed and self._examiner is not None:
            try:
                self._examiner.examine(sealed)
            except Exception:
                self._stats.faults += 1
                log.warning("records could not be examined. Please report this", exc_info=True)
        for exchange in sealed:
            if self._detection is not None:
                self._guarded(self._detection.add, exchange)
            else:
                self._hand_on(exchange)

    def _hand_on(self, exchange: Exchange) -> None:
        """A record with all that is to be on it."""
        if self._detection is not None and any(mark.name.startswith("detection_") for mark in exchange.anomalies):
            self._stats.undetected += 1
        screening = self._screenings.pop(exchange.exchange_id, None)
        if screening is not None:
            looked = screening.known()
            if looked is None:
                screening.late()
            else:
                put_on(exchange, looked.violations)
            if looked is None or looked.is_cut:
                exchange.anomalies = [*exchange.anomalies, AnomalyCount(name="detection_incomplete", count=1)]
        self._traces.ended(exchange)
        for lane in self.lanes:
            lane.offer(exchange)

    def _tag(self, call: Call, exchange: Exchange) -> None:
        trace = call.trace
        trace.is_sealed = call.is_over or not call.is_connection
        own = {"service.name": self.config.service_name}
        for name, value in [*trace.tags.items(), *trace.metadata.items()]:
            text = (value if isinstance(value, str) else _as_text(value))[:MAX_VALUE_CHARS]
            own[name] = self._fingerprint(text) if is_secret_name(name) else mask_vendor_forms(text, self._fingerprint)
        exchange.tags = exchange.tags | own
        exchange.session_id = exchange.session_id or own.get("session_id")
        if exchange.end_user is None and "user_id" in own:
            exchange.end_user = self._fingerprint(own["user_id"])
        exchange.trace_id = exchange.trace_id or trace.trace_id


def _as_text(value: Any) -> str:
    try:
        return msgspec.json.encode(value).decode()
    except Exception:  # noqa: BLE001 - any object of the application's
        return type(value).__name__


# --- the end, and forks -----------------------------------------------------------------------------------------------------

_recorders: weakref.WeakSet[Recorder] = weakref.WeakSet()


def all_recorders() -> list[Recorder]:
    return list(_recorders)


def _at_exit() -> None:
    until = time.monotonic() + EXIT_S
    for recorder in all_recorders():
        recorder.close(max(0.1, until - time.monotonic()))
        known = recorder.stats()
        if lost := known.dropped + known.waiting:
            log.warning("%d records of calls to models were handed to nobody", lost)


def _in_child() -> None:
    for recorder in all_recorders():
        recorder.forked()


atexit.register(_at_exit)
os.register_at_fork(after_in_child=_in_child)
