"""A small language of conditions over named, typed values, for suppressions and for conditions of alerts.

    severity >= "high" and not (tenant in ["test", "demo"] or pii_types.length == 0)

Whatever is wrong is told when a condition is read, with its column: `compile_expression` knows the type of every field. Nothing is looked
up, called or assigned, a pattern is RE2, and length and depth are bounded, so a condition cannot do anything but answer.

    or  ||   and  &&   not  !        of truth values, in this order of binding
    ==  !=                           of two values of one type, or with null
    <  <=  >  >=                     of numbers, and of words with an order (severities)
    in, not in                       of a number or text in a list
    contains                         of a list and a text, or of a text and a part of it
    matches                          of a text (or any of a list) and a pattern, which may stand anywhere in it
    name.length                      of a text or list

A value that is not known (null) equals null alone, has length 0, and is never less, more, in, containing or matching.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

import re2  # type: ignore[import-untyped]

from llmsec_analyzer.typed_files import nearest
from llmsec_analyzer.yaml_files import shown
from llmsec_tap.errors import ConfigError

# A condition that a person can read is far below these.
MAX_CHARS: Final = 4096
MAX_DEPTH: Final = 32
MAX_ITEMS: Final = 256


class Words(NamedTuple):
    """Text that is one of these words, in their order. A literal that is none of them is refused."""

    names: tuple[str, ...]


Kind = Literal["bool", "number", "text", "texts"] | Words
Values = Mapping[str, Any]
_Kind = Kind | Literal["null", "numbers"]


class ExpressionError(ConfigError):
    """A condition that is wrong. `at`: where, in characters from 0."""

    def __init__(self, at: int, message: str, hint: str = "") -> None:
        super().__init__(f"column {at + 1}: {message}", hint)
        self.at = at


class Expression:
    """A condition that was read and checked. Call it with the values of its fields; one that is missing is null."""

    __slots__ = ("_test", "fields", "source")

    def __init__(self, source: str, fields: frozenset[str], test: Callable[[Values], bool]) -> None:
        self.source = source
        self.fields = fields  # those that it asks for
        self._test = test

    def __call__(self, values: Values) -> bool:
        return self._test(values)


def compile_expression(source: str, fields: Mapping[str, Kind]) -> Expression:
    """Raises ExpressionError for the first thing that is wrong."""
    if len(source) > MAX_CHARS:
        raise ExpressionError(MAX_CHARS, f"a condition is {MAX_CHARS:,} characters at most")
    parser = _Parser(source, fields)
    term = parser.whole()
    return Expression(source, frozenset(parser.used), term.of)


class _Token(NamedTuple):
    kind: Literal["number", "text", "name", "sign", "end"]
    text: str
    at: int


class _Term(NamedTuple):
    """A part of a condition: its type, how its value comes about, where it begins. `literal`: the value of one that is written out."""

    kind: _Kind
    of: Callable[[Values], Any]
    at: int
    literal: Any = None


_TOKEN: Final = re.compile(
    r"""(?P<number>-?\d+(?:\.\d+)?)
      | (?P<text>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
      | (?P<name>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)
      | (?P<sign>&&|\|\||==|!=|<=|>=|[<>!()\[\],])""",
    re.VERBOSE | re.ASCII | re.DOTALL,
)
_SPACE: Final = re.compile(r"\s*", re.ASCII)
_ESCAPES: Final = {"n": "\n", "t": "\t", "r": "\r"}
_SAME: Final = {"||": "or", "&&": "and", "!": "not"}
_ORDER: Final[Mapping[str, Callable[[Any, Any], Any]]] = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
# How strongly each binds what is on its left.
_BINDING: Final = {"or": 1, "and": 2, **dict.fromkeys(("==", "!=", *_ORDER, "in", "not", "contains", "matches"), 4)}
_NOT_BINDING: Final = 3
_RESERVED: Final = frozenset(("or", "and", "not", "in", "contains", "matches", "true", "false", "null"))
_IN_WORDS: Final[Mapping[Any, str]] = {
    "bool": "a truth value",
    "number": "a number",
    "text": "text",
    "texts": "a list of texts",
    "numbers": "a list of numbers",
    "null": "null",
}


def _tokens(source: str) -> list[_Token]:
    found: list[_Token] = []
    at = 0
    while True:
        space = _SPACE.match(source, at)
        at = space.end() if space is not None else at
        if at >= len(source):
            break
        token = _TOKEN.match(source, at)
        if token is None or token.lastgroup is None:
            what = "a text without its closing quotation mark" if source[at] in "'\"" else "a character that means nothing here"
            raise ExpressionError(at, what, "compare fields: severity >= 'high' and tenant == 'acme'")
        kind: Any = token.lastgroup
        text = _SAME.get(token[0], token[0]) if kind == "sign" else token[0]
        found.append(_Token("sign" if kind == "name" and text in _BINDING else kind, text, at))
        at = token.end()
    found.append(_Token("end", "", len(source)))
    return found


class _Parser:
    """Pratt's: each operator binds what is left of it as strongly as `_BINDING` says."""

    def __init__(self, source: str, fields: Mapping[str, Kind]) -> None:
        self._tokens = _tokens(source)
        self._next = 0
        self._fields = fields
        self._depth = 0
        self.used: set[str] = set()

    def whole(self) -> _Term:
        term = self._truth(self._term(0))
        token = self._peek
        if token.kind != "end":
            raise ExpressionError(token.at, "something after the end of the condition", "join conditions with `and` or `or`")
        return term

    @property
    def _peek(self) -> _Token:
        return self._tokens[self._next]

    def _take(self) -> _Token:
        token = self._tokens[self._next]
        self._next += 1
        return token

    def _expect(self, sign: str) -> None:
        token = self._take()
        if token.text != sign or token.kind != "sign":
            raise ExpressionError(token.at, f"`{sign}` is missing")

    def _term(self, binding: int) -> _Term:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ExpressionError(self._peek.at, f"nested deeper than {MAX_DEPTH}")
        left = self._first()
        while (token := self._peek).kind == "sign" and _BINDING.get(token.text, 0) > binding:
            left = self._joined(left, self._take())
        self._depth -= 1
        return left

    def _first(self) -> _Term:
        token = self._take()
        if token.kind == "sign" and token.text == "not":
            inner = self._truth(self._term(_NOT_BINDING))
            return _Term("bool", lambda values: not inner.of(values), token.at)
        if token.kind == "sign" and token.text == "(":
            inner = self._term(0)
            self._expect(")")
            return inner
        if token.kind == "sign" and token.text == "[":
            return self._list(token.at)
        if token.kind == "number":
            number = float(token.text) if "." in token.text else int(token.text)
            return _constant("number", number, token.at)
        if token.kind == "text":
            text = re.sub(r"\\(.)", lambda found: _ESCAPES.get(found[1], found[1]), token.text[1:-1], flags=re.DOTALL)
            return _constant("text", text, token.at)
        if token.kind == "name":
            return self._named(token)
        raise ExpressionError(token.at, "a value is missing" if token.kind == "end" else f"`{token.text}` where a value should stand")

    def _named(self, token: _Token) -> _Term:
        name = token.text
        if name in ("true", "false"):
            return _constant("bool", name == "true", token.at)
        if name == "null":
            return _constant("null", None, token.at)
        kind = self._fields.get(name)
        if kind is not None:
            self.used.add(name)
            return _Term(kind, lambda values: values.get(name), token.at)
        of, _, last = name.rpartition(".")
        kind = self._fields.get(of)
        if last == "length" and kind in ("text", "texts"):
            self.used.add(of)
            return _Term("number", lambda values: len(values.get(of) or ()), token.at)
        raise ExpressionError(token.at, f"there is no field `{shown(name)}`", nearest(name, sorted(self._fields)))

    def _list(self, at: int) -> _Term:
        items: list[_Term] = []
        while self._peek.text != "]" or self._peek.kind != "sign":
            if items:
                self._expect(",")
            item = self._first()
            if item.kind not in ("number", "text") or item.literal is None or item.kind != (items or [item])[0].kind:
                raise ExpressionError(item.at, "a list holds numbers or texts that are written out, all of one type")
            items.append(item)
            if len(items) > MAX_ITEMS:
                raise ExpressionError(item.at, f"a list has {MAX_ITEMS} items at most")
        self._take()
        if not items:
            raise ExpressionError(at, "an empty list")
        return _constant("numbers" if items[0].kind == "number" else "texts", tuple(item.literal for item in items), at)

    def _joined(self, left: _Term, sign: _Token) -> _Term:
        name = sign.text
        is_negated = name == "not"
        if is_negated:
            self._expect("in")
            name = "in"
        right = self._term(_BINDING[sign.text])
        if name in ("or", "and"):
            return self._chain(name, left, right)
        test = _test_of(name, left, right, sign.at)
        if is_negated:
            return _Term("bool", lambda values: not test(values), left.at)
        return _Term("bool", test, left.at)

    def _chain(self, name: str, left: _Term, right: _Term) -> _Term:
        """All that one word joins, side by side: a long chain is no depth, here or when it answers."""
        parts = [self._truth(left).of, self._truth(right).of]
        while self._peek.kind == "sign" and self._peek.text == name:
            self._take()
            parts.append(self._truth(self._term(_BINDING[name])).of)
        some = any if name == "or" else all
        return _Term("bool", lambda values: some(part(values) for part in parts), left.at)

    def _truth(self, term: _Term) -> _Term:
        if term.kind != "bool":
            raise ExpressionError(term.at, f"{_words(term.kind)} where a truth value should stand", "compare it with something")
        of = term.of
        return term._replace(of=lambda values: bool(of(values)))


def _constant(kind: _Kind, value: Any, at: int) -> _Term:
    return _Term(kind, lambda _: value, at, value)


def _words(kind: _Kind) -> str:
    return "a word" if isinstance(kind, Words) else _IN_WORDS[kind]


def _is_text(kind: _Kind) -> bool:
    return kind == "text" or isinstance(kind, Words)


def _test_of(name: str, left: _Term, right: _Term, at: int) -> Callable[[Values], bool]:
    a, b = left.of, right.of
    _check_words(left, right)
    _check_words(right, left)
    if name in ("==", "!="):
        plain = left.kind == right.kind and left.kind not in ("texts", "numbers")
        if not (plain or "null" in (left.kind, right.kind) or (_is_text(left.kind) and _is_text(right.kind))):
            raise _mismatch(name, left, right, at)
        return (lambda values: a(values) == b(values)) if name == "==" else (lambda values: a(values) != b(values))
    if name in _ORDER:
        return _ordered(name, left, right, at)
    if name == "in":
        if not ((left.kind == "number" and right.kind == "numbers") or (_is_text(left.kind) and right.kind == "texts")):
            raise _mismatch(name, left, right, at)
        return lambda values: (value := a(values)) is not None and value in (b(values) or ())
    if name == "contains":
        if not ((left.kind == "texts" or _is_text(left.kind)) and _is_text(right.kind)):
            raise _mismatch(name, left, right, at)
        return lambda values: (whole := a(values)) is not None and (part := b(values)) is not None and part in whole
    return _matching(left, right, at)


def _ordered(name: str, left: _Term, right: _Term, at: int) -> Callable[[Values], bool]:
    a, b, compare = left.of, right.of, _ORDER[name]
    words = left.kind if isinstance(left.kind, Words) else right.kind
    if left.kind == right.kind == "number":
        rank: Callable[[Any], Any] = lambda value: value  # noqa: E731
    elif isinstance(words, Words) and _is_text(left.kind) and _is_text(right.kind):
        rank = {word: number for number, word in enumerate(words.names)}.get
    else:
        raise _mismatch(name, left, right, at)

    def test(values: Values) -> bool:
        first, second = rank(a(values)), rank(b(values))
        return first is not None and second is not None and bool(compare(first, second))

    return test


def _matching(left: _Term, right: _Term, at: int) -> Callable[[Values], bool]:
    if not (left.kind == "texts" or _is_text(left.kind)) or right.kind != "text":
        raise _mismatch("matches", left, right, at)
    if right.literal is None:
        raise ExpressionError(right.at, "a pattern is written out, in quotation marks")
    options = re2.Options()
    options.log_errors = False
    try:
        search = re2.compile(right.literal, options).search
    except re2.error:
        raise ExpressionError(right.at, "not a pattern of RE2", "without look-around and back-references") from None
    a, is_list = left.of, left.kind == "texts"

    def test(values: Values) -> bool:
        value = a(values)
        texts: Sequence[str] = () if value is None else value if is_list else (value,)
        return any(search(text.encode("utf-8", "replace").decode()) is not None for text in texts)

    return test


def _check_words(term: _Term, other: _Term) -> None:
    """What a field of few words is compared with is one of them."""
    if not isinstance(term.kind, Words) or other.literal is None:
        return
    for word in other.literal if isinstance(other.literal, tuple) else (other.literal,):
        if isinstance(word, str) and other.kind in ("text", "texts") and word not in term.kind.names:
            raise ExpressionError(other.at, "not one of " + ", ".join(term.kind.names), nearest(word, term.kind.names))


def _mismatch(name: str, left: _Term, right: _Term, at: int) -> ExpressionError:
    return ExpressionError(at, f"`{name}` cannot stand between {_words(left.kind)} and {_words(right.kind)}")
