"""Rules of other scanners as rules of ours: gitleaks' TOML and plain lists of regular expressions, as far as they can be told.

What a rule of ours needs beside a pattern is a word that stands in every match, as words are what starts a pattern. It is taken from the
pattern itself, else from gitleaks' keywords. What cannot be told is named, a line each, and left out.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import yaml

from llmsec_analyzer.engine.triggers import MAX_KEYWORD_BYTES
from llmsec_analyzer.judge.rule_set import literals, widths
from llmsec_analyzer.prove.form import check_form
from llmsec_analyzer.recognizers.patterns import BadPatternError, compile_linear
from llmsec_analyzer.rules.schema import Rule
from llmsec_analyzer.yaml_files import parse_yaml, read_text
from llmsec_tap.errors import ConfigError

# How far a match may reach before and after its word; what may be longer is looked for within these.
_LEFT: Final = 256
_HORIZON: Final = 1024
_SHORTEST_WORD: Final = 3  # of several sources of words, the one without shorter ones is taken
_MAX_RULES: Final = 5_000
_ONE_LETTER: Final = re.compile(r"\[([A-Za-z])\|?([A-Za-z])\]")
_CONFIDENCE: Final = {"high": 0.9, "medium": 0.7, "low": 0.4}


class Imported(NamedTuple):
    """`notes`: what was left out or could not be told, with the rule's own name."""

    rules: list[dict[str, Any]]
    notes: list[str]


class _UntoldError(Exception):
    """Why a rule cannot be one of ours."""


class _Source(NamedTuple):
    """A rule as another scanner has it, in common terms. `group`: the one that holds the value; None: the whole match."""

    name: str
    regex: str
    description: str
    words: tuple[str, ...] = ()
    group: int | None = None
    entropy: float | None = None
    allow: tuple[str, ...] = ()
    confidence: float = 0.8


def from_gitleaks(path: Path, *, prefix: str = "gitleaks", severity: str = "high") -> Imported:
    """Raises ConfigError for a file that is none of gitleaks'."""
    text = read_text(path)
    try:
        value = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as fault:
        found = re.search(r"\(at line (\d+)", str(fault))
        raise ConfigError(f"{path}:{found[1] if found else 1}: not TOML", "gitleaks' configuration is TOML") from None
    entries = value.get("rules")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(f"{path}: has no [[rules]]", "name a configuration of gitleaks, such as its config/gitleaks.toml")
    notes: list[str] = []
    if "extend" in value:
        notes.append("extend: rules of other files are not read; import those files, too")
    everywhere = _allowed("allowlist of all rules", _allowlists(value), notes)
    sources: list[_Source] = []
    for entry in entries:
        name = str(entry.get("id", ""))
        if not isinstance(entry.get("regex"), str):
            notes.append(f"{_shown(name)}: has no regex (a rule of paths): a tap sees no files")
            continue
        if "path" in entry:
            notes.append(f"{_shown(name)}: its path is left out, as a tap sees no files: it is looked for in all texts")
        words, group, entropy = entry.get("keywords", ()), entry.get("secretGroup"), entry.get("entropy")
        sources.append(
            _Source(
                name=name,
                regex=entry["regex"],
                description=str(entry.get("description", "")),
                words=tuple(word for word in words if isinstance(word, str)) if isinstance(words, list) else (),
                # As gitleaks: without a number it is the first group, where there is one.
                group=group if isinstance(group, int) and group > 0 else 1 if _groups(entry["regex"]) else None,
                entropy=float(entropy) if isinstance(entropy, int | float) and entropy > 0 else None,
                allow=(*_allowed(_shown(name), _allowlists(entry), notes), *everywhere),
            )
        )
    return _imported(sources, notes, prefix, severity)


