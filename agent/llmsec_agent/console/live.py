"""Exchanges as they end and findings as they are made, as server-sent events: from what taps say to who looks, and from the parts of a store. Each is told once."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import msgspec
from starlette.concurrency import run_in_threadpool

from llmsec_agent.console.asking import Asking, BusyError
from llmsec_agent.console.templates import duration, moment, number
from llmsec_analyzer.stored.session import QuerySession
from llmsec_analyzer.stored.stores import Session
from llmsec_tap.errors import LLMSecError
from llmsec_tap.storage import Store
from llmsec_tap.storage.live_feed import FeedReader, Line
from llmsec_tap.visible import visible

_EVERY_S: Final = 0.25
# A part comes some time after its exchanges have ended, and those of another tap later still.
_BEHIND_NS: Final = 30_000_000_000
_AT_ONCE: Final = 200
_REMEMBERED: Final = 10_000
_QUIET_S: Final = 15.0


class _Look:
    """One page's view of a store: what it was told, and how far it has read."""

    def __init__(self, asking: Asking, start_ns: int | None) -> None:
        self._asking = asking
        self._start_ns = start_ns
        self._began = time.time_ns() if start_ns is None else start_ns
        self._told: OrderedDict[str, None] = OrderedDict()
        self._generation = -1
        self._feed: FeedReader | None = None

    def new(self) -> list[bytes]:
        """Events since the last look. Raises StorageError, ConfigError."""
        since = max(self._began, time.time_ns() - _BEHIND_NS) if self._start_ns is None else self._began

        def asked(session: Session) -> tuple[Store | None, list[Line]]:
            return session.store if isinstance(session, QuerySession) else None, _ended(session, since)

        self._generation, found = self._asking.since(self._generation, asked)
        store, stored = found or (None, [])
        if self._feed is None and store is not None:
            self._feed = FeedReader(store)
        said = self._feed.lines() if self._feed is not None else []
        told = [_event({"id": line.exchange_id, "finding": _finding_cells(line)}) for line in said if line.rule is not None]
        ended = (*(line for line in said if line.rule is None), *stored)
        told += [_event({"id": line.exchange_id, "cells": _cells(line)}) for line in ended if self._is_new(line.exchange_id)]
        return told

    def close(self) -> None:
        if self._feed is not None:
            self._feed.close()

    def _is_new(self, exchange_id: str) -> bool:
        if exchange_id in self._told:
            return False
        self._told[exchange_id] = None
        while len(self._told) > _REMEMBERED:
            self._told.popitem(last=False)
        return True


async def events(asking: Asking, start_ns: int | None = None, is_ending: Callable[[], bool] = lambda: False) -> AsyncIterator[bytes]:
    """`start_ns`: what ended from then on; by default from now. Until `is_ending`: the server waits for its answers."""
    look = _Look(asking, start_ns)
    try:
        async for event in _followed(look, is_ending):
            yield event
    finally:
        look.close()


async def _followed(look: _Look, is_ending: Callable[[], bool]) -> AsyncIterator[bytes]:
    heard = time.monotonic()
    yield b"retry: 2000\n\n"
    while not is_ending():
        try:
            told = await run_in_threadpool(look.new)
        except BusyError:
            told = []
        except LLMSecError as fault:
            told = [f": {visible(str(fault))}\n\n".encode()]
        for event in told:
            yield event
            heard = time.monotonic()
        if time.monotonic() - heard > _QUIET_S:  # a connection that is gone shows when it is written to
            heard = time.monotonic()
            yield b": nothing new\n\n"
        await asyncio.sleep(_EVERY_S)


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(content) + b"\n\n"


def _cells(line: Line) -> list[str]:
    """As the page's table has them."""
    texts = (line.provider or "-", line.what or "-", line.status or "-")
    return [
        moment(line.ts_ns), *(visible(str(text)) for text in texts), number(line.output_tokens), duration(line.duration_ms), number(line.risk),
        visible(line.tenant or ""), str(line.findings or ""),
    ]  # fmt: skip


def _finding_cells(line: Line) -> list[str]:
    at = f"at piece {line.at_output_token} of the answer" if line.at_output_token is not None else ""
    return [moment(line.ts_ns), *(visible(text or "") for text in (line.severity, line.rule, line.place)), at]


def _ended(session: Session, since_ns: int) -> list[Line]:
    found = session.select(
        f"""
        SELECT exchange_id, ended_ns, provider, coalesce(model, tls.server_name, path, server), status, output_tokens, duration_ms, risk_score, tenant,
            {session.dialect.length.format("findings")}
        FROM exchanges WHERE ended_ns > ? ORDER BY ended_ns DESC LIMIT {_AT_ONCE}
        """,  # noqa: S608 - our own clauses
        [since_ns],
    )
    return [Line(*row) for row in found.rows()][::-1]
