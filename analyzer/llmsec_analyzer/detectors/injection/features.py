"""From a text to the few hundred numbers that the model weighs. The same code trains and judges.

Three families, all hashed into one table: words (1 to 3 in a row), concepts (what a word means for
injection, in some thirty languages: alone, in pairs and in threes, apart for what stands in quotes), and marks (rules that
matched, hiding that was undone, delimiters, addresses). Each family has length 1, so a long text weighs no more than a short one.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np

WORDS: Final = 1 << 18
CONCEPTS: Final = 1 << 16
MARKS: Final = 1 << 12
SIZE: Final = WORDS + CONCEPTS + MARKS
_CONCEPT_BASE, _MARK_BASE = WORDS, WORDS + CONCEPTS
_A, _B, _C, _D = (np.uint32(number) for number in (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F))

# Words, single characters of scripts without spaces, marks of punctuation. Two patterns: the second is twice as fast.
_TOKEN = re.compile(r"[\u0e00-\u0e7f]|[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_]+|[^\w\s]")
_ASCII_TOKEN = re.compile(r"[a-z0-9]+|[^a-z0-9_\s]")
_ADDRESS = re.compile(r"(?P<u>https?://[^\s<>\"')\]]+|www\.[^\s<>\"')\]]+)|[\w.+-]+@[\w-]+\.[\w.-]+")
_QUOTED = re.compile(
    r"\"[^\"\n]{3,240}\"|“[^”\n]{3,240}”|«[^»\n]{3,240}»|「[^」\n]{2,240}」|„[^“”\n]{3,240}[“”]|`[^`\n]{3,240}`|'(?<=[\s(:]')[^'\n]{8,240}'(?=[\s).,:;?!]|$)"
)
# Pieces of text that say something about how a text is built, and the mark each is.
_SIGNS: Final[dict[str, str]] = {
    "role_tag": "<system </system <assistant </assistant <user> </user <instruction </instruction <admin </admin <developer </developer"
    " <|im_start <|im_end <|system <|user <|assistant <information> <important> [inst] [/inst] [system] [sys] [admin] <<sys <|end <sys </sys",
    "role_colon": "system: assistant: developer: admin: human: override:",
    "closing": "</document </content </result </context </tool </data </email </page </text \"\"\" ''' ----- ===== ##### ***** ~~~~~ ``` ###",
    "comment": "<!-- /* display:none font-size:0 color:white alt=",
    "image": "![ <img src=",
    "placeholder": "[your [insert {{ [name [target <insert",
    "code": "def( function( import ;\n #include ();",
    "ellipsis": "... …",
}


@lru_cache(maxsize=1)
def lexicon() -> tuple[dict[str, int], dict[str, int]]:
    """Stems by concept, and the pieces found anywhere with theirs. Both lower-case."""
    stems: dict[str, int] = {}
    pieces: dict[str, int] = {}
    number = 0
    for line in (Path(__file__).parent / "lexicon.txt").read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        number += 1
        before, _, after = line.partition(":")[2].partition("|")
        for stem in before.split():
            stems.setdefault(stem.lower(), number)
        # Phrases stand in double quotes; other pieces are single words.
        for phrase, word in re.findall(r'"([^"]+)"|(\S+)', after):
            pieces.setdefault((phrase or word).lower(), number)
    return stems, pieces


_SHORT_STEMS = 5


def _concept_of(word: str, stems: dict[str, int]) -> int:
    """The concept of the longest stem that the word begins with; short stems must be the whole word, give or take two letters."""
    for size in range(min(len(word), 14), 1, -1):
        found = stems.get(word[:size])
        if found is not None and (size >= _SHORT_STEMS or len(word) - size <= (2 if size >= 4 else 0)):
            return found
    return 0


@lru_cache(maxsize=4096)
def _mark_id(name: str) -> int:
    return _MARK_BASE + zlib.crc32(name.encode()) % MARKS


class _Hashes(dict[str, int]):
    """Of each word met, its hash; numbers are all one word."""

    def __missing__(self, token: str) -> int:
        shown = token if token.isalpha() or len(token) == 1 else re.sub(r"\d+", "0", token)
        found = self[token] = zlib.crc32(shown.encode("utf-8", "surrogatepass"))
        return found


class _ConceptsOf(dict[str, int]):
    """Of each word met, its concept; 0 for most."""

    def __init__(self, stems: dict[str, int]) -> None:
        super().__init__()
        self._stems = stems

    def __missing__(self, token: str) -> int:
        found = self[token] = _concept_of(token, self._stems) if len(token) > 1 else 0
        return found


class Extractor:
    """`features(text, role, marks)`: places in the table and their values. Keeps what it knows of words it has met."""

    def __init__(self) -> None:
        import ahocorasick_rs  # noqa: PLC0415

        self._stems, pieces = lexicon()
        self._meaning: list[int | str] = list(pieces.values())
        anywhere = list(pieces)
        for mark, signs in _SIGNS.items():
            for sign in signs.split(" "):
                anywhere.append(sign)
                self._meaning.append(mark)
        self._anywhere = ahocorasick_rs.AhoCorasick(anywhere)
        self._hashes = _Hashes()
        self._concepts_of = _ConceptsOf(self._stems)

    def features(self, text: str, role: str = "user", marks: Iterable[str] = ()) -> tuple[Any, Any]:
        lowered = text.lower()
        found_marks = set(marks)
        if "://" in lowered or "@" in lowered or "www." in lowered:
            lowered = _ADDRESS.sub(lambda found: " urlurl " if found["u"] else " mailmail ", lowered)
            found_marks.update(("url",) if " urlurl " in lowered else (), ("mail",) if " mailmail " in lowered else ())
        hashes, concepts_of = self._hashes, self._concepts_of
        if len(hashes) > 200_000:
            hashes.clear()
            concepts_of.clear()
        pattern = _ASCII_TOKEN if lowered.isascii() else _TOKEN
        tokens = pattern.findall(lowered)
        # (number of the word, concept)
        sequence = [(at, concept) for at, concept in enumerate(map(concepts_of.__getitem__, tokens)) if concept]
        pieces = self._anywhere.find_matches_as_indexes(lowered)
        if pieces:
            scale = len(tokens) / max(1, len(lowered))
            for number, start, _ in pieces:
                meaning = self._meaning[number]
                if isinstance(meaning, str):
                    found_marks.add(meaning)
                else:
                    sequence.append((int(start * scale), meaning))
            sequence.sort()
        found_marks.add(f"size{len(text).bit_length()}")
        if text.isupper() or (len(text) > 20 and sum(map(str.isupper, text[:200])) * 3 > min(200, len(text))):
            found_marks.add("shout")
        if lowered.rstrip().endswith("?"):
            found_marks.add("question")
        tool = role in ("tool", "document", "function")
        mark_ids = set(map(_mark_id, found_marks))
        if tool:
            mark_ids.update([_mark_id("tool:" + name) for name in found_marks])
        quoted = (
            self._quoted(text, len(tokens))
            if len(sequence) > 1 and ('"' in text or "\u201c" in text or "`" in text or not text.isascii())
            else ()
        )
        words = self._words(list(map(hashes.__getitem__, tokens)))
        concepts = sorted(self._concepts(sequence, quoted, tool=tool))
        ids = np.concatenate((words, np.array(concepts + sorted(mark_ids), dtype=np.int64)))
        values = np.empty(len(ids), dtype=np.float32)
        first, second = len(words), len(words) + len(concepts)
        values[:first] = 1.0 / max(1.0, first**0.5)
        values[first:second] = 1.0 / max(1.0, len(concepts) ** 0.5)
        values[second:] = 0.7 / max(1.0, len(mark_ids) ** 0.5)
        return ids, values

    @staticmethod
    def _quoted(text: str, tokens: int) -> list[tuple[int, int]]:
        """The words that stand in quotes, by number; none where quotes hold nearly all of the text."""
        scale = tokens / max(1, len(text))
        spans = [found.span() for found in _QUOTED.finditer(text)]
        return [(int(start * scale), int(end * scale) + 1) for start, end in spans if end - start < 0.7 * len(text)]

    @staticmethod
    def _words(hashes: list[int]) -> Any:
        one = np.array(hashes, dtype=np.uint32)
        parts = [one]
        if len(one) > 1:
            two = one[:-1] * _A + one[1:] * _B
            parts.append(two)
            if len(one) > 2:
                parts.append(two[:-1] * _C + one[2:] * _D)
        return np.unique(np.concatenate(parts) >> np.uint32(32 - 18)).astype(np.int64)

    @staticmethod
    def _concepts(places: list[tuple[int, int]], quoted: Sequence[tuple[int, int]], *, tool: bool) -> set[int]:
        """Concepts alone, pairs of them within 10 words, threes within 15; those in quotes are other concepts."""
        if quoted:
            places = [(at, concept + 32 if any(start <= at < end for start, end in quoted) else concept) for at, concept in places]
        out: set[int] = set()
        add = out.add
        count = min(len(places), 300)
        for index in range(count):
            at, first = places[index]
            add(first)
            if tool:
                add(first + 90_001)
            for second_index in range(index + 1, min(index + 5, count)):
                there, second = places[second_index]
                if there - at > 10:
                    break
                pair = first * 67 + second
                add(pair + 1_000)
                if tool:
                    add(pair + 900_007)
                for third_index in range(second_index + 1, min(second_index + 3, count)):
                    beyond, third = places[third_index]
                    if beyond - at > 15:
                        break
                    add(pair * 67 + third + 2_000_000)
        return {_CONCEPT_BASE + ((key * 2654435761) >> 7 & (CONCEPTS - 1)) for key in out}


WINDOW: Final = 700
STEP: Final = 500


def windows(text: str) -> list[tuple[int, int]]:
    """Parts of the text that are judged one by one: all of it where it is short, else pieces of some 700 characters that overlap."""
    size = len(text)
    if size <= WINDOW + 200:
        return [(0, size)]
    found: list[tuple[int, int]] = []
    start = 0
    while True:
        end = min(size, start + WINDOW)
        if end < size:
            space = max(text.rfind(" ", start + WINDOW - 120, end), text.rfind("\n", start + WINDOW - 120, end))
            end = space if space > 0 else end
        found.append((start, end))
        if end >= size:
            return found
        start = max(start + 1, end - (WINDOW - STEP))
