"""Credentials in a byte stream of HTTP replaced by `*`, byte for byte, so that lengths, offsets and times stay (`--write`).

Rules
- In a head (from a start line to the empty line) a header keeps its value only if its name is known to hold no credential; the
  request target keeps what `identity/masking.py` would keep.
- Anywhere: a line that begins with the name of a header that carries a credential, a JSON or form field whose name says that its
  value is one, and words of the form that vendors give their keys.
- Bytes come in any cut: what has begun in one piece is masked on in the next. Of a word that only its form gives away, the bytes of
  earlier pieces are out already.
- HTTP/2 is known by its first bytes, and masked by masked_http2.py.
Compressed bodies and other binary frames are not looked into, nor are frames of WebSocket that are deflated or, as all of a client's, masked. Bound: the first 8 KiB of a line are held, no more.
"""

from __future__ import annotations

import re
from typing import Final

from llmsec_tap.capture.files.masked_http2 import HTTP2Masker
from llmsec_tap.identity.secret_shapes import VENDOR_PATTERN, is_secret_name, is_token
from llmsec_tap.plain_names import QUERY, folded_name
from llmsec_tap.wire.http2.frames import PREFACE, find_frames
from llmsec_tap.wire.sniff import classify_start

# Headers that say how a message is read, and whom it is for; their values hold no credential (words of a key's form are masked all the same).
_PLAIN_HEADERS: Final = frozenset(
    b"host content-type content-length content-encoding content-disposition content-language transfer-encoding connection keep-alive accept"
    b" accept-encoding accept-language accept-ranges cache-control date expires last-modified etag vary server user-agent upgrade trailer te expect"
    b" allow age via pragma retry-after access-control-allow-origin x-stainless-lang x-stainless-package-version x-stainless-os x-stainless-arch"
    b" x-stainless-runtime x-stainless-runtime-version x-stainless-retry-count anthropic-version anthropic-beta openai-version openai-processing-ms"
    b" x-request-id request-id x-amzn-requestid x-ratelimit-limit-requests x-ratelimit-limit-tokens x-ratelimit-remaining-requests"
    b" x-ratelimit-remaining-tokens x-ratelimit-reset-requests x-ratelimit-reset-tokens x-amzn-bedrock-input-token-count"
    b" x-amzn-bedrock-output-token-count x-amzn-bedrock-invocation-latency x-content-type-options strict-transport-security"
    b" sec-websocket-version sec-websocket-extensions sec-websocket-accept mcp-protocol-version mcp-method".split()
)
# Lines of an event stream look like headers.
_STREAM_FIELDS: Final = frozenset((b"data", b"event", b"id", b"retry"))
_MAX_LOOK_BACK = 256
_MAX_REQUEST_LINE = 8192  # what is beyond is masked
_START_LINE: Final = re.compile(rb"(?:[A-Za-z-]{1,24} [^\r\n]|HTTP/1\.)")
_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}[ \t]*:")
_FIELD: Final = re.compile(rb'"((?:[^"\\]|\\.){1,128})"\s{0,8}:\s{0,8}"|(?:^|[&?\n])([A-Za-z0-9_.%-]{1,64})=')
_TARGET_PART: Final = re.compile(rb"//[^/?#]*@|//[^/?#]*$|[^/?#&;]+")
_PART_NAME: Final = re.compile(rb'(?i)^content-disposition:[^\r\n]*\bname="?([^";\r\n]{1,64})')
_FORM_END: Final = re.compile(rb"[&\s]")
_JSON_END: Final = re.compile(rb'(?:\\.|[^"\\])*')
_KEYS: Final = re.compile(VENDOR_PATTERN.encode())
_STAR: Final = b"*"
_UNKNOWN: Final = -1  # where such a body ends is seen by the next start line
_CHUNKED: Final = -2


