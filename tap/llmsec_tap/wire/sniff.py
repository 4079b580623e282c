"""What protocol begins here, by content alone: ports play no part, and parsers never sniff."""

from __future__ import annotations

import re

from llmsec_tap import limits
from llmsec_tap.wire.http1 import REQUEST_LINE, REQUEST_START, STATUS_START
from llmsec_tap.wire.http2.frames import PREFACE, find_frames

_REQUEST_PREFIX = re.compile(rb"[A-Z]{0,16}\Z|[A-Z]{2,16} ")
# What an HTTP/2 server says first: SETTINGS (RFC 9113 section 3.4), of which there are few.
_HTTP2_SETTINGS = re.compile(rb"\0[\0-\2].\x04\0\0\0\0\0", re.DOTALL)


def classify_start(data: bytes) -> str:
    """What a direction's first bytes are: request, response, http2, tls, other, or "more" where too few have come."""
    if data.startswith(b"HTTP/"):
        return "response" if len(data) > 7 and data[5:7] == b"1." else "more" if len(data) <= 7 else "other"
    if data.startswith(PREFACE[: max(4, min(len(data), len(PREFACE)))]):
        return "http2" if len(data) >= len(PREFACE) else "more"
    if data[:1] == b"\0":
        return _begins_settings(data)
    if data[:1] == b"\x16":
        return "tls" if len(data) >= 3 and data[1] == 3 else "more" if len(data) < 3 else "other"
    stripped = data.lstrip(b"\r\n")
    if not _REQUEST_PREFIX.match(stripped):
        return "request" if REQUEST_LINE.match(stripped) else "other"
    if b"\n" in stripped:
        return "request" if REQUEST_LINE.match(stripped) else "other"
    return "more" if len(stripped) <= limits.MAX_HEAD_BYTES else "other"


def _begins_settings(data: bytes) -> str:
    if len(data) < 9:
        return "more" if _HTTP2_SETTINGS.match(data + b"\0\0\0\x04\0\0\0\0\0"[len(data) :]) else "other"
    return "http2" if _HTTP2_SETTINGS.match(data) and (data[1] << 8 | data[2]) % 6 == 0 else "other"


def find_message(data: bytes) -> tuple[str, int] | None:
    """Where the first request, response or HTTP/2 begins in bytes of unknown meaning: its kind and offset."""
    if b"HTTP/" not in data:
        at, wanted = find_frames(data)
        return ("http2", at) if not wanted else None
    at = data.find(PREFACE)
    if at >= 0 and b"HTTP/1." not in data[:at]:
        return "http2", at
    request, response = REQUEST_START.search(data), STATUS_START.search(data)
    if request is not None and (response is None or request.start() < response.start()):
        return "request", request.start()
    return ("response", response.start()) if response is not None else None
