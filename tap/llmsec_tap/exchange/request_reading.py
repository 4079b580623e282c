"""The body of a request, read as servers read it: bytes decide, content type and coding are hints.

`read_body` gives the view its JSON, whatever the charset, the form or the damage; `read_left_over` adds to the draft what the
dialect did not name. What nobody can read is kept as the text that stands in it, and marked.
"""

from __future__ import annotations

from typing import Any, Final

from llmsec_tap.anomalies import OnAnomaly
from llmsec_tap.dialects import claims
from llmsec_tap.dialects.base import Dialect, NotJSON, RequestView, is_costly, loose_path, parse_json
from llmsec_tap.dialects.draft import Draft
from llmsec_tap.exchange.charsets import declared_charset, seen_text, text_of_bytes
from llmsec_tap.exchange.forms import read_form
from llmsec_tap.exchange.left_over import LeftOver, fold_key, has_other_case
from llmsec_tap.exchange.loose_json import Loose, may_repeat_keys, read_loosely, texts_in
from llmsec_tap.identity.classify import classify
from llmsec_tap.identity.non_inference import auxiliary
from llmsec_tap.limits import MAX_LOOSE_BODY_BYTES

JSON = Any

_JSON_BEGINS: Final = b"{[ \r\n\t"
# Under these a token id stands where a text could.
_PROMPTS: Final = ("prompt", "input", "inputs", "input_ids", "prompt_token_ids", "tokens")
_MEDIA: Final = ("image/", "audio/", "video/", "application/pdf", "application/zip", "application/gzip")


class BodyReading:
    """One request's body. `texts` are (path, text) of what no JSON value holds."""

    __slots__ = ("content_type", "lost", "raw", "strict", "texts")

    def __init__(self, raw: bytes, content_type: str) -> None:
        self.raw = raw
        self.content_type = content_type
        self.strict = False  # plain JSON in UTF-8, as the fast decoder reads it
        self.texts: list[tuple[str, str]] = []
        self.lost: list[tuple[str, JSON]] = []


def read_body(view: RequestView, raw: bytes, draft: Draft, mark: OnAnomaly) -> BodyReading:
    """Sets `view.body`; anomalies go to `mark`."""
    content_type = view.headers.get("content-type", "")
    reading = BodyReading(raw, content_type)
    if not raw:
        return reading
    if raw[:1] in _JSON_BEGINS:
        try:
            view.body = parse_json(raw, draft)
        except NotJSON:
            pass
        else:
            view.body_is_json = reading.strict = True
            if "charset" in content_type:
                _other_charset(reading, mark)
            return reading
    if len(raw) > MAX_LOOSE_BODY_BYTES or is_costly(raw):
        reading.raw = raw[:MAX_LOOSE_BODY_BYTES]
        _as_text(reading, mark)
        mark("body_bad_json" if raw[:1] in _JSON_BEGINS else "body_unreadable")
        return reading
    loose = read_loosely(raw, content_type)
    if loose is not None:
        if "charset" in content_type:
            _other_charset(reading, mark)
        _take(view, reading, loose, mark)
        return reading
    form = read_form(raw, content_type)
    if form is not None:
        view.body, view.body_is_json = form.fields, True
        reading.texts += [(f"$.{name}", text) for name, _, text in form.files]
        for name in form.marks:
            mark(name)
        return reading
    _as_text(reading, mark)
    return reading


def fold_case(view: RequestView, reading: BodyReading, mark: OnAnomaly) -> bool:
    """Read the body again with the names of its fields in the APIs' own case. False where that changes nothing."""
    if len(reading.raw) > MAX_LOOSE_BODY_BYTES:
        mark("body_bad_json")
        return False
    loose = read_loosely(reading.raw, reading.content_type, fold=fold_key)
    if loose is None or loose.value is None or loose.value == view.body:
        return False
    loose.marks = ["json_repeated_key"] if loose.lost else []
    reading.lost.clear()
    _take(view, reading, loose, mark)
    mark("json_key_case")
    return True


