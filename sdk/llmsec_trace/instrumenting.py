"""`instrument`: which clients are recorded, from when to when, and by which recorder.

Decoders are loaded when the first client is recorded, not when this module is.
"""

from __future__ import annotations

import importlib
import logging
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, overload

from llmsec_tap.errors import ConfigError
from llmsec_trace.clients import hooks_in
from llmsec_trace.config import InstrumentationConfig
from llmsec_trace.transports import aiohttp_connectors, botocore_sessions, httpx_transports, requests_adapters, websocket_protocols
from llmsec_trace.transports.hooking import Hook

if TYPE_CHECKING:
    from llmsec_tap.identity.credentials import Fingerprinter
    from llmsec_trace.destinations.base import Destination
    from llmsec_trace.recorder import Examiner, Recorder, Stats

log = logging.getLogger("llmsec_trace")

_Client = TypeVar("_Client")

FLUSH_S: Final = 10.0  # the detection process may have to be started first
_lock: Final = threading.Lock()
_recorders: list[Recorder] = []
_fingerprints: list[Fingerprinter] = []


@overload
def instrument(client: None = None, config: InstrumentationConfig | None = None) -> Instrumentation: ...


@overload
def instrument(client: _Client, config: InstrumentationConfig | None = None) -> _Client: ...


def instrument(client: Any = None, config: InstrumentationConfig | None = None) -> Any:
    """Record the calls of a client, which is given back; without one, of all clients that are made from now on.

    `client` is anything that holds a client of httpx, httpx2, requests, botocore or aiohttp. Once it is recorded it stays so: a second call changes
    nothing, unless it brings a configuration, which then holds. Without a configuration the environment says it (`from_env`).
    Raises ConfigError where the configuration is wrong, or nothing is found in the object.
    """
    if config is not None and not isinstance(config, InstrumentationConfig):
        raise ConfigError(
            f"instrument() takes an InstrumentationConfig, not {type(config).__name__}", "Make one, or read it with from_env or from_file."
        )
    recorder = recorder_of(config or InstrumentationConfig.from_env())
    if client is None:
        return Instrumentation(recorder)
    hooks = hooks_in(client)
    if not hooks:
        raise ConfigError(
            f"instrument() found no HTTP client in {_name(client)}: it knows those of httpx, httpx2, requests, botocore and aiohttp",
            "Call instrument() without an object before that client is made.",
        )
    for hook, owner in hooks:
        hook.put(owner, recorder, again=config is not None)
    return client


def uninstrument(client: _Client) -> _Client:
    """Undo `instrument(client)`. Answers that are under way are still recorded."""
    for hook, owner in hooks_in(client):
        hook.take(owner)
    return client


def flush(timeout_s: float = FLUSH_S) -> bool:
    """Hand on all records of calls that have ended, with the tags that are set by now. False where some could not be within the time."""
    until = time.monotonic() + timeout_s
    flushed = [recorder.flush(max(0.05, until - time.monotonic())) for recorder in list(_recorders)]
    return all(flushed)


def stats() -> Stats:
    """Counts of this process, over all configurations."""
    from llmsec_trace.recorder import Stats  # noqa: PLC0415

    return sum((recorder.stats() for recorder in list(_recorders)), Stats())


def recorder_of(config: InstrumentationConfig, examiner: Examiner | None = None) -> Recorder:
    """The recorder of a configuration, which is made once: clients with equal configurations share it."""
    from llmsec_trace.recorder import Recorder  # noqa: PLC0415 - a third of a second

    with _lock:
        for known in _recorders:
            if known.config == config:
                return known
        if not _fingerprints:
            _fingerprints.append(_fingerprinter())
        recorder = Recorder(config, destinations_of(config), _fingerprints[0], examiner=examiner, detects=examiner is None)
        _recorders.append(recorder)
        return recorder


