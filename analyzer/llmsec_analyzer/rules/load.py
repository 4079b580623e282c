"""Reading rule files: YAML to rules, and errors that name the file, the line and the nearest known word."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from llmsec_analyzer.engine.stream import MAX_NEAR
from llmsec_analyzer.engine.triggers import MAX_KEYWORD_BYTES
from llmsec_analyzer.recognizers.assigned import RECOGNIZERS
from llmsec_analyzer.recognizers.build import JUDGEMENT
from llmsec_analyzer.recognizers.identifiers import is_known_validator, known_validators
from llmsec_analyzer.recognizers.patterns import BadPatternError, compile_pattern
from llmsec_analyzer.rules.schema import Rule, RuleFile
from llmsec_analyzer.typed_files import Checker, FileError, Problem, nearest
from llmsec_analyzer.yaml_files import read_yaml, repeated_keys, shown, yaml_lines
from llmsec_tap.errors import ConfigError

BUILTIN = Path(__file__).parent / "builtin"
_ID = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)*")


class RuleError(ConfigError):
    """Something wrong with rules; of a file, the message begins with file and line."""


class RuleFileError(FileError, RuleError):
    """All that is wrong with the form of one rule file."""


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
            line = yaml_lines(node)(("rules", number))
            raise RuleError(f"{path}:{line}: rule {rule.id}: {fault}", fault.hint) from None
    return rules


def _read(path: Path) -> tuple[list[Rule], yaml.Node | None]:
    """The rules of a file, typed but not checked, and its tree, which says where something is."""
    value, node = read_yaml(path, RuleError)
    if value is None or node is None:
        return [], None
    checker = Checker(yaml_lines(node))
    read = checker.struct(_texts(value), RuleFile)
    problems = [
        *(
            Problem(where[:-1], f"the key `{shown(where[-1])}` is given twice, first in line {first}", "", line)
            for where, line, first in repeated_keys(node)
        ),
        *checker.problems,
    ]
    if problems:
        raise RuleFileError(str(path), problems, checker.more)
    return list(read.rules), node


def check_form(rule: Rule) -> None:
    """What the types do not say. Raises ConfigError."""
    if _ID.fullmatch(rule.id) is None:
        raise ConfigError(f"the id {rule.id!r} is not lower-case words with dots and underscores")
    if (rule.pattern is None) == (rule.recognizer is None):
        raise ConfigError("a rule has either a pattern or a recognizer")
    if rule.recognizer is not None and rule.recognizer not in (*RECOGNIZERS, JUDGEMENT):
        raise ConfigError(f"there is no recognizer {rule.recognizer!r}", nearest(rule.recognizer, [*RECOGNIZERS, JUDGEMENT]))
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
            raise ConfigError(f"there is no check {name!r}", nearest(name, known_validators()))


def _texts(value: Any) -> Any:
    """`version: 1` and `version: 1.2` are written without quotes, and mean text."""
    if isinstance(value, dict):
        return {key: str(item) if key == "version" and isinstance(item, int | float) else _texts(item) for key, item in value.items()}
    return [_texts(item) for item in value] if isinstance(value, list) else value
