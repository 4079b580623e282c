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
    return yaml.safe_load((TRAINING / "contexts.yaml").read_text(encoding="utf-8"))["contexts"]


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


def test_every_prompt_has_as_many_attacks_as_harmless_messages(contexts):
    assert len(contexts) >= 120
    assert len({key(pair["system"]) for pair in contexts}) == len(contexts)
    for pair in contexts:
        assert set(pair) == {"language", "system", "attacks", "harmless"}
        assert len(pair["attacks"]) == len(pair["harmless"]) == 6, pair["system"]
        assert not {key(text) for text in pair["attacks"]} & {key(text) for text in pair["harmless"]}
