"""One channel's way out: its own thread, retries with growing pauses, a breaker, and dead letters for what cannot be sent."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from llmsec_agent.alerting.channels import Channel, SendError
from llmsec_agent.alerting.logs import BoundedLog
from llmsec_agent.alerting.message import Message, message_of
from llmsec_agent.alerting.outbox import Entry, Outbox, Unreadable
from llmsec_analyzer.alerts.alert import Alert
from llmsec_tap.journal import Journal
from llmsec_tap.visible import visible

Outcome = Literal["sent", "retry", "dead"]

_EVERY_S: Final = 1.0
_FIRST_WAIT_S: Final = 0.5
_LONGEST_WAIT_S: Final = 30.0
# Failures in a row, of whatever alerts, after which the channel is left alone for a while. Nothing dies of that: alerts wait.
_FAILURES: Final = 5
_PAUSE_S: Final = 30.0
_DEAD_BYTES: Final = 8 << 20
_MOST_ERROR_CHARS: Final = 300


class Sent(msgspec.Struct, frozen=True):
    """A line of alerts/sent-*.jsonl."""

    alert_id: str
    channel: str
    at_ns: int
    attempt: int
    outcome: Outcome
    error: str = ""


class Dead(msgspec.Struct, frozen=True):
    """A line of alerts/dead-CHANNEL.jsonl."""

    alert: Alert
    channel: str
    at_ns: int
    error: str


@dataclass(frozen=True)
class Shared:
    """What the lanes of one folder have in common."""

    folder: Path
    sent: BoundedLog
    unreadable: Unreadable
    journal: Journal
    content: bool


@dataclass(frozen=True)
class Pace:
    """Seconds between attempts, and how long the breaker leaves a channel alone."""

    first_s: float = _FIRST_WAIT_S
    longest_s: float = _LONGEST_WAIT_S
    pause_s: float = _PAUSE_S


DEFAULT_PACE: Final = Pace()


class _StoppingError(Exception):
    pass


class Lane:
    def __init__(
        self,
        name: str,
        channel: Channel,
        shared: Shared,
        *,
        attempts: int,
        secrets: tuple[str, ...] = (),
        pace: Pace = DEFAULT_PACE,
    ) -> None:
        """`secrets`: what no text of a fault may hold."""
        import pybreaker
        import stamina

        stamina.instrumentation.set_on_retry_hooks([])  # they log what was called, and with what
        self.name = name
        self.counts: Counter[Outcome] = Counter()
        self.fault = ""  # why the last attempt failed, where it did
        self.in_hand: Alert | None = None
        self._channel = channel
        self._shared = shared
        self._attempts = attempts
        self._secrets = tuple(secret for secret in secrets if len(secret) >= 4)
        self._pace = pace
        self._outbox = Outbox(shared.folder, name)
        self._dead = BoundedLog(shared.folder / f"dead-{name}.jsonl", _DEAD_BYTES)
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._breaker: Any = pybreaker.CircuitBreaker(
            fail_max=_FAILURES,
            reset_timeout=pace.pause_s,
            exclude=[lambda fault: isinstance(fault, SendError) and fault.is_final],
            throw_new_error_on_trip=False,
        )

    @property
    def missed(self) -> int:
        return self._outbox.missed

    def wake(self) -> None:
        self._wake.set()

    def stop(self) -> None:
        """End after what is in the outbox now, without waiting for anything."""
        self._stop.set()
        self._wake.set()

    def run(self, *, once: bool = False) -> None:
        """Until told to stop; `once`: what is there now."""
        while True:
            is_last = once or self._stop.is_set()
            self._wake.clear()
            try:
                self._pass()
            except _StoppingError:
                return
            except Exception as fault:  # noqa: BLE001 - a fault of ours must not end the channel
                self._shared.journal.error("alert_channel_failed", f"alerts to {self.name}: {type(fault).__name__} in our own code")
                self._stop.wait(_EVERY_S)
            if is_last:
                return
            self._wake.wait(_EVERY_S)

    def _pass(self) -> None:
        missed = self._outbox.missed
        for entry in self._outbox.entries():
            if entry.alert is None:
                self._say_unreadable(entry)
            elif self.name in entry.alert.channels:
                self._deliver(entry, entry.alert)
                continue
            self._outbox.done(entry, save=False)
        if self._outbox.missed > missed:
            text = f"alerts to {self.name}: {self._outbox.missed - missed} files of the outbox were deleted before they were read"
            self._shared.journal.error("alerts_missed", text, channel=self.name)

    def _deliver(self, entry: Entry, alert: Alert) -> None:
        self.in_hand = alert
        attempt, error = 1, ""
        try:
            attempt = self._send(self._message(alert))
        except SendError as fault:
            attempt, error = fault.attempt if isinstance(fault, _FailedError) else 1, self._clean(fault)
        self.in_hand = None
        self._outbox.done(entry, save=True)  # first: what follows a death here is a line less in a log, and no second message
        if error:
            self._dead.append(Dead(alert, self.name, time.time_ns(), error))
            text = f"alert {visible(alert.alert_id)} was not sent to {self.name}: {error}; it is kept in {self._shared.folder.name}/dead-{self.name}.jsonl"
            self._shared.journal.error("alert_dead", text, channel=self.name, alert_id=alert.alert_id)
        self._count(alert, attempt, "dead" if error else "sent", error)

    def _message(self, alert: Alert) -> Message:
        try:
            return message_of(alert, content=self._shared.content)
        except Exception as fault:  # noqa: BLE001 - an alert that cannot be told must not come again and again
            raise SendError(f"it could not be told ({type(fault).__name__})", is_final=True) from None

    def _send(self, message: Message) -> int:
        """The number of attempts that it took. Raises _FailedError, and _StoppingError where it is to wait for the next start."""
        import stamina

        number = 0
        try:
            for attempt in stamina.retry_context(
                on=self._pause_after,
                attempts=self._attempts,
                timeout=None,
                wait_initial=self._pace.first_s,
                wait_max=self._pace.longest_s,
                wait_jitter=self._pace.first_s,
            ):
                with attempt:
                    number = attempt.num
                    try:
                        self._unless_left_alone(lambda: self._try(message))
                    except SendError as fault:
                        if not fault.is_final and number < self._attempts:
                            self._count(message.alert, number, "retry", self._clean(fault))
                        self.fault = self._clean(fault)
                        raise
        except SendError as fault:
            raise _FailedError(str(fault), number) from None
        self.fault = ""
        return number

    def _try(self, message: Message) -> None:
        try:
            self._channel.send(message)
        except SendError:
            raise
        except Exception as fault:  # noqa: BLE001 - what an alert makes our own code do costs that alert
            raise SendError(f"it could not be written for this channel ({type(fault).__name__})", is_final=True) from None

    def _unless_left_alone(self, call: Callable[[], None]) -> None:
        """Wait while the breaker is open: that is no attempt."""
        import pybreaker

        while True:
            try:
                self._breaker.call(call)
            except pybreaker.CircuitBreakerError:
                if self._stop.wait(min(0.5, self._pace.pause_s / 4)):
                    raise _StoppingError from None
            else:
                return

    def _pause_after(self, fault: Exception) -> bool | float:
        if not isinstance(fault, SendError) or fault.is_final:
            return False
        if self._stop.is_set():
            raise _StoppingError
        return fault.retry_after if fault.retry_after is not None else True

    def _count(self, alert: Alert, attempt: int, outcome: Outcome, error: str) -> None:
        self.counts[outcome] += 1
        self._shared.sent.append(Sent(alert.alert_id, self.name, time.time_ns(), attempt, outcome, error))

    def _clean(self, fault: Exception) -> str:
        text = str(fault)
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return visible(text)[:_MOST_ERROR_CHARS]

    def _say_unreadable(self, entry: Entry) -> None:
        if self._shared.unreadable.is_news(entry):
            text = f"{entry.file}, byte {entry.start:,}: {entry.fault}; the line is passed over"
            self._shared.journal.error("alert_unreadable", text, file=entry.file, byte=entry.start)


class _FailedError(SendError):
    def __init__(self, text: str, attempt: int) -> None:
        super().__init__(text)
        self.attempt = attempt
