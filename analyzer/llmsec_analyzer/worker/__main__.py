"""The detection process: messages on standard input, reports on what was standard output, the end at the end of its input."""

from __future__ import annotations

import os
import signal
import sys
import time
from array import array
from collections import OrderedDict

from llmsec_analyzer.judge.exchange import AnswerStreams, ExchangeDetector
from llmsec_analyzer.judge.facts import Facts
from llmsec_analyzer.judge.scanner import Scanner
from llmsec_analyzer.judge.suppressions import Suppressions, load_suppressions
from llmsec_analyzer.risk import rank
from llmsec_analyzer.settings import Sensitivity
from llmsec_analyzer.worker.protocol import (
    Begin,
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
from llmsec_analyzer.worker.rehearsal import rehearse
from llmsec_tap import privileges
from llmsec_tap.errors import ConfigError, where
from llmsec_tap.identity.credentials import fingerprinter

_READ_BYTES = 32 << 10
# The last so many delays make the quantiles; totals go out this often.
_MAX_DELAYS = 16_384
_TOTALS_S = 5.0
# Requests whose answer is out, and of which something is known by which findings in the answer may be suppressed.
_MAX_OPEN = 4096
_MAX_NOTES = 20
# Tenants that are judged by other lines than the rest share these by what they are.
_MAX_SENSITIVITIES = 64
# Below the decoder: where both want a core, decoding goes first, and what cannot be scanned in time is marked.
_NICENESS = 5


class Worker:
    def __init__(self, replies: int) -> None:
        self._replies = replies
        self._detector: ExchangeDetector | None = None
        self._redact = False
        self._suppressions = Suppressions()
        self._facts: OrderedDict[str, Facts] = OrderedDict()  # by exchange, of requests whose answer is out
        self._open: OrderedDict[str, Sensitivity] = OrderedDict()  # the same, where it is not the usual one
        self._by_sensitivity: OrderedDict[Sensitivity, ExchangeDetector] = OrderedDict()
        self._early_from = 0
        self._streams: dict[int, AnswerStreams] = {}
        self._delays_ns = array("q")
        self._increments = 0
        self._next_totals = 0.0
        self._messages = 0

    def take(self, message: ToWorker) -> None:
        if isinstance(message, Increments):
            self._feed(message)
        elif isinstance(message, Examine):
            detector = self._judging_by(message.sensitivity)
            if message.is_request:
                report = detector.examine_request(message.exchange_id, message.parts, pressure=message.pressure)
                self._keep_facts(message)
            else:
                streams = self._streams.pop(message.stream, None)
                report = detector.examine(
                    message.exchange_id, message.parts, streams, pressure=message.pressure, unread=message.unread, noted=message.noted
                )
                self._facts.pop(message.exchange_id, None)
                self._open.pop(message.exchange_id, None)
            self._suppressions.apply(report, message.facts, message.parts)
            if not (self._redact or message.masks):
                report.masks = [mask.of(report.redacting) for mask in report.masks] if report.redacting else []
            self._reply(Examined(message.number, report))
        elif isinstance(message, Begin):
            detector = self._judging_by(self._open.get(message.exchange_id))
            self._streams[message.stream] = detector.streams(message.exchange_id, self._early_from)
        elif isinstance(message, Forget):
            self._streams.pop(message.stream, None)
        else:
            self._start(message)
        if self._detector is not None and time.monotonic() >= self._next_totals:
            self._next_totals = time.monotonic() + _TOTALS_S
            self.tell_totals()

    def tell_totals(self) -> None:
        detector = self._detector
        if detector is None:
            return
        delays = sorted(self._delays_ns)
        totals = Totals(dict(detector.scanner.faults + detector.scanner.timeouts), self._increments)
        if delays:
            totals.delay_ms_p50 = delays[len(delays) // 2] / 1e6
            totals.delay_ms_p99 = delays[len(delays) * 99 // 100] / 1e6
        self._reply(totals)

    def _judging_by(self, sensitivity: Sensitivity | None) -> ExchangeDetector:
        assert self._detector is not None
        if sensitivity is None:
            return self._detector
        found = self._by_sensitivity.get(sensitivity)
        if found is None:
            found = self._by_sensitivity[sensitivity] = self._detector.judging_by(sensitivity)
            if len(self._by_sensitivity) > _MAX_SENSITIVITIES:
                self._by_sensitivity.popitem(last=False)
        return found

    def _keep_facts(self, message: Examine) -> None:
        if message.sensitivity is not None:
            self._open[message.exchange_id] = message.sensitivity
            if len(self._open) > _MAX_OPEN:
                self._open.popitem(last=False)
        if message.facts is not None:
            self._facts[message.exchange_id] = message.facts
            if len(self._facts) > _MAX_OPEN:
                self._facts.popitem(last=False)

    def _start(self, message: Start) -> None:
        self._redact = message.redact
        self._early_from = rank(message.early_from)
        try:
            self._suppressions = Suppressions(load_suppressions(message.settings.suppressions))
            self._detector = ExchangeDetector(Scanner(message.settings, fingerprinter(message.key), on_fault=self._fault))
        except ConfigError as fault:
            self._reply(Ready(str(fault), fault.hint))
        else:
            # Rules, models and plug-ins are loaded; from here on comes what strangers wrote.
            user = privileges.unprivileged_user()
            if user is not None and not privileges.may_read_programs(user):
                privileges.load_encodings()
                rehearse(self._detector.scanner)
            privileges.become(user)
            privileges.confine()
            self._reply(Ready(redacts=bool(self._detector.scanner.rules.redacting), notes=self._suppressions.expired()[:_MAX_NOTES]))

    def _fault(self, detector: str, fault: Exception) -> None:
        self._reply(DetectorFault(detector, type(fault).__name__, where(fault)))

    def _feed(self, message: Increments) -> None:
        assert self._detector is not None
        streams = self._streams.get(message.stream)
        if streams is None:
            return  # its process was another one
        fresh = streams.feed(message.kind, message.choice, message.texts)
        self._increments += len(message.texts)
        delay_ns = time.monotonic_ns() - message.at_ns
        if len(self._delays_ns) < _MAX_DELAYS:
            self._delays_ns.append(delay_ns)
        else:
            self._delays_ns[self._messages % _MAX_DELAYS] = delay_ns
        self._messages += 1
        for finding in fresh:
            self._reply(Early(message.stream, self._suppressions.marked(finding, self._facts.get(finding.exchange_id), "assistant")))

    def _reply(self, message: FromWorker) -> None:
        data = memoryview(frame(message))
        while data:
            data = data[os.write(self._replies, data) :]


def _turn(message: ToWorker) -> int:
    """Whoever waits for a request's findings waits now; the order of the rest is kept."""
    if isinstance(message, Start):
        return 0
    return 1 if isinstance(message, Examine) and message.is_request else 2


def main() -> None:
    # The terminal sends Ctrl-C to the whole group; the decoder says when it is over, by closing our input.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # Plug-ins may print: their lines go to standard error, not between our messages.
    replies = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    os.nice(_NICENESS)
    privileges.limit_capabilities(("CAP_SETUID", "CAP_SETGID") if os.geteuid() == 0 else ())
    worker = Worker(replies)
    frames = Frames(ToWorker)
    try:
        while data := os.read(sys.stdin.fileno(), _READ_BYTES):
            for message in sorted(frames.feed(data), key=_turn):
                worker.take(message)
        worker.tell_totals()
    except BrokenPipeError:
        pass  # the decoder is gone, and with it whoever would read this


if __name__ == "__main__":
    main()
