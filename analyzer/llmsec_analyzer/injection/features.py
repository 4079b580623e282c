"""From a text to the few hundred numbers that the model weighs. The same code trains and judges.

Four families, all hashed into one table: words (1 to 3 in a row), kinds of words (the same with each word replaced by the class
of words that are used alike, so that what is learnt of `disregard` holds for `overlook`), concepts (what a word means for
injection, in some thirty languages: alone, in pairs and in threes), and marks (rules that matched, hiding that was undone,
delimiters, addresses). What stands in quotes is other words and other concepts: somebody else says it. Each family has length 1,
so a long text weighs no more than a short one.

Words are looked up once a text, and windows of a long text are slices of the same arrays.
"""

from __future__ import annotations

import re
import zlib
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

WORDS: Final = 1 << 18
CLASSES: Final = 1 << 17
CONCEPTS: Final = 1 << 16
MARKS: Final = 1 << 12
SIZE: Final = WORDS + CLASSES + CONCEPTS + MARKS
_CLASS_BASE, _CONCEPT_BASE, _MARK_BASE = WORDS, WORDS + CLASSES, WORDS + CLASSES + CONCEPTS
_BASES = np.array((_CLASS_BASE, _CONCEPT_BASE, _MARK_BASE), dtype=np.uint32)
_A, _B, _C, _D = (np.uint32(number) for number in (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F))
# What a quotation says, somebody else says: its words are other words.
_IN_QUOTES = np.uint32(0xA5A5C3C3)
_SHIFTS = np.array([[32 - 18], [32 - 17]], dtype=np.uint32)
_STARTS = np.array([[0], [_CLASS_BASE]], dtype=np.uint32)

# Words, single characters of scripts without spaces, marks of punctuation. Two patterns: the second is twice as fast.
_TOKEN = re.compile(r"[\u0e00-\u0e7f]|[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_]+|[^\w\s]")
_ASCII_TOKEN = re.compile(r"[a-z0-9]+|[^a-z0-9_\s]")
_ADDRESS = re.compile(r"(?P<u>https?://[^\s<>\"')\]]+|www\.[^\s<>\"')\]]+)|[\w.+-]{1,64}@[\w-]+\.[\w.-]+")
# A web address and a mail address are one word each, whatever they hold.
_URL, _MAIL = "\x01", "\x02"
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

WINDOW: Final = 1000
STEP: Final = 750
UNCUT: Final = WINDOW + 300
_BLOCK: Final = 250


class _Wordbook(dict[str, int]):
    """Of each word met, its number; what is known of the word stands in the arrays under that number."""

    def __init__(self) -> None:
        super().__init__()
        self._classes = word_classes()
        self._room(1 << 14)

    def _room(self, size: int) -> None:
        self.hashes = np.zeros((2, size), dtype=np.uint32)
        self.concepts = np.zeros(size, dtype=np.uint8)

    def forget(self) -> None:
        """Texts of made-up words must not fill the memory."""
        self.clear()
        self._room(1 << 14)

    def __missing__(self, token: str) -> int:
        number = len(self)
        if number == len(self.concepts):
            self.hashes = np.concatenate((self.hashes, np.zeros_like(self.hashes)), axis=1)
            self.concepts = np.concatenate((self.concepts, np.zeros_like(self.concepts)))
        self[token] = number
        word = token if token.isalpha() or len(token) == 1 else _DIGITS.sub("0", token)  # numbers are all one word
        self.hashes[0, number] = zlib.crc32(word.encode("utf-8", "surrogatepass"))
        kind = self._classes.get(token)
        self.hashes[1, number] = zlib.crc32(b"kind %d" % kind if kind is not None else _shape(token).encode("utf-8", "surrogatepass"))
        self.concepts[number] = concept_of(token)
        return number


_DIGITS = re.compile(r"\d+")


def _shape(token: str) -> str:
    """The kind of a token that is in no class: words of all languages are one, a mark is itself."""
    if len(token) == 1 and not token.isalnum():
        return token
    if token.isdigit():
        return "number"
    return "word" if token.isalpha() else "mixture"


