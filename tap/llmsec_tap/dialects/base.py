"""What a dialect is: a wire format of one API, as pure functions from request and answer to a `Draft`.

A dialect never sees the HTTP version, chunking, content coding or stream framing. It may be wrong about any field of any body:
`JSON` values come from the wire, so every look-up checks its type and whatever does not fit is left out.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any, Final, Protocol, runtime_checkable
from urllib.parse import parse_qsl, unquote

import msgspec

from llmsec_tap.dialects.draft import Draft
from llmsec_tap.limits import MAX_JSON_COST_BYTES
from llmsec_tap.model import Framing

JSON = Any
# (capture time, event name or None, data). SSE: the event's own name; AWS: `:event-type` (`:exception-type` for failures,
# with the prefix "exception:"); NDJSON and JSON arrays: None.
EventHandler = Callable[[int, "str | None", bytes], None]


class RequestView:
    """A request as a dialect sees it. `path` is as servers take it (`normal_path`), without query; header names are lower case."""

    __slots__ = ("_query", "body", "body_is_json", "headers", "host", "method", "path", "query_string", "raw")

    def __init__(self, method: str, target: str, headers: dict[str, str], raw: bytes = b"") -> None:
        self.method = method
        if "://" in target[:16]:  # absolute form, RFC 9112 3.2.2
            target = "/" + target.partition("://")[2].partition("/")[2]
        path, _, self.query_string = target.partition("#")[0].partition("?")
        self.path = normal_path(path) if _UNUSUAL_PATH.search(path) else path
        self.headers = headers
        self.host = headers.get("host", "").lower()
        self.raw = raw
        self.body: JSON = None
        self.body_is_json = False
        self._query: dict[str, str] | None = None

    @property
    def query(self) -> dict[str, str]:
        if self._query is None:
            self._query = dict(parse_qsl(self.query_string, keep_blank_values=True)[:256])
        return self._query

    @property
    def segments(self) -> list[str]:
        """Path segments, percent-decoded one by one: an ARN with `%2F` stays one segment."""
        return [unquote(part) for part in self.path.split("/") if part]

    @property
    def is_websocket(self) -> bool:
        """It asked for a WebSocket (RFC 6455 4.1; RFC 8441 has a pseudo-header for it)."""
        asked = self.headers.get("upgrade") or self.headers.get(":protocol") or ""
        return asked.strip().lower() == "websocket"

    def get(self, key: str) -> JSON:
        """A field of the JSON body, or None where there is no such object."""
        return self.body.get(key) if isinstance(self.body, dict) else None


_UNUSUAL_PATH = re.compile(r"%(?!2[Ff])|//|/\.|;|\\")
_ENCODED = re.compile(r"(?:%[0-9A-Fa-f]{2})+")


def normal_path(path: str) -> str:
    """A path as a server routes it: percent-encodings undone, empty and dot segments and matrix parameters taken out (RFC 3986 6.2.2).

    `%2F`, `%25`, `%3F`, `%23` and `%3B` stay: decoded they would be another path, or another character of the same one.
    """
    kept: list[str] = []
    segments = path.split("/")
    for number, segment in enumerate(segments):
        plain = _ENCODED.sub(_decoded, segment.partition(";")[0])
        if plain in ("", "."):
            if number == len(segments) - 1 and kept:
                kept.append("")
        elif plain == "..":
            kept[-1:] = []
        else:
            kept.append(plain)
    return "/" + "/".join(kept)


def loose_path(path: str) -> str:
    r"""The same for servers that decode `%2F` before they route (Starlette), take `\` for `/`, or do not look at case (Express)."""
    return normal_path(path.replace("%2F", "/").replace("%2f", "/").replace("\\", "/").replace("%5C", "/").replace("%5c", "/")).lower()


def _decoded(found: re.Match[str]) -> str:
    text = unquote(found[0])
    return "".join(f"%{ord(character):02X}" if character in "/%?#;" else character for character in text)


class ResponseView:
    """The head of an answer as a dialect sees it."""

    __slots__ = ("content_type", "headers", "status", "trailers")

    def __init__(self, status: int, headers: dict[str, str]) -> None:
        self.status = status
        self.headers = headers
        self.trailers: dict[str, str] = {}  # fields behind the body
        self.content_type = headers.get("content-type", "").partition(";")[0].strip().lower()


@runtime_checkable
class Dialect(Protocol):
    """One wire format. Instances are stateless and shared; the state of a stream lives in the handler that `stream` returns."""

    @property
    def api(self) -> str:
        """As in the records: `openai.chat`, `bedrock.converse`, …"""

    @property
    def operation(self) -> str:
        """OpenTelemetry's gen_ai.operation.name: chat, text_completion, embeddings, generate_content, …"""

    @property
    def default_provider(self) -> str:
        """Who serves it where nothing on the wire tells: the only server of this API, or `openai_compatible` and the like."""

    def claims(self, request: RequestView) -> int:
        """How sure the dialect is that this request is its own (claims.py). Path, headers, host and body shape may decide."""

    def recognises(self, response: ResponseView, body: JSON) -> int:
        """The same from an answer alone (or a stream's first event), where the request was not captured."""

    def decode_request(self, request: RequestView, draft: Draft) -> None: ...

    def decode_response(self, request: RequestView | None, response: ResponseView, body: JSON, ts_ns: int, draft: Draft) -> None:
        """A whole answer. `body` is decoded JSON, or None where the body is not JSON. Failures (status >= 400) come here too."""

    def stream(self, request: RequestView | None, response: ResponseView, draft: Draft) -> EventHandler:
        """A handler for the events of a streamed answer, called once per event as it arrives."""

    def framing(self, request: RequestView, response: ResponseView) -> Framing | None:
        """The stream framing, where the content type does not tell (Gemini's JSON array); None: decide by content type."""


# --- JSON from the wire ------------------------------------------------------------------------------------------------

_decode = msgspec.json.Decoder().decode


class NotJSON(ValueError):  # noqa: N818 - a fact about bytes
    """The bytes are not JSON, strictly or leniently."""


def parse_json(data: bytes, draft: Draft | None = None) -> JSON:
    """Decode JSON; what strict decoders refuse but real servers send is read leniently and noted on the draft.

    Lenient are: NaN and Infinity, control characters in strings, invalid UTF-8 and lone surrogates (both become U+FFFD
    unless two halves of a pair meet when deltas are joined). Raises NotJSON, also for what would take more memory than
    limits.MAX_JSON_COST_BYTES, or than the draft has room for (`json_limit`).
    """
    if len(data) > _SURELY_CHEAP and ((cost := _cost(data)) > MAX_JSON_COST_BYTES or not (draft is None or draft.has_room(cost))):
        if draft is not None:
            draft.anomaly("json_limit")
        raise NotJSON
    try:
        return _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        value = json.loads(data.decode("utf-8", "replace").lstrip("\ufeff"), strict=False)
    except (ValueError, RecursionError):
        raise NotJSON from None
    if draft is not None:
        draft.anomaly("json_not_strict")
    return value


def is_json_lines(data: bytes) -> bool:
    """Whether several JSON objects stand one behind the other, each on its line."""
    first, line_feed, rest = data.strip().partition(b"\n")
    if not line_feed or not rest.lstrip().startswith(b"{"):
        return False
    try:
        return isinstance(parse_json(first), dict)
    except NotJSON:
        return False


# The least that any value takes on the wire is two bytes ("[,"), the most that it takes in memory is below 256.
_SURELY_CHEAP = MAX_JSON_COST_BYTES // 128


def is_costly(data: bytes) -> bool:
    """Whether JSON would take more memory than limits.MAX_JSON_COST_BYTES when decoded."""
    return len(data) > _SURELY_CHEAP and _cost(data) > MAX_JSON_COST_BYTES


def _cost(data: bytes) -> int:
    """What the decoded value of this JSON takes at most, in bytes (CPython 3.11, 64 bits)."""
    # A character takes 1, 2 or 4 bytes, after the widest of its string (PEP 393).
    is_wide = b"\\u" in data or any(lead in data for lead in _FOUR_BYTES)
    width = 1 if data.isascii() and not is_wide else 4 if is_wide else 2
    dicts, lists, strings, values = (data.count(mark) for mark in (b"{", b"[", b'"', b","))
    return len(data) * width + 240 * dicts + 72 * lists + 26 * strings + 40 * values


_FOUR_BYTES = [bytes([lead]) for lead in range(0xF0, 0xF5)]


def text_of(value: JSON) -> str | None:
    """A string, or None for anything else."""
    return value if isinstance(value, str) else None


def int_of(value: JSON) -> int | None:
    """A count: an int, or a float without a fraction; never a bool."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value if abs(value) < 1 << 63 else None
    if isinstance(value, float) and value.is_integer() and abs(value) < 1 << 53:
        return int(value)
    return None


# No exchange has more tokens. A server may state anything, and sums over years must hold it.
MAX_COUNT: Final = 10**12


def count_of(value: JSON) -> int | None:
    """A count as servers state it, of MAX_COUNT at most: an int, a float (rounded where a share was billed), digits in a text."""
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, str):
        return min(int(value), MAX_COUNT) if value.isascii() and value.isdigit() and len(value) < 19 else None
    if isinstance(value, int | float) and 0 <= value < math.inf:
        return min(round(value), MAX_COUNT)
    return None


def dict_of(value: JSON) -> dict[str, JSON]:
    return value if isinstance(value, dict) else {}


def list_of(value: JSON) -> list[JSON]:
    return value if isinstance(value, list) else []


def dump_json(value: JSON) -> str:
    """Arguments that came as an object, as text."""
    try:
        return msgspec.json.encode(value).decode()
    except (UnicodeEncodeError, ValueError, RecursionError):
        return json.dumps(value)
