"""The decoder's end of the detection process: increments and exchanges out, reports in, exchanges on in the order they came.

A live capture never waits here: what does not fit the queue (fair.py), or is not answered in time, goes on unscanned and says so
(`detection_skipped`). A replay's source can wait, so it does, but not for ever: a process that makes no progress is ended. If the
process dies, what it had in hand is marked `detection_fault` and a new one goes on with the rest.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable
from hashlib import blake2b

from llmsec_analyzer.judge.exchange_parts import Report, text_parts, unread
from llmsec_analyzer.judge.redact import redacted, withheld
from llmsec_analyzer.risk import SEVERITIES, rank
from llmsec_analyzer.settings import DetectionSettings
from llmsec_analyzer.worker.child import ChildDetector, Detector, StartDetector
from llmsec_analyzer.worker.fair import COST_BYTES, FairQueue, Waiting
from llmsec_analyzer.worker.protocol import (
    DetectorFault,
    Early,
    Examine,
    Examined,
    Forget,
    Frames,
    FromWorker,
    Increments,
    Ready,
    Start,
    Totals,
    ToWorker,
    frame,
)
from llmsec_tap.counters import Sample, by_label
from llmsec_tap.errors import ConfigError
from llmsec_tap.exchange.assembly import ExchangeAssembly
from llmsec_tap.journal import Journal
from llmsec_tap.model import Exchange, Severity

# What waits for the detection process: bytes of messages and exchanges without a report.
MAX_QUEUED_BYTES = 32 << 20
# Of a live capture, so much is under way to the process; the rest waits in its lines, so that nobody waits behind a flood.
_UNDER_WAY_BYTES = 256 << 10
# Increments held back to go together, over all streams (256 characters of one count as another); a tick sends what there is.
_MAX_HELD = 16_384
_SEND_AT_BYTES = 64 << 10
_READ_BYTES = 1 << 20
# An exchange is given up after so long, and the process taken for stuck: some seconds, and more for a long text. A replay's machine
# may be busy with more than us.
_PATIENCE_S = 10.0
_PATIENCE_OF_REPLAY_S = 30.0
_SLOWEST_BYTES_PER_S = 250_000
# At its end, a live capture waits so long for all that is still out; a command that was interrupted, so long.
_DRAIN_S = 10.0
_HURRY_S = 1.0
# Deaths of the process in an hour after which a new one begins at once; after that it begins later and later.
_RESTARTS = 3
_RESTARTS_IN_S = 3600.0
_BACK_OFF_S = (30.0, 120.0, 600.0)
_START_S = 60.0
# Texts that were in hand when a process died, by hash: what was so twice is set aside.
_MAX_SUSPECTS = 1024
_MAX_TOLD = 10_000
# Of an exchange with one of these, not all is known that would have to be masked.
_UNSCANNED = frozenset(("detection_skipped", "detection_secrets_only", "detection_fault"))


class AnswerListener:
    """Collects the increments of one answer, to be scanned while the rest arrives."""

    __slots__ = ("_client", "_pieces", "generation", "stream")

    def __init__(self, client: DetectionProcess) -> None:
        self._client = client
        self._pieces: list[Increments] = []
        self.stream = 0
        self.generation = client.generation

    def delta(self, ts_ns: int, kind: str, choice: int, text: str) -> None:
        # Once per streamed token.
        if kind == "tool_call":
            return  # several calls may arrive by turns under one choice; their arguments are scanned at the end
        pieces = self._pieces
        if pieces:
            last = pieces[-1]
            if last.kind == kind and last.choice == choice:
                last.texts.append(text)
                self._client.held += 1 + (len(text) >> 8)
                return
        pieces.append(Increments(0, kind, choice, time.monotonic_ns(), [text]))
        self._client.holds(self, text)

    def finished(self, exchange: Exchange) -> None:
        self._client.finished(self, exchange)

    def take(self) -> list[Increments]:
        pieces, self._pieces = self._pieces, []
        return pieces


class DetectionProcess:
    """For replay and capture alike: `listener` goes to the pipeline, `add` takes exchanges, `deliver` gets them back in order."""

    def __init__(
        self,
        settings: DetectionSettings,
        key: bytes,
        deliver: Callable[[Exchange], None],
        *,
        may_wait: bool,
        journal: Journal,
        redact: bool = False,
        fail_on: Severity | None = None,
        start: StartDetector = ChildDetector,
        queue_bytes: int | None = None,
    ) -> None:
        self._start = Start(settings, key, redact)
        self._start_detector = start
        self._deliver = deliver
        self._may_wait = may_wait
        self._journal = journal
        self._redact = redact
        self._redacts = redact or settings.asks_redaction  # something is to be masked
        self._fail_on = fail_on
        self.failed = False  # something as severe as `fail_on` was found
        self.least_pressure = 0  # what is left out of every exchange at least (judge/budget.py)
        self.generation = 0
        self.held = 0  # increments not sent yet
        self._dirty: list[AnswerListener] = []
        self._streams = 0
        self._numbers = 0
        self._stream_of: dict[str, int] = {}
        self._waiting: deque[Waiting] = deque()  # all that are not delivered, in their order
        self._limit = MAX_QUEUED_BYTES if queue_bytes is None else queue_bytes
        self._queue = FairQueue(self._limit)
        self._sent: dict[int, Waiting] = {}  # to the process, without an answer, in the order they were sent
        self._sent_bytes = 0
        self._deadline = math.inf  # of all waiting
        self._out = bytearray()
        self._progress = time.monotonic()
        self._ready: Ready | None = None
        self._totals = Totals({}, 0)
        self._findings: Counter[str] = Counter()
        self._marks: Counter[str] = Counter()
        self._told: OrderedDict[tuple[int, str], None] = OrderedDict()
        self._suspects: OrderedDict[bytes, int] = OrderedDict()
        self._deaths: deque[float] = deque()
        self._retry_at = math.inf
        self._restarts_total = 0
        self._process: Detector | None = None
        self._launch()

    # --- the pipeline's side ------------------------------------------------------------------------------------------

    def listener(self, assembly: ExchangeAssembly) -> AnswerListener:
        return AnswerListener(self)

    def holds(self, listener: AnswerListener, text: str) -> None:
        """The listener has something to send. Called from within a parser: what it holds goes out with the next `tick`."""
        self._dirty.append(listener)
        self.held += 1 + (len(text) >> 8)

    def finished(self, listener: AnswerListener, exchange: Exchange) -> None:
        self._send_increments_of(listener)
        if listener.stream and listener.generation == self.generation:
            if exchange.provider is None:
                self._send(Forget(listener.stream))
            else:
                self._stream_of[exchange.exchange_id] = listener.stream

    def add(self, exchange: Exchange) -> None:
        """Take an exchange; it is delivered, now or later, after all that came before it."""
        self._numbers += 1
        entry = Waiting(self._numbers, exchange, 0, time.monotonic(), stream=self._stream_of.pop(exchange.exchange_id, 0))
        self._waiting.append(entry)
        self._start_again()
        if exchange.provider is None:
            entry.is_llm, entry.report = False, Report([])
        elif self._process is None:
            entry.report = _skipped()
        else:
            entry.parts = list(text_parts(exchange))
            if self._is_set_aside(entry):
                self._leave_out(entry, _fault())
            else:
                self._queue_up(entry)
        if len(self._out) >= _SEND_AT_BYTES:
            self._pump()
            self._wait_for_room()
        elif self._waiting[0].report is not None:
            self._hand_on()

    def tick(self) -> None:
        """Send what is held back and take what is answered. Only a replay waits, where too much is under way."""
        self._start_again()
        if self.held >= _MAX_HELD or not self._may_wait:
            self._send_increments()
        self._pump()
        if self._may_wait:
            self._wait_for_room()
        else:
            self._end_if_stuck()

    def drain(self) -> None:
        """Wait until everything that was added is delivered, but not for ever; what has no answer then is marked `detection_skipped`."""
        self._send_increments()
        self._progress = time.monotonic()
        ends = self._progress + _DRAIN_S if not self._may_wait else math.inf
        while self._process is not None and self._is_busy:
            self._pump(0.2)
            self._end_if_stuck()
            if time.monotonic() > min(ends, self._deadline):
                self._give_up()
        self._hand_on()

    def hurry(self) -> None:
        """Somebody wants this to end: nothing waits longer than a few seconds from now on. May be called from a signal handler."""
        self._deadline = min(self._deadline, time.monotonic() + _HURRY_S)

    def close(self) -> None:
        """Wait for what is still out, deliver it, and end the process."""
        self.drain()
        self._end()
        for entry in self._waiting:
            entry.report = entry.report or _skipped()
        self._hand_on()

    # --- what is sent -------------------------------------------------------------------------------------------------

    @property
    def _is_busy(self) -> bool:
        return bool(self._sent or len(self._queue))

    def _queue_up(self, entry: Waiting) -> None:
        """A replay's exchange goes out at once, its source waits for room. Of a live capture, what there is no room for goes without."""
        if self._may_wait:
            self._send_entry(entry, 0)
            return
        entry.size = COST_BYTES + sum(len(part.text) for part in entry.parts)
        for other in self._queue.add(entry):
            self._leave_out(other, _skipped())
        self._send_queued()

    def _send_queued(self) -> None:
        while self._sent_bytes < _UNDER_WAY_BYTES and (entry := self._queue.next()) is not None:
            self._send_entry(entry, max(self.least_pressure, self._queue.pressure(entry)))

    def _send_entry(self, entry: Waiting, pressure: int) -> None:
        exchange = entry.exchange
        size = self._send(Examine(entry.number, entry.stream, exchange.exchange_id, pressure, entry.parts, unread(exchange)))
        if self._may_wait:
            entry.size = size
        if not self._sent:
            self._progress = time.monotonic()
        self._sent[entry.number] = entry
        self._sent_bytes += entry.size

    def _answered(self, entry: Waiting, report: Report) -> None:
        """It was sent, and is not waited for any more."""
        entry.report, entry.parts = report, []
        self._sent_bytes -= entry.size
        if not self._may_wait:
            self._queue.done(entry)

    def _leave_out(self, entry: Waiting, report: Report) -> None:
        entry.report, entry.parts = report, []
        if entry.stream:
            self._send(Forget(entry.stream))

    def _longest_text(self, entry: Waiting) -> bytes:
        text = max((part.text for part in entry.parts), key=len, default="")
        return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()

    def _is_set_aside(self, entry: Waiting) -> bool:
        return bool(self._suspects) and self._suspects.get(self._longest_text(entry), 0) > 1

    def _send(self, message: ToWorker) -> int:
        data = frame(message)
        self._out += data
        return len(data)

    def _send_increments(self) -> None:
        dirty, self._dirty = self._dirty, []
        for listener in dirty:
            self._send_increments_of(listener)
        self.held = 0

    def _send_increments_of(self, listener: AnswerListener) -> None:
        pieces = listener.take()
        if not pieces or listener.generation != self.generation:
            return
        if self._process is None or (not self._may_wait and len(self._out) >= self._limit // 2):
            # This answer is scanned when it has ended, if there is time then.
            if listener.stream:
                self._send(Forget(listener.stream))
            listener.generation = -1
            return
        if not listener.stream:
            self._streams += 1
            listener.stream = self._streams
        for piece in pieces:
            piece.stream = listener.stream
            self._send(piece)

    def _wait_for_room(self) -> None:
        while self._may_wait and self._process is not None and self._sent_bytes + len(self._out) >= self._limit:
            self._pump(0.2)
            self._end_if_stuck()
            if time.monotonic() > self._deadline:
                self._give_up()

    # --- what comes back ----------------------------------------------------------------------------------------------

    def _pump(self, wait_s: float = 0.0) -> None:
        """Write and read what can be written and read; with a wait, until something can."""
        process = self._process
        if process is None:
            self._hand_on()
            return
        to, back = process.to, process.back
        while True:
            poll = select.poll()
            poll.register(back, select.POLLIN)
            if self._out:
                poll.register(to, select.POLLOUT)
            ready = dict(poll.poll(wait_s * 1000))
            if not ready:
                break
            wait_s = 0.0
            try:
                if to in ready:
                    with memoryview(self._out) as view:
                        sent = os.write(to, view[:_READ_BYTES])
                    del self._out[:sent]
                if back in ready:
                    data = os.read(back, _READ_BYTES)
                    if not data:
                        self._lost("ended by itself")
                        break
                    for message in self._frames.feed(data):
                        self._take(message)
            except BlockingIOError:
                break
            except (BrokenPipeError, ConnectionResetError):
                self._lost("ended by itself")
                break
        self._hand_on()

    def _take(self, message: FromWorker) -> None:
        self._progress = time.monotonic()
        if isinstance(message, Examined):
            entry = self._sent.pop(message.number, None)
            if entry is not None:
                self._answered(entry, message.report)
                self._send_queued()
        elif isinstance(message, Early):
            self._tell(message)
        elif isinstance(message, Ready):
            self._ready = message
            self._redacts = self._redacts or message.redacts
        elif isinstance(message, DetectorFault):
            self._journal.warning(
                "detector_failed",
                f"the detector {message.detector} failed ({message.fault} at {message.where}); the others go on",
                detector=message.detector,
                fault=message.fault,
                where=message.where,
            )
        else:
            self._totals = message

    def _tell(self, early: Early) -> None:
        if self._may_wait or (early.stream, early.rule_id) in self._told:
            return
        self._told[early.stream, early.rule_id] = None
        if len(self._told) > _MAX_TOLD:
            self._told.popitem(last=False)
        self._journal.info(
            "early_finding",
            f"early finding in a streaming response: {early.severity} {early.rule_id} ({early.kind}), at output token {early.at_output_token}",
            severity=early.severity,
            rule=early.rule_id,
            type=early.kind,
            at_output_token=early.at_output_token,
        )

    def _hand_on(self) -> None:
        while self._waiting and self._waiting[0].report is not None:
            entry = self._waiting[0]
            assert entry.report is not None
            exchange = entry.exchange
            if entry.is_llm:
                self._marks.update(entry.report.marks)
                exchange = entry.report.applied(exchange)
                for finding in exchange.findings:
                    self._findings[finding.severity] += 1
                    self.failed = self.failed or (self._fail_on is not None and rank(finding.severity) >= rank(self._fail_on))
                if self._redacts and not _UNSCANNED.isdisjoint(entry.report.marks):
                    exchange = withheld(exchange)
                elif self._redact or entry.report.redacting:
                    exchange = redacted(exchange, entry.report.masks, everything=self._redact, rules=entry.report.redacting)
            self._deliver(exchange)
            self._waiting.popleft()

    # --- its life -----------------------------------------------------------------------------------------------------

    def _launch(self) -> None:
        try:
            self._process = self._start_detector()
        except OSError as fault:
            self._journal.warning(
                "detection_not_started",
                f"the detection process cannot be started ({fault.strerror}): exchanges are marked detection_skipped",
            )
            return
        self._frames = Frames(FromWorker)
        self.generation += 1
        self._progress = time.monotonic()
        self._ready = None
        self._out.clear()
        self._send(self._start)

    def _end_if_stuck(self) -> None:
        """There is something to do, and for too long nothing was done."""
        if self._process is None or not self._sent:
            return
        if self._ready is None:
            patience = _START_S
        else:
            patience = _PATIENCE_OF_REPLAY_S if self._may_wait else _PATIENCE_S
            patience += next(iter(self._sent.values())).size / _SLOWEST_BYTES_PER_S
        if time.monotonic() - self._progress > patience:
            self._lost("took too long")

    def _start_again(self) -> None:
        if self._process is None and time.monotonic() >= self._retry_at:
            self._retry_at = math.inf
            self._launch()

    def await_ready(self) -> None:
        """Until the rules and the model are loaded. Raises ConfigError for what is wrong with them."""
        begun = time.monotonic()
        while self._ready is None and self._process is not None and time.monotonic() - begun < _START_S:
            self._pump(0.2)
        if self._ready is not None and self._ready.error:
            self._end()
            raise ConfigError(self._ready.error, self._ready.hint)

    def _lost(self, why: str) -> None:
        """The process is gone, or as good as gone: mark what it had in hand, and go on with a new one."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
        sent, self._sent = list(self._sent.values()), {}
        for entry in sent:
            self._sent_bytes -= entry.size
            entry.stream = 0
            if not self._may_wait:
                self._queue.done(entry)
        if sent:
            if self._ready is not None:  # else it died of itself
                self._suspect(sent[0])
            sent[0].report, sent[0].parts = _fault(), []
        now = time.monotonic()
        self._deaths.append(now)
        while self._deaths[0] < now - _RESTARTS_IN_S:
            self._deaths.popleft()
        beyond = len(self._deaths) - _RESTARTS
        self._out.clear()
        if beyond <= 0:
            after = "restarting"
            self._launch()
        else:
            pause = _BACK_OFF_S[min(beyond, len(_BACK_OFF_S)) - 1]
            after = f"detection is off for {pause:.0f} s, exchanges are marked detection_skipped meanwhile"
            self._retry_at = now + pause
        self._restarts_total += 1
        self._journal.warning(
            "detection_lost",
            f"the detection process {why}; the exchange it was scanning is marked detection_fault; {after}",
            why=why,
            off_s=max(0.0, self._retry_at - now) if math.isfinite(self._retry_at) else 0.0,
        )
        for entry in [*sent[1:], *self._queue.clear()]:
            entry.stream = 0
            if self._process is None:
                entry.report, entry.parts = _skipped(), []
            elif self._is_set_aside(entry):
                entry.report, entry.parts = _fault(), []
            else:
                self._queue_up(entry)

    def _suspect(self, entry: Waiting) -> None:
        text = self._longest_text(entry)
        self._suspects[text] = self._suspects.pop(text, 0) + 1
        if len(self._suspects) > _MAX_SUSPECTS:
            self._suspects.popitem(last=False)

    def _give_up(self) -> None:
        """Nobody waits any longer: the process ends, and what it has not answered goes without."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
        for entry in [*self._sent.values(), *self._queue.clear()]:
            entry.report, entry.parts = _skipped(), []
        self._sent.clear()
        self._sent_bytes = 0
        self._out.clear()
        self._hand_on()

    def _end(self) -> None:
        """Close its input, take its totals, and see it off."""
        process = self._process
        if process is None:
            return
        process.close_input()
        deadline = min(time.monotonic() + _PATIENCE_S, max(self._deadline, time.monotonic() + 0.2))
        poll = select.poll()
        poll.register(process.back, select.POLLIN)
        with contextlib.suppress(OSError):
            while poll.poll(max(0.0, deadline - time.monotonic()) * 1000) and (data := os.read(process.back, _READ_BYTES)):
                for message in self._frames.feed(data):
                    self._take(message)
        process.close(max(0.0, deadline - time.monotonic()))
        self._process = None

    # --- the end ------------------------------------------------------------------------------------------------------

    def samples(self) -> Iterable[Sample]:
        """What the process itself counts is as of its last report, some seconds ago."""
        yield from by_label("llmsec_findings_total", "severity", self._findings)
        yield from by_label("llmsec_detection_reduced_exchanges_total", "mark", self._marks)
        yield from by_label("llmsec_detector_faults_total", "detector", self._totals.faults)
        yield Sample("llmsec_detection_up", float(self._process is not None))
        yield Sample("llmsec_detection_deaths_total", self._restarts_total)
        yield Sample("llmsec_detection_waiting_exchanges", len(self._waiting))
        yield Sample("llmsec_detection_queue_bytes", self._queue.load if not self._may_wait else self._sent_bytes)
        yield Sample("llmsec_detection_increments_total", self._totals.increments)
        for name, value in (("0.5", self._totals.delay_ms_p50), ("0.99", self._totals.delay_ms_p99)):
            if value is not None:
                yield Sample("llmsec_detection_delay_seconds", value / 1000, (("quantile", name),))

    def summary(self) -> list[str]:
        """Lines for the closing summary: findings by severity, faults by name, what was left out, how soon streams were scanned."""
        counted = [f"{severity} {self._findings[severity]:,}" for severity in reversed(SEVERITIES) if self._findings[severity]]
        lines = ["findings: " + (", ".join(counted) or "none")]
        if self._totals.delay_ms_p99 is not None and not self._may_wait:
            lines.append(
                f"scanned {self._totals.increments:,} increments of answers as they came, half of them within {self._totals.delay_ms_p50:.1f} ms,"
                f" 99 % within {self._totals.delay_ms_p99:.1f} ms"
            )
        if self._totals.faults:
            named = ", ".join(f"{name} {count:,}" for name, count in sorted(self._totals.faults.items()))
            lines.append(f"detectors that failed or ran out of time: {named}")
        if self._marks:
            lines.append(
                "exchanges with reduced detection: " + ", ".join(f"{name} {count:,}" for name, count in sorted(self._marks.items()))
            )
        return lines


def _skipped() -> Report:
    return Report([], None, [], ["detection_skipped"])


def _fault() -> Report:
    return Report([], None, [], ["detection_fault"])
