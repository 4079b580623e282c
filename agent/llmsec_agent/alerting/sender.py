"""The process that sends alerts: it reads the outbox of a store's folder, and has a thread for each channel.

Nothing is lost when it dies: each channel begins again behind the last alert that it was done with, and sends at most the one that was
in hand a second time, under the same id.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from llmsec_agent.alerting.channels import Channel, SendError, channel_of
from llmsec_agent.alerting.lane import DEFAULT_PACE, Lane, Pace, Shared
from llmsec_agent.alerting.logs import BoundedLog
from llmsec_agent.alerting.message import Message
from llmsec_agent.alerting.outbox import FOLDER, Unreadable
from llmsec_agent.alerting.plan import ChannelPlan, SenderPlan
from llmsec_agent.alerting.status import BEAT_S, ChannelStatus, Status, write_status
from llmsec_tap.errors import ConfigError, StorageError
from llmsec_tap.journal import Journal

_LOOK_S: Final = 0.25
_STATUS_S: Final = 1.0
# Of alerts under way, at the end.
_DRAIN_S: Final = 1.5
_SENT_BYTES: Final = 16 << 20


def send_alerts(
    plan: SenderPlan,
    journal: Journal,
    *,
    wake: socket.socket | None = None,
    once: bool = False,
    goes_on: Callable[[], bool] = lambda: True,
    restarts: int = 0,
    pace: Pace = DEFAULT_PACE,
) -> int:
    """Until SIGTERM, SIGINT or the end of `goes_on`; `once`: until what is there now was tried. The exit code: 0 unless some of it is dead.

    `wake`: a byte on it says that there is something new; without it the outbox is looked at every second. Raises StorageError where
    another process sends the folder's alerts, or the folder cannot be used.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    root = Path(plan.store)
    folder = root / FOLDER
    with _alone(folder, plan.name or plan.store):
        shared = Shared(folder, BoundedLog(folder / "sent-0.jsonl", _SENT_BYTES), Unreadable(), journal, plan.content)
        lanes = [_lane(channel, shared, pace) for channel in plan.channels]
        threads = [threading.Thread(target=lane.run, kwargs={"once": once}, name=f"alerts-{lane.name}", daemon=True) for lane in lanes]
        for thread in threads:
            thread.start()
        if wake is not None:
            wake.setblocking(False)
        said: tuple[object, float] = (None, 0.0)
        while goes_on() and not stop.is_set() and not (once and not any(thread.is_alive() for thread in threads)):
            if _is_woken(wake):
                for lane in lanes:
                    lane.wake()
            said = _say(root, lanes, shared, restarts, said)
        for lane in lanes:
            lane.stop()
        deadline = time.monotonic() + _DRAIN_S
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        _say(root, lanes, shared, restarts, (None, 0.0))
    return StorageError.exit_code if once and any(lane.counts["dead"] for lane in lanes) else 0


def _lane(plan: ChannelPlan, shared: Shared, pace: Pace) -> Lane:
    channel: Channel
    try:
        channel = channel_of(plan, shared.journal)
    except ConfigError as fault:
        shared.journal.error("alert_channel_refused", f"{fault}; its alerts become dead letters", channel=plan.name)
        channel = _Unusable(str(fault))
    return Lane(plan.name, channel, shared, attempts=1 + plan.settings.retry_attempts, secrets=tuple(plan.secrets.values()), pace=pace)


class _Unusable:
    def __init__(self, why: str) -> None:
        self._why = why

    def send(self, message: Message) -> None:
        raise SendError(self._why, is_final=True)


@contextlib.contextmanager
def _alone(folder: Path, shown: str) -> Iterator[None]:
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(folder / "sender.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as fault:
        raise StorageError(f"{shown}/{FOLDER}: {fault.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise StorageError(f"{shown}: another process sends its alerts", "an agent does, or another llmsec-tap deliver --alerts") from None
    finally:
        os.close(descriptor)


def _is_woken(wake: socket.socket | None) -> bool:
    """Wait a moment for a byte, and take all there are."""
    if wake is None:
        time.sleep(_LOOK_S)
        return False
    ready, _, _ = select.select([wake], (), (), _LOOK_S)
    if not ready:
        return False
    with contextlib.suppress(BlockingIOError):
        if not wake.recv(1 << 16):  # nobody is left who could wake us
            time.sleep(_LOOK_S)
    return True


def _say(root: Path, lanes: list[Lane], shared: Shared, restarts: int, said: tuple[object, float]) -> tuple[object, float]:
    """Write how it is, where that is news or a beat is due."""
    channels = {}
    for lane in lanes:
        alert = lane.in_hand
        channels[lane.name] = ChannelStatus(
            sent=lane.counts["sent"],
            retry=lane.counts["retry"],
            dead=lane.counts["dead"],
            missed=lane.missed,
            since_ns=alert.at_ns if alert is not None else None,
            fault=lane.fault,
        )
    what = (channels, shared.unreadable.count)
    due = BEAT_S if what == said[0] else _STATUS_S
    if time.monotonic() - said[1] < due and said[1]:
        return said
    status = Status(pid=os.getpid(), alive_ns=time.time_ns(), restarts=restarts, unreadable=shared.unreadable.count, channels=channels)
    write_status(root, status)
    return what, time.monotonic()