def from_regexes(path: Path, *, prefix: str = "imported", severity: str = "medium") -> Imported:
    """A mapping of names to regular expressions (JSON or YAML), a list of `{name, regex}`, or one of `{pattern: {name, regex}}`.

    Raises ConfigError for anything else.
    """
    value, _ = parse_yaml(read_text(path), str(path))
    notes: list[str] = []
    if isinstance(value, dict) and isinstance(value.get("patterns"), list):
        value = value["patterns"]
    pairs: list[tuple[str, Any, Any]] = []
    if isinstance(value, dict):
        pairs = [(str(name), item, None) for name, item in value.items()]
    elif isinstance(value, list):
        items = [item.get("pattern", item) if isinstance(item, dict) else item for item in value]
        items = [item if isinstance(item, dict) else {} for item in items]
        pairs = [(str(item.get("name", "")), item.get("regex"), item.get("confidence")) for item in items]
    if not pairs:
        raise ConfigError(f"{path}: has no regular expressions", "a mapping of names to them, or a list of mappings with name and regex")
    sources = []
    for name, regex, confidence in pairs:
        several = regex if isinstance(regex, list) else [regex]
        for one in several:
            if isinstance(one, str) and one:
                sources.append(_Source(name, one, "", confidence=_CONFIDENCE.get(str(confidence), 0.6)))
            else:
                notes.append(f"{_shown(name)}: has no regular expression")
    return _imported(sources, notes, prefix, severity)


def write_rules(path: Path, rules: list[dict[str, Any]], origin: str) -> None:
    """A file of rules. Raises ConfigError where one stands there, or it cannot be written."""
    text = f"# Imported from {origin}. Examples that prove the rules are yours to add (docs/rules.md).\n" + yaml.safe_dump(
        {"rules": rules}, sort_keys=False, allow_unicode=True, width=1000
    )
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123 - a descriptor
            file.write(text)
    except FileExistsError:
        raise ConfigError(f"{path}: is there already", "delete it, or name another file") from None
    except OSError as fault:
        raise ConfigError(f"{path}: cannot be written: {fault.strerror}") from None


# --- one rule -----------------------------------------------------------------------------------------------------------------


def _imported(sources: list[_Source], notes: list[str], prefix: str, severity: str) -> Imported:
    if re.fullmatch(r"[a-z][a-z0-9_]*", prefix) is None:
        raise ConfigError(f"--prefix: {prefix!r} is no lower-case word")
    if len(sources) > _MAX_RULES:
        raise ConfigError(f"more than {_MAX_RULES:,} rules in one file")
    rules: dict[str, dict[str, Any]] = {}
    for source in sources:
        try:
            made = _rule(source, prefix, severity, notes)
        except _UntoldError as why:
            notes.append(f"{_shown(source.name)}: left out: {why}")
            continue
        name, number = made["id"], 2
        while made["id"] in rules:
            made["id"] = f"{name}_{number}"
            number += 1
        rules[made["id"]] = made
    return Imported(list(rules.values()), notes)


def _rule(source: _Source, prefix: str, severity: str, notes: list[str]) -> dict[str, Any]:
    slug = re.sub(r"[^a-z0-9]+", "_", source.name.lower()).strip("_")
    if not slug:
        raise _UntoldError("it has no name")
    regex = _ONE_LETTER.sub(lambda found: f"[{found[1]}{found[2]}]" if found[1].lower() == found[2].lower() else found[0], source.regex)
    pattern = _with_value(regex, source.group) if source.group is not None else regex
    try:
        compile_linear(pattern)
    except BadPatternError:
        raise _UntoldError("its pattern is none of RE2 (look-around, back-references, or a fault)") from None
    plain = _as_python(regex)
    words = _words(plain, source.words)
    shortest, longest = widths(plain)
    if longest > _HORIZON:
        notes.append(
            f"{_shown(source.name)}: its matches may be of any length: they are looked for {_HORIZON:,} characters around its word"
        )
    horizon = max(1, min(longest, _HORIZON))
    rule: dict[str, Any] = {
        "id": f"{prefix}.{slug}",
        "name": source.name[:120],
        "description": source.description if len(source.description) >= 20 else f"The imported rule {source.name[:120]!r} matched: whoever holds it may use it.",
        "category": "secret",
        "type": slug,
        "severity": severity,
        "confidence": source.confidence,
        "keywords": words,
        "left": min(horizon, _LEFT),
        "horizon": horizon,
        "settle": max(1, min(longest - shortest + 1, horizon)),
        "pattern": pattern,
    }  # fmt: skip
    if source.entropy is not None:
        rule["min_entropy"] = source.entropy
    if source.allow:
        rule["allow"] = list(source.allow)
    try:
        check_form(msgspec.convert(rule, Rule))
    except (ConfigError, msgspec.ValidationError) as fault:
        raise _UntoldError(str(fault)) from None
    return rule