class StreamMasker:
    """One direction of one connection."""

    __slots__ = (
        "_body_left",
        "_escaped",
        "_first",
        "_http2",
        "_in_head",
        "_length",
        "_line",
        "_part",
        "_saw_head",
        "_size",
        "_tail",
        "_value",
    )

    def __init__(self, *, is_body: bool = False) -> None:
        """`is_body`: of one message, without any head."""
        self._http2: HTTP2Masker | None = None
        self._first = PREFACE if is_body else b""  # of the direction, as much as tells what it is
        self._line = b""  # the beginning of the line under way, as it came
        self._size = 0  # of the line so far
        self._tail = b""  # the last bytes before the piece, as they came
        self._in_head, self._saw_head = False, is_body
        self._length = _UNKNOWN  # of the body that the head announces
        self._body_left = _UNKNOWN
        self._part = b""  # the secret field of a form whose value comes with the next line but one
        self._value = b""  # inside a secret value: what ends it, `"` or `&` or a line's end
        self._escaped = False

    def feed(self, data: bytes) -> bytes:
        """The same number of bytes, masked."""
        if self._http2 is None and (len(self._first) < len(PREFACE) or data[:1] in (b"\0", b"P")):
            self._find_http2(data)
        if self._http2 is not None:
            return self._http2.feed(data)
        out = bytearray(data)
        at = 0
        while at < len(data):
            until = len(data) if self._body_left <= 0 else min(len(data), at + self._body_left)
            end = data.find(b"\n", at, until) + 1 or until
            if self._body_left > 0:
                self._body_left -= end - at
            self._piece_of_line(data[at:end], out, at)
            if self._body_left == 0 and not self._in_head:  # a body ends wherever it ends: the next byte begins a message
                self._line, self._size, self._part = b"", 0, b""
                self._body_left = _UNKNOWN
            at = end
        self._words(data, out)
        self._tail = (self._tail + data)[-_MAX_LOOK_BACK:]
        return bytes(out)

    def skip(self, length: int) -> None:
        """So many bytes are not seen. Where they were not all in a body, the rest of the line that follows may be a credential's."""
        if self._http2 is not None:
            self._http2 = self._http2.after_loss()
            return
        if self._body_left > length or (self._body_left == _UNKNOWN and self._saw_head and not self._in_head):
            self._body_left -= length if self._body_left > 0 else 0
            self._line, self._size = b"\0", 1
            return
        self._line, self._size, self._in_head = b"\t", 1, True
        self._value = self._part = self._tail = b""
        self._body_left = 0

    def _find_http2(self, data: bytes) -> None:
        """It begins with the direction, in whatever pieces, or after an upgrade; or the direction was joined in its middle."""
        first, self._first = self._first, (self._first + data)[: len(PREFACE)]
        begins = len(first) < len(PREFACE) and classify_start(first + data) == "http2"
        if begins or classify_start(data) == "http2" or (not first and find_frames(data) == (0, 0)):
            self._http2 = HTTP2Masker(lambda: StreamMasker(is_body=True).feed, _masked_header)
            if begins and first:
                self._http2.feed(first)

    # --- lines ----------------------------------------------------------------------------------------------------------

    def _piece_of_line(self, piece: bytes, out: bytearray, at: int) -> None:
        before = self._size
        line = self._line
        if len(line) < _MAX_LOOK_BACK or (len(line) < _MAX_REQUEST_LINE and _START_LINE.match(line)):
            line = line + piece[: _MAX_REQUEST_LINE - len(line)]
        self._mask_line(line, before, piece, out, at)
        if piece.endswith(b"\n"):
            self._end_of_line(line.rstrip(b"\r\n"))
            self._line, self._size = b"", 0
        else:
            self._line, self._size = line, before + len(piece)

    def _end_of_line(self, line: bytes) -> None:
        if not line:
            if self._in_head:
                self._in_head, self._body_left = False, max(self._length, _UNKNOWN) or _UNKNOWN
            self._part = _STAR if self._part else b""
        elif self._part == _STAR:
            self._part = b""
        elif not self._in_head and _START_LINE.match(line) and (b" HTTP/" in line or line.startswith(b"HTTP/")):
            self._in_head = self._saw_head = True
            self._length = self._body_left = _UNKNOWN
        elif self._in_head:
            self._framing(line.lower())
        found = _PART_NAME.match(line)
        if found and is_secret_name(found[1].decode("latin-1")):
            self._part = found[1]

    def _framing(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name.strip() == b"content-length" and value.strip().isdigit() and len(value) < 16 and self._length != _CHUNKED:
            self._length = int(value)
        elif name.strip() == b"transfer-encoding":
            self._length = _CHUNKED

    def _mask_line(self, line: bytes, before: int, piece: bytes, out: bytearray, at: int) -> None:
        """Masks what of the piece belongs to a secret of its line. `before`: bytes of the line that are out already."""
        content = len(piece.rstrip(b"\r\n"))
        if self._part == _STAR and not line.startswith(b"--"):
            self._stars(out, at, at + content)
            return
        if self._in_head and line[:1] in b" \t" and before + content:
            self._stars(out, at, at + content)  # a folded header (RFC 9112 5.2) goes on
            return
        name = _NAME.match(line)
        if name is not None:
            lower = name[0][:-1].rstrip().lower()
            is_secret = is_secret_name(lower.decode("latin-1")) and lower not in _PLAIN_HEADERS
            has_user = lower == b"host" and b"@" in line
            if (self._in_head and (has_user or lower not in _PLAIN_HEADERS)) or (is_secret and lower not in _STREAM_FIELDS):
                self._stars(out, at + max(0, name.end() - before), at + content)
                return
        if not self._in_head and b" " in line and not line.startswith(b"HTTP/") and _START_LINE.match(line):
            self._target(line, before, content, out, at)
            if before + content > _MAX_REQUEST_LINE:
                self._stars(out, at + max(0, _MAX_REQUEST_LINE - before), at + content)

    def _target(self, line: bytes, before: int, content: int, out: bytearray, at: int) -> None:
        """A request line, as far as it is known: user information, values of fields and segments that look like keys."""
        method, _, rest = line.rstrip(b"\r\n").partition(b" ")
        target = rest.rpartition(b" HTTP/")[0] or rest
        if not target.startswith((b"/", b"http")):
            return
        start = len(method) + 1
        for found in _TARGET_PART.finditer(target):
            a, b = found.span()
            word = found[0]
            if word.startswith(b"//"):  # an authority that has user information, or may have it yet
                a, b = a + 2, b - word.endswith(b"@")
            elif a and target[a - 1 : a] != b"/":
                name, equals, _ = word.partition(b"=")
                if equals and folded_name(name.decode("latin-1")) in QUERY and not is_token(word.decode("latin-1")):
                    continue
                a += len(name) + 1 if equals and not is_token(name.decode("latin-1")) else 0
            elif b"=" not in word and not is_token(word.decode("latin-1")):
                continue
            self._stars(out, at + max(0, start + a - before), at + min(content, start + b - before))

    # --- fields and words -------------------------------------------------------------------------------------------------

    def _words(self, data: bytes, out: bytearray) -> None:
        """Secret fields and words of a known form, begun in this piece or before it."""
        at = self._rest_of_value(data, out)
        tail = self._tail if at == 0 else b""
        text = tail + data if tail else data
        shift = len(tail)
        search = 0
        while found := _FIELD.search(text, search):
            search = found.end()
            raw = found[1] if found[1] is not None else found[2]
            if search <= shift or search - shift < at or not is_secret_name(raw.decode("latin-1")):
                continue
            self._value, self._escaped = (b'"' if found[1] is not None else b"&"), False
            end = self._rest_of_value(data, out, search - shift)
            search = shift + max(end, search - shift)
        for found in _KEYS.finditer(text):
            if found.end() > shift:
                self._stars(out, max(0, found.start() - shift), found.end() - shift)

    def _rest_of_value(self, data: bytes, out: bytearray, at: int = 0) -> int:
        """Masks to the end of the value under way; returns where it ends."""
        if not self._value:
            return at
        if self._value == b'"':
            start = at
            if self._escaped and data:
                at += 1
            found = _JSON_END.match(data, at)
            end = found.end() if found else at
            if end < len(data) and data[end : end + 1] == b"\\":  # the last byte: its other half comes with the next piece
                self._escaped, end = True, len(data)
            else:
                self._escaped = False
            self._stars(out, start, end)
        else:
            ends = _FORM_END.search(data, at)
            end = ends.start() if ends else len(data)
            self._stars(out, at, end)
        if end < len(data):
            self._value = b""
        return end

    @staticmethod
    def _stars(out: bytearray, start: int, end: int) -> None:
        if end > start:
            out[start:end] = _STAR * (end - start)


def _masked_header(name: bytes, value: bytes) -> bytes:
    """A header's value, or a pseudo-header's, masked by the rules of a head."""
    if name == b":path":
        line = b"GET " + value + b" HTTP/1.1\r\n"
        return StreamMasker().feed(line)[4 : 4 + len(value)]
    is_plain = name in (b":method", b":status", b":scheme", b":protocol") or (
        name in _PLAIN_HEADERS | {b":authority"} and b"@" not in value
    )
    return value if is_plain and not _KEYS.search(value) else _STAR * len(value)
