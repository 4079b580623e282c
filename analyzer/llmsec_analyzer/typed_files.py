"""Files that people write (configuration, rules) as typed values: every fault at once, each with its line, its key and what may be meant.

The types are frozen msgspec structs. `key(...)` beside a field says what the type does not: what the key means, its unit, its range,
the variable of the environment that sets it. Documentation is generated from the same words. A value is quoted in an error
only where it is a number, or nearly one of a few words: a file may hold secrets, and a wrong file is anybody's.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import msgspec
import yaml
from msgspec import inspect

from llmsec_analyzer.units import parse_duration, parse_size, show_duration, show_size
from llmsec_analyzer.yaml_files import Lines, Where, repeated_keys, shown, yaml_lines
from llmsec_tap.errors import ConfigError

# A file with more faults than these is no configuration; the rest is counted.
MAX_PROBLEMS = 50
_MAX_LISTED = 12
_TRUE = frozenset(("true", "1", "yes", "on"))
_FALSE = frozenset(("false", "0", "no", "off"))


def key(
    doc: str = "",
    *,
    unit: str = "",
    env: str = "",
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    filled: bool = False,
    address: bool = False,
    words: Mapping[str, str] | None = None,
    refused: Mapping[str, str] | None = None,
    instead: str = "",
    later: str = "",
) -> msgspec.Meta:
    """What a field of a file means, for `Annotated`.

    `unit`: "duration" (seconds as a float) or "size" (bytes as an int), written with a unit. `filled`: not empty. `address`: it
    may carry credentials, and is shown without them. `words`: other
    words that are taken for one of the type's. `refused`: words that are refused with a sentence. `instead`: only a proxy in the
    path could honour the key; what is done instead. `later`: it is checked and does nothing in this version; what is missing.
    """
    facts = {
        "doc": doc, "unit": unit, "env": env, "at_least": at_least, "above": above, "at_most": at_most, "filled": filled, "address": address,
        "words": words, "refused": refused, "instead": instead, "later": later,
    }  # fmt: skip
    return msgspec.Meta(extra={name: fact for name, fact in facts.items() if fact is not None and fact is not False and fact != ""})


class Given(NamedTuple):
    """A value that does not come from the file: `source` says whence. `is_text`: it is written as text, as a variable's is."""

    value: Any
    source: str
    is_text: bool = False


class Problem(NamedTuple):
    where: Where
    text: str
    hint: str = ""
    line: int | None = None
    source: str = ""  # instead of the file

    def sentence(self, file: str) -> str:
        """One line without the hint: `config.yaml:3: security.budget.share: …`."""
        place = self.source or (f"{file}:{self.line}" if self.line is not None else file)
        path = dotted(self.where)
        return f"{place}: {path}: {self.text}" if path else f"{place}: {self.text}"


class FileError(ConfigError):
    """All that is wrong with one file. `problems` has each, `lines()` what a command prints."""

    def __init__(self, file: str, problems: Sequence[Problem], more: int = 0) -> None:
        self.file = file
        problems = sorted(problems, key=lambda problem: problem.line or 0)
        self.problems = tuple(problems)
        self._more = more
        if len(problems) == 1:
            super().__init__(problems[0].sentence(file), problems[0].hint)
        else:
            listed = ", ".join(problem.sentence(file) for problem in problems)
            super().__init__(f"Config validation failed: {listed}" + (f", and {more:,} more" if more else ""))

    def lines(self) -> list[str]:
        lines = [problem.sentence(self.file) + (f" ({problem.hint})" if problem.hint else "") for problem in self.problems]
        return [*lines, f"{self.file}: {self._more:,} more problems are not listed"] if self._more else lines


class _Wrong:
    """Stands for a value that was refused."""


_WRONG = _Wrong()


def dotted(where: Where) -> str:
    """`backends.openai.endpoints[0].url`; names that are no plain names as an ellipsis."""
    text = ""
    for step in where:
        text += f"[{step}]" if isinstance(step, int) else ("." if text else "") + shown(step)
    return text