class Window(msgspec.Struct):
    """One part to judge, in characters of the text: places in the table, their values, and the rules that matched in it."""

    start: int
    end: int
    ids: Any
    values: Any
    signs: list[str]


class Extractor:
    """`windows(text, role, marks, spots)`: the parts of a text, each with its features. Keeps what it knows of words it has met."""

    def __init__(self) -> None:
        import ahocorasick_rs  # noqa: PLC0415

        _, pieces = lexicon()
        self._meaning: list[int | str] = list(pieces.values())
        anywhere = list(pieces)
        for mark, signs in _SIGNS.items():
            for sign in signs.split(" "):
                anywhere.append(sign)
                self._meaning.append(mark)
        self._anywhere = ahocorasick_rs.AhoCorasick(anywhere)
        self._words = _Wordbook()

    def windows(self, text: str, role: str = "user", marks: Iterable[str] = (), spots: Sequence[tuple[int, int, str]] = ()) -> list[Window]:
        """`spots`: where rules matched (start, end, id). Windows of a long text overlap; a short one is one window."""
        lowered = text.lower()
        if len(lowered) != len(text):  # a few capitals become two characters; places must stay
            lowered = "".join(small if len(small := char.lower()) == 1 else char for char in text)
        if "://" in lowered or "@" in lowered or "www." in lowered:
            lowered = _ADDRESS.sub(_one_word, lowered)
        words = self._words
        if len(words) > 200_000:
            words.forget()
        cuts = _cuts(lowered)
        pattern = _ASCII_TOKEN if lowered.isascii() else _TOKEN
        tokens: list[str] = []
        firsts = [0]  # of each block, the number of its first word
        for start, end in pairwise(cuts):
            tokens += pattern.findall(lowered, start, end)
            firsts.append(len(tokens))
        numbers = np.fromiter(map(words.__getitem__, tokens), np.int64, len(tokens))
        hashes = words.hashes[:, numbers]
        quoted = _quoted(text, cuts, firsts) if '"' in text or "`" in text or "'" in text or not text.isascii() else []
        for first, last in quoted:
            hashes[:, first:last] ^= _IN_QUOTES
        grams = _in_a_row(hashes)
        concepts = words.concepts[numbers]
        spoken = np.flatnonzero(concepts)
        sequence = list(zip(spoken.tolist(), concepts[spoken].tolist(), strict=True))
        signs: list[str] = []
        sign_places: list[int] = []
        pieces = self._anywhere.find_matches_as_indexes(lowered)
        if pieces:
            for number, start, _ in pieces:
                meaning = self._meaning[number]
                if isinstance(meaning, str):
                    signs.append(meaning)
                    sign_places.append(start)
                else:
                    sequence.append((_word_at(start, cuts, firsts), meaning))
            sequence.sort()
        if quoted:
            sequence = _apart_in_quotes(sequence, quoted)
        tool = role in ("tool", "document", "function")
        places, keys = _concepts(sequence, tool=tool)
        constant = tuple(marks)
        found: list[Window] = []
        last_block = len(cuts) - 2
        block = 0
        while True:
            until = min(block + WINDOW // _BLOCK - 1, last_block)
            start, end = cuts[block], cuts[until + 1]
            first, last = firsts[block], firsts[until + 1]
            names = set(signs[bisect_left(sign_places, start) : bisect_left(sign_places, end)])
            rules = sorted({name for begin, stop, name in spots if begin < end and start < stop}) if spots else []
            names.update(constant, rules, _manner(text[start:end]))
            concept_keys = keys[bisect_left(places, first) : bisect_left(places, last)]
            marks_of = list(map(_mark_id, names))
            if tool:
                marks_of += [_mark_id("tool:" + name) for name in names]
            ids, values = _gathered(_part(grams, len(tokens), first, last), concept_keys + marks_of)
            found.append(Window(start, end, ids, values, rules))
            if until >= last_block:
                return found
            block += STEP // _BLOCK

    def phrases(self, text: str) -> list[tuple[str, int]]:
        """The words of a short text, one to three in a row, each with its place in the table. Of words that are in no list, nothing is said."""
        lowered = text[:UNCUT].lower()
        tokens = _TOKEN.findall(_ADDRESS.sub(_one_word, lowered))
        numbers = np.fromiter(map(self._words.__getitem__, tokens), np.int64, len(tokens))
        one = self._words.hashes[:1, numbers]
        known = [token if token in word_classes() or concept_of(token) or not token.isalnum() else "" for token in tokens]
        found: list[tuple[str, int]] = []
        for size, ids in zip((1, 2, 3), _rows(one), strict=True):
            for at, number in enumerate(ids.tolist()):
                row = known[at : at + size]
                if all(row) and any(map(str.isalpha, row)):
                    found.append((" ".join(row), number))
        return found


def _one_word(found: re.Match[str]) -> str:
    return (_URL if found["u"] else _MAIL) + " " * (found.end() - found.start() - 1)


def _cuts(text: str) -> list[int]:
    """Where a long text may be cut into windows: every 250 characters or a little before, between words."""
    size = len(text)
    if size <= UNCUT:
        return [0, size]
    found = [0]
    while size - found[-1] > _BLOCK:
        end = found[-1] + _BLOCK
        space = max(text.rfind(" ", end - 60, end), text.rfind("\n", end - 60, end))
        found.append(space if space > 0 else end)
    found.append(size)
    return found


def _word_at(place: int, cuts: list[int], firsts: list[int]) -> int:
    """The number of the word at a place: known for each block, between them by share."""
    block = min(bisect_left(cuts, place + 1) - 1, len(cuts) - 2)
    share = (place - cuts[block]) / max(1, cuts[block + 1] - cuts[block])
    return firsts[block] + int(share * (firsts[block + 1] - firsts[block]))


def _in_a_row(one: Any) -> Any:
    """Ids of one, two and three in a row, each by the number of the first, behind one another; a row of words, one of their kinds."""
    two, three = _twos_and_threes(one)
    every = np.concatenate((one, two, three), axis=1)
    every >>= _SHIFTS
    every += _STARTS
    return every


def _twos_and_threes(one: Any) -> tuple[Any, Any]:
    two = one[:, :-1] * _A
    two += one[:, 1:] * _B
    three = two[:, :-1] * _C
    three += one[:, 2:] * _D
    return two, three


def _rows(one: Any) -> list[Any]:
    """Ids of one, two and three words in a row, apart."""
    return [(grams[0] >> _SHIFTS[0, 0]) + _STARTS[0, 0] for grams in (one, *_twos_and_threes(one))]


def _part(grams: Any, words: int, first: int, last: int) -> tuple[Any, ...]:
    """Of what `_in_a_row` gave for so many words, that which begins and ends in a part of them."""
    if last - first == words:
        return (grams.ravel(),)
    second, third = words, 2 * words - 1
    return (
        grams[:, first:last].ravel(),
        grams[:, second + first : second + max(first, last - 1)].ravel(),
        grams[:, third + first : third + max(first, last - 2)].ravel(),
    )


def _quoted(text: str, cuts: list[int], firsts: list[int]) -> list[tuple[int, int]]:
    """The words in quotes, by number; none where quotes hold nearly all of the text."""
    spans = [found.span() for found in _QUOTED.finditer(text)]
    return [(_word_at(a, cuts, firsts), _word_at(b - 1, cuts, firsts) + 1) for a, b in spans if b - a < 0.7 * len(text)]


def _apart_in_quotes(sequence: list[tuple[int, int]], quoted: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Concepts in quotes are others."""
    begins = [begin for begin, _ in quoted]
    out: list[tuple[int, int]] = []
    for at, concept in sequence:
        before = bisect_left(begins, at + 1) - 1
        out.append((at, concept + 32 if before >= 0 and at < quoted[before][1] else concept))
    return out


def _concepts(sequence: list[tuple[int, int]], *, tool: bool) -> tuple[list[int], list[int]]:
    """Concepts alone, pairs of them within 10 words, threes within 15: the word each begins at, and its id."""
    places: list[int] = []
    keys: list[int] = []
    for index, (at, first) in enumerate(sequence):
        keys.append(first)
        if tool:
            keys.append(first + 90_001)
        following = sequence[index + 1 : index + 7]
        for offset, (there, second) in enumerate(following[:4], 1):
            if there - at > 10:
                break
            pair = first * 67 + second
            keys.append(pair + 1_000)
            if tool:
                keys.append(pair + 900_007)
            for beyond, third in following[offset : offset + 2]:
                if beyond - at > 15:
                    break
                keys.append(pair * 67 + third + 2_000_000)
        places += [at] * (len(keys) - len(places))
    return places, [_CONCEPT_BASE + ((key * 2654435761) >> 7 & (CONCEPTS - 1)) for key in keys]


def _gathered(grams: Sequence[Any], others: list[int]) -> tuple[Any, Any]:
    """All families of one window: each id once, in order, with the value that gives its family its length."""
    ids = np.concatenate((*grams, np.array(others, dtype=np.uint32)))
    ids.sort()
    keep = np.empty(len(ids), dtype=bool)
    keep[:1] = True
    np.not_equal(ids[1:], ids[:-1], out=keep[1:])
    ids = ids[keep]
    edges = [0, *ids.searchsorted(_BASES).tolist(), len(ids)]
    counts = [end - start for start, end in pairwise(edges)]
    each = np.array([share / max(1, count) ** 0.5 for share, count in zip(_SHARES, counts, strict=True)], dtype=np.float32)
    return ids.astype(np.int64), each.repeat(counts)


_SHARES: Final = (1.0, 1.0, 1.0, 0.7)


def _manner(text: str) -> list[str]:
    """Length, shouting, asking."""
    names = [f"size{len(text).bit_length()}"]
    if text.isupper() or (len(text) > 20 and sum(map(str.isupper, text[:200])) * 3 > min(200, len(text))):
        names.append("shout")
    if text.rstrip().endswith("?"):
        names.append("question")
    return names


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


@lru_cache(maxsize=1)
def word_classes() -> dict[str, int]:
    """The class of each of the commonest English words. The file has one class a line, made by training/word_classes.py."""
    lines = (Path(__file__).parent / "word_classes.txt").read_text(encoding="ascii").splitlines()
    return {word: number for number, line in enumerate(lines) if not line.startswith("#") for word in line.split()}


@lru_cache(maxsize=1)
def lexicon_names() -> list[str]:
    """The names of the concepts; their numbers begin with 1."""
    lines = (Path(__file__).parent / "lexicon.txt").read_text(encoding="utf-8").splitlines()
    return [line.partition(":")[0] for line in lines if line and not line.startswith("#")]


def concept_pieces(lowered: str) -> frozenset[int]:
    """The concepts of phrases and of words in scripts without spaces that stand anywhere in a text."""
    finder, meaning = _pieces_finder()
    return frozenset(meaning[number] for number, _, _ in finder.find_matches_as_indexes(lowered))


@lru_cache(maxsize=1)
def _pieces_finder() -> tuple[Any, list[int]]:
    import ahocorasick_rs  # noqa: PLC0415

    pieces = lexicon()[1]
    return ahocorasick_rs.AhoCorasick(list(pieces)), list(pieces.values())


_SHORT_STEMS = 5


@lru_cache(maxsize=8192)
def concept_of(word: str) -> int:
    """The concept of the longest stem that the word begins with, or 0; short stems must be the whole word, give or take two letters."""
    stems = lexicon()[0]
    for size in range(min(len(word), 14), 1, -1):
        found = stems.get(word[:size])
        if found is not None and (size >= _SHORT_STEMS or len(word) - size <= (2 if size >= 4 else 0)):
            return found
    return 0


@lru_cache(maxsize=4096)
def _mark_id(name: str) -> int:
    return _MARK_BASE + zlib.crc32(name.encode()) % MARKS