def read_left_over(view: RequestView, reading: BodyReading, draft: Draft) -> LeftOver:
    """The texts that the draft does not have."""
    left = LeftOver(draft)
    if isinstance(view.body, dict | list):
        left.walk(view.body)
        if reading.strict and may_repeat_keys(reading.raw, left.keys):
            loose = read_loosely(reading.raw) if len(reading.raw) <= MAX_LOOSE_BODY_BYTES else None
            if loose is not None and loose.lost:
                draft.anomaly("json_repeated_key")
                reading.lost = loose.lost
    for key, value in reading.lost:
        if isinstance(value, str):
            left.walk({key: value}, (None, ".."))
        else:
            left.walk(value, ((None, ".."), key))
    for path, text in reading.texts:
        if not _walk_lines(text, left):
            left.add(path, text)
    return left


def _walk_lines(text: str, left: LeftOver) -> bool:
    """JSON lines, as batches and training data are uploaded: the texts of each. False where it is something else, or damaged."""
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines or not all(line.lstrip().startswith("{") and line.rstrip().endswith("}") for line in lines):
        return False
    values = []
    for line in lines:
        try:
            values.append(parse_json(line.encode("utf-8", "surrogatepass")))
        except NotJSON:
            return False
    for number, value in enumerate(values):
        left.walk(value, ((None, ".."), number))
    return True


def scalars(body: JSON) -> JSON:
    """What dialects still ask of a request once it is decoded: flags, names and the prompt. Messages are in the draft already."""
    if not isinstance(body, dict):
        return None
    return {key: value for key, value in body.items() if not isinstance(value, dict | list)}


def has_token_ids(body: JSON) -> bool:
    """Whether the prompt is numbers: a list of token ids, or a list of such lists."""
    if not isinstance(body, dict) or "messages" in body:
        return False
    for name in _PROMPTS:
        value = body.get(name)
        while isinstance(value, list) and value and isinstance(value[0], list):
            value = value[0]
        if isinstance(value, list) and value and isinstance(value[0], int) and not isinstance(value[0], bool):
            return True
    return False


def _take(view: RequestView, reading: BodyReading, loose: Loose, mark: OnAnomaly) -> None:
    view.body = loose.value
    view.body_is_json = loose.value is not None
    reading.lost += loose.lost
    reading.texts += [("$", text) for text in loose.rest]
    if "body_bad_json" in loose.marks:
        reading.texts += [("$", text) for rest in loose.rest for text in texts_in(rest)]
    for name in loose.marks:
        mark(name)


def _other_charset(reading: BodyReading, mark: OnAnomaly) -> None:
    """JSON in UTF-8 whose type names another charset: a server that believes the type sees another text."""
    charset = declared_charset(reading.content_type)
    if charset is None:
        return
    text = text_of_bytes(reading.raw, charset)
    if text.lstrip()[:1] in ("{", "[") and text != text_of_bytes(reading.raw, "utf-8"):
        reading.texts.append(("$", text))
        mark("charset_differs")


def _as_text(reading: BodyReading, mark: OnAnomaly) -> None:
    text, is_whole = seen_text(reading.raw, reading.content_type)
    if text:
        reading.texts.append(("$", text))
        reading.texts += [("$", literal) for literal in texts_in(text)]
    if "json" in reading.content_type and len(reading.raw) < MAX_LOOSE_BODY_BYTES:
        mark("body_bad_json")
    elif not reading.content_type.lower().startswith(_MEDIA) and not is_whole:
        mark("body_unreadable")


def settle(view: RequestView, reading: BodyReading, mark: OnAnomaly) -> Dialect | None:
    """Who reads the request: as it stands, with its fields in the APIs' own case, or with its path as lenient servers route it."""
    if view.body is not None and view.method != "POST":
        view.method = "POST"  # servers that route by path alone read a body under any method
    dialect = classify(view)
    if dialect is None and needs_folding(view) and fold_case(view, reading, mark):
        dialect = classify(view)
    path = view.path
    is_plain = path.islower() and "%" not in path and "\\" not in path  # as nearly all are
    loose = path if is_plain or view.body is None else loose_path(path)
    if loose != view.path:
        surest = dialect.claims(view) if dialect is not None else 0
        view.path = loose
        other = classify(view) if surest < claims.RESTS_ON_ROUTE else None
        if other is not None and other.claims(view) > surest:
            return other
        if dialect is not None or auxiliary(view, None) is None:
            view.path = path
    return dialect


def needs_folding(view: RequestView, left: LeftOver | None = None) -> bool:
    return has_other_case(view.body, left.places if left is not None else [])
