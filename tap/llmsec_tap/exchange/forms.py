"""Bodies of HTML forms: multipart/form-data (RFC 7578) and application/x-www-form-urlencoded, as the fields that they hold.

Audio, image and file endpoints take forms by design; many servers take one wherever they take JSON. Fields come out as text, a
field whose text is JSON as JSON, a file as its text where it is text. Read the way servers do: any boundary line, parts without an
end, LF alone.
"""

from __future__ import annotations

import re
from typing import Any, Final
from urllib.parse import unquote_plus

import msgspec

from llmsec_tap.anomalies import AnomalyName
from llmsec_tap.exchange.charsets import declared_charset, likely_text, text_of_bytes
from llmsec_tap.limits import MAX_FORM_FIELDS

_BOUNDARY: Final = re.compile(r"(?i)boundary\s*=\s*(?:\"([^\"]{1,200})\"|([^\s;,\"]{1,200}))")
_BEGINS_PART: Final = re.compile(rb"\s*--([^\r\n]{1,200}?)[ \t]*\r?\n(?:[A-Za-z0-9-]+:[^\r\n]*\r?\n)*?(?i:content-disposition):")
_NAME: Final = re.compile(r"(?i)[;\s]name\*?\s*=\s*(?:\"((?:[^\"\\]|\\.)*)\"|([^\s;]+))")
_FILE: Final = re.compile(r"(?i)[;\s]filename\*?\s*=\s*(?:\"((?:[^\"\\]|\\.)*)\"|([^\s;]+))")
_HEAD_END: Final = re.compile(rb"\r?\n\r?\n")
_FORM: Final = re.compile(rb"[A-Za-z_][\w.%+\[\]-]{0,80}=")
_MEDIA: Final = ("image/", "audio/", "video/")


class Form:
    """`fields` as a JSON object would have them; `files` are (field, file name, text); `marks` are anomalies."""

    def __init__(self) -> None:
        self.fields: dict[str, Any] = {}
        self.files: list[tuple[str, str, str]] = []
        self.marks: list[AnomalyName] = []

    def add(self, name: str, text: str) -> None:
        if len(self.fields) >= MAX_FORM_FIELDS:
            self.marks.append("form_limit")
            return
        value: Any = text
        if text[:1] in ("{", "["):
            try:
                value = msgspec.json.decode(text)
            except (msgspec.DecodeError, RecursionError, UnicodeEncodeError):
                value = text
        if name in self.fields:  # sent again: a list, as `include[]`
            earlier = self.fields[name]
            value = [*earlier, value] if isinstance(earlier, list) else [earlier, value]
        self.fields[name] = value


def read_form(raw: bytes, content_type: str) -> Form | None:
    """The form that a body is, by its bytes first and its type second; None where it is none."""
    begins = _BEGINS_PART.match(raw[:4096])
    if begins is not None:
        return _multipart(raw, begins[1])
    lower = content_type.lower()
    if lower.startswith("multipart/"):
        found = _BOUNDARY.search(content_type)
        if found is not None:
            boundary = (found[1] or found[2]).encode("latin-1", "replace")
            if b"--" + boundary in raw:
                return _multipart(raw, boundary)
    if lower.startswith("application/x-www-form-urlencoded") or (not lower and _FORM.match(raw)):
        return _urlencoded(raw)
    return None


def _multipart(raw: bytes, boundary: bytes) -> Form:
    form = Form()
    pieces = re.split(rb"(?:\r?\n|^)--" + re.escape(boundary) + rb"(?=--|[ \t]*\r?\n|$)", raw, maxsplit=MAX_FORM_FIELDS + 1)
    if len(pieces) > MAX_FORM_FIELDS + 1:
        form.marks.append("form_limit")
    for number, piece in enumerate(pieces[1:]):
        if piece.startswith(b"--"):
            break
        head, content = _part(piece)
        if head is None:
            form.marks.append("form_bad_part")
            head = ""
        name = _value(_NAME, head) or f"part{number}"
        file = _value(_FILE, head)
        kind = _header(head, "content-type")
        if kind.lower().startswith(_MEDIA) and not _is_text(content):
            continue
        text = likely_text(content)  # servers do not look at a part's charset; where it makes another text, both are read
        if file:
            if text:
                form.files.append((name, file, text))
        else:
            form.add(name, text)
        charset = declared_charset(kind)
        if charset is not None:
            other = text_of_bytes(content, charset)
            if other and other != text:
                form.files.append((name, file, other))
    return form


def _part(piece: bytes) -> tuple[str | None, bytes]:
    piece = re.sub(rb"^[ \t]*\r?\n", b"", piece, count=1)
    found = _HEAD_END.search(piece)
    if found is None:
        return None, piece
    return piece[: found.start()].decode("utf-8", "replace"), piece[found.end() :]


def _header(head: str, name: str) -> str:
    for line in head.splitlines():
        key, _, value = line.partition(":")
        if key.strip().lower() == name:
            return value.strip()
    return ""


def _value(pattern: re.Pattern[str], head: str) -> str:
    found = pattern.search(_header(head, "content-disposition"))
    return (found[1] if found[1] is not None else found[2]) if found else ""


def _is_text(content: bytes) -> bool:
    return b"\0" not in content[:512] and content[:512].decode("utf-8", "replace").count("\ufffd") < 8


def _urlencoded(raw: bytes) -> Form:
    """WHATWG's application/x-www-form-urlencoded; `;` parts fields for some servers, but is text for most."""
    form = Form()
    for field in raw.decode("utf-8", "replace").split("&", MAX_FORM_FIELDS):
        name, _, value = field.partition("=")
        form.add(unquote_plus(name), unquote_plus(value))
    return form
