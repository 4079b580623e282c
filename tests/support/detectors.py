"""Detection processes that are none: a test decides when one works, what it answers and when it dies. And a clock that a test sets."""

from __future__ import annotations

import contextlib
import os

from llmsec_analyzer.judge.exchange_parts import Report
from llmsec_analyzer.worker.protocol import Early, Examine, Examined, Frames, Increments, Ready, Start, Totals, ToWorker, frame
from llmsec_tap.model import Finding, Location, Taxonomy


def early_finding() -> Finding:
    return Finding(
        finding_id="f",
        rule_id="secret.github",
        rule_version="1",
        category="secret",
        type="github",
        severity="high",
        confidence=1.0,
        location=Location(part="response.messages[0].parts[0]", start=0, end=1),
        preview="",
        fingerprint="",
        taxonomy=Taxonomy(),
        explanation="",
        at_output_token=1,
    )


class FakeClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class FakeDetector:
    """It answers at `work`. A text that begins with `poison` ends it; settings whose rules are `wrong` are refused."""

    def __init__(self) -> None:
        self._in, self.to = os.pipe2(os.O_NONBLOCK)
        self.back, self._out = os.pipe2(os.O_NONBLOCK)
        self._open = {self._in, self.to, self.back, self._out}
        self._frames = Frames(ToWorker)
        self.started: Start | None = None
        self.examined: list[Examine] = []
        self.streams: set[int] = set()

    @property
    def is_alive(self) -> bool:
        return self._out in self._open

    def work(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self.is_alive:
                data = os.read(self._in, 1 << 16)
                if not data:
                    self._say(Totals({}, len(self.streams), 1.0, 2.0))
                    self.die()
                    return
                for message in self._frames.feed(data):
                    self._take(message)
                    if not self.is_alive:
                        return

    def _take(self, message: ToWorker) -> None:
        if isinstance(message, Start):
            self.started = message
            self._say(Ready("rules.yaml:3: no such key", "did you mean severity?") if "wrong" in message.settings.rules else Ready())
        elif isinstance(message, Examine):
            if message.parts and message.parts[0].text.startswith("poison"):
                self.die()
                return
            self.examined.append(message)
            self._say(Examined(message.number, Report([])))
        elif isinstance(message, Increments):
            self.streams.add(message.stream)
            self._say(Early(message.stream, early_finding()))

    def _say(self, message: object) -> None:
        os.write(self._out, frame(message))  # type: ignore[arg-type]

    def die(self) -> None:
        self._close(self._in)
        self._close(self._out)

    def close_input(self) -> None:
        self._close(self.to)

    def close(self, patience_s: float) -> None:
        self.kill()

    def kill(self) -> None:
        for descriptor in list(self._open):
            self._close(descriptor)

    def _close(self, descriptor: int) -> None:
        if descriptor in self._open:
            self._open.remove(descriptor)
            os.close(descriptor)


class Detectors:
    """`start` for a DetectionProcess; all that were started, and how many may still be (`refuses`: none)."""

    def __init__(self) -> None:
        self.all: list[FakeDetector] = []
        self.refuses = False

    def __call__(self) -> FakeDetector:
        if self.refuses:
            raise OSError(11, "no more processes")
        self.all.append(FakeDetector())
        return self.all[-1]

    def work(self) -> None:
        for detector in self.all[-3:]:
            if detector.is_alive:
                detector.work()
