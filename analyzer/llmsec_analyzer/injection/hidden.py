"""Secrets that are written so that no rule sees them: with invisible characters, full width, escapes, or in base 64, 32, 16, 58.

The text is undone where a cheap hint asks for it, and looked through once more for secrets only. Severity stays what it is: whoever
reads the text has the secret, and somebody took pains to carry it past a reader. A place covers all that the secret is made of as
sent, a whole piece of base64 for instance, so that masking it leaves nothing.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterable
from urllib.parse import unquote

import msgspec

from llmsec_analyzer.engine.recognizer_api import Match
from llmsec_analyzer.engine.stream import Plan, scan_whole
from llmsec_analyzer.injection.codes import plain
from llmsec_analyzer.injection.normalise import BASE64, COMPATIBLE, INVISIBLE, Normalised, plain_letter

# Of one character each, printable ASCII: what secrets are made of.
_ESCAPE = re.compile(r"\\+u00[2-7][0-9a-fA-F]|\\+x[2-7][0-9a-fA-F]|%[2-7][0-9a-fA-F]|&#(?:x0{0,4}[2-7][0-9a-fA-F]|0{0,4}[0-9]{2,3});")
_FEWEST_ESCAPES = 3
_MAX_LAYERS = 3
_PROBE = 16


def hidden_secrets(plan: Plan, text: str, role: str, seen: Iterable[Match]) -> list[Match]:
    """Secrets of the text once it is undone, at their places as sent; those that `seen` has there are not repeated."""
    undone = _undone(text)
    if undone is None:
        return []
    known = [(match.start, match.end) for match in seen if match.rule.category == "secret"]
    found: list[Match] = []
    for match in scan_whole(plan, undone.text, role).matches:
        start, end, changed = undone.outer(match.start, match.end)
        if not changed or match.severity == "info" or any(start < last and first < end for first, last in known):
            continue
        known.append((start, end))
        note = "; ".join(filter(None, (match.note, "hidden by: " + ", ".join(undone.kinds))))
        found.append(msgspec.structs.replace(match, start=start, end=end, note=note))
    return found


def _undone(text: str) -> Normalised | None:
    result = Normalised(text)
    if not text.isascii():
        if INVISIBLE.search(text):
            result.replace("invisible", INVISIBLE, lambda _: "")
        if COMPATIBLE.search(result.text):
            result.replace("compatible", COMPATIBLE, plain_letter)
    for _ in range(_MAX_LAYERS):
        before = result.text
        if ("\\" in before or before.count("%") >= _FEWEST_ESCAPES or "&#" in before) and sum(
            1 for _ in _ESCAPE.finditer(before)
        ) >= _FEWEST_ESCAPES:
            result.replace("escapes", _ESCAPE, _unescaped)
        result.replace("base64", BASE64, _unbased)
        if result.text == before:
            break
    return result if result.kinds else None


def _unescaped(escape: str) -> str | None:
    if escape[0] == "%":
        return unquote(escape)
    number = escape[2:-1]
    code = int(escape[-2:], 16) if escape[0] == "\\" else int(number[1:], 16) if number[0] == "x" else int(number)
    return chr(code) if 0x20 <= code < 0x7F else None


def _unbased(run: str) -> str | None:
    """Text in printable ASCII, of base 64 or another; the first characters show at once that most runs hold none."""
    body = run.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        if not _is_text(binascii.a2b_base64(body[:_PROBE])):
            return plain(run)
        data = binascii.a2b_base64(body[: len(body) // 4 * 4]) if len(body) % 4 == 1 else binascii.a2b_base64(body + "=" * (-len(body) % 4))
    except binascii.Error:
        return None
    return f" {data.decode('ascii')} " if _is_text(data) else None


def _is_text(data: bytes) -> bool:
    return not data.translate(None, _PRINTABLE)


_PRINTABLE = bytes([9, 10, 13, *range(0x20, 0x7F)])
