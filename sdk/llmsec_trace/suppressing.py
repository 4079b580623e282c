"""Threads of ours record nothing: what sends records would make records of its own sending."""

from __future__ import annotations

from contextvars import ContextVar

is_suppressed: ContextVar[bool] = ContextVar("llmsec_suppressed", default=False)
# The request is recorded already, by the library that has another one carry it (httpx over aiohttp).
is_carried: ContextVar[bool] = ContextVar("llmsec_carried", default=False)


def suppress() -> None:
    """In this thread, from now on."""
    is_suppressed.set(True)
