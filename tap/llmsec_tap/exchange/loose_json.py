"""JSON that strict decoders refuse and real servers take, and what can be had of JSON that nobody takes.

| what | who reads it |
|---|---|
| UTF-16 and UTF-32, byte order marks | Python's json, and all that hand it bytes |
| NaN, Infinity, control characters in strings, lone surrogates | Python's json; Go all but the first |
| something behind the value | Go's Decoder, which reads one value and stops |
| nesting to 10,000 | Go, Node |
| one key twice: the last counts (some: the first) | all |
| keys in another case | Go: field names match whatever their case |

A value nested deeper than our decoders go is cut out and kept as text. A damaged body is read as far as it goes.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from llmsec_tap.anomalies import AnomalyName
from llmsec_tap.exchange.charsets import charset_of, declared_charset, text_of_bytes
from llmsec_tap.limits import MAX_JSON_DEPTH

JSON = Any

_SPACE: Final = " \t\r\n\ufeff"
_STRING: Final = r'"[^"\\]*(?:\\.[^"\\]*)*("?)'
_TOKEN: Final = re.compile(rf"{_STRING}|[\[\]{{}},]", re.DOTALL)
_QUOTE: Final = re.compile(r'(?<!\\)"')
_WORDS: Final = re.compile(r"(?<![^\W\d_])[^\W\d_]{2,64}\s{1,8}[^\W\d_]{2}")
_MIN_SENTENCE = 12
_MAX_SENTENCES = 512
_CLOSERS: Final = {"{": "}", "[": "]"}
_MAX_INT_DIGITS = 4000  # Python refuses to make an int of more


@dataclass(slots=True)
class Loose:
    """What was read. `lost`: values of keys that came again, by key; `rest`: texts that no value holds; `marks`: anomalies."""

    value: JSON
    text: str
    lost: list[tuple[str, JSON]] = field(default_factory=list)
    rest: list[str] = field(default_factory=list)
    marks: list[AnomalyName] = field(default_factory=list)


def read_loosely(raw: bytes, content_type: str = "", *, fold: Callable[[str], str] | None = None) -> Loose | None:
    """`raw` as JSON by any of the readings above, or None where it does not even begin as an object or array."""
    charset = charset_of(raw)
    found = _read(text_of_bytes(raw, charset), fold)
    declared = declared_charset(content_type) if found is None else None
    if declared is not None:
        charset = declared
        found = _read(text_of_bytes(raw, charset), fold)
    if found is not None and charset != "utf-8":
        found.marks.append("charset_not_utf8")
    return found


def _read(text: str, fold: Callable[[str], str] | None) -> Loose | None:
    start = len(text) - len(text.lstrip(_SPACE))
    if text[start : start + 1] not in ("{", "["):
        return None
    found = Loose(None, text)
    decoder = _decoder(found.lost, fold)
    source = text
    try:
        found.value, end = decoder.raw_decode(source, start)
    except RecursionError:
        source, found.rest = cut_deep(text)
        found.marks.append("json_deep")
        start = len(source) - len(source.lstrip(_SPACE))
        try:
            found.value, end = decoder.raw_decode(source, start)
        except (ValueError, RecursionError) as fault:
            found.value, end = _salvaged(decoder, source, fault), len(source)
            found.marks.append("body_bad_json")
            found.rest.append(text)
    except ValueError as fault:
        found.lost.clear()
        found.value, end = _salvaged(decoder, source, fault), len(source)
        found.marks.append("body_bad_json")
        found.rest.append(text)
    behind = source[end:].strip(_SPACE + "\0")
    if behind:
        found.marks.append("json_trailing")
        found.rest.append(behind)
    if found.lost:
        found.marks.append("json_repeated_key")
    if not found.marks:
        found.marks.append("json_not_strict")
    return found


def _decoder(lost: list[tuple[str, JSON]], fold: Callable[[str], str] | None) -> json.JSONDecoder:
    def pairs(items: list[tuple[str, JSON]]) -> dict[str, JSON]:
        whole: dict[str, JSON] = {}
        for key, value in items:
            name = key if fold is None else fold(key)
            if name in whole and whole[name] != value:
                lost.append((name, whole[name]))
            whole[name] = value
        return whole

    return json.JSONDecoder(strict=False, object_pairs_hook=pairs, parse_int=_int)


def _int(digits: str) -> int | float:
    return int(digits) if len(digits) < _MAX_INT_DIGITS else float(digits)


def cut_deep(text: str) -> tuple[str, list[str]]:
    """The text with null in place of each value below MAX_JSON_DEPTH, and what was cut. Linear, and never recursive."""
    kept: list[str] = []
    cut: list[str] = []
    depth = at = begun = 0
    for token in _TOKEN.finditer(text):
        character = token[0]
        if character in ("[", "{"):
            depth += 1
            if depth == MAX_JSON_DEPTH + 1:
                begun = token.start()
        elif character in ("]", "}"):
            depth -= 1
            if depth == MAX_JSON_DEPTH:
                kept += (text[at:begun], "null")
                cut.append(text[begun : token.end()])
                at = token.end()
    if depth > MAX_JSON_DEPTH:  # it does not come back
        kept += (text[at:begun], "null")
        cut.append(text[begun:])
        at = len(text)
    kept.append(text[at:])
    return "".join(kept), cut


def _salvaged(decoder: json.JSONDecoder, text: str, fault: Exception) -> JSON:
    """The value as far as the damage, with what was open closed; None where nothing can be had."""
    limit = len(text)
    if isinstance(fault, json.JSONDecodeError) and not fault.msg.startswith("Unterminated string"):
        limit = fault.pos
    open_ones: list[str] = []
    cut = 0
    in_string = False
    for token in _TOKEN.finditer(text, 0, limit):
        character = token[0][0]
        if character == '"':
            in_string = not token[1]
        elif character == ",":
            cut = token.start()
        elif character in _CLOSERS:
            open_ones.append(character)
            cut = token.end()
        elif open_ones:
            open_ones.pop()
            cut = token.end()
    if len(open_ones) > MAX_JSON_DEPTH or not cut:
        return None
    closers = "".join(_CLOSERS[character] for character in reversed(open_ones))
    whole = text[:limit].rstrip(_SPACE)
    if in_string:
        whole = re.sub(r"\\(?:u[0-9A-Fa-f]{0,3})?$", "", whole) + '"'
    for end in (whole, whole + ":null", text[:cut]):
        try:
            return decoder.raw_decode(end + closers, len(text) - len(text.lstrip(_SPACE)))[0]
        except (ValueError, RecursionError):
            continue
    return None


def texts_in(text: str) -> Iterator[str]:
    """What stands between quotes in what was to be JSON and reads like a sentence: a judge of whole texts would overlook it there."""
    pieces = (piece for piece in _QUOTE.split(text) if len(piece) >= _MIN_SENTENCE and _WORDS.search(piece))
    for piece in itertools.islice(pieces, _MAX_SENTENCES):
        try:
            yield json.loads(f'"{piece}"', strict=False)
        except ValueError:
            yield piece


# --- the fast decoder keeps the last of two equal keys and says nothing ----------------------------------------------------


def may_repeat_keys(raw: bytes, keys: int) -> bool:
    """Whether JSON in UTF-8 that was read as `keys` keys may hold more of them. Never False where it does; seldom True otherwise.

    A key ends with `":`. So does a text only behind a backslash; a key may end with one, and white space may stand before the colon.
    """
    if raw.count(b'":') - raw.count(b'\\":') != keys:
        return True
    return b" :" in raw or b"\n:" in raw or b"\t:" in raw or b"\r:" in raw or b'\\\\":' in raw
