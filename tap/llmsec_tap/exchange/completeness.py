"""How much of an exchange is on its record. docs/concepts.md has the table for users."""

from __future__ import annotations

from llmsec_tap.model import Completeness

# Reasons why a message ended, from the parsers: a peer ended it, or the capture did.
_BY_A_PEER = frozenset(("fin", "reset", "closed"))
_BY_THE_CAPTURE = frozenset(("capture_end", "expired", "memory", None))


def completeness_of(
    *,
    has_request: bool,
    is_gapped: bool,
    is_truncated: bool,
    is_unread: bool,
    request_ended: str | None,
    response_ended: str | None,
    is_terminated: bool,
) -> Completeness:
    """midstream, gapped, truncated, aborted, unreadable, complete: the first that holds.

    `request_ended` and `response_ended` say how each message ended (None: it did not). `is_terminated`: the stream's own last event
    came, so that nothing of the answer is missing however its message ended. `is_truncated`: a stated bound was reached. `is_unread`:
    everything came, and something of it could not be read.
    """
    if not has_request:
        return "midstream"
    if is_terminated and (response_ended in _BY_A_PEER or response_ended in ("capture_end", "expired")):
        response_ended = "complete"
    ends = {request_ended, response_ended}
    if is_gapped or "damage" in ends:
        return "gapped"
    if is_truncated or ends & _BY_THE_CAPTURE:
        return "truncated"
    if ends & _BY_A_PEER:
        return "aborted"
    return "unreadable" if is_unread else "complete"
