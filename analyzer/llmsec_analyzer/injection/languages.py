"""The group of languages that a text is of, by its script; Latin script is English or another language by its words."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from llmsec_analyzer.injection.context import small_words
from llmsec_analyzer.injection.features import word_classes

_SAMPLE: Final = 400
_SCRIPTS: Final = {
    "cyrillic": re.compile("[\u0400-\u052f]"),
    "arabic": re.compile("[\u0600-\u06ff\u0750-\u077f]"),
    "indic": re.compile("[\u0900-\u0dff]"),
    "thai": re.compile("[\u0e00-\u0e7f]"),
    "hangul": re.compile("[\uac00-\ud7a3]"),
    "kana": re.compile("[\u3040-\u30ff]"),
    "han": re.compile("[\u3400-\u9fff]"),
    "other": re.compile("[\u0370-\u03ff\u0590-\u05ff\u10a0-\u10ff\u0530-\u058f\u1000-\u109f\u1780-\u17ff]"),
}
GROUPS: Final = ("english", "latin", *_SCRIPTS)
_LATIN = re.compile("[A-Za-z\u00c0-\u024f\u1e00-\u1eff]")
_WORD = re.compile("[^\\W\\d_]{2,}")


def group_of(text: str) -> str:
    """One of `GROUPS`, by the first characters. A text without letters is English."""
    sample = text[:_SAMPLE]
    if not sample.isascii():
        counts = {name: len(pattern.findall(sample)) for name, pattern in _SCRIPTS.items()}
        if counts["kana"]:
            counts["kana"] += counts["han"]  # Japanese uses both
        most = max(counts, key=counts.__getitem__)
        if counts[most] * 2 > len(_LATIN.findall(sample)):
            return most
    words = _WORD.findall(sample.lower())
    english, others = sum(map(_ENGLISH.__contains__, words)), sum(map(_other_words().__contains__, words))
    if english == others:
        return "english" if 2 * sum(map(word_classes().__contains__, words)) >= len(words) else "latin"
    return "english" if english > others else "latin"


_ENGLISH: Final = frozenset(
    [
        "the",
        "of",
        "and",
        "that",
        "you",
        "your",
        "it",
        "for",
        "with",
        "from",
        "this",
        "what",
        "how",
        "does",
        "not",
        "are",
        "was",
        "have",
        "has",
        "can",
        "will",
        "would",
        "please",
        "they",
        "which",
        "when",
        "about",
        "there",
        "all",
        "any",
        "been",
        "if",
        "then",
        "than",
        "into",
        "only",
        "my",
        "we",
        "who",
        "why",
        "should",
        "could",
        "must",
        "be",
        "by",
        "or",
        "at",
    ]
)


@lru_cache(maxsize=1)
def _other_words() -> frozenset[str]:
    """Small words of other languages in Latin script, without those that are English too."""
    english = _ENGLISH | frozenset(("me", "do", "no", "on", "in", "is", "as", "to", "so", "an", "he", "she", "her", "his", "its", "as"))
    return frozenset(word for word in small_words() if len(word) > 1 and _LATIN.match(word) and word not in english)
