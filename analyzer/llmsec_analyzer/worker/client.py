"""The decoder's end of the detection process: increments and exchanges out, reports in, exchanges on in the order they came.

A live capture never waits here: what does not fit the queue (fair.py), or is not answered in time, goes on unscanned and says so
(`detection_skipped`). A replay's source can wait, so it does, but not for ever: a process that makes no progress is ended. If the
process dies, the exchange it was scanning is marked `detection_fault` and a new process scans the rest (supervisor.py). `reload` starts
a second one beside it, which takes over once its rules and model are loaded.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final

from llmsec_analyzer.judge.exchange_parts import Report, noted, text_parts, unread
from llmsec_analyzer.judge.facts import facts_of
from llmsec_analyzer.risk import rank
from llmsec_analyzer.settings import DetectionSettings, Handling
from llmsec_analyzer.worker.batches import AnswerListener, Batches
from llmsec_analyzer.worker.child import ChildDetector, StartDetector
from llmsec_analyzer.worker.fair import COST_BYTES, FairQueue, Waiting
from llmsec_analyzer.worker.in_order import InOrder
from llmsec_analyzer.worker.pipe import Pipe, PipeEndedError
from llmsec_analyzer.worker.protocol import DetectorFault, Early, Examine, Examined, Forget, FromWorker, Ready, Start, ToWorker
from llmsec_analyzer.worker.running import Bounds, Running
from llmsec_analyzer.worker.statistics import Statistics, summary
from llmsec_analyzer.worker.supervisor import Quarantine, Supervisor
from llmsec_tap.counters import Sample, Snapshot, by_label
from llmsec_tap.errors import ConfigError
from llmsec_tap.exchange.assembly import ExchangeAssembly
from llmsec_tap.journal import Journal
from llmsec_tap.model import Exchange, Finding, Severity

# Increments held back to go together, over all streams (256 characters of one count as another); a tick sends what there is.
_MAX_HELD = 16_384
# Of a live capture they go out so often: each message costs the process as much as some increments.
_FLUSH_S = 0.02
_MAX_TOLD = 10_000
_GRAVE: Final[Severity] = "high"  # what is said of an exchange that has not ended
_SLOWEST_BYTES_PER_S = 250_000


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
        on_early: Callable[[Finding], None] = lambda _finding: None,
        early_from: Severity = _GRAVE,
        start: StartDetector = ChildDetector,
        bounds: Bounds | None = None,
        handling: Callable[[Exchange], Handling] = lambda _exchange: Handling(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_early` is given what is found before its exchange has ended: of requests all, of answers what is at least `early_from`.

        `handling` says what is different for an exchange, by its tenant.
        """
        self._bounds = bounds = bounds or Bounds()
        self._start = Start(settings, key, redact, early_from)
        self._start_detector = start
        self._may_wait = may_wait
        self._journal = journal
        self._clock = clock
        self.least_pressure = 0  # what is left out of every exchange at least (judge/budget.py)
        self._batches = Batches(self._send, self._has_room)
        self._in_order = InOrder(deliver, redact=redact, fail_on=fail_on)
        self._in_order.masks = redact or settings.asks_redaction
        self._queue = FairQueue(bounds.queue_bytes)
        self._numbers = 0
        self._requests = 0  # that are being looked at
        self._flush_at = 0.0
        self._deadline = math.inf  # of all waiting
        self._statistics = Statistics()
        self._told: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._on_early = on_early
        self._handling = handling
        self._supervisor = Supervisor(bounds.restarts, bounds.back_off_s)
        self._quarantine = Quarantine(key)
        self._worker: Running | None = None
        self._noted: frozenset[str] = frozenset()  # what the process before it said of its settings
        self._is_awaited = False  # somebody takes its refusal of the settings himself
        self._wanted: Start | None = None  # what a reload asks for
        self._successor: Running | None = None  # until its rules and model are loaded
        self._retiring: Running | None = None  # until it has answered what it was sent
        self._start_again()

    # --- the pipeline's side ------------------------------------------------------------------------------------------

    @property
    def failed(self) -> bool:
        """Something as severe as `fail_on` was found."""
        return self._in_order.failed

    def listener(self, assembly: ExchangeAssembly) -> AnswerListener:
        return AnswerListener(self._batches, assembly)

    @property
    def is_awaited(self) -> bool:
        """A request is being looked at whose findings are wanted at once."""
        return self._requests > 0

    def ask(self, exchange: Exchange) -> None:
        """Look at a request whose answer is still out; what is found goes to `on_early`. Whatever becomes of it, `add` has all of it looked at."""
        if self._worker is None or not self._start.settings.request_time.enabled:
            return
        self._numbers += 1
        sensitivity, _ = self._handling(exchange)
        parts = list(text_parts(exchange))
        entry = Waiting(self._numbers, exchange, 0, self._clock(), is_request=True, parts=parts, sensitivity=sensitivity)
        if entry.parts:
            self._requests += 1
            self._queue_up(entry)

    def add(self, exchange: Exchange) -> None:
        """Take an exchange; it is delivered, now or later, after all that came before it."""
        self._numbers += 1
        stream = self._batches.stream_of(exchange.exchange_id)
        sensitivity, redact = self._handling(exchange)
        masks = self._in_order.masks or redact
        entry = Waiting(self._numbers, exchange, 0, self._clock(), stream=stream, masks=masks, sensitivity=sensitivity, redact=redact)
        self._in_order.add(entry)
        self._start_again()
        if not exchange.is_request:
            entry.is_llm, entry.report = False, Report([])
        else:
            entry.parts = list(text_parts(exchange))
            self._queue_up(entry)
        if self._worker is not None and self._worker.pipe.waiting_bytes >= self._bounds.send_at_bytes:
            self._pump()
            self._wait_for_room()
        else:
            self._in_order.hand_on()
        if not self._may_wait and len(self._in_order) > self._bounds.exchanges:
            self._skip_all()

    def tick(self) -> None:
        """Send what is held back and take what is answered. Only a replay waits, where too much is under way."""
        self._start_again()
        now = self._clock()
        if self._batches.held >= _MAX_HELD or (not self._may_wait and now >= self._flush_at):
            self._flush_at = now + _FLUSH_S
            self._batches.flush()
        self._pump()
        if self._wanted is not None or self._successor is not None or self._retiring is not None:
            self._go_on_reloading()
        if self._may_wait:
            self._wait_for_room()
        else:
            self._end_if_stuck()

    def drain(self) -> None:
        """Wait until everything that was added is delivered, but not for ever; what has no answer then is marked `detection_skipped`."""
        self._batches.flush()
        now = self._clock()
        for worker in self._workers:
            worker.progress = now
        ends = now + self._bounds.drain_s if not self._may_wait else math.inf
        while self._workers and self._is_busy:
            self._pump(0.2)
            self._end_if_stuck()
            if self._clock() > min(ends, self._deadline):
                self._give_up()
        self._in_order.hand_on()

    def go_on(self, wait_s: float) -> bool:
        """As `drain`, for so long at most: whether something is out still. For who feeds several processes."""
        if not (self._workers and self._is_busy):
            self._in_order.hand_on()
            return False
        self._pump(wait_s)
        self._end_if_stuck()
        self._start_again()
        return bool(self._workers and self._is_busy)

    def hurry(self) -> None:
        """Somebody wants this to end: nothing waits longer than a few seconds from now on. May be called from a signal handler."""
        self._deadline = min(self._deadline, self._clock() + self._bounds.hurry_s)

    def close(self) -> None:
        """Wait for what is still out, deliver it, and end the process."""
        self.drain()
        self._end()
        for entry in self._in_order.unanswered():
            entry.report = _marked("detection_skipped")
        self._in_order.hand_on()

    # --- another configuration ----------------------------------------------------------------------------------------

    def reload(self, settings: DetectionSettings) -> None:
        """Go over to other settings, while it runs: it takes some calls of `tick`, and nothing is lost or overtaken meanwhile.

        A second process is started with them; once its rules and model are loaded, it is sent what comes from then on, and the
        first one ends when it has answered what it was sent. Settings that are wrong change nothing: the journal has an error
        (`detection_reload_refused`), and `llmsec_detection_reloads_total` counts it. Of several calls, the last one holds.
        """
        self._wanted = Start(settings, self._start.key, self._start.redact, self._start.early_from)
        if self._successor is not None:
            self._successor.pipe.kill()
            self._successor = None
        self._go_on_reloading()

    def _go_on_reloading(self) -> None:
        retiring = self._retiring
        if retiring is not None and not retiring.pipe.waiting_bytes:
            retiring.pipe.close_input()
        if self._wanted is not None and self._successor is None and retiring is None:  # two at a time
            wanted, self._wanted = self._wanted, None
            try:
                self._successor = Running(wanted, self._start_detector(), self._clock())
            except OSError as fault:
                self._refuse("failed", f"a second detection process cannot be started ({fault.strerror})")
        elif self._successor is not None and self._clock() - self._successor.begun > self._bounds.start_s:
            self._refuse("failed", "the new detection process took too long to load its rules and model")

    def _refuse(self, result: str, why: str, hint: str = "") -> None:
        successor, self._successor = self._successor, None
        if successor is not None:
            successor.pipe.kill()
        self._statistics.reloads[result] += 1
        after = f" ({hint})" if hint else ""
        self._journal.error("detection_reload_refused", f"{why}{after}; detection goes on with the settings it has", why=why, result=result)

    def _take_over(self, successor: Running, ready: Ready) -> None:
        self._successor = None
        self._worker, self._retiring = successor, self._worker
        self._start = successor.start
        self._batches.restart()
        if self._retiring is not None:
            self._retiring.progress = self._clock()
        self._in_order.masks = successor.start.redact or successor.start.settings.asks_redaction
        self._become_ready(ready)
        self._statistics.reloads["accepted"] += 1
        self._journal.info("detection_reloaded", "detection goes by the new settings from here on")
        self._send_queued()

    # --- what is sent -------------------------------------------------------------------------------------------------

    @property
    def _workers(self) -> list[Running]:
        return [worker for worker in (self._worker, self._retiring, self._successor) if worker is not None]

    @property
    def _is_busy(self) -> bool:
        return bool(len(self._queue) or any(worker.sent for worker in self._workers))

    def _queue_up(self, entry: Waiting) -> None:
        """A replay's exchange goes out at once, its source waits for room. Of a live capture, what there is no room for goes without."""
        if self._worker is None:
            self._leave_out(entry, "detection_skipped")
        elif self._quarantine and self._quarantine.holds(_longest_text(entry)):
            self._leave_out(entry, "detection_set_aside")
        elif self._may_wait:
            self._send_entry(self._worker, entry, 0)
        else:
            entry.size = COST_BYTES + sum(len(part.text) for part in entry.parts)
            for other in self._queue.add(entry):
                self._leave_out(other, "detection_skipped")
            self._send_queued()

    def _send_queued(self) -> None:
        worker = self._worker
        while worker is not None and worker.sent_bytes < self._bounds.under_way_bytes and (entry := self._queue.next()) is not None:
            self._send_entry(worker, entry, max(self.least_pressure, self._queue.pressure(entry)))

    def _send_entry(self, worker: Running, entry: Waiting, pressure: int) -> None:
        exchange = entry.exchange
        stream = entry.stream if self._batches.is_known(entry.stream) else 0
        unread_names = [] if entry.is_request else unread(exchange)
        facts = facts_of(exchange) if worker.start.settings.suppressions else None
        message = Examine(
            entry.number,
            stream,
            exchange.exchange_id,
            pressure,
            entry.parts,
            unread_names,
            entry.is_request,
            facts,
            [] if entry.is_request else noted(exchange),
            entry.sensitivity,
            entry.redact,
        )
        is_urgent = entry.is_request and worker.ready is not None
        size = worker.pipe.send(message, urgent=is_urgent)
        if self._may_wait:
            entry.size = size
        if not worker.sent:
            worker.progress = self._clock()
        worker.sent[entry.number] = entry
        if is_urgent:
            worker.sent.move_to_end(entry.number, last=False)
        worker.sent_bytes += entry.size

    def _returned(self, worker: Running, number: int) -> Waiting | None:
        """It was sent, and is not waited for any more."""
        entry = worker.sent.pop(number, None)
        if entry is not None:
            worker.sent_bytes -= entry.size
            if not self._may_wait:
                self._queue.done(entry)
        return entry

    def _leave_out(self, entry: Waiting, mark: str) -> None:
        entry.report, entry.parts = _marked(mark), []
        if entry.is_request:
            self._requests -= 1
            self._statistics.requests_left_out += 1
            return
        if self._batches.is_known(entry.stream):
            self._send(Forget(entry.stream))

    def _skip_all(self) -> None:
        """More waits for one exchange than may: all of it goes without. What the process has in hand it still answers, for nobody."""
        for entry in self._queue.clear():
            self._leave_out(entry, "detection_skipped")
        for entry in self._in_order.unanswered():
            entry.report = _marked("detection_skipped")
        self._in_order.hand_on()

    def _send(self, message: ToWorker) -> None:
        if self._worker is not None:
            self._worker.pipe.send(message)

    def _has_room(self) -> bool:
        """For increments: else an answer is scanned when it has ended, if there is time then."""
        worker = self._worker
        return worker is not None and (self._may_wait or worker.pipe.waiting_bytes < self._bounds.queue_bytes // 2)

    def _wait_for_room(self) -> None:
        while (
            self._may_wait
            and (worker := self._worker) is not None
            and worker.sent_bytes + worker.pipe.waiting_bytes >= self._bounds.queue_bytes
        ):
            self._pump(0.2)
            self._end_if_stuck()
            if self._clock() > self._deadline:
                self._give_up()

    # --- what comes back ----------------------------------------------------------------------------------------------

    def _pump(self, wait_s: float = 0.0) -> None:
        """Write and read what can be written and read; with a wait, until something can."""
        moved = True
        while moved and (workers := self._workers):
            ready = Pipe.ready([worker.pipe for worker in workers], wait_s)
            wait_s, moved = 0.0, False
            for worker in workers:
                if worker.pipe in ready and worker in self._workers:
                    moved = self._step(worker) or moved
        self._in_order.hand_on()

    def _step(self, worker: Running) -> bool:
        """Whether anything moved."""
        try:
            messages = worker.pipe.step()
        except PipeEndedError as end:
            self._ended(worker, str(end))
            return True
        for message in messages or ():
            if worker in self._workers:
                self._take(worker, message)
        return messages is not None

    def _take(self, worker: Running, message: FromWorker) -> None:
        worker.progress = self._clock()
        if isinstance(message, Examined):
            entry = self._returned(worker, message.number)
            if entry is not None:
                if entry.is_request:
                    self._asked(entry, message.report)
                elif entry.report is None:
                    entry.report, entry.parts = message.report, []
                    self._statistics.durations.observe(worker.progress - entry.since)
                self._send_queued()
        elif isinstance(message, Early):
            self._tell(message.finding, "a streaming response", message.stream)
        elif isinstance(message, Ready):
            self._take_ready(worker, message)
        elif isinstance(message, DetectorFault):
            self._journal.warning(
                "detector_failed",
                f"the detector {message.detector} failed ({message.fault} at {message.where}); the others go on",
                detector=message.detector,
                fault=message.fault,
                where=message.where,
            )
        else:
            worker.totals = message

    def _take_ready(self, worker: Running, message: Ready) -> None:
        worker.ready = message
        if worker is self._successor:
            if message.error:
                self._refuse("refused", message.error, message.hint)
            else:
                self._take_over(worker, message)
        elif not message.error:
            self._become_ready(message)
        elif not self._is_awaited:  # a file of rules that was right has changed, perhaps
            self._lost(worker, f"refused its settings: {message.error}")

    def _become_ready(self, ready: Ready) -> None:
        self._supervisor.ready()
        self._in_order.masks = self._in_order.masks or ready.redacts
        for note in ready.notes:
            if note not in self._noted:
                self._journal.warning("suppression_ended", note)
        self._noted = frozenset(ready.notes)

    def _asked(self, entry: Waiting, report: Report) -> None:
        self._requests -= 1
        self._statistics.asked(entry.exchange, report)
        for finding in report.findings:
            self._tell(finding, "a request whose answer is still out", None)

    def _tell(self, finding: Finding, where: str, stream: int | None) -> None:
        """To whoever waits for it; what is grave is also said once for each exchange and rule. What is suppressed is on the record only."""
        if finding.suppressed is not None:
            return
        self._on_early(finding)
        key = finding.exchange_id if stream is None else str(stream), finding.rule_id
        if self._may_wait or rank(finding.severity) < rank(_GRAVE) or key in self._told:
            return
        self._told[key] = None
        if len(self._told) > _MAX_TOLD:
            self._told.popitem(last=False)
        at = "" if finding.at_output_token is None else f", at output token {finding.at_output_token}"
        self._journal.info(
            "early_finding",
            f"early finding in {where}: {finding.severity} {finding.rule_id} ({finding.type}){at}",
            severity=finding.severity,
            rule=finding.rule_id,
            type=finding.type,
            at_output_token=finding.at_output_token,
            exchange_id=finding.exchange_id,
        )

    # --- its life -----------------------------------------------------------------------------------------------------

    def _start_again(self) -> None:
        now = self._clock()
        if self._worker is not None or not self._supervisor.may_start(now):
            return
        try:
            self._worker = Running(self._start, self._start_detector(), now)
        except OSError as fault:
            pause = self._supervisor.lost(now)
            self._journal.warning(
                "detection_not_started",
                f"the detection process cannot be started ({fault.strerror}): exchanges are marked detection_skipped, {_until(pause)}",
                off_s=pause,
            )
        else:
            self._supervisor.started()

    def _end_if_stuck(self) -> None:
        """There is something to do, and for too long nothing was done."""
        bounds, now = self._bounds, self._clock()
        for worker in (self._worker, self._retiring):
            if worker is None or not (worker.sent or worker is self._retiring):
                continue
            if worker.ready is None:
                patience = bounds.start_s
            else:
                patience = bounds.patience_of_replay_s if self._may_wait else bounds.patience_s
                first = next(iter(worker.sent.values()), None)
                if first is not None:
                    patience += first.size / _SLOWEST_BYTES_PER_S + _model_time_s(worker.start.settings, len(first.parts))
            if now - worker.progress > patience:
                self._lost(worker, "took too long")

    def await_ready(self) -> None:
        """Until the rules and the model are loaded. Raises ConfigError for what is wrong with them."""
        self._is_awaited = True
        begun = self._clock()
        while (worker := self._worker) is not None and worker.ready is None and self._clock() - begun < self._bounds.start_s:
            self._pump(0.2)
        self._is_awaited = False
        ready = worker.ready if worker is not None else None
        if ready is not None and ready.error:
            self._end()
            raise ConfigError(ready.error, ready.hint)

    def _ended(self, worker: Running, why: str) -> None:
        if worker is self._retiring and not worker.sent:
            self._retiring = None
            self._statistics.keep(worker)
            worker.pipe.close(1.0)
        else:
            self._lost(worker, why)

    def _lost(self, worker: Running, why: str) -> None:
        """The process exited or does not respond: mark what it was scanning, and have the rest scanned by another one."""
        if worker is self._successor:
            self._refuse("failed", f"the new detection process {why}")
            return
        worker.pipe.kill()
        self._statistics.keep(worker)
        again = [entry for number in list(worker.sent) if (entry := self._returned(worker, number)) is not None]
        culprit = again.pop(0) if again else None
        if worker is self._worker:
            self._worker = None
            self._batches.restart()
            again += self._queue.clear()
            pause = self._supervisor.lost(self._clock())
        else:
            self._retiring, pause = None, 0.0
        self._journal.warning(
            "detection_lost",
            f"the detection process {why}; the exchange it was scanning is marked detection_fault; {_until(pause)}",
            why=why,
            off_s=pause,
        )
        if culprit is not None:
            if worker.ready is not None:  # else it died of itself
                self._accuse(culprit)
            if culprit.is_request:
                self._leave_out(culprit, "detection_fault")
            elif culprit.report is None:
                culprit.report, culprit.parts = _marked("detection_fault"), []
        self._start_again()
        for entry in again:
            if entry.report is None:
                self._queue_up(entry)

    def _accuse(self, entry: Waiting) -> None:
        name = self._quarantine.accuse(_longest_text(entry))
        if name is not None:
            self._journal.error(
                "detection_text_set_aside",
                "a text ended the detection process twice: exchanges with it go on unscanned, marked detection_set_aside",
                hash=name,
                exchange_id=entry.exchange.exchange_id,
                client=entry.exchange.client,
            )

    def _give_up(self) -> None:
        """Nobody waits any longer: the process ends, and what it has not answered goes without."""
        for worker in self._workers:
            worker.pipe.kill()
            for number in list(worker.sent):
                self._returned(worker, number)
        self._queue.clear()
        self._requests = 0
        self._worker = self._retiring = self._successor = self._wanted = None
        self._supervisor.off()
        for entry in self._in_order.unanswered():
            entry.report, entry.parts = _marked("detection_skipped"), []
        self._in_order.hand_on()

    def _end(self) -> None:
        """Close its input, read its final totals and wait for it to exit."""
        if self._successor is not None:
            self._successor.pipe.kill()
        self._successor = self._wanted = None
        now = self._clock()
        deadline = min(now + self._bounds.patience_s, max(self._deadline, now + 0.2))
        for worker in self._workers:
            worker.pipe.close_input()
            for message in worker.pipe.rest(lambda: deadline - self._clock()):
                self._take(worker, message)
            worker.pipe.close(max(0.0, deadline - self._clock()))
            self._statistics.keep(worker)
        self._worker = self._retiring = None
        self._supervisor.off()

    # --- counts -------------------------------------------------------------------------------------------------------

    def samples(self) -> Iterable[Sample]:
        """What the process itself counts is as of its last report, some seconds ago."""
        yield from self._statistics.samples(self._worker)
        yield from by_label("llmsec_findings_total", "severity", self._in_order.findings)
        yield Sample("llmsec_suppressed_findings_total", self._in_order.suppressed)
        yield from by_label("llmsec_detection_reduced_exchanges_total", "mark", self._in_order.marks)
        yield Sample("llmsec_detection_up", float(self._worker is not None))
        yield Sample("llmsec_detection_deaths_total", self._supervisor.deaths_total)
        yield Sample("llmsec_detection_set_aside_texts_total", self._quarantine.set_aside_total)
        yield Sample("llmsec_detection_waiting_exchanges", len(self._in_order))
        yield Sample("llmsec_detection_queue_bytes", self._queue.load if not self._may_wait else sum(w.sent_bytes for w in self._workers))

    def summary(self) -> list[str]:
        """Lines for the closing summary."""
        return summary(Snapshot([self.samples]), is_live=not self._may_wait)


def _model_time_s(settings: DetectionSettings, texts: int) -> float:
    """What a classifier of the user's own may take for so many texts, each perhaps judged as an answer, too."""
    model = settings.prompt_injection.model
    return 2 * texts * model.timeout if model.path is not None else 0.0


def _marked(name: str) -> Report:
    """Of an exchange that was not scanned: no score, and why."""
    return Report([], None, [], [name])


def _until(pause_s: float) -> str:
    return f"detection is off for {pause_s:.0f} s, exchanges are marked detection_skipped meanwhile" if pause_s else "restarting"


def _longest_text(entry: Waiting) -> str:
    return max((part.text for part in entry.parts), key=len, default="")
