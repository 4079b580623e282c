"""What a request or an answer holds beside what its dialect reads: texts of fields that no dialect names, so that nothing passes unread.

Tool schemas, response formats, predictions, names, parts of a new type, whatever comes next year. The record keeps them as `other_texts`,
detection scans them. Ids, words of an API, base64 and values under names of credentials are left out. Bounds: limits.py.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from llmsec_tap.dialects.base import dump_json
from llmsec_tap.dialects.draft import Draft
from llmsec_tap.exchange.charsets import likely_text
from llmsec_tap.identity.secret_shapes import is_secret_name, is_server_id, is_token
from llmsec_tap.limits import MAX_OTHER_TEXT_CHARS, MAX_OTHER_TEXTS
from llmsec_tap.model import OtherText
from llmsec_tap.plain_names import folded_name

JSON = Any
# A place in a body: the place it stands in, and its key or index there.
_Place = tuple[Any, "str | int"] | None

_SHORTEST = 4
_LONG_WORD = 24  # shorter ones without white space are names, ids and values of an API
_MANY_WORDS = 5  # joined by underscores and the like, so many read as a sentence
_LONGER_WORD = 64
_CARD = 12  # digits: the shortest card numbers have so many
_SENTENCE = 3  # spaces
_MANY = 64
_SPARE_BYTES = 4  # counts and times are not all of one length
_MIN_LOOKS = 2  # events of a kind that are looked at in any case
_MAX_KINDS = 64
_MAX_COMPARED_CHARS = 16 * 1024 * 1024
_MAX_JOINED_CHARS = 65_536
_LETTERS: Final = re.compile(r"[^\W\d_]")
_WORDS: Final = re.compile(r"[A-Za-z]{2,}")
_ONE_WORD: Final = re.compile(r"\S+")
_DATA_URI: Final = re.compile(r"data:(text/[\w.+-]+|application/(?:json|xml|x-yaml|x-ndjson)|)((?:;[\w.=+-]+)*),")
_DIGITS: Final = re.compile(r"\d")
_NO_TEXT: Final = frozenset((int, float, bool, type(None)))
# Of an answer: tokens with their probabilities, vectors, pieces of arguments. The text itself stands elsewhere.
_NUMBERS_ABOUT_TEXT: Final = frozenset(("logprobs", "top_logprobs", "prompt_logprobs", "prompt_token_ids", "embedding", "partialArgs"))
# The values of these tell one event from another, and are no text in any API.
_NAMES_OF_EVENTS: Final = frozenset(
    ("type", "event_type", "id", "object", "model", "role", "item_id", "created_at", "obfuscation", "p", "system_fingerprint", "service_tier",
     "finish_reason", "stop_reason", "signature", "thoughtSignature", "encrypted_content", "redacted_content", "modelVersion", "responseId", "status")
)  # fmt: skip
# Which text of a stream a piece belongs to.
_WHERE: Final = ("item_id", "output_index", "content_index", "summary_index", "index", "contentBlockIndex")
# Names that are of a credential only where their value is one.
_WEAK_NAMES: Final = frozenset(
    ("code", "key", "k", "session", "hash", "pass", "pin", "nonce", "refresh", "license", "licence", "ticket", "assertion", "auth", "sid", "sig")
)  # fmt: skip
_END_USERS: Final = frozenset(("user", "user_id", "safety_identifier", "end_user", "prompt_cache_key"))
_CONVERSATION: Final = frozenset(
    ("messages", "contents", "input", "chat_history", "tool_results", "choices", "output", "outputs", "candidates", "content", "message",
     "delta", "item", "part", "content_block", "chunk", "start", "results", "response")
)  # fmt: skip
# Places inside it that are known and have no part of their own: schemas, settings that the answer repeats, what a server tells about its work.
_KNOWN_BELOW: Final = frozenset(
    ("tools", "instructions", "parameters", "schema", "text_format", "metadata", "finishMessage", "groundingMetadata", "provider_metadata", "trace",
     "page_age", "warnings", "meta", "expires_at", "type", "container", "content_filter_result", "content_filter_results", "stop_details",
     "provider", "tool_plan", "citation", "citations", "annotations", "reasoning_details", "file_data", "name", "filename", "safetyRatings",
     "cache_control", "context_management", "additionalModelResponseFields", "performanceConfig", "previous_response_id", "error")
)  # fmt: skip
_SOURCES: Final = frozenset(("citation", "citations", "annotation", "annotations"))
_MEMBER: Final = re.compile(r"[A-Za-z_]\w*")


class LeftOver:
    """Collects texts of one side; `keys` counts the members of all objects it has walked, `places` are the keys above each text found.

    `of_answer`: known are then the texts of both sides, because servers repeat the request. `conversation` becomes True once a text stood
    in the conversation itself, in a part that its dialect does not know.
    """

    def __init__(self, draft: Draft, *, of_answer: bool = False) -> None:
        self._draft = draft
        self._of_answer = of_answer
        self._known: set[int] | None = None
        self._texts: frozenset[str] | None = None
        self._joined = ""
        self._compared = 0
        self._seen: set[str] = set()
        self._chars = 0
        self.keys = 0
        self.places: list[_Place] = []
        self.found: list[OtherText] = []
        self.conversation = False

    def walk(self, body: JSON, place: _Place = None) -> None:
        """Every string of a JSON value that the draft does not have. Not recursive: hostile values are deep."""
        # Once per string of every request: `type(…) is`, and what most strings fail first.
        known = self._known_ids()
        skipped = _NUMBERS_ABOUT_TEXT if self._of_answer else frozenset()
        waiting: list[tuple[JSON, _Place]] = [(body, place)]
        while waiting:
            value, at = waiting.pop()
            is_object = type(value) is dict
            if is_object:
                self.keys += len(value)
            elif len(value) > _MANY and _NO_TEXT.issuperset(map(type, value)):
                continue  # a vector, or token ids
            members: Iterable[tuple[Any, JSON]] = value.items() if is_object else enumerate(value)
            for key, item in members:
                kind = type(item)
                if kind is str:
                    if (
                        " " in item
                        or len(item) >= _LONG_WORD
                        or not item.isascii()
                        or "@" in item
                        or (len(item) >= _CARD and item.isdigit())
                    ) and id(item) not in known:
                        self._string(item, at, key)
                elif (kind is dict or kind is list) and key not in skipped:
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
        if text in self._seen or not _says(text):
            return
        if self._is_full():
            self._draft.anomalies.setdefault("other_text_limit", 1)
            return
        place = (at, key)
        if text.startswith("data:"):
            text = _of_data_uri(text)
        elif text.isascii() and _ONE_WORD.fullmatch(text[:4096]) and not (_reads(text) or _is_personal(text, key)):
            return
        if not text or self._has(text) or _is_credential(text, place) or (key in _END_USERS and text.count(" ") < _SENTENCE):
            return
        self.places.append(place)
        self.conversation = self.conversation or _in_conversation(place)
        self._keep(("response" if self._of_answer else "$") + path_of(place)[1:], text)

    def _has(self, text: str) -> bool:
        """Whether the draft has the text, or has it as a part of one that it joined (looked for as long as that is cheap)."""
        if self._texts is None:
            texts = list(_texts_of(self._draft))
            if self._of_answer:
                texts += _texts_of_answer(self._draft)
            self._texts = frozenset(texts)
            self._joined = "\0".join(texts) if sum(map(len, texts)) <= _MAX_JOINED_CHARS else ""
        return text in self._texts or (bool(self._joined) and self._is_part(text))

    def _is_part(self, text: str) -> bool:
        self._compared += len(self._joined)
        if self._compared > _MAX_COMPARED_CHARS:
            return False
        if text in self._joined:
            return True
        if len(text) > _MAX_JOINED_CHARS:
            return False
        escaped = dump_json(text)[1:-1]  # arguments that came as an object are kept as JSON
        return escaped != text and escaped in self._joined

    def _is_full(self) -> bool:
        return len(self.found) >= MAX_OTHER_TEXTS or self._chars >= MAX_OTHER_TEXT_CHARS

    def _keep(self, path: str, text: str) -> None:
        if self._is_full():
            self._draft.anomalies.setdefault("other_text_limit", 1)
            return
        self._seen.add(text)
        if self._chars + len(text) > MAX_OTHER_TEXT_CHARS:
            self._draft.anomaly("other_text_limit")
            text = text[: MAX_OTHER_TEXT_CHARS - self._chars]
        self._chars += len(text)
        self.found.append(OtherText(path=path, text=text))


class StreamLeftOver:
    """The same for the events of a stream: pieces of one place, event after event, are one text.

    A piece that the draft has just taken is the same object. What an event repeats of earlier ones is looked for in what the draft has;
    pieces of deltas are not, or a text would lose the words that it shares with the answer.
    """

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self._texts: dict[tuple[object, ...], _Pieces] = {}
        self._chars = 0
        self._compared = 0
        self._given: frozenset[str] | None = None
        # By kind of event: how many held nothing else, and the shortest's bytes beside its text; then how long one may be to hold nothing.
        self._clean: dict[str | None, tuple[int, int]] = {}
        self._limits: dict[str | None, int] = {}
        self.is_clean = False

    def event(self, name: str | None, value: dict[str, JSON], size: int, taken: int) -> None:
        """One event's object, after its dialect has read it. `size` is that of its data, `taken` how many characters of it were text."""
        kind = value.get("type") or name
        if type(kind) is not str:
            kind = None
        excess = size - taken
        if taken and excess <= self._limits.get(kind, -1):
            self.is_clean = True
            if self._draft.touched:
                self._draft.touched.clear()
            return
        self.is_clean = not self._look(kind, value)
        self._draft.touched.clear()
        if not self.is_clean or not taken:
            return
        looks, least = self._clean.get(kind, (0, excess))
        least = min(least, excess)
        if looks or len(self._clean) < _MAX_KINDS:
            self._clean[kind] = looks + 1, least
        if looks >= _MIN_LOOKS:
            self._limits[kind] = least + _SPARE_BYTES

    def end(self) -> LeftOver:
        """What was found, once the stream has ended."""
        whole = LeftOver(self._draft, of_answer=True)
        for pieces in self._texts.values():
            text = pieces.text()
            place = pieces.place
            if _says(text) and (" " in text or not text.isascii() or _reads(text) or _is_personal(text, "")) and not whole._has(text):  # noqa: SLF001 - one module
                whole._string(text, place[0] if place else None, place[1] if place else "")  # noqa: SLF001
        self._texts.clear()
        return whole

    def _look(self, kind: str | None, value: dict[str, JSON]) -> bool:
        """Whether anything was there that the dialect did not take."""
        is_piece = kind is not None and kind.endswith("delta")
        found = False
        waiting: list[tuple[JSON, _Place, bool]] = [(value, None, is_piece)]
        while waiting:
            of, at, in_delta = waiting.pop()
            if type(of) is list and len(of) > _MANY and _NO_TEXT.issuperset(map(type, of)):
                continue
            members: Iterable[tuple[Any, JSON]] = of.items() if type(of) is dict else enumerate(of)
            for key, item in members:
                kind_of = type(item)
                if kind_of is str:
                    if not item or (key in _NAMES_OF_EVENTS and " " not in item) or self._is_taken(item):
                        continue
                    if in_delta or not self._is_known(item):
                        found = True
                        self._piece(kind, value, (at, key), item)
                elif (kind_of is dict or kind_of is list) and key not in _NUMBERS_ABOUT_TEXT:
                    waiting.append((item, (at, key), (in_delta or key == "delta") and key not in _SOURCES))
        return found

    def _is_taken(self, text: str) -> bool:
        for choice in self._draft.choices.values():
            for buffer in (choice.text, choice.reasoning, choice.refusal):
                if buffer.last is text:
                    return True
        return any(call.arguments.last is text or call.id is text or call.name is text for call in self._draft.touched)

    def _is_known(self, text: str) -> bool:
        """Whether both sides together have said it already. Each look costs as much as there is: in the end everything counts as new."""
        if len(text) < _LONG_WORD and text.isascii() and _ONE_WORD.fullmatch(text) and not _is_personal(text, ""):
            return True  # a name, an id, a value of the API: no piece of a text, which would stand in a delta
        if self._given is None:
            self._given = frozenset(_texts_of(self._draft))
        draft = self._draft
        if text in self._given or text in (draft.response_id, draft.response_model, draft.error_message, draft.error_type):
            return True
        if self._compared > _MAX_COMPARED_CHARS:
            return False
        for said in _texts_of_answer(draft):
            self._compared += len(said)
            if text in said or (len(text) < _MAX_JOINED_CHARS and dump_json(text)[1:-1] in said):
                return True
        return False

    def _piece(self, kind: str | None, value: dict[str, JSON], place: _Place, text: str) -> None:
        where: list[object] = [kind]
        where += [value.get(name) for name in _WHERE if isinstance(value.get(name), str | int)]
        where += _above(place)
        key = tuple(where)
        pieces = self._texts.get(key)
        if pieces is None:
            if len(self._texts) >= MAX_OTHER_TEXTS:
                self._draft.anomaly("other_text_limit")
                return
            pieces = self._texts[key] = _Pieces(place)
        if self._chars + len(text) > MAX_OTHER_TEXT_CHARS:
            self._draft.anomaly("other_text_limit")
            return
        self._chars += pieces.add(text)


