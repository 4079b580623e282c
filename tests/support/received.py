"""Records as applications send them to an agent."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from llmsec_tap.model import Exchange
from support.exchanges import full_exchange

NOW = time.time_ns()


def record(**changes: Any) -> Exchange:
    """One that an application could have made a second ago."""
    full = full_exchange(1)
    assert full.started_ns is not None
    later = NOW - 10**9 - full.started_ns
    times = {name: getattr(full, name) + later for name in ("started_ns", "first_byte_ns", "first_token_ns", "ended_ns")}
    return msgspec.structs.replace(full, **(times | {"api_key_fingerprint": "0123456789abcdef" * 2} | changes))


def sent(exchange: Any) -> bytes:
    return msgspec.msgpack.encode(exchange)