def nearest(word: str, known: Sequence[str]) -> str:
    """A hint: the known word that is most like it, or all of them."""
    close = difflib.get_close_matches(word[:80], known, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]}?"
    more = f", … ({len(known):,} in all)" if len(known) > _MAX_LISTED else ""
    return ("one of: " if len(known) > 1 else "known: ") + ", ".join(known[:_MAX_LISTED]) + more if known else ""


@cache
def struct_type(kind: Any) -> inspect.StructType:
    """The type of a struct as a tree that `Checker` walks."""
    found = inspect.type_info(kind)
    assert isinstance(found, inspect.StructType)
    return found


def bare(kind: inspect.Type) -> tuple[inspect.Type, dict[str, Any]]:
    """A type without what `key` said of it, and that."""
    facts: dict[str, Any] = {}
    while isinstance(kind, inspect.Metadata):
        facts = {**(kind.extra or {}), **facts}
        kind = kind.type
    return kind, facts


def fields(kind: inspect.Type) -> Sequence[inspect.Field]:
    return kind.fields if isinstance(kind, inspect.StructType | inspect.DataclassType) else ()


def keys(kind: inspect.Type, where: Where = ()) -> Iterator[tuple[Where, inspect.Field, inspect.Type, dict[str, Any]]]:
    """Every key a file may have, in the order of the types; names that the user chooses are `*`, items of lists `0`."""
    for field in fields(kind):
        inner, facts = bare(field.type)
        yield (*where, field.encode_name), field, inner, facts
        yield from _below(inner, (*where, field.encode_name))


def _below(kind: inspect.Type, where: Where) -> Iterator[tuple[Where, inspect.Field, inspect.Type, dict[str, Any]]]:
    if isinstance(kind, inspect.UnionType):
        for member in kind.types:
            yield from _below(bare(member)[0], where)
    elif isinstance(kind, inspect.DictType):
        yield from _below(bare(kind.value_type)[0], (*where, "*"))
    elif isinstance(kind, inspect.VarTupleType | inspect.ListType):
        yield from _below(bare(kind.item_type)[0], (*where, 0))
    else:
        yield from keys(kind, where)