class _Pieces:
    """A text that comes in pieces; the same piece every time is a fact about the stream, and said once."""

    __slots__ = ("_all", "_same", "place")

    def __init__(self, place: _Place) -> None:
        self.place = place
        self._all: list[str] = []
        self._same = True

    def add(self, text: str) -> int:
        """How much longer it has become, in characters."""
        if self._same and self._all and text == self._all[0]:
            return 0
        self._same = not self._all
        self._all.append(text)
        return len(text)

    def text(self) -> str:
        return "".join(self._all)


def _says(text: str) -> bool:
    """Whether there is anything to look at: letters, or so many digits that they may be a number of something that matters."""
    return len(text) >= _SHORTEST and (_LETTERS.search(text[:4096]) is not None or len(_DIGITS.findall(text[:4096])) >= _CARD)


def _is_personal(word: str, key: str | int) -> bool:
    """A word that may be somebody's address, or a number long enough for a card. Who the end user is stands elsewhere on the record."""
    if not ("@" in word or (len(word) >= _CARD and word.isdigit())):
        return False
    return not (isinstance(key, str) and key in _END_USERS) and len(word) < _LONGER_WORD and "://" not in word


def _is_credential(text: str, place: _Place) -> bool:
    """Whether a text stands under the name of a credential. What reads as a sentence is one, whatever it stands under."""
    key = place[1] if place is not None else ""
    if isinstance(key, str) and is_secret_name(key) and folded_name(key) not in _WEAK_NAMES:
        return True
    if text.count(" ") >= _SENTENCE and not text.startswith("-----"):
        return False
    return any(isinstance(name, str) and is_secret_name(name) for name in _above(place))


def _in_conversation(place: _Place) -> bool:
    names = list(_above(place))
    return isinstance(names[-1], str) and names[-1] in _CONVERSATION and len(names) > 1 and _KNOWN_BELOW.isdisjoint(names)


def _texts_of_answer(draft: Draft) -> Iterator[str]:
    for choice in draft.choices.values():
        for buffer in (choice.text, choice.reasoning, choice.refusal):
            if buffer:
                yield buffer.whole()
        for call in choice.tool_calls.values():
            yield call.arguments.whole()
            yield from (name for name in (call.id, call.name) if name is not None)
    if draft.part_texts:
        yield draft.part_texts.whole()
    yield from (text for text in (draft.error_message, draft.error_type, draft.response_id, draft.response_model) if text is not None)


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
