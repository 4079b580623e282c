"""What a request holds beside what its dialect reads: texts of fields that no dialect names, so that nothing passes unread.

Tool schemas, documents, response formats, predictions, names, whatever comes next year. The record keeps them as `other_texts`,
detection scans them. Ids, words of an API, base64 and values under names of credentials are left out. Bounds: limits.py.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from llmsec_tap.dialects.draft import Draft
from llmsec_tap.exchange.charsets import likely_text
from llmsec_tap.identity.secret_shapes import is_secret_name, is_server_id, is_token
from llmsec_tap.limits import MAX_OTHER_TEXT_CHARS, MAX_OTHER_TEXTS
from llmsec_tap.model import OtherText

JSON = Any
# A place in a body: the place it stands in, and its key or index there.
_Place = tuple[Any, "str | int"] | None

_SHORTEST = 4
_LONG_WORD = 24  # shorter ones without white space are names, ids and values of an API
_MANY_WORDS = 5  # joined by underscores and the like, so many read as a sentence
_LONGER_WORD = 64
_MAX_JOINED_CHARS = 65_536
_LETTERS: Final = re.compile(r"[^\W\d_]")
_WORDS: Final = re.compile(r"[A-Za-z]{2,}")
_ONE_WORD: Final = re.compile(r"\S+")
_DATA_URI: Final = re.compile(r"data:(text/[\w.+-]+|application/(?:json|xml|x-yaml|x-ndjson)|)((?:;[\w.=+-]+)*),")
_MEMBER: Final = re.compile(r"[A-Za-z_]\w*")


class LeftOver:
    """Collects texts; `keys` counts the members of all objects it has walked, `places` are the keys above each text found."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self._known: set[int] | None = None
        self._texts: frozenset[str] | None = None
        self._joined: list[str] = []
        self._seen: set[str] = set()
        self._chars = 0
        self.keys = 0
        self.places: list[_Place] = []
        self.found: list[OtherText] = []

    def walk(self, body: JSON, place: _Place = None) -> None:
        """Every string of a JSON value that the draft does not have. Not recursive: hostile values are deep."""
        # Once per string of every request: `type(…) is`, and what most strings fail first.
        known = self._known_ids()
        waiting: list[tuple[JSON, _Place]] = [(body, place)]
        while waiting:
            value, at = waiting.pop()
            is_object = type(value) is dict
            if is_object:
                self.keys += len(value)
            members: Iterable[tuple[Any, JSON]] = value.items() if is_object else enumerate(value)
            for key, item in members:
                kind = type(item)
                if kind is str:
                    if (" " in item or len(item) >= _LONG_WORD or not item.isascii()) and id(item) not in known:
                        self._string(item, at, key)
                elif kind is dict or kind is list:
                    waiting.append((item, (at, key)))
                if is_object and " " in key:
                    self._string(key, at, key)

    def add(self, path: str, text: str) -> None:
        """A text that stands in no JSON value, or is all there is."""
        if text and text not in self._seen and _LETTERS.search(text) and not self._has(text):
            self._keep(path, text)

    def _known_ids(self) -> set[int]:
        """Texts that the draft has are the same objects; of those that were joined or decoded, `_has` knows."""
        if self._known is None:
            draft = self._draft
            self._known = {id(text) for text in _texts_of(draft)}
        return self._known

    def _string(self, text: str, at: _Place, key: str | int) -> None:
        if len(text) < _SHORTEST or text in self._seen or _LETTERS.search(text[:4096]) is None:
            return
        place = (at, key)
        if text.startswith("data:"):
            text = _of_data_uri(text)
        elif text.isascii() and _ONE_WORD.fullmatch(text[:4096]) and not _reads(text):
            return
        if not text or self._has(text) or any(isinstance(name, str) and is_secret_name(name) for name in _above(place)):
            return
        self.places.append(place)
        self._keep(path_of(place), text)

    def _has(self, text: str) -> bool:
        """Whether the draft has the text, or has it as a part of one that it joined (looked for where that is cheap)."""
        if self._texts is None:
            texts = list(_texts_of(self._draft))
            self._texts = frozenset(texts)
            self._joined = texts if sum(map(len, texts)) <= _MAX_JOINED_CHARS else []
        return text in self._texts or any(text in known for known in self._joined)

    def _keep(self, path: str, text: str) -> None:
        if len(self.found) >= MAX_OTHER_TEXTS or self._chars >= MAX_OTHER_TEXT_CHARS:
            self._draft.anomaly("other_text_limit")
            return
        self._seen.add(text)
        if self._chars + len(text) > MAX_OTHER_TEXT_CHARS:
            self._draft.anomaly("other_text_limit")
            text = text[: MAX_OTHER_TEXT_CHARS - self._chars]
        self._chars += len(text)
        self.found.append(OtherText(path=path, text=text))


