"""One method of one object, replaced: every request passes through it, and it can be put back.

The object keeps its class and its identity, so whoever looks at it finds what was there before. A copy of it, or what is unpickled, has the
original method again.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmsec_trace.call import Call, RawHeaders
    from llmsec_trace.policy import RequestBlocked, Screening
    from llmsec_trace.recorder import Recorder


class Hook:
    """Stands in the object's own dictionary in place of `name`."""

    name = ""

    def __init__(self, owner: Any, recorder: Recorder) -> None:
        self.owner = owner
        self.recorder = recorder
        self.original: Any = getattr(owner, self.name)

    def __reduce__(self) -> tuple[Any, ...]:
        """For copies and pickles: the method of the class."""
        return getattr, (self.owner, self.name)

    @classmethod
    def put(cls, owner: Any, recorder: Recorder, *, again: bool) -> bool:
        """Record what passes `owner`. One that is recorded already stays so; `again` has it recorded by this recorder from now on.

        Raises AttributeError for an object that takes no attributes.
        """
        known = vars(owner).get(cls.name)
        if isinstance(known, Hook):
            if again:
                known.recorder = recorder
            return False
        setattr(owner, cls.name, cls(owner, recorder))
        return True

    @classmethod
    def take(cls, owner: Any) -> bool:
        """Undo `put`. False where there was nothing to undo."""
        known = vars(owner).get(cls.name)
        if not isinstance(known, Hook):
            return False
        delattr(owner, cls.name)
        if getattr(owner, cls.name) != known.original:  # somebody's own, which stood there before us
            setattr(owner, cls.name, known.original)
        return True


def trace_of(headers: Any) -> str | None:
    """The trace that the application's own tracing has put into the request (W3C Trace Context)."""
    for name, value in headers:
        if len(name) == 11 and name.lower() in (b"traceparent", "traceparent"):
            text = value.decode("latin-1") if isinstance(value, bytes) else value
            parts = text.strip().lower().split("-")
            if len(parts) >= 4 and len(parts[1]) == 32 and not parts[1].strip("0123456789abcdef") and parts[1].strip("0"):
                return str(parts[1])
    return None


def verdict(screening: Screening | None, call: Call | None) -> RequestBlocked | None:
    """What the application's own rules say, where they may keep the request from leaving. An interrupt meanwhile ends the call."""
    if screening is None:
        return None
    try:
        return screening.wait()
    except BaseException as fault:
        if call is not None:
            call.failed(fault)
        raise


async def verdict_async(screening: Screening | None, call: Call | None) -> RequestBlocked | None:
    """Likewise; a task may be cancelled meanwhile."""
    if screening is None:
        return None
    try:
        return await screening.wait_async()
    except BaseException as fault:
        if call is not None:
            call.failed(fault)
        raise


def refused(call: Call | None, blocked: RequestBlocked, headers: RawHeaders) -> RequestBlocked:
    """What to raise in the request's place, once the record knows of it.

    Anthropic's client makes APIConnectionError of whatever is raised below it, and tries again, unless it is one of its own exceptions. So
    for its requests the exception is one of those, too.
    """
    if call is not None:
        call.failed(blocked)
    own = getattr(sys.modules.get("anthropic"), "AnthropicError", None)
    if own is not None and any(name.lower() in (b"anthropic-version", "anthropic-version") for name, _ in headers):
        kind = type(blocked)
        blocked = type(kind.__name__, (kind, own), {"__module__": kind.__module__})(blocked.type, blocked.message)
    return blocked
