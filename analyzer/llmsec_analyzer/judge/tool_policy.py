"""Which calls of tools the policy names: by the tool's name alone, or by what its arguments hold."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

import msgspec
import re2  # type: ignore[import-untyped]

from llmsec_analyzer.settings import ToolPolicy
from llmsec_tap.errors import ConfigError
from llmsec_tap.model import Severity

# Arguments nested deeper or broader than this are looked at as plain text only.
_MAX_LEAVES = 10_000
_MAX_DEPTH = 64


class PolicyHit(msgspec.Struct, frozen=True):
    """One call that the policy names. `start` and `end`: the value in the text of the arguments, or all of it."""

    start: int
    end: int
    note: str
    severity: Severity | None


class ToolPolicies:
    """`hits(tool, arguments)`. Raises ConfigError for a pattern that is none, so that it shows when a run begins."""

    def __init__(self, entries: Sequence[str | ToolPolicy]) -> None:
        self._names = [entry for entry in entries if isinstance(entry, str)]
        self._entries: list[tuple[ToolPolicy, Any]] = []
        options = re2.Options()
        options.log_errors = False
        for entry in entries:
            if isinstance(entry, str):
                continue
            try:
                pattern = re2.compile(entry.matches, options) if entry.matches is not None else None
            except re2.error as fault:
                raise ConfigError(
                    f"security.output.sensitive_tools: {entry.matches!r} is not a valid regular expression: {fault}",
                    "RE2 syntax: no look-around, no back-references",
                ) from None
            self._entries.append((entry, pattern))

    def hits(self, tool: str, arguments: str) -> list[PolicyHit]:
        if any(fnmatchcase(tool, wanted) for wanted in self._names):
            return [PolicyHit(0, len(arguments), "the policy names this tool", None)]
        entries = [(entry, pattern) for entry, pattern in self._entries if fnmatchcase(tool, entry.tool)]
        if not entries:
            return []
        leaves = list(_leaves(arguments))
        found: list[PolicyHit] = []
        for entry, pattern in entries:
            hit = _first(entry, pattern, leaves, arguments)
            if hit is not None:
                found.append(hit)
        return found


def _first(entry: ToolPolicy, pattern: Any, leaves: list[tuple[str, str]], arguments: str) -> PolicyHit | None:
    """The first argument that the entry means; one finding an entry is enough for a call."""
    for name, value in leaves:
        if not _named(name, entry.argument) or (pattern is not None and pattern.search(_sendable(value)) is None):
            continue
        written = json.dumps(value, ensure_ascii=False)[1:-1]
        at = arguments.find(written) if written else -1
        start, end = (at, at + len(written)) if at >= 0 else (0, len(arguments))
        note = f"the policy names this tool with the argument {name or entry.argument}" + (" of this form" if pattern is not None else "")
        return PolicyHit(start, end, note, entry.severity)
    return None


def _named(name: str, wanted: str) -> bool:
    """`path`, `options.path` and `options.*` all mean the argument at options.path; text that is no JSON has no names."""
    return not name or fnmatchcase(name, wanted) or fnmatchcase(name.rpartition(".")[2], wanted)


def _leaves(arguments: str) -> Iterator[tuple[str, str]]:
    """The arguments one by one, nested ones by their path. What is no JSON (cut, or another form) is one argument without a name."""
    try:
        loaded = json.loads(arguments)
    except (ValueError, RecursionError):
        yield "", arguments
        return
    if not isinstance(loaded, dict):
        yield "", arguments
        return
    waiting: list[tuple[str, Any, int]] = [("", loaded, 0)]
    given = 0
    while waiting:
        name, value, depth = waiting.pop()
        if isinstance(value, dict | list) and depth < _MAX_DEPTH:
            inner = value.items() if isinstance(value, dict) else ((str(number), item) for number, item in enumerate(value))
            waiting += reversed([(f"{name}.{key}" if name else str(key), item, depth + 1) for key, item in inner])
            continue
        given += 1
        if given > _MAX_LEAVES:
            yield "", arguments
            return
        yield name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _sendable(text: str) -> str:
    """re2 takes UTF-8 only, so lone surrogates are replaced."""
    return text.encode("utf-8", "replace").decode()