def _reads(word: str) -> bool:
    """Whether a word without white space may be read as a sentence: not an id, a key, an address or a value of an API."""
    if "://" in word[:16] or is_token(word[:512]) or is_server_id(word):
        return False
    return len(word) >= _LONGER_WORD or len(_WORDS.findall(word[:512])) >= _MANY_WORDS


def _texts_of(draft: Draft) -> Iterator[str]:
    for message in draft.messages:
        for part in message.parts:
            for text in (part.content, part.arguments, part.name, part.id, part.uri):
                if text is not None:
                    yield text
    for tool in draft.tools:
        yield tool.name
        if tool.description is not None:
            yield tool.description
    if draft.request_model is not None:
        yield draft.request_model
    if draft.input_text is not None:
        yield draft.input_text


def _above(place: _Place) -> Iterator[str | int]:
    while place is not None:
        place, key = place
        yield key


def path_of(place: _Place) -> str:
    """RFC 9535: `$.tools[0].function`, with names that are no plain words in quotes."""
    steps = []
    for key in _above(place):
        if isinstance(key, int):
            steps.append(f"[{key}]")
        elif key == "..":  # somewhere below
            steps.append(".")
        elif _MEMBER.fullmatch(key) and len(key) <= 64:
            steps.append(f".{key}")
        else:
            quoted = key[:64].replace("\\", "\\\\").replace("'", "\\'")
            steps.append(f"['{quoted}']")
    return "$" + "".join(reversed(steps))


def _of_data_uri(uri: str) -> str:
    """The text of a `data:` address (RFC 2397) that says it is text; media are only counted, elsewhere."""
    found = _DATA_URI.match(uri[:200])
    if found is None:
        return ""
    payload = uri[found.end() : found.end() + MAX_OTHER_TEXT_CHARS]
    if not found[2].endswith(";base64"):
        return likely_text(unquote_to_bytes(payload))
    try:
        return likely_text(base64.b64decode(payload[: len(payload) // 4 * 4] if len(payload) % 4 else payload, validate=False))
    except ValueError:
        return payload


# --- keys in another case -------------------------------------------------------------------------------------------------

_FIELDS: Final = [
    "messages",
    "role",
    "content",
    "text",
    "type",
    "model",
    "prompt",
    "input",
    "inputs",
    "system",
    "instructions",
    "stream",
    "tools",
    "function",
    "functions",
    "name",
    "description",
    "arguments",
    "tool_calls",
    "tool_call_id",
    "contents",
    "parts",
    "suffix",
    "query",
    "documents",
    "message",
    "chat_history",
    "preamble",
    "parameters",
    "options",
    "images",
    "thinking",
    "format",
    "template",
    "raw",
    "keep_alive",
    "context",
    "temperature",
    "max_tokens",
    "stop",
    "texts",
    "properties",
    "input_ids",
    "system_instruction",
    "systemInstruction",
    "generationConfig",
]
# Beyond ASCII two characters are another's case: the long s and the Kelvin sign (whose lower case is k already).
_FOLDS: Final = {0x17F: "s"}
_BY_LOWER: Final = {name.lower(): name for name in _FIELDS}


def fold_key(key: str) -> str:
    """The name of a field as APIs write it, for one that differs in case alone (Go's encoding/json)."""
    lower = key.lower()
    return _BY_LOWER.get(lower if lower.isascii() else lower.translate(_FOLDS), key)


def is_other_case(key: object) -> bool:
    return isinstance(key, str) and not (key.islower() and key.isascii()) and fold_key(key) != key


def has_other_case(body: JSON, places: list[_Place]) -> bool:
    """Whether the texts that nobody read, or the body's own fields, stand under names in another case."""
    if isinstance(body, dict) and any(map(is_other_case, body)):
        return True
    return any(is_other_case(key) for place in places[:64] for key in _above(place))