def destinations_of(config: InstrumentationConfig) -> list[Destination]:
    """Where the records of a configuration go: to all that it names, of destinations, a store and an agent; else to the collector."""
    named: list[Destination] = list(config.destinations)
    if config.store is not None:
        from llmsec_trace.destinations.folder import Folder  # noqa: PLC0415

        named.append(Folder(config.store))
    if config.agent is not None:
        from llmsec_trace.destinations.agent import Agent  # noqa: PLC0415

        named.append(Agent(config.agent))
    if not named:
        from llmsec_trace.destinations.collector import Collector  # noqa: PLC0415 - OpenTelemetry, where it is needed

        named.append(Collector(config.tracing, config.service_name))
    return named


def _fingerprinter() -> Fingerprinter:
    """Under the key of this installation. Where the application has no place for one, under a key of this process."""
    from llmsec_tap.identity.credentials import fingerprinter  # noqa: PLC0415
    from llmsec_tap.install_key import install_key  # noqa: PLC0415
    from llmsec_tap.journal import Event, Journal, Level  # noqa: PLC0415

    def tell(event: Event) -> None:
        if event.level >= Level.WARNING:
            log.warning("%s", event.text)

    try:
        key = install_key(Journal(tell))
    except RuntimeError:  # it has no home folder at all
        import secrets  # noqa: PLC0415

        key = secrets.token_bytes(32)
        log.warning("there is no folder for a fingerprint key: fingerprints of this process will match no others")
    return fingerprinter(key)


def _name(thing: Any) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


# --- all clients that are made later ----------------------------------------------------------------------------------------


class Instrumentation:
    """Clients that are made while it holds are recorded, also after `undo`: that ends it for clients that are made later.

    A context manager. Several may hold at once; a client is recorded by the newest.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self.is_active = True
        with _lock:
            _active.append(self)
            _watch()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self.undo()

    def undo(self) -> None:
        """A second time does nothing."""
        with _lock:
            if self.is_active:
                self.is_active = False
                _active.remove(self)
                if not _active:
                    _unwatch()

    def made(self, hooks: list[tuple[type[Hook], Any]]) -> None:
        for hook, owner in hooks:
            hook.put(owner, self._recorder, again=False)


_active: Final[list[Instrumentation]] = []
_watched: Final[list[tuple[type, Any, Any]]] = []  # class, its own __init__, and ours
# Module, class, and what gives the places of one that was made.
_CLASSES: Final[tuple[tuple[str, str, Callable[[Any], list[tuple[type[Hook], Any]]]], ...]] = (
    *((package, name, httpx_transports.hooks_of) for package in httpx_transports.PACKAGES for name in ("Client", "AsyncClient")),
    ("requests.adapters", "HTTPAdapter", lambda adapter: [(requests_adapters.AdapterHook, adapter)]),
    ("botocore.httpsession", "URLLib3Session", lambda session: [(botocore_sessions.SessionHook, session)]),
    ("aiohttp", "ClientSession", aiohttp_connectors.hooks_of),
    ("websockets.client", "ClientProtocol", websocket_protocols.hooks_of),
)


def _watch() -> None:
    """Have the clients' constructors tell us. A library that is not installed is none; one that is there is loaded now."""
    if _watched:
        return
    for module_name, class_name, hooks_of in _CLASSES:
        if module_name.partition(".")[0] not in sys.modules and not _is_installed(module_name):
            continue
        try:
            kind = getattr(importlib.import_module(module_name), class_name)
        except Exception:  # noqa: BLE001, S112 - a library that cannot be loaded has no clients
            continue
        original = kind.__init__
        kind.__init__ = _telling(original, kind, hooks_of)
        _watched.append((kind, original, kind.__init__))


def _is_installed(module_name: str) -> bool:
    from importlib.util import find_spec  # noqa: PLC0415

    return find_spec(module_name.partition(".")[0]) is not None


def _telling(original: Any, kind: type, hooks_of: Callable[[Any], list[tuple[type[Hook], Any]]]) -> Any:
    import functools  # noqa: PLC0415

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        original(self, *args, **kwargs)
        newest = _active[-1] if _active else None
        if newest is not None:
            try:
                newest.made(hooks_of(self))
            except Exception:
                log.debug("a %s is not recorded", kind.__name__, exc_info=True)

    return __init__


def _unwatch() -> None:
    for kind, original, ours in _watched:
        if kind.__init__ is ours:  # type: ignore[misc]
            kind.__init__ = original  # type: ignore[misc]
    _watched.clear()
