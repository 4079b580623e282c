"""What the store's folder knows of alerts beside its records: what was decided (outbox), what became of it at each channel, what is silenced."""

from __future__ import annotations

import getpass
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from llmsec_agent.alerts_lane import SILENCES_NAME, read_silences
from llmsec_agent.outbox import FOLDER, SENT_PATTERN, Outbox
from llmsec_analyzer.alerts.alert import Alert
from llmsec_analyzer.alerts.silences import Silence, end_ns, item, parse_silences, written
from llmsec_analyzer.yaml_files import read_text
from llmsec_tap.errors import ConfigError, StorageError
from llmsec_tap.storage.faults import storage_error
from llmsec_tap.storage.publish import give, publishing, write_all
from llmsec_tap.storage.store import Store

_UNITS = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_MAX_LINE = 64_000


class Sent(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt at one channel."""

    alert_id: str
    channel: str
    at_ns: int
    attempt: int = 1
    outcome: Literal["sent", "retry", "dead"]
    error: str = ""


def decided(store: Store) -> list[Alert]:
    """All that the outbox still has, oldest first. Raises StorageError."""
    try:
        return list(Outbox(store.root).read_new())
    except OSError as fault:
        raise storage_error("cannot read", store.shown / FOLDER, fault) from None


def attempts(store: Store, alert_id: str | None = None) -> Iterator[Sent]:
    """In the order of their files. Raises StorageError."""
    decode = msgspec.json.Decoder(Sent).decode
    for path in sorted((store.root / FOLDER).glob(SENT_PATTERN), key=lambda path: (path.name.count("."), path.name), reverse=True):
        try:
            with path.open("rb") as file:
                while line := file.readline(_MAX_LINE):
                    try:
                        found = decode(line)
                    except (msgspec.MsgspecError, UnicodeDecodeError):
                        continue
                    if alert_id is None or found.alert_id == alert_id:
                        yield found
        except FileNotFoundError:
            continue
        except OSError as fault:
            raise storage_error("cannot read", store.shown / FOLDER / path.name, fault) from None


def outcomes(found: list[Sent]) -> dict[str, Sent]:
    """The last attempt of each channel."""
    return {attempt.channel: attempt for attempt in sorted(found, key=lambda attempt: attempt.at_ns)}


def find_decided(store: Store, prefix: str) -> Alert:
    """The last of what was decided under the one id that begins so. Raises ConfigError."""
    alerts = {alert.alert_id: alert for alert in decided(store) if alert.alert_id.startswith(prefix)}
    if prefix in alerts:
        return alerts[prefix]
    if len(alerts) > 1:
        raise ConfigError(f"more than one alert has an id that begins with {prefix!r}", f"one of {', '.join(list(alerts)[:3])}")
    if not alerts:
        raise ConfigError(
            f"no alert with an id that begins with {prefix!r} in the outbox of {store.shown}",
            "llmsec-analyze alerts list has the ids; alerts of a replay without --alert, and those that made room, cannot be sent again",
        )
    return next(iter(alerts.values()))


def trial(channel: str) -> Alert:
    """An alert about nothing, for one channel."""
    now_ns = time.time_ns()
    return Alert(
        alert_id=f"test-{secrets.token_hex(6)}",
        rule="test",
        priority="low",
        dedup_key=f"test/channel={channel}",
        at_ns=now_ns,
        opened_ns=now_ns,
        condition="somebody tries this channel",
        summary=f"test: {getpass.getuser()} tries the channel {channel}; nothing happened",
        exchange_id="",
        channels=[channel],
        is_test=True,
    )


def until_of(text: str) -> str:
    """`2h` from now, a day, or a time, as the file has it. Raises ConfigError for what is no time to come."""
    given = text.strip()
    later = re.fullmatch(r"(\d{1,6})([mhdw])", given)
    if later:
        seconds = int(time.time()) + int(later[1]) * _UNITS[later[2]]
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
    ends = end_ns(given)
    if ends is None or ends <= time.time_ns():
        raise ConfigError(f"--until: {text!r} is no time to come", "for example 8h, 7d, 2027-01-31 or 2027-01-31T08:00:00Z")
    return given


def silences(store: Store) -> list[Silence]:
    """Raises ConfigError."""
    path = store.root / SILENCES_NAME
    return read_silences(path) if path.exists() else []


def add_silence(store: Store, silence: Silence) -> Path:
    """Write it behind what the file has, which stays as it is. Raises ConfigError or StorageError."""
    path = store.root / SILENCES_NAME
    before = silences(store)
    if before:
        text = read_text(path)
        text += ("" if text.endswith("\n") else "\n") + item(silence)
    else:
        text = written([silence])
    try:
        after = parse_silences(text, str(path))
    except ConfigError:
        after = []
    if after != [*before, silence]:
        raise ConfigError(
            f"{path}: nothing can be added behind its last line", "its list must stand at its end, an entry a line with `  - `"
        )
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with publishing(path) as descriptor:
            give(descriptor, store.root)
            write_all(descriptor, text.encode())
    except OSError as fault:
        raise storage_error("cannot write", path, fault) from None
    return path


def await_outcome(store: Store, alert: Alert, within_s: float) -> Sent | None:
    """What became of it at its channel: sent or dead; else the last attempt, and None without one."""
    deadline = time.monotonic() + within_s
    last: Sent | None = None
    while True:
        for attempt in attempts(store, alert.alert_id):
            last = attempt
        if (last is not None and last.outcome != "retry") or time.monotonic() >= deadline:
            return last
        time.sleep(0.2)


def folder_only(location: str) -> None:
    """Raises StorageError for a database: it sends nothing."""
    if location.startswith("clickhouse://"):
        raise StorageError("alerts are sent from a folder, and silenced there", "give the folder that the agent writes, with --store")
