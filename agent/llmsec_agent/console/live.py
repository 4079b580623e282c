"""Exchanges as a store gets them, as server-sent events. The store is looked at twice a second; each exchange is told once."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec
from starlette.concurrency import run_in_threadpool

from llmsec_agent.console.asking import Asking, BusyError
from llmsec_agent.console.templates import duration, moment, number
from llmsec_analyzer.stored.stores import Session
from llmsec_tap.errors import LLMSecError
from llmsec_tap.visible import visible

_EVERY_S: Final = 0.5
# A part comes some time after its exchanges have ended, and those of another tap later still.
_BEHIND_NS: Final = 30_000_000_000
_AT_ONCE: Final = 200
_REMEMBERED: Final = 10_000
_QUIET_S: Final = 15.0


async def events(asking: Asking, start_ns: int | None = None) -> AsyncIterator[bytes]:
    """`start_ns`: what ended from then on; by default from now."""
    began = time.time_ns() if start_ns is None else start_ns
    told: OrderedDict[str, None] = OrderedDict()
    heard = time.monotonic()
    generation = -1
    yield b"retry: 2000\n\n"
    while True:
        since = max(began, time.time_ns() - _BEHIND_NS) if start_ns is None else began
        try:
            generation, found = await run_in_threadpool(asking.since, generation, lambda session, since=since: _ended(session, since))
            rows = found or []
        except BusyError:
            rows = []
        except LLMSecError as fault:
            yield f": {visible(str(fault))}\n\n".encode()
            rows = []
        for row in rows:
            if row["exchange_id"] not in told:
                told[row["exchange_id"]] = None
                yield b"data: " + msgspec.json.encode({"id": row["exchange_id"], "cells": _cells(row)}) + b"\n\n"
                heard = time.monotonic()
        while len(told) > _REMEMBERED:
            told.popitem(last=False)
        if time.monotonic() - heard > _QUIET_S:  # a connection that is gone shows when it is written to
            heard = time.monotonic()
            yield b": nothing new\n\n"
        await asyncio.sleep(_EVERY_S)


def _ended(session: Session, since_ns: int) -> list[dict[str, Any]]:
    found = session.select(
        f"""
        SELECT exchange_id, ended_ns, provider, model, path, server, tls.server_name AS server_name, status, output_tokens, duration_ms, risk_score, tenant,
            {session.dialect.length.format("findings")} AS findings
        FROM exchanges WHERE ended_ns > ? ORDER BY ended_ns DESC LIMIT {_AT_ONCE}
        """,  # noqa: S608 - our own clauses
        [since_ns],
    )
    return [dict(zip(found.names, row, strict=True)) for row in found.rows()][::-1]


def _cells(row: dict[str, Any]) -> list[str]:
    """As the page's table has them; content is not among them."""
    what = row["model"] or row["server_name"] or row["path"] or row["server"]
    texts = (row["provider"] or "-", what or "-", row["status"] or "-")
    return [
        moment(row["ended_ns"]), *(visible(str(text)) for text in texts), number(row["output_tokens"]), duration(row["duration_ms"]), number(row["risk_score"]),
        visible(row["tenant"] or ""), str(row["findings"] or ""),
    ]  # fmt: skip
