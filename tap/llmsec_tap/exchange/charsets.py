"""Which characters bytes stand for: by a byte order mark, by where the null bytes of JSON's first characters are, by `charset`.

RFC 4627 3: JSON begins with two ASCII characters, so the pattern of nulls in its first four octets tells UTF-8, UTF-16 and UTF-32,
either end first. Python's json (FastAPI, Starlette, Flask), .NET and Java servers read by it although RFC 8259 8.1 knows UTF-8 alone.
"""

from __future__ import annotations

import codecs
import re
from typing import Final

_MARKS: Final = (
    (b"\x00\x00\xfe\xff", "utf-32-be"),
    (b"\xff\xfe\x00\x00", "utf-32-le"),
    (b"\xfe\xff", "utf-16-be"),
    (b"\xff\xfe", "utf-16-le"),
    (b"\xef\xbb\xbf", "utf-8"),
)
_DECLARED: Final = re.compile(r"(?i);\s*charset\s*=\s*[\"']?([\w.:-]{1,40})")
_SAME_AS_UTF_8: Final = frozenset(("utf-8", "ascii"))
# Runs of characters that a reader can see, in bytes that are no text as a whole.
_RUN: Final = re.compile(rb"[\x20-\x7e\t\r\n]{6,}")
_WIDE_RUN: Final = re.compile(rb"(?:[\x20-\x7e\t\r\n]\x00){6,}")
_MAX_REPLACED = 0.1


def charset_of(raw: bytes, content_type: str = "") -> str:
    """The codec that reads these bytes as their server would: a mark or nulls, UTF-8 where they are that, then `charset`."""
    marked = _by_bytes(raw)
    if marked is not None:
        return marked
    declared = declared_charset(content_type)
    if declared is None:
        return "utf-8"
    try:
        raw.decode()
    except UnicodeDecodeError:
        return declared
    return "utf-8"


def declared_charset(content_type: str) -> str | None:
    """The codec that `charset` names, if there is one of that name and it is another than UTF-8 or ASCII."""
    found = _DECLARED.search(content_type)
    if found is None:
        return None
    try:
        info = codecs.lookup(found[1])
    except (LookupError, ValueError):
        return None
    is_text = getattr(info, "_is_text_encoding", True)
    return info.name if is_text and info.name not in _SAME_AS_UTF_8 and info.name not in ("idna", "punycode", "unicode_escape") else None


def _by_bytes(raw: bytes) -> str | None:
    for mark, name in _MARKS:
        if raw.startswith(mark):
            return name
    head = raw[:4]
    if b"\0" not in head or len(head) < 2:
        return None
    nulls = "".join("0" if byte == 0 else "x" for byte in head)
    return {"000x": "utf-32-be", "0x0x": "utf-16-be", "x000": "utf-32-le", "x0x0": "utf-16-le", "0x": "utf-16-be", "x0": "utf-16-le"}.get(
        nulls
    )


def text_of_bytes(raw: bytes, charset: str) -> str:
    """Decoded; what does not fit becomes U+FFFD, a byte order mark is dropped."""
    try:
        text = raw.decode(charset, "replace")
    except (UnicodeError, LookupError):
        text = raw.decode("utf-8", "replace")
    return text.removeprefix("\ufeff")


def likely_text(raw: bytes, content_type: str = "") -> str:
    """Bytes that no format explains, as the text that a reader would see in them; empty where there is none."""
    return seen_text(raw, content_type)[0]


def seen_text(raw: bytes, content_type: str = "") -> tuple[str, bool]:
    """The same, and whether it is all of them: False where they are no text, and only runs of characters were picked out."""
    charset = charset_of(raw, content_type)
    text = text_of_bytes(raw, charset)
    if not text or text.count("\ufffd") + text.count("\0") <= _MAX_REPLACED * len(text):
        return text, not (charset == "utf-8" and _is_binary(raw))
    runs = [run[0].decode("ascii") for run in _RUN.finditer(raw)]
    runs += [run[0].decode("utf-16-le") for run in _WIDE_RUN.finditer(raw)]
    if charset == "utf-8" and sum(map(len, runs)) < len(raw) // 2 and not _is_binary(raw):
        return raw.decode("latin-1"), True
    return "\n".join(runs), False


def _is_binary(raw: bytes) -> bool:
    """More control bytes than any text has, in the first bytes."""
    head = raw[:4096]
    controls = sum(byte < 32 and byte not in (9, 10, 12, 13, 27) for byte in head)
    return controls > len(head) // 50
