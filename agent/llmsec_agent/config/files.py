"""Which file is the configuration, and what is in it: YAML, JSON or TOML within the bounds of yaml_files.py, with lines."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from llmsec_agent.config.names import FILE_VARIABLES
from llmsec_analyzer.yaml_files import MAX_DEPTH, MAX_NODES, Lines, Where, parse_yaml, read_text, repeated_keys, shown, yaml_lines
from llmsec_tap.errors import ConfigError

DEFAULT_FILE: Final = Path("/etc/llmsec-trace/config.yaml")
_FORMATS: Final = {".yaml": "yaml", ".yml": "yaml", ".json": "json", ".toml": "toml"}
_TOML_HEAD = re.compile(r"\s*\[{1,2}\s*([^\[\]#]+?)\s*\]{1,2}")
_TOML_KEY = re.compile(r"\s*([A-Za-z0-9_.\"'-]+)\s*=")


class Source(NamedTuple):
    """Which file is meant. `said_by`: the option or variable that names it; empty for the default file."""

    path: Path
    said_by: str


class Document(NamedTuple):
    """A file's value, of its own all through (no shared parts), where things stand, and keys that are given twice."""

    tree: dict[Any, Any]
    lines: Lines
    repeated: list[tuple[Where, int, int]]


def find_file(option: str | None, environment: Mapping[str, str]) -> Source | None:
    """By the option, else by LLMSEC_CONFIG or LLMSEC_CONFIG_PATH, else the default file, which need not exist (None).

    Raises PermissionError where the default file cannot be looked for.
    """
    if option is not None:
        return Source(Path(option), "--config")
    for name in FILE_VARIABLES:
        if environment.get(name):
            return Source(Path(environment[name]), name)
    try:
        DEFAULT_FILE.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return Source(DEFAULT_FILE, "")


def is_readable(path: Path) -> bool:
    return os.access(path, os.R_OK)


def read_document(path: Path) -> Document:
    """Raises ConfigError with the original messages: the file cannot be read, or is none of the three formats."""
    text = read_text(path, lambda reason: ConfigError(f"Failed to read config file '{path}': {_bare(reason, path)}"))
    kind = _FORMATS.get(path.suffix.lower())
    try:
        if kind is not None:
            return _document(text, path, kind)
        return _of_any_format(text, path)
    except RecursionError:
        raise ConfigError(f"Failed to parse config: {path}: nested deeper than {MAX_DEPTH}") from None


def _bare(reason: str, path: Path) -> str:
    return reason.removeprefix(f"{path}: cannot be read: ")


def _of_any_format(text: str, path: Path) -> Document:
    """No suffix says what it is: as TOML, YAML and JSON, in this order. What is wrong is said of YAML, which most files are."""
    try:
        return _document(text, path, "toml")
    except ConfigError:
        pass
    try:
        return _document(text, path, "yaml")
    except ConfigError as fault:
        try:
            return _document(text, path, "json")
        except ConfigError:
            raise fault from None


def _document(text: str, path: Path, kind: str) -> Document:
    if kind == "toml":
        return _toml(text, path)
    if kind == "json":
        return _json(text, path)
    value, node = parse_yaml(text, str(path), lambda reason: ConfigError(f"Failed to parse config: {reason}"))
    return Document(_settings(value, path), yaml_lines(node), list(repeated_keys(node)))


def _json(text: str, path: Path) -> Document:
    try:
        value = json.loads(text)
    except ValueError as fault:
        line = getattr(fault, "lineno", 1)
        raise ConfigError(f"Failed to parse config: {path}:{line}: not JSON: {getattr(fault, 'msg', 'a number too long')}") from None
    tree = _settings(value, path)
    try:  # JSON is YAML but for tabs and the like, so YAML's reader knows the lines
        _, node = parse_yaml(text, str(path))
    except ConfigError:
        return Document(tree, lambda _: None, [])
    return Document(tree, yaml_lines(node), list(repeated_keys(node)))


def _toml(text: str, path: Path) -> Document:
    try:
        value = tomllib.loads(text)
    except tomllib.TOMLDecodeError as fault:
        found = re.search(r"\(at line (\d+)", str(fault))
        raise ConfigError(f"Failed to parse config: {path}:{found[1] if found else 1}: not TOML") from None
    except ValueError:  # a number or date beyond what Python takes
        raise ConfigError(f"Failed to parse config: {path}: not TOML") from None
    return Document(_settings(value, path), _toml_lines(text), [])


def _toml_lines(text: str) -> Lines:
    """The line of a table's head or of `key =`, for tables that are written as such; of the nearest thing around it elsewhere."""
    lines: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        head = _TOML_HEAD.match(line)
        if head is not None:
            table = _toml_names(head[1])
        found = _TOML_KEY.match(line) if head is None else None
        place = (*table, *_toml_names(found[1])) if found is not None else table
        for size in range(1, len(place) + 1):
            lines.setdefault(place[:size], number)

    def line_of(where: Where) -> int | None:
        names = tuple(step for step in where if isinstance(step, str))
        return next((lines[names[:size]] for size in range(len(names), 0, -1) if names[:size] in lines), None)

    return line_of


def _toml_names(text: str) -> tuple[str, ...]:
    return tuple(name.strip().strip("\"'") for name in text.split("."))


def _settings(value: Any, path: Path) -> dict[Any, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: the file has no settings", "expected sections such as `security:`, see docs/configuration.md")
    copied, size = _copied(value, 0)
    if size > MAX_NODES:
        raise ConfigError(f"{path}: more than {MAX_NODES:,} values")
    assert isinstance(copied, dict)
    return copied


def _copied(value: Any, depth: int) -> tuple[Any, int]:
    """A copy without shared parts (YAML's aliases are one object in several places), and the number of values in it."""
    if depth > MAX_DEPTH:
        raise RecursionError
    if not isinstance(value, dict | list):
        return value, 1
    items = [_copied(item, depth + 1) for item in (value.values() if isinstance(value, dict) else value)]
    size = 1 + sum(size for _, size in items)
    plain = [item for item, _ in items]
    return (dict(zip(value, plain, strict=True)) if isinstance(value, dict) else plain), size


def repeated_sentence(where: Where, first: int) -> str:
    return f"the key `{shown(where[-1])}` is given twice, first in line {first}"
