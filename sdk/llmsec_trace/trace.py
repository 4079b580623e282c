"""The trace of the call that this thread or task made last: its id, and what the application has to say of it.

Tags and metadata are bound late: a record is handed on a moment after its answer has ended (recorder.GRACE_S), so that what is set right
after a call still reaches it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from llmsec_tap.model import Finding

MAX_TAGS: Final = 32
MAX_NAME_CHARS: Final = 64
MAX_VALUE_CHARS: Final = 512
_LOW_64: Final = 2**64 - 1


class TraceContext:
    """One call. `start_time` is of time.perf_counter(); `operation_type` and `model_name` are read from the request when they are asked for.

    `findings`: what is known by now of the request and its answer; it grows while an answer streams, and is whole when the record is handed on.

    A set_tag or set_metadata that comes after the record was handed on changes nothing, and is counted (`stats().late_tags`).
    """

    __slots__ = ("__weakref__", "_describe", "_on_late", "findings", "is_sealed", "metadata", "start_time", "tags", "trace_id")

    def __init__(self, trace_id: str, describe: Callable[[], tuple[str, str | None]], on_late: Callable[[], None] = lambda: None) -> None:
        self.trace_id = trace_id
        self.start_time = time.perf_counter()
        self.tags: dict[str, str] = {}
        self.metadata: dict[str, Any] = {}
        self.findings: list[Finding] = []
        self.is_sealed = False
        self._describe = describe
        self._on_late = on_late

    @property
    def operation_type(self) -> str:
        """Such as openai_chat_completion or openai_chat_completion_stream; http_request for what is no call to a language model."""
        return self._describe()[0]

    @property
    def model_name(self) -> str | None:
        """The model that the request asks for; None where it names none."""
        return self._describe()[1]

    def set_tag(self, key: str, value: str) -> None:
        """At most MAX_TAGS are kept, names and values are cut; a value that is no text is kept as its text."""
        self._set(self.tags, key, value if isinstance(value, str) else _text(value))

    def set_metadata(self, key: str, value: Any) -> None:
        """As `set_tag`; the value is kept as it is, and written as text when the record is handed on."""
        self._set(self.metadata, key, value)

    def _set(self, into: dict[str, Any], key: str, value: Any) -> None:
        key = _text(key)[:MAX_NAME_CHARS]
        if self.is_sealed:
            self._on_late()
        elif key in into or len(into) < MAX_TAGS:
            into[key] = value[:MAX_VALUE_CHARS] if isinstance(value, str) else value

    def __repr__(self) -> str:
        return f"TraceContext({self.trace_id})"


def _text(value: Any) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - an application's own __str__ may do anything
        return type(value).__name__


current: ContextVar[TraceContext | None] = ContextVar("llmsec_trace", default=None)


def get_current_trace() -> TraceContext | None:
    """The trace of the call that is under way, or was last made, in this thread or task. None: there was none, or it was not sampled."""
    return current.get()


def set_tag(key: str, value: str) -> bool:
    """`get_current_trace().set_tag`; False where there is no trace."""
    trace = current.get()
    if trace is not None:
        trace.set_tag(key, value)
    return trace is not None


def set_metadata(key: str, value: Any) -> bool:
    """`get_current_trace().set_metadata`; False where there is no trace."""
    trace = current.get()
    if trace is not None:
        trace.set_metadata(key, value)
    return trace is not None


_ids: Final[list[str]] = []
os.register_at_fork(after_in_child=_ids.clear)


def new_trace_id() -> str:
    """32 hexadecimal digits. Not of `random`, whose state a forked child shares with its parent.

    Many are drawn at once: to ask the system for random bytes lets other threads run, and the caller then waits for the one that decodes.
    """
    try:
        return _ids.pop()
    except IndexError:
        drawn = os.urandom(16 * 256).hex()
        _ids.extend(drawn[start : start + 32] for start in range(32, len(drawn), 32))
        return drawn[:32]


def is_sampled(trace_id: str, rate: float) -> bool:
    """As OpenTelemetry's TraceIdRatioBased: the low 64 bits against a bound, so that all parts of a trace choose alike."""
    return rate >= 1 or int(trace_id[16:], 16) & _LOW_64 < round(rate * 2**64)
