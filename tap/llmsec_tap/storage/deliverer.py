"""How a process that sends what is in a folder is: a small file beside its cursor, written anew every few seconds while it lives.

It is no promise: a crash of the host may leave none, or an old one. What was delivered and what was lost is in the cursor.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

import msgspec

from llmsec_tap.storage.cursor import Kind, path_of
from llmsec_tap.storage.publish import give, write_all
from llmsec_tap.storage.store import Store

_NAMES: Final[dict[Kind, str]] = {"delivery": "deliverer", "telemetry": "exporter"}
BEAT_S: Final = 5.0
# Without a beat for so long it counts as gone.
GONE_S: Final = 30.0


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """`failures`: of deliveries since the process began. `restarts`: times the process was started again. `fault`: why the last one failed, if it did.

    Of telemetry: `spans` that were sent since then, `refused` those that the collector did not take.
    """

    pid: int
    alive_ns: int
    failures: int = 0
    restarts: int = 0
    fault: str = ""
    spans: int = 0
    refused: int = 0

    def is_alive(self, now_ns: int) -> bool:
        return abs(now_ns - self.alive_ns) < GONE_S * 1e9


def status_path(store: Store, target: str, kind: Kind = "delivery") -> Path:
    return store.root / path_of(store, target, kind).name.replace(kind, _NAMES[kind], 1)


def write_status(store: Store, target: str, status: Status, kind: Kind = "delivery") -> None:
    """A folder that takes no file keeps the old one, which says enough."""
    path = status_path(store, target, kind)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with contextlib.suppress(OSError):
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            give(descriptor, store.root)
            write_all(descriptor, msgspec.json.encode(status))
            unfinished.rename(path)
        except OSError:
            unfinished.unlink()
        finally:
            os.close(descriptor)


def read_status(store: Store, target: str, kind: Kind = "delivery") -> Status | None:
    """None where nobody ever said how it is, or nothing readable."""
    try:
        return msgspec.json.decode(status_path(store, target, kind).read_bytes(), type=Status)
    except (OSError, msgspec.DecodeError):
        return None