class Checker:
    """Checks plain values against types. `problems` is all that is wrong, `given` every key that was given and what `key` says of it."""

    def __init__(
        self,
        lines: Lines,
        *,
        elsewhere: Mapping[str, Sequence[str]] | None = None,
        readers: Mapping[type, Callable[[str], Any]] | None = None,
        spelled: Callable[[Where], Where] = lambda where: where,
    ) -> None:
        """`elsewhere`: the places of every key's name. `readers`: own types, made from text (ValueError with a sentence refuses).

        `spelled`: the place as the file has it, where it was given by another name.
        """
        self._lines = lines
        self._elsewhere = elsewhere or {}
        self._readers = readers or {}
        self._spelled = spelled
        self.problems: list[Problem] = []
        self.more = 0
        self.given: list[tuple[Where, Where, dict[str, Any], str]] = []  # where, its key with `*` for own names, facts, source

    def struct(self, value: Any, kind: Any) -> Any:
        """An instance of the struct, or None where there are problems."""
        made = self._value(value, struct_type(kind), (), {}, (), None)
        return None if self.problems else made

    def problem(self, where: Where, text: str, hint: str = "", given: Given | None = None) -> Any:
        """Note it, unless there are too many. The answer stands for the value."""
        if len(self.problems) >= MAX_PROBLEMS:
            self.more += 1
        else:
            source = given.source if given is not None else ""
            self.problems.append(Problem(self._spelled(where), text, hint, None if source else self._lines(self._spelled(where)), source))
        return _WRONG

    def _value(self, value: Any, kind: inspect.Type, where: Where, facts: Mapping[str, Any], pattern: Where, given: Given | None) -> Any:
        if isinstance(value, Given):
            given, value = value, value.value
        kind, inner = bare(kind)
        facts = {**inner, **facts}
        if isinstance(kind, inspect.UnionType):
            member = self._member(value, kind, given)
            if member is None:
                return self.problem(where, "must be " + " or ".join(filter(None, map(_in_words, kind.types))), given=given)
            kind = member
            kind, inner = bare(kind)
            facts = {**facts, **inner}
        if facts.get("unit"):
            return self._quantity(value, where, facts, given)
        if isinstance(kind, inspect.StructType):
            return self._struct(value, kind, where, pattern, given)
        if isinstance(kind, inspect.DictType):
            return self._dict(value, kind, where, pattern, given)
        if isinstance(kind, inspect.VarTupleType | inspect.ListType):
            return self._sequence(value, kind, where, facts, pattern, given)
        return self._scalar(value, kind, where, facts, given)

    # --- containers -------------------------------------------------------------------------------------------------------

    def _struct(self, value: Any, kind: inspect.StructType, where: Where, pattern: Where, given: Given | None) -> Any:
        if not isinstance(value, dict):
            return self.problem(where, f"must be {_A_MAPPING}", given=given)
        known = {field.encode_name: field for field in kind.fields}
        made: dict[str, Any] = {}
        for name, item in value.items():
            field = known.get(name) if isinstance(name, str) else None
            if field is None:
                self._unknown(name, list(known), where, item)
            elif item is not None:  # a key without a value means its default
                facts = bare(field.type)[1]
                place, key_of = (*where, name), (*pattern, name)
                source = item.source if isinstance(item, Given) else given.source if given is not None else ""
                self.given.append((place, key_of, facts, source))
                found = self._value(item, field.type, place, facts, key_of, given)
                if found is not _WRONG:
                    made[field.name] = found
        for field in kind.fields:
            if field.required and value.get(field.encode_name) is None:
                self.problem(where, f"the key `{field.encode_name}` is required", given=given)
        if any(field.required and field.name not in made for field in kind.fields):
            return _WRONG
        return kind.cls(**made)

    def _unknown(self, name: Any, known: list[str], where: Where, item: Any) -> None:
        if len(self.problems) >= MAX_PROBLEMS:
            self.more += 1
            return
        word = shown(name)
        hint = ""
        if word != "…":
            at_home = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
            places = self._elsewhere.get(word, ())
            if at_home:
                hint = f"did you mean {at_home[0]}?"
            elif 0 < len(places) <= 3:
                hint = "it belongs to another section: " + " or ".join(places)
            else:
                away = [
                    found
                    for found in difflib.get_close_matches(word, self._elsewhere, n=1, cutoff=0.75)
                    if len(self._elsewhere[found]) == 1
                ]
                hint = f"did you mean {self._elsewhere[away[0]][0]}?" if away else nearest(word, known)
        given = item if isinstance(item, Given) else None
        source = given.source if given is not None else ""
        line = None if source else self._lines(self._spelled((*where, str(name))))
        self.problems.append(Problem(self._spelled(where), f"unknown key `{word}`", hint, line, source))

    def _dict(self, value: Any, kind: inspect.DictType, where: Where, pattern: Where, given: Given | None) -> Any:
        if not isinstance(value, dict):
            return self.problem(where, f"must be {_A_MAPPING}", given=given)
        made: dict[str, Any] = {}
        for name, item in value.items():
            if not isinstance(name, str):
                self.problem(where, "a name in it must be text: put it in quotes", given=given)
                continue
            source = item.source if isinstance(item, Given) else given.source if given is not None else ""
            self.given.append(((*where, name), (*pattern, "*"), {}, source))
            found = self._value({} if item is None else item, kind.value_type, (*where, name), {}, (*pattern, "*"), given)
            if found is not _WRONG:
                made[name] = found
        return made

    def _sequence(
        self,
        value: Any,
        kind: inspect.VarTupleType | inspect.ListType,
        where: Where,
        facts: Mapping[str, Any],
        pattern: Where,
        given: Given | None,
    ) -> Any:
        if given is not None and given.is_text and isinstance(value, str):
            value = [item.strip() for item in value.split(",") if item.strip()]
        if not isinstance(value, list | tuple):
            return self.problem(where, "must be a list", given=given)
        if facts.get("filled") and not value:
            return self.problem(where, "cannot be empty", given=given)
        made = [self._value(item, kind.item_type, (*where, number), {}, (*pattern, 0), given) for number, item in enumerate(value)]
        kept = [item for item in made if item is not _WRONG]
        return tuple(kept) if isinstance(kind, inspect.VarTupleType) else kept

    def _member(self, value: Any, union: inspect.UnionType, given: Given | None) -> inspect.Type | None:
        """Which type of a union a value is meant for, by its form; None where it fits none of several."""
        members = [(member, bare(member)[0]) for member in union.types if not isinstance(member, inspect.NoneType)]
        if len(members) == 1:
            return members[0][0]
        if given is not None and given.is_text:
            words = [member for member, inner in members if isinstance(inner, inspect.LiteralType) and value in inner.values]
            others = [member for member, inner in members if not isinstance(inner, inspect.LiteralType)]
            return (words or others or [members[0][0]])[0]
        for member, inner in members:
            for form, types in _FORMS:
                if (
                    isinstance(value, form)
                    and isinstance(inner, types)
                    and not (isinstance(inner, inspect.LiteralType) and value not in inner.values)
                ):
                    return member
        return None

    # --- single values ------------------------------------------------------------------------------------------------------

    def _quantity(self, value: Any, where: Where, facts: Mapping[str, Any], given: Given | None) -> Any:
        is_duration = facts["unit"] == "duration"
        example = "a duration with its unit, such as 30s, 100ms or 5m" if is_duration else "a size with its unit, such as 16MiB or 50MB"
        if given is not None and given.is_text and is_duration and isinstance(value, str) and value.isdecimal():
            value += "s"  # the original variables are plain seconds
        if not isinstance(value, str):
            return self.problem(where, f"must be {example}", given=given)
        try:
            made = parse_duration(value) if is_duration else parse_size(value)
        except ValueError:
            return self.problem(where, f"must be {example}", given=given)
        return self._in_range(made, value.strip(), where, facts, given)

    def _scalar(self, value: Any, kind: inspect.Type, where: Where, facts: Mapping[str, Any], given: Given | None) -> Any:
        if given is not None and given.is_text:
            value = _from_text(value, kind)
        if isinstance(kind, inspect.BoolType):
            return value if isinstance(value, bool) else self.problem(where, "must be true or false", given=given)
        if isinstance(kind, inspect.IntType | inspect.FloatType):
            return self._number(value, kind, where, facts, given)
        if isinstance(kind, inspect.StrType):
            if not isinstance(value, str):
                return self.problem(where, "must be text: put it in quotes", given=given)
            if facts.get("filled") and not value.strip():
                return self.problem(where, "cannot be empty", given=given)
            return value
        if isinstance(kind, inspect.LiteralType):
            return self._word(value, [str(word) for word in kind.values], where, facts, given)
        if isinstance(kind, inspect.CustomType):
            return self._custom(value, kind, where, given)
        return value

    def _number(
        self, value: Any, kind: inspect.IntType | inspect.FloatType, where: Where, facts: Mapping[str, Any], given: Given | None
    ) -> Any:
        whole = isinstance(kind, inspect.IntType)
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            return self.problem(where, f"must be a {'whole ' if whole else ''}number", given=given)
        try:
            finite = math.isfinite(value)
        except OverflowError:
            finite = False
        if not finite:
            return self.problem(where, "must be a finite number", given=given)
        return self._in_range(value if whole else float(value), f"{value:g}" if not whole else str(value)[:24], where, facts, given)

    def _in_range(self, value: float, written: str, where: Where, facts: Mapping[str, Any], given: Given | None) -> Any:
        low, above, high = facts.get("at_least"), facts.get("above"), facts.get("at_most")
        if not ((low is not None and value < low) or (above is not None and value <= above) or (high is not None and value > high)):
            return value
        return self.problem(where, f"must be {allowed(facts)}, not {written}", given=given)

    def _word(self, value: Any, words: list[str], where: Where, facts: Mapping[str, Any], given: Given | None) -> Any:
        if not isinstance(value, str):
            return self.problem(where, "must be one of: " + ", ".join(words), given=given)
        value = (facts.get("words") or {}).get(value, value)
        if value in words:
            return value
        refusal = (facts.get("refused") or {}).get(value)
        if refusal is not None:
            return self.problem(where, refusal, given=given)
        close = difflib.get_close_matches(value[:80], words, n=1, cutoff=0.6)
        if close:
            return self.problem(where, f"`{shown(value)}` is not one of {', '.join(words)}", f"did you mean {close[0]}?", given)
        return self.problem(where, "must be one of: " + ", ".join(words), given=given)

    def _custom(self, value: Any, kind: inspect.CustomType, where: Where, given: Given | None) -> Any:
        if isinstance(value, kind.cls):
            return value
        if not isinstance(value, str):
            return self.problem(where, "must be text", given=given)
        try:
            return self._readers[kind.cls](value)
        except ValueError as fault:
            return self.problem(where, str(fault), given=given)


