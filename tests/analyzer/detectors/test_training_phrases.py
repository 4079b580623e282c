"""The phrases and pairs of ours that later training reads: their form, and what would teach a classifier something untrue."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import yaml

TRAINING = Path(__file__).parents[3] / "training"


@pytest.fixture(scope="module")
def languages():
    return yaml.safe_load((TRAINING / "languages.yaml").read_text(encoding="utf-8"))["languages"]


@pytest.fixture(scope="module")
def contexts():
    return [(path.name, entry) for path in sorted(TRAINING.glob("contexts_*.yaml")) for entry in yaml.safe_load(path.read_text("utf-8"))]


def key(text: str) -> str:
    return " ".join(text.casefold().split())


def test_every_language_has_at_least_forty_phrases_of_each_kind(languages):
    assert len(languages) >= 45
    for code, kinds in languages.items():
        assert set(kinds) == {"attack", "harmless"}, code
        assert min(len(kinds["attack"]), len(kinds["harmless"])) >= 40, code


def test_no_phrase_stands_twice_or_on_both_sides(languages):
    seen = Counter(key(text) for kinds in languages.values() for texts in kinds.values() for text in texts)
    assert [text for text, count in seen.items() if count > 1] == []


@pytest.mark.parametrize("mark", ["<!--", "//", "# ", "@", ".example"])
def test_a_form_of_document_stands_on_both_sides(languages, mark):
    for kind in ("attack", "harmless"):
        assert sum(mark in text for kinds in languages.values() for text in kinds[kind]) >= 5, kind


def test_every_prompt_has_messages_of_both_kinds_and_none_of_both(contexts):
    assert len(contexts) >= 700
    assert len({key(entry["system"]) for _, entry in contexts}) == len(contexts)
    for name, entry in contexts:
        assert set(entry) <= {"lang", "system", "attacks", "harmless", "tool_attacks", "tool_harmless"}, name
        assert min(len(entry.get("attacks", ["nothing to attack"] * 4)), len(entry["harmless"])) >= 4, entry["system"]
        assert not {key(text) for text in entry.get("attacks", ())} & {key(text) for text in entry["harmless"]}, entry["system"]


def test_many_a_message_is_an_attack_under_one_prompt_and_harmless_under_another(contexts):
    attacks = {key(text) for _, entry in contexts for text in entry.get("attacks", ())}
    harmless = {key(text) for _, entry in contexts for text in entry["harmless"]}
    assert len(attacks & harmless) >= 10
