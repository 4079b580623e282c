"""Exchanges as they end and findings as they are made, as server-sent events: from what taps say to who looks, and from the parts of a store. Each is told
once; what is not told is counted.

A folder is read by parts, each once, so neither a clock that is ahead nor an exchange that is stored long after its end hides anything. A database has no such
order, as a delivery may come late: there it is what ended in the last two minutes.
"""

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
from llmsec_analyzer.stored.standing import LentSession
from llmsec_analyzer.stored.stores import Session
from llmsec_tap.errors import ConfigError, LLMSecError, StorageError
from llmsec_tap.storage import Store
from llmsec_tap.storage.live_feed import FeedReader, Line
from llmsec_tap.visible import visible

_EVERY_S: Final = 0.25
# A store that is read by time has the same rows in many looks.
_EVERY_TIME_S: Final = 1.0
# So long after its end an exchange may be stored, of which a database tells no more than its times; a page that comes back is told of so much before it left.
_BEHIND_NS: Final = 120_000_000_000
# What is stored again, such as by `analyze`, ended long before and is no news.
_OLDEST_NS: Final = 3600 * 1_000_000_000
_AT_ONCE: Final = 200
# So many rows of a look are looked at, to tell the newest and to count the others.
_MOST: Final = 10_000
_REMEMBERED: Final = 50_000
_QUIET_S: Final = 15.0


class _Look:
    """One page's view of a store: what it was told, and how far it has read."""

    def __init__(self, asking: Asking, start_ns: int | None) -> None:
        self._asking = asking
        self._comes_back = start_ns is not None
        self._began = time.time_ns() if start_ns is None else start_ns
        self._told: OrderedDict[str, None] = OrderedDict()
        self._generation = -1
        self._is_first = True
        self._parts: frozenset[str] | None = None
        self._ask_at = 0.0
        self._store: Store | None = None
        self._feed: FeedReader | None = None
        self.left_out = 0  # exchanges that came and are not told

    def new(self) -> list[dict[str, Any]]:
        """Events since the last look. Raises StorageError, ConfigError."""
        stored = self._stored()
        said = self._feed.lines() if self._feed is not None else []
        told: list[dict[str, Any]] = [{"id": line.exchange_id, "finding": _finding_cells(line)} for line in said if line.rule is not None]
        ended = [line for line in said if line.rule is None and self._is_new(line.exchange_id)]
        stored = [line for line in stored if self._is_new(line.exchange_id)]
        # A page that comes back has what ended before it left.
        self.left_out += sum(not self._is_first or line.ts_ns > self._began for line in stored[:-_AT_ONCE])
        self._is_first = False
        told += [{"id": line.exchange_id, "cells": _cells(line)} for line in (*ended, *stored[-_AT_ONCE:])]
        return told

    def _stored(self) -> list[Line]:
        if self._store is not None and not self._store.exchanges.is_dir():  # without parts nothing is asked of it, and nothing fails
            raise StorageError(f"there is no store at {self._store.root} any more", "put it back; this page goes on then")
        if self._parts is None and time.monotonic() < self._ask_at:
            return []
        self._generation, found = self._asking.since(self._generation, self._asked)
        self._ask_at = time.monotonic() + _EVERY_TIME_S
        if found is None:
            return []
        self._store, self._parts, stored, more = found
        self.left_out += more
        if self._feed is None and self._store is not None:
            self._feed = FeedReader(self._store)
        return stored

    def _asked(self, session: Session) -> tuple[Store | None, frozenset[str] | None, list[Line], int]:
        """The store's folder, its parts, what is new in the order of its end, and how much more there is."""
        store = session.store if isinstance(session, QuerySession) else None
        parts = session.written() if isinstance(session, LentSession) else None
        if isinstance(session, LentSession) and parts is not None and self._parts is not None:
            fresh = parts - self._parts
            if not fresh:
                return store, parts, [], 0
            with session.only(fresh):
                lines, count = _ended(session, self._began - _OLDEST_NS), _count(session)
            return store, parts, lines, count - len(lines)
        if not self._is_first:
            return store, parts, _ended(session, max(self._began, time.time_ns() - _BEHIND_NS)), 0
        lines = _ended(session, self._began - self._comes_back * _BEHIND_NS)
        more = max(0, _count(session, self._began) - len(lines)) if len(lines) == _MOST else 0
        return store, parts, lines, more

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


def start_of(text: str) -> int | None:
    """Where a page goes on that was told something before. Raises ConfigError."""
    if not text:
        return None
    if not (text.isascii() and text.isdecimal()) or len(text) > 19:
        raise ConfigError(f"since is a time in nanoseconds, not {text[:30]!r}", "open the live page again")
    return min(int(text), time.time_ns())


async def events(asking: Asking, start_ns: int | None = None, is_ending: Callable[[], bool] = lambda: False) -> AsyncIterator[bytes]:
    """`start_ns`: what ended from then on; by default from now. The id of each event is where a page that comes back begins. It ends once `is_ending`, as
    the server waits for its answers.
    """
    look = _Look(asking, start_ns)
    try:
        async for event in _followed(look, is_ending):
            yield event
    finally:
        look.close()


async def _followed(look: _Look, is_ending: Callable[[], bool]) -> AsyncIterator[bytes]:
    heard, said = 0.0, ("", -1)
    yield b"retry: 2000\n\n"
    while not is_ending():
        at_ns, fault = time.time_ns(), ""
        told: list[dict[str, Any]] = []
        try:
            told = await run_in_threadpool(look.new)
        except BusyError:
            await asyncio.sleep(_EVERY_S)
            continue
        except LLMSecError as wrong:
            fault = visible(wrong.lines()[0])
        for event in told:
            yield _event(event, at_ns)
        # How it goes: at each change, and now and then, as a connection that is gone shows when it is written to.
        if (fault, look.left_out) != said or time.monotonic() - heard > _QUIET_S:
            heard, said = time.monotonic(), (fault, look.left_out)
            yield b"event: state\n" + _event({"fault": fault, "left_out": look.left_out}, None if fault else at_ns)
        await asyncio.sleep(_EVERY_S)


def _event(content: dict[str, Any], at_ns: int | None) -> bytes:
    return (f"id: {at_ns}\n" if at_ns is not None else "").encode() + b"data: " + msgspec.json.encode(content) + b"\n\n"


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
    """In the order of their end. What a clock that is ahead has stamped is the first to be left out where there is too much."""
    found = session.select(
        f"""
        SELECT exchange_id, coalesce(ended_ns, started_ns) AS at_ns, provider, coalesce(model, tls.server_name, path, server), status, output_tokens, duration_ms,
            risk_score, tenant, {session.dialect.length.format("findings")}
        FROM exchanges WHERE coalesce(ended_ns, started_ns) > ? ORDER BY coalesce(ended_ns, started_ns) > ?, coalesce(ended_ns, started_ns) DESC LIMIT {_MOST}
        """,  # noqa: S608 - our own clauses
        [since_ns, time.time_ns()],
    )
    return sorted((Line(*row) for row in found.rows()), key=lambda line: line.ts_ns)


def _count(session: Session, since_ns: int | None = None) -> int:
    where = "" if since_ns is None else "WHERE coalesce(ended_ns, started_ns) > ?"
    found = session.select(f"SELECT count(*) FROM exchanges {where}", [] if since_ns is None else [since_ns])  # noqa: S608 - our own clauses
    return int(next(iter(found.rows()))[0])
