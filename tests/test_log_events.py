"""docs/operations.md against the code: every event that its table of log lines names exists, at that level."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
LEVELS = ("debug", "info", "warning", "error")


def events_of_the_code() -> dict[str, set[str]]:
    """Levels by name, of every call like `journal.warning("name", ...)`."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for folder in ("tap", "analyzer", "agent"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "Work":  # kept.py says of each: NAME_ended
                    found[f"{ast.literal_eval(node.args[0]).replace(' ', '_')}_ended"].add("error")
                if (
                    not isinstance(node, ast.Call)
                    or not isinstance(node.func, ast.Attribute)
                    or node.func.attr not in LEVELS
                    or not node.args
                ):
                    continue
                if "journal" not in ast.unparse(node.func.value).lower():
                    continue
                first = node.args[0]
                names = [first.body, first.orelse] if isinstance(first, ast.IfExp) else [first]
                for name in names:
                    if isinstance(name, ast.Constant) and isinstance(name.value, str):
                        found[name.value].add(node.func.attr)
    return found


def test_every_event_of_the_table_is_written_at_its_level() -> None:
    text = (ROOT / "docs/operations.md").read_text().partition("## What a log line means")[2].partition("\n## ")[0]
    known, named = events_of_the_code(), set()
    for names, levels in re.findall(r"^\| (`[^|]+) \| ([a-z ]+) \|", text, re.MULTILINE):
        first, _, last = levels.partition(" to ")
        said = LEVELS[LEVELS.index(first) : LEVELS.index(last or first) + 1]
        for name in re.findall(r"`([a-z_]+)`", names):
            named.add(name)
            assert name in known, f"no code writes {name}"
            assert known[name] <= set(said), f"{name} is written at {known[name]}"
    assert len(named) > 15
    errors = {name for name, levels in known.items() if "error" in levels}
    assert not errors - named, "an operator looks for these"
