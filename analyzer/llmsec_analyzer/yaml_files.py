"""YAML files that people write, configuration and rules: read within bounds, and faults told without the file's own text.

A kilobyte of YAML can stand for gigabytes (aliases of aliases) or for something without end (an anchor inside itself), and a name
may be that of a device. What a file says that is no YAML may be a secret of somebody else's: `rules check` under sudo must not
print it.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from llmsec_tap.errors import ConfigError

# All rules that ship are 0.3 MB in 1,200 nodes a file at most. Nodes are counted as often as aliases repeat them.
MAX_FILE_BYTES = 4 << 20
MAX_NODES = 500_000
MAX_DEPTH = 100
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Fault = Callable[[str], ConfigError]
Where = tuple[str | int, ...]  # a place in a file: ("backends", "openai", "endpoints", 0, "url")
Lines = Callable[[Where], int | None]
_QUOTED = re.compile(r"'[^']{3,}'|\"[^\"]{3,}\"|`[^`]{3,}`")


_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,40}")


def shown(word: object) -> str:
    """A key or word of a file as an error may show it: a name as it is, nothing else."""
    text = str(word)
    return text if _NAME.fullmatch(text) else "…"


def read_yaml(path: Path, fault: _Fault = ConfigError) -> tuple[Any, yaml.Node | None]:
    """The value of a file and its tree with lines; None and None where it is empty. Raises what `fault` makes of a sentence."""
    return parse_yaml(read_text(path, fault), str(path), fault)


def parse_yaml(text: str, where: str, fault: _Fault = ConfigError) -> tuple[Any, yaml.Node | None]:
    """As `read_yaml`, of a text; `where` names it in errors."""
    try:
        # One loader to look at, one to construct with: a tree of nodes is small before aliases are followed.
        node = yaml.compose(text, Loader=LOADER)
        if node is None:
            return None, None
        _measure(node, where, fault)
        return yaml.load(text, Loader=LOADER), node  # noqa: S506 - one of the safe loaders
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        kind = _QUOTED.sub("…", str(getattr(problem, "problem", None) or "cannot be parsed")).splitlines()[0]
        raise fault(f"{where}:{mark.line + 1}: not YAML: {kind}" if mark is not None else f"{where}: not YAML: {kind}") from None
    except RecursionError:
        raise fault(f"{where}: nested too deep") from None
    except ValueError:  # such as a date that is none
        raise fault(f"{where}: not YAML: a value that is none") from None


def read_text(path: Path, fault: _Fault = ConfigError) -> str:
    """A regular UTF-8 file of bounded size. Raises what `fault` makes of a sentence that names the file."""
    try:
        # Not to be kept waiting by a pipe that nobody writes to.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise fault(f"{path}: cannot be read: not a regular file")
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as problem:
        raise fault(f"{path}: cannot be read: {problem.strerror}") from None
    except ValueError:
        raise fault(f"{path}: cannot be read: no name of a file") from None
    if len(data) > MAX_FILE_BYTES:
        raise fault(f"{path}: cannot be read: larger than {MAX_FILE_BYTES >> 20} MiB")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise fault(f"{path}: cannot be read: not UTF-8") from None


def _measure(node: yaml.Node, where: str, fault: _Fault) -> None:
    """Refuse what is too large once aliases are followed, nested too deep, or inside itself."""
    sizes: dict[int, int] = {}
    inside: set[int] = set()

    def size(node: yaml.Node, depth: int) -> int:
        known = sizes.get(id(node))
        if known is not None:
            return known
        line = node.start_mark.line + 1
        if id(node) in inside:
            raise fault(f"{where}:{line}: an anchor that stands inside itself")
        if depth > MAX_DEPTH:
            raise fault(f"{where}:{line}: nested deeper than {MAX_DEPTH}")
        total = 1
        if not isinstance(node, yaml.ScalarNode):
            inside.add(id(node))
            for child in node.value:
                total += sum(size(part, depth + 1) for part in (child if isinstance(child, tuple) else (child,)))
            inside.discard(id(node))
        if total > MAX_NODES:
            raise fault(f"{where}:{line}: more than {MAX_NODES:,} values, as its aliases are counted as often as they are used")
        sizes[id(node)] = total
        return total

    size(node, 0)


def yaml_lines(node: yaml.Node | None) -> Lines:
    """The line of the key at a place; of the nearest thing around it where the file has none there."""
    if node is None:
        return lambda _: None
    root = node
    known: dict[int, dict[str, tuple[int, yaml.Node]]] = {}  # by mapping: a large one is asked for each of its keys

    def entries(mapping: yaml.MappingNode) -> dict[str, tuple[int, yaml.Node]]:
        found = known.get(id(mapping))
        if found is None:
            found = known[id(mapping)] = {
                name.value: (name.start_mark.line + 1, item) for name, item in mapping.value if isinstance(name, yaml.ScalarNode)
            }
        return found

    def line_of(where: Where) -> int | None:
        at: yaml.Node = root
        line: int = at.start_mark.line + 1
        for step in where:
            if isinstance(step, int):
                if not isinstance(at, yaml.SequenceNode) or step >= len(at.value):
                    return line
                at = at.value[step]
                line = at.start_mark.line + 1
            else:
                entry = entries(at).get(step) if isinstance(at, yaml.MappingNode) else None
                if entry is None:
                    return line
                line, at = entry
        return line

    return line_of


def repeated_keys(node: yaml.Node | None) -> Iterator[tuple[Where, int, int]]:
    """Keys that a mapping has twice, with the lines of the repetition and of the first: YAML keeps the last without a word."""
    pending: list[tuple[yaml.Node, Where]] = [(node, ())] if node is not None else []
    looked: set[int] = set()  # aliases stand for the same node: each is looked at once
    while pending:
        at, where = pending.pop()
        if id(at) in looked:
            continue
        looked.add(id(at))
        if isinstance(at, yaml.SequenceNode):
            pending += [(item, (*where, number)) for number, item in enumerate(at.value)]
        elif isinstance(at, yaml.MappingNode):
            lines: dict[str, int] = {}
            for name, item in at.value:
                if not isinstance(name, yaml.ScalarNode):
                    continue
                line = name.start_mark.line + 1
                if name.value != "<<" and lines.setdefault(name.value, line) != line:
                    yield (*where, name.value), line, lines[name.value]
                pending.append((item, (*where, name.value)))
