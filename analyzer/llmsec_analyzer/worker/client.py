"""The decoder's end of the detection process: increments and exchanges out, reports in, exchanges on in the order they came.

A live capture never waits here: what does not fit the queue, or is not answered in time, goes on unscanned and says so
(`detection_skipped`). A replay's source can wait, so it does. If the process dies, what it had in hand is marked
`detection_fault` and a new one goes on with the rest.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections import Counter, deque
from collections.abc import Callable

import msgspec

from llmsec_analyzer.detectors.exchange_parts import Report, text_parts, unread
from llmsec_analyzer.detectors.redact import redacted
from llmsec_analyzer.detectors.risk import SEVERITIES, rank
from llmsec_analyzer.detectors.settings import DetectionSettings
from llmsec_analyzer.worker.child import ChildDetector, Detector, StartDetector
from llmsec_analyzer.worker.protocol import (
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
from llmsec_tap.errors import ConfigError
from llmsec_tap.model import Exchange, Severity
from llmsec_tap.providers.assemble import ExchangeAssembly

# What waits for the detection process: bytes of messages and exchanges without a report. Above the shares the process is asked
# to leave out more and more (budget.py); at the whole, a live capture goes on without.
MAX_QUEUED_BYTES = 32 << 20
_PRESSURE = (0.25, 0.5, 0.75)
# Increments held back to go together, over all streams (256 characters of one count as another); a tick sends what there is.
_MAX_HELD = 16_384
_MAX_HELD_LIVE = 32  # somebody waits for what they hold, and another core can scan while this one decodes on
_SEND_AT_BYTES = 64 << 10
_READ_BYTES = 1 << 20
# A live capture gives an exchange up after so long, and takes the process for stuck: some seconds, and more for a long text.
_PATIENCE_S = 10.0
_SLOWEST_BYTES_PER_S = 250_000
_RESTARTS = 3
_START_S = 60.0


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


class _Waiting(msgspec.Struct):
    """An exchange in line. `size`: of its message; `report` once there is one."""

    number: int
    exchange: Exchange
    size: int
    since: float
    report: Report | None = None
    is_llm: bool = True


class DetectionProcess:
    """For replay and capture alike: `listener` goes to the pipeline, `add` takes exchanges, `deliver` gets them back in order."""

    def __init__(
        self,
        settings: DetectionSettings,
        key: bytes,
        deliver: Callable[[Exchange], None],
        *,
        may_wait: bool,
        report: Callable[[str], None],
        redact: bool = False,
        fail_on: Severity | None = None,
        start: StartDetector = ChildDetector,
    ) -> None:
        self._start = Start(settings, key)
        self._start_detector = start
        self._deliver = deliver
        self._may_wait = may_wait
        self._report = report
        self._redact = redact
        self._fail_on = fail_on
        self.failed = False  # something as severe as `fail_on` was found
        self.generation = 0
        self.held = 0  # increments not sent yet
        self._hold = _MAX_HELD if may_wait else _MAX_HELD_LIVE
        self._dirty: list[AnswerListener] = []
        self._streams = 0
        self._numbers = 0
        self._stream_of: dict[str, int] = {}
        self._waiting: deque[_Waiting] = deque()
        self._by_number: dict[int, _Waiting] = {}
        self._queued = 0
        self._out = bytearray()
        self._progress = time.monotonic()
        self._ready: Ready | None = None
        self._totals = Totals({}, 0)
        self._findings: Counter[str] = Counter()
        self._marks: Counter[str] = Counter()
        self._told: set[tuple[int, str]] = set()
        self._restarts = 0
        self._process: Detector | None = None
        self._launch()

    # --- the pipeline's side ------------------------------------------------------------------------------------------

    def listener(self, assembly: ExchangeAssembly) -> AnswerListener:
        return AnswerListener(self)

    def holds(self, listener: AnswerListener, text: str) -> None:
        """The listener has something to send."""
        self._dirty.append(listener)
        self.held += 1 + (len(text) >> 8)
        if self.held >= self._hold:
            self._send_increments()
            if len(self._out) >= _SEND_AT_BYTES or not self._may_wait:
                self._pump()
                self._wait_for_room()

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
        entry = _Waiting(self._numbers, exchange, 0, time.monotonic())
        stream = self._stream_of.pop(exchange.exchange_id, 0)
        if exchange.provider is None:
            entry.is_llm, entry.report = False, Report([])
        elif self._process is None or (not self._may_wait and self._queued >= MAX_QUEUED_BYTES):
            entry.report = _skipped()
            if stream:
                self._send(Forget(stream))
        else:
            entry.size = self._send(self._question(entry, stream))
            self._queued += entry.size
            self._by_number[entry.number] = entry
        self._waiting.append(entry)
        if len(self._out) >= _SEND_AT_BYTES:
            self._pump()
            self._wait_for_room()
        elif self._waiting[0].report is not None:
            self._hand_on()

    def tick(self) -> None:
        """Send what is held back and take what is answered; never waits."""
        self._send_increments()
        self._pump()
        if not self._may_wait and self._waiting and time.monotonic() - max(self._progress, self._waiting[0].since) > self._patience_s:
            self._lost("took too long")

    def drain(self) -> None:
        """Wait until everything that was added is delivered; a process that makes no progress is given up, unless its source can wait."""
        self._send_increments()
        self._progress = time.monotonic()
        while self._process is not None and self._by_number:
            self._pump(0.2)
            if time.monotonic() - self._progress > self._patience_s and not self._may_wait:
                self._lost("took too long")
        self._hand_on()

    def close(self) -> None:
        """Wait for what is still out, deliver it, and end the process."""
        self.drain()
        self._end()
        for entry in self._waiting:
            entry.report = entry.report or _skipped()
        self._hand_on()

    # --- what is sent -------------------------------------------------------------------------------------------------

    def _question(self, entry: _Waiting, stream: int) -> Examine:
        pressure = 0 if self._may_wait else sum(self._queued >= share * MAX_QUEUED_BYTES for share in _PRESSURE)
        return Examine(entry.number, stream, entry.exchange.exchange_id, pressure, list(text_parts(entry.exchange)), unread(entry.exchange))

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
        if self._process is None or (not self._may_wait and len(self._out) >= MAX_QUEUED_BYTES // 2):
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
        while self._may_wait and self._process is not None and self._queued + len(self._out) >= MAX_QUEUED_BYTES:
            self._pump(0.2)

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
            entry = self._by_number.pop(message.number, None)
            if entry is not None:
                entry.report = message.report
                self._queued -= entry.size
        elif isinstance(message, Early):
            self._tell(message)
        elif isinstance(message, Ready):
            self._ready = message
        else:
            self._totals = message

    def _tell(self, early: Early) -> None:
        if self._may_wait or (early.stream, early.rule_id) in self._told or len(self._told) > 10_000:
            return
        self._told.add((early.stream, early.rule_id))
        self._report(
            f"found in an answer that still streams: {early.severity} {early.rule_id} ({early.kind}), with increment {early.at_output_token}"
        )

    def _hand_on(self) -> None:
        while self._waiting and self._waiting[0].report is not None:
            entry = self._waiting.popleft()
            assert entry.report is not None
            exchange = entry.exchange
            if entry.is_llm:
                self._marks.update(entry.report.marks)
                exchange = entry.report.applied(exchange)
                for finding in exchange.findings:
                    self._findings[finding.severity] += 1
                    self.failed = self.failed or (self._fail_on is not None and rank(finding.severity) >= rank(self._fail_on))
                if self._redact and exchange.findings:
                    exchange = redacted(exchange)
            self._deliver(exchange)

    # --- its life -----------------------------------------------------------------------------------------------------

    def _launch(self) -> None:
        try:
            self._process = self._start_detector()
        except OSError as fault:
            self._report(f"warning: the detection process cannot be started ({fault.strerror}): exchanges are marked detection_skipped")
            return
        self._frames = Frames(FromWorker)
        self.generation += 1
        self._progress = time.monotonic()
        self._ready = None
        self._out.clear()
        self._send(self._start)

    @property
    def _patience_s(self) -> float:
        if self._ready is None:
            return _START_S
        return _PATIENCE_S + (self._waiting[0].size / _SLOWEST_BYTES_PER_S if self._waiting else 0.0)

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
        open_entries = list(self._by_number.values())
        self._by_number.clear()
        self._queued = 0
        if open_entries:
            open_entries[0].report = Report([], None, [], ["detection_fault"])
        self._restarts += 1
        goes_on = self._restarts <= _RESTARTS
        after = "a new one goes on" if goes_on else "detection stays off for the rest of this run"
        self._report(f"warning: the detection process {why}: the exchange it had in hand is marked detection_fault; {after}")
        if goes_on:
            self._launch()
        else:
            self._out.clear()
        for entry in open_entries[1:]:
            if goes_on:
                entry.size = self._send(self._question(entry, 0))
                entry.since = time.monotonic()
                self._queued += entry.size
                self._by_number[entry.number] = entry
            else:
                entry.report = _skipped()

    def _end(self) -> None:
        """Close its input, take its totals, and see it off."""
        process = self._process
        if process is None:
            return
        process.close_input()
        deadline = time.monotonic() + _PATIENCE_S
        poll = select.poll()
        poll.register(process.back, select.POLLIN)
        with contextlib.suppress(OSError):
            while poll.poll(max(0.0, deadline - time.monotonic()) * 1000) and (data := os.read(process.back, _READ_BYTES)):
                for message in self._frames.feed(data):
                    self._take(message)
        process.close(max(0.0, deadline - time.monotonic()))
        self._process = None

    # --- the end ------------------------------------------------------------------------------------------------------

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
            lines.append("not scanned as configured: " + ", ".join(f"{name} {count:,}" for name, count in sorted(self._marks.items())))
        return lines


def _skipped() -> Report:
    return Report([], None, [], ["detection_skipped"])
