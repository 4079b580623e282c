"""Texts of our own in many languages (languages.yaml), and pairs of system prompt and message (contexts_*.yaml), as training rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent
# Key of an entry in contexts_*.yaml: label, role.
_LISTS = {"attacks": (1, "user"), "harmless": (0, "user"), "tool_attacks": (1, "tool"), "tool_harmless": (0, "tool")}


def phrases() -> Iterator[dict[str, Any]]:
    """Explicit attacks and harmless texts that use the same words, each language a source of its own."""
    for language, lists in yaml.safe_load((FOLDER / "languages.yaml").read_text(encoding="utf-8"))["languages"].items():
        for key, label in (("attack", 1), ("harmless", 0)):
            for number, text in enumerate(lists[key]):
                yield _row(f"languages:{language}:{key}:{number}", str(text), label, "user", str(language), f"languages.yaml {language}")


def pairs() -> Iterator[dict[str, Any]]:
    """Messages under the system prompt they came under (`system`); `family` is the same for all messages of one prompt."""
    for path in sorted(FOLDER.glob("contexts_*.yaml")):
        for number, entry in enumerate(yaml.safe_load(path.read_text(encoding="utf-8"))):
            for key, (label, role) in _LISTS.items():
                for index, text in enumerate(entry.get(key) or ()):
                    row = _row(f"{path.stem}:{number}:{key}:{index}", str(text), label, role, str(entry.get("lang", "en")), path.name)
                    yield {**row, "system": entry["system"], "family": f"{path.stem}.{number}/{key}"}


def documents() -> Iterator[dict[str, Any]]:
    """Tool results that give the model orders, and their like that do not: what they are does not hang on the prompt."""
    return (row for row in pairs() if row["role"] == "tool")


def _row(number: str, text: str, label: int, role: str, language: str, source: str) -> dict[str, Any]:
    return {
        "id": number, "text": text, "label": label, "category": "authored", "role": role, "lang": language,
        "source": source, "license": "project", "set": "authored",
    }  # fmt: skip