def _as_python(regex: str) -> str:
    """The pattern in a form that Python's own parser takes, without regard to case: words and lengths are read from that."""
    plain = _ONE_LETTER.sub(lambda found: found[1] if found[1].lower() == found[2].lower() else found[0], regex)
    return plain.replace("(?i)", "").replace(r"\z", r"\Z")


def _words(plain: str, given: tuple[str, ...]) -> list[str]:
    """Words of which every match holds one, lower case."""
    needed = [word.lower() for word in literals(plain)]
    theirs = [word.lower() for word in given if word]
    if not all(word in plain.lower() for word in theirs):
        theirs = []  # they stand somewhere in the file, not in the match
    usable = [
        words for words in (needed, theirs) if words and all(word.isascii() and len(word.encode()) <= MAX_KEYWORD_BYTES for word in words)
    ]
    for words in (*(words for words in usable if min(map(len, words)) >= _SHORTEST_WORD), *usable):
        return sorted(set(words))
    raise _UntoldError("no word stands in every match, so nothing would start its pattern")


def _shown(name: str) -> str:
    return name[:60] or "a rule without a name"


def _groups(regex: str) -> list[tuple[int, int]]:
    """Where each capturing group begins: its parenthesis, and what is in it."""
    found: list[tuple[int, int]] = []
    at, is_class = 0, False
    while at < len(regex):
        char = regex[at]
        if char == "\\":
            at += 1
        elif is_class:
            is_class = char != "]"
        elif char == "[":
            is_class = True
            at += 1 if regex[at + 1 : at + 2] != "^" else 2
            at -= regex[at : at + 1] != "]"  # a bracket that stands first is a character of the class
        elif char == "(":
            name = re.compile(r"\(\?P?<\w+>").match(regex, at)
            if name is not None:
                found.append((at, name.end()))
            elif regex[at + 1 : at + 2] != "?":
                found.append((at, at + 1))
        at += 1
    return found


def _with_value(regex: str, group: int) -> str:
    if r"\Q" in regex:
        raise _UntoldError("its pattern quotes with \\Q, so that its groups cannot be counted")
    groups = _groups(regex)
    if group > len(groups):
        raise _UntoldError(f"its secretGroup {group} is not there")
    start, inner = groups[group - 1]
    return f"{regex[:start]}(?P<v>{regex[inner:]}"


def _allowlists(entry: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for name in ("allowlist", "allowlists"):
        found = entry.get(name)
        for one in found if isinstance(found, list) else [found]:
            if isinstance(one, dict):
                yield one


def _allowed(name: str, lists: Iterator[Mapping[str, Any]], notes: list[str]) -> tuple[str, ...]:
    """Patterns of values that do not count. What of an allowlist goes by files, commits, lines or by several things at once is named."""
    patterns: list[str] = []
    for one in lists:
        if str(one.get("condition", "")).upper() == "AND" or one.get("targetRules"):
            notes.append(f"{name}: an allowlist that joins conditions, or is of some rules, is left out: more is found")
            continue
        if any(one.get(key) for key in ("paths", "commits")):
            notes.append(f"{name}: paths and commits of its allowlist are left out: a tap sees no files")
        regexes = [text for text in one.get("regexes", ()) if isinstance(text, str)] if isinstance(one.get("regexes", ()), list) else []
        if regexes and one.get("regexTarget") not in (None, "secret", "match"):
            notes.append(f"{name}: an allowlist over whole lines is left out: more is found")
            regexes = []
        for text in regexes:
            try:
                compile_linear(text)
            except BadPatternError:
                notes.append(f"{name}: a pattern of its allowlist is none of RE2 and is left out: more is found")
            else:
                patterns.append(text)
        words = one.get("stopwords", ())
        stops = [re.escape(word) for word in words if isinstance(word, str) and word] if isinstance(words, list) else []
        if stops:
            patterns.append(f"(?i)(?:{'|'.join(stops)})")
    return tuple(patterns)
