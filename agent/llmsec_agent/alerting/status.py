"""How the process that sends alerts is: a small file in the store's folder, and what /metrics says of it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from llmsec_agent.alerting.outbox import FOLDER
from llmsec_tap.counters import Sample

_NAME: Final = "sender.json"
BEAT_S: Final = 5.0
# Without a beat for so long it counts as gone.
_GONE_S: Final = 30.0


class ChannelStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Counts since the process began. `since_ns`: when the alert in hand was decided."""

    sent: int = 0
    retry: int = 0
    dead: int = 0
    missed: int = 0
    since_ns: int | None = None
    fault: str = ""


class Status(msgspec.Struct, frozen=True, kw_only=True):
    pid: int
    alive_ns: int
    restarts: int = 0
    unreadable: int = 0
    channels: dict[str, ChannelStatus] = {}


def write_status(root: Path, status: Status) -> None:
    """A folder that takes no file keeps the old one, which says enough."""
    path = root / FOLDER / _NAME
    unfinished = path.with_name(f".{_NAME}.tmp")
    with contextlib.suppress(OSError):
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.write(descriptor, msgspec.json.encode(status))
        finally:
            os.close(descriptor)
        unfinished.rename(path)


def read_status(root: Path) -> Status | None:
    """None where nobody ever said how it is, or nothing readable."""
    try:
        return msgspec.json.decode((root / FOLDER / _NAME).read_bytes(), type=Status)
    except (OSError, msgspec.DecodeError):
        return None


def samples(root: Path) -> Iterator[Sample]:
    """Nothing where the folder's alerts are sent nowhere. Any thread may ask."""
    status = read_status(root)
    if status is None:
        return
    now_ns = time.time_ns()
    yield Sample("llmsec_alert_sender_up", float(abs(now_ns - status.alive_ns) < _GONE_S * 1e9))
    yield Sample("llmsec_alert_sender_restarts_total", status.restarts)
    yield Sample("llmsec_alerts_unreadable_total", status.unreadable)
    for name, channel in sorted(status.channels.items()):
        label = ("channel", name)
        for outcome in ("sent", "retry", "dead"):
            yield Sample("llmsec_alerts_sent_total", getattr(channel, outcome), (label, ("outcome", outcome)))
        yield Sample("llmsec_alerts_missed_files_total", channel.missed, (label,))
        yield Sample("llmsec_alert_channel_failing", float(bool(channel.fault)), (label,))
        waiting = (now_ns - channel.since_ns) / 1e9 if channel.since_ns is not None else 0.0
        yield Sample("llmsec_alert_waiting_seconds", max(0.0, waiting), (label,))
