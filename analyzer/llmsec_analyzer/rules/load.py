"""Reading rule files: YAML to rules, and errors that name the file, the line and the nearest known word.

Reading knows no engine. Whoever loads rules of others hands in what proves their form (prove/form.py), so that its errors name a line.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import msgspec
import yaml

from llmsec_analyzer.rules.schema import Rule, RuleFile
from llmsec_analyzer.typed_files import Checker, FileError, Problem
from llmsec_analyzer.yaml_files import LOADER, read_yaml, repeated_keys, shown, yaml_lines
from llmsec_tap.errors import ConfigError

BUILTIN = Path(__file__).parent / "builtin"
# `package:NAME` in place of a path: a pack of rules that is installed. Others may give theirs a name by an entry point of this group.
PACKAGE = "package:"
PACKS = "llmsec_analyzer.rules"
Check = Callable[[Rule], None]
"""What the types of a rule do not say. Raises ConfigError."""


class RuleError(ConfigError):
    """Something wrong with rules; of a file, the message begins with file and line."""


class RuleFileError(FileError, RuleError):
    """All that is wrong with the form of one rule file."""


def load_builtin() -> list[Rule]:
    """The rules that ship. Their form is proved by the tests, not at each start: that would be most of the time that a start takes."""
    rules: list[Rule] = []
    for path in sorted(BUILTIN.glob("*.yaml")):
        value = yaml.load(path.read_bytes(), Loader=LOADER)  # noqa: S506 - one of the safe loaders
        rules += msgspec.convert(_texts(value), RuleFile).rules
    return rules


def load_paths(paths: Iterable[str], check: Check) -> list[Rule]:
    """Rules of files, folders and packages, in the order given. Raises RuleError."""
    rules: list[Rule] = []
    for name in paths:
        path = package_folder(name) if name.startswith(PACKAGE) else Path(name)
        if not path.exists():
            raise RuleError(f"{name}: no such file or folder", "`rules:` takes files and folders of .yaml files, and package:NAME")
        files = sorted((*path.glob("*.yaml"), *path.glob("*.yml"))) if path.is_dir() else [path]
        for file in files:
            rules += load_file(file, check)
    return rules


def package_folder(name: str) -> Path:
    """The folder of `package:NAME`: of an installed package, or of the entry point of that name. None of its code runs. Raises RuleError."""
    wanted = name.removeprefix(PACKAGE)
    points = [point for point in entry_points(group=PACKS) if point.name == wanted]
    module, _, folder = (points[0].value if points else wanted).partition(":")
    if re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", module, re.ASCII) is None or ".." in folder:
        raise RuleError(f"{shown(wanted)}: no name of a package", "write package:NAME, as it is imported")
    top, *inner = module.split(".")
    spec = importlib.util.find_spec(top)  # of a package inside another one, the outer one would be imported
    if spec is None or not spec.submodule_search_locations:
        raise RuleError(
            f"{name}: no such package is installed", f"pip install it; a pack may also have a name of its own, by an entry point of {PACKS}"
        )
    path = Path(next(iter(spec.submodule_search_locations)), *inner, folder)
    if not path.is_dir():
        raise RuleError(f"{name}: has no folder of rules", "the package must be installed as files, with its .yaml files in that folder")
    if not any(path.glob("*.y*ml")):
        raise RuleError(f"{name}: has no rules", "its .yaml files must stand in the package's own folder")
    return path


def load_file(path: Path, check: Check) -> list[Rule]:
    """Raises RuleError, also for what `check` refuses."""
    rules, node = _read(path)
    for number, rule in enumerate(rules):
        try:
            check(rule)
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


def _texts(value: Any) -> Any:
    """`version: 1` and `version: 1.2` are written without quotes, and mean text."""
    if isinstance(value, dict):
        return {key: str(item) if key == "version" and isinstance(item, int | float) else _texts(item) for key, item in value.items()}
    return [_texts(item) for item in value] if isinstance(value, list) else value
