"""Reading rule files: YAML to rules, and errors that name the file, the line and the nearest known word."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import yaml

from llmsec_analyzer.engine.stream import MAX_NEAR
from llmsec_analyzer.engine.triggers import MAX_KEYWORD_BYTES
from llmsec_analyzer.recognizers.assigned import RECOGNIZERS
from llmsec_analyzer.recognizers.build import JUDGEMENT
from llmsec_analyzer.recognizers.identifiers import is_known_validator, known_validators
from llmsec_analyzer.recognizers.patterns import BadPatternError, compile_pattern
from llmsec_analyzer.rules.schema import Rule, RuleFile
from llmsec_analyzer.yaml_files import read_yaml, shown
from llmsec_tap.errors import ConfigError

BUILTIN = Path(__file__).parent / "builtin"
_ID = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)*")
_UNKNOWN = re.compile(r"unknown field `([^`]+)`")
_PATH = re.compile(r"`\$([^`]*)`")


class RuleError(ConfigError):
    """One thing wrong in one rule file: the message begins with file and line."""


def load_builtin() -> list[Rule]:
    """The rules that ship. Their form is proved by the tests, not at each start: that would compile every pattern once more."""
    return [rule for path in sorted(BUILTIN.glob("*.yaml")) for rule in _read(path)[0]]


def load_paths(paths: Iterable[str]) -> list[Rule]:
    """Rules of files and folders, in the order given."""
    rules: list[Rule] = []
    for name in paths:
        path = Path(name)
        if not path.exists():
            raise RuleError(f"{name}: no such file or folder", "`rules:` takes files and folders of .yaml files")
        files = sorted((*path.glob("*.yaml"), *path.glob("*.yml"))) if path.is_dir() else [path]
        for file in files:
            rules += load_file(file)
    return rules


def load_file(path: Path) -> list[Rule]:
    rules, node = _read(path)
    for number, rule in enumerate(rules):
        try:
            check_form(rule)
        except ConfigError as fault:
            line = _line(node, f".rules[{number}]") if node is not None else 1
            raise RuleError(f"{path}:{line}: rule {rule.id}: {fault}", fault.hint) from None
    return rules


def _read(path: Path) -> tuple[list[Rule], yaml.Node | None]:
    """The rules of a file, typed but not checked, and its tree, which says where something is."""
    value, node = read_yaml(path, RuleError)
    if value is None or node is None:
        return [], None
    try:
        return list(msgspec.convert(_texts(value), RuleFile).rules), node
    except msgspec.ValidationError as fault:
        raise _explained(path, node, str(fault)) from None


def check_form(rule: Rule) -> None:
    """What the types do not say. Raises ConfigError."""
    if _ID.fullmatch(rule.id) is None:
        raise ConfigError(f"the id {rule.id!r} is not lower-case words with dots and underscores")
    if (rule.pattern is None) == (rule.recognizer is None):
        raise ConfigError("a rule has either a pattern or a recognizer")
    if rule.recognizer is not None and rule.recognizer not in (*RECOGNIZERS, JUDGEMENT):
        raise ConfigError(f"there is no recognizer {rule.recognizer!r}", _nearest(rule.recognizer, [*RECOGNIZERS, JUDGEMENT]))
    if not 0 <= rule.confidence <= 1:
        raise ConfigError("confidence is a number from 0 to 1")
    if rule.pattern is not None:
        if not rule.keywords and rule.trigger is None:
            raise ConfigError(
                "a pattern needs keywords or a trigger that starts it", "name words, one of which is in every match: keywords: [ghp_]"
            )
        try:
            compile_pattern(rule.pattern)
        except BadPatternError as fault:
            raise ConfigError(str(fault)) from None
    if rule.near_token and (not rule.keywords or rule.left + rule.horizon > MAX_NEAR):
        raise ConfigError(f"near_token goes with keywords, and with left and horizon of {MAX_NEAR} together at most")
    if rule.digits and rule.trigger != "digits":
        raise ConfigError("digits goes with `trigger: digits`")
    for word in rule.keywords:
        if not word or len(word.encode()) > MAX_KEYWORD_BYTES:
            raise ConfigError(f"the keyword {word!r} has no or more than {MAX_KEYWORD_BYTES} bytes")
    for name in rule.validate:
        if not is_known_validator(name):
            raise ConfigError(f"there is no check {name!r}", _nearest(name, known_validators()))


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint: the known word that is most like it, or all of them."""
    return _nearest(word, list(known))


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else "one of: " + ", ".join(known)


def _texts(value: Any) -> Any:
    """`version: 1` and `version: 1.2` are written without quotes, and mean text."""
    if isinstance(value, dict):
        return {key: str(item) if key == "version" and isinstance(item, int | float) else _texts(item) for key, item in value.items()}
    return [_texts(item) for item in value] if isinstance(value, list) else value


def _explained(path: Path, node: yaml.Node, message: str) -> RuleError:
    place = _PATH.search(message)
    at = place[1] if place else ""
    plain = _PATH.sub(at.removeprefix(".") or "the file", message.replace("Object", "It", 1) if message.startswith("Object") else message)
    unknown = _UNKNOWN.search(message)
    hint = ""
    if unknown is not None:
        hint = _nearest(unknown[1], [*Rule.__struct_fields__, "match", "no_match"])
        line = _line(node, f"{at}.{unknown[1]}")
    else:
        line = _line(node, at)
        wrong = re.search(r"Invalid enum value '([^']+)'", message)
        if wrong is not None:
            field = at.rpartition(".")[2]
            hint = _nearest(wrong[1], _ENUMS.get(field, []))
    plain = re.sub(r"(?<=[`'])[^`']+(?=[`'])", lambda word: shown(word[0]), plain)
    return RuleError(f"{path}:{line}: {plain}", hint)


_ENUMS = {
    "severity": ["info", "low", "medium", "high", "critical"],
    "category": [
        "prompt_injection", "jailbreak", "system_prompt_leak", "pii", "secret", "data_exfiltration", "unsafe_output", "anomaly",
    ],
    "action": ["alert_only", "alert_and_redact"],
    "trigger": ["digits", "at", "hex_colon", "dotted_name", "iban", "long_token", "tags"],
}  # fmt: skip


def _line(node: yaml.Node, path: str) -> int:
    """The line of the value at a path like `.rules[3].severity`; of the nearest thing around it where there is none."""
    line: int = node.start_mark.line + 1
    for name, index in re.findall(r"\.([^.\[]+)|\[(\d+)\]", path):
        if index:
            if not isinstance(node, yaml.SequenceNode) or int(index) >= len(node.value):
                return line
            node = node.value[int(index)]
        else:
            if not isinstance(node, yaml.MappingNode):
                return line
            pairs = {key.value: (key, value) for key, value in node.value}
            if name not in pairs:
                return line
            key, node = pairs[name]
            line = key.start_mark.line + 1
            continue
        line = node.start_mark.line + 1
    return line
