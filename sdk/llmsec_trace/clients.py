"""The HTTP clients that an object holds: a vendor's client keeps one somewhere inside, and each vendor elsewhere.

Only what objects hold in plain attributes is looked at: nothing is called, and no property is asked.
"""

from __future__ import annotations

import contextlib
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from types import FunctionType, ModuleType
from typing import Any, Final

from llmsec_trace.transports import aiohttp_connectors, botocore_sessions, httpx_transports, requests_adapters
from llmsec_trace.transports.hooking import Hook

_MAX_OBJECTS: Final = 5_000
_MAX_DEPTH: Final = 8
_MAX_ITEMS: Final = 64
_LEAVES = (str, bytes, bytearray, int, float, complex, bool, type(None), type, ModuleType, FunctionType)


def hooks_in(thing: Any) -> list[tuple[type[Hook], Any]]:
    """The places through which requests of `thing` pass; none where it holds no client that is known."""
    kinds = _client_kinds()
    found: list[tuple[type[Hook], Any]] = []
    seen: set[int] = {id(thing)}
    waiting: deque[tuple[Any, int]] = deque([(thing, 0)])
    while waiting and len(seen) < _MAX_OBJECTS:
        one, depth = waiting.popleft()
        hooks_of = next((hooks for kind, hooks in kinds if isinstance(one, kind)), None)
        if hooks_of is not None:
            found += hooks_of(one)
            continue
        if hasattr(type(one), aiohttp_connectors.LaterSessionsHook.name):
            found.append((aiohttp_connectors.LaterSessionsHook, one))
        if depth == _MAX_DEPTH:
            continue
        for held in _held(one):
            if not isinstance(held, _LEAVES) and id(held) not in seen:
                seen.add(id(held))
                waiting.append((held, depth + 1))
    return found


def _client_kinds() -> list[tuple[Any, Any]]:
    """Classes of clients, as far as the application has loaded their libraries."""
    kinds: list[tuple[Any, Any]] = []
    for package in httpx_transports.PACKAGES:
        module = sys.modules.get(package)
        if module is not None:
            kinds.append(((module.Client, module.AsyncClient), httpx_transports.hooks_of))
    if (requests := sys.modules.get("requests")) is not None:
        kinds.append((requests.Session, requests_adapters.hooks_of))
    if (client := sys.modules.get("botocore.client")) is not None:
        kinds.append((client.BaseClient, botocore_sessions.hooks_of))
    if (aiohttp := sys.modules.get("aiohttp")) is not None:
        kinds.append((aiohttp.ClientSession, aiohttp_connectors.hooks_of))
    return kinds


def _held(thing: Any) -> Iterator[Any]:
    if isinstance(thing, Mapping):
        if isinstance(thing, dict):
            yield from list(thing.values())[:_MAX_ITEMS]
        return
    if isinstance(thing, list | tuple | set | frozenset):
        yield from list(thing)[:_MAX_ITEMS]
        return
    own = getattr(type(thing), "__dict__", None)
    with contextlib.suppress(TypeError):  # it has none
        yield from list(vars(thing).values())
    if own is not None:
        for kind in type(thing).__mro__:
            for name in _slots(kind):
                value = vars(kind).get(name)
                try:
                    yield value.__get__(thing, type(thing)) if value is not None else None
                except AttributeError:
                    continue
    # functools.partial and bound methods hold what they are bound to.
    bound = thing.__self__ if type(thing).__name__ == "method" else None
    if bound is not None:
        yield bound


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)