def read_struct(value: Any, node: yaml.Node | None, kind: Any) -> tuple[Any, list[Problem], int]:
    """Of a file's value and tree: an instance of the struct or None, all that is wrong (a key given twice, too), and how much more is."""
    lines = yaml_lines(node)
    repeated = [
        Problem(where[:-1], f"the key `{shown(where[-1])}` is given twice, first in line {first}", "", line)
        for where, line, first in repeated_keys(node)
    ]
    checker = Checker(lines)
    made = checker.struct({} if value is None else value, kind)
    return made, [*repeated, *checker.problems], checker.more


def _in_words(kind: inspect.Type) -> str:
    inner = bare(kind)[0]
    if isinstance(inner, inspect.LiteralType):
        return " or ".join(map(str, inner.values))
    return _IN_WORDS.get(type(inner), "")


_IN_WORDS: Mapping[type, str] = {
    inspect.BoolType: "true or false",
    inspect.IntType: "a whole number",
    inspect.FloatType: "a number",
    inspect.StrType: "text",
    inspect.StructType: "a mapping",
}
_A_MAPPING = "a mapping (`name: value` lines)"
_FORMS: Sequence[tuple[Any, Any]] = (
    (bool, inspect.BoolType),
    (str, inspect.LiteralType | inspect.StrType | inspect.CustomType),
    (int, inspect.IntType | inspect.FloatType),
    (float, inspect.FloatType),
    (dict, inspect.StructType | inspect.DictType),
    (list, inspect.VarTupleType | inspect.ListType),
)


def allowed(facts: Mapping[str, Any]) -> str:
    """The range in words: `from 0 to 1`, `at least 1`."""
    low, above, high = facts.get("at_least"), facts.get("above"), facts.get("at_most")
    show: Callable[[float], str] = "{:g}".format
    if facts.get("unit") == "size":
        show = lambda size: show_size(int(size))  # noqa: E731
    elif facts.get("unit") == "duration":
        show = show_duration
    begin = f"more than {show(above)}" if above is not None else ""
    if low is not None and high is not None:
        return f"from {show(low)} to {show(high)}"
    if high is not None:
        return f"{begin} and at most {show(high)}" if begin else f"at most {show(high)}"
    return begin or (f"at least {show(low)}" if low is not None else "")


def _from_text(text: str, kind: inspect.Type) -> Any:
    """What a variable's text says, as the type wants it; the text itself where it says nothing of the kind."""
    text = text.strip()
    if isinstance(kind, inspect.BoolType):
        low = text.lower()
        return True if low in _TRUE else False if low in _FALSE else text
    try:
        if isinstance(kind, inspect.IntType):
            return int(text[:24])
        if isinstance(kind, inspect.FloatType):
            return float(text[:64])
    except ValueError:
        pass
    return text
