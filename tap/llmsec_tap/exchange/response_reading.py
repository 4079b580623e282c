"""The body of an answer that came whole and is not JSON as it stands: read as far as it goes, its text kept for detection."""

from __future__ import annotations

from llmsec_tap import limits
from llmsec_tap.anomalies import OnAnomaly
from llmsec_tap.dialects.base import JSON, ResponseView, is_costly, is_json_lines
from llmsec_tap.exchange.body import looks_like_sse
from llmsec_tap.exchange.charsets import seen_text
from llmsec_tap.exchange.loose_json import read_loosely
from llmsec_tap.model import Framing


def late_framing(raw: bytes) -> Framing | None:
    """The framing of a stream under the type of a whole answer: lines of JSON, or events behind white space."""
    if looks_like_sse(raw.lstrip()):
        return "sse"
    return "ndjson" if is_json_lines(raw) else None


def read_loose_answer(view: ResponseView, raw: bytes, mark: OnAnomaly, *, is_damage: bool) -> tuple[JSON, list[str]]:
    """The value as far as it goes, or None, and texts that no value holds.

    Anomalies go to `mark`. `is_damage`: a dialect reads the answer and all of it came, so that what cannot be read is said.
    """
    content_type = view.headers.get("content-type", "")
    is_small = len(raw) <= limits.MAX_LOOSE_BODY_BYTES and not is_costly(raw)
    raw = raw[: limits.MAX_LOOSE_BODY_BYTES]
    loose = read_loosely(raw, content_type) if is_small else None
    if loose is not None:
        for name in loose.marks:
            if is_damage or name != "body_bad_json":
                mark(name)
        return loose.value, loose.rest
    if view.content_type.startswith(("image/", "audio/", "video/")):
        return None, []
    text, is_whole = seen_text(raw, content_type)
    if is_damage and "json" in view.content_type:
        mark("body_bad_json")
    elif is_damage and not is_whole:
        mark("body_unreadable")
    return None, [text]
