"""Undoes obfuscation: invisible and look-alike characters, spaced letters, encodings, reversal.

Each undoing runs only where a cheap hint asks for it. The result keeps, for every character, the place it came from,
so that whatever is found in it can be shown in the text as sent. That a text was obfuscated is not by itself evidence of
an attack: `kinds` is a feature among others, and harmless texts are encoded too.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import html
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable
from itertools import repeat
from urllib.parse import unquote

INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufe00-\ufe0f\ufeff\U000e0100-\U000e01ef]"
)
# A letter under each of which marks are heaped; a byte in each selector of a variation (16 in one block, 240 in the other).
_MARKS = re.compile("(?<=[^\\W\\d_])[\u0300-\u036f]+")
_SELECTORS = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]{4,}")
_MARK = re.compile("[\u0300-\u036f]")
_TAGS = re.compile("[\U000e0000-\U000e007f]+")
COMPATIBLE = re.compile("[\u2100-\u214f\u2460-\u24ff\uff00-\uffef\U0001d400-\U0001d7ff\U0001f110-\U0001f189]")
# Each pair: a letter of another script, and the Latin one it looks like.
_LOOKALIKES = {
    ord(pair[0]): pair[1]
    for pair in [
        "аa",
        "еe",
        "оo",
        "рp",
        "сc",
        "уy",
        "хx",
        "іi",
        "јj",
        "ѕs",
        "ԁd",
        "һh",
        "ӏl",
        "ԛq",
        "ԝw",
        "ьb",
        "вb",
        "нh",
        "кk",
        "мm",
        "тt",
        "АA",
        "ВB",
        "ЕE",
        "КK",
        "МM",
        "НH",
        "ОO",
        "РP",
        "СC",
        "ТT",
        "ХX",
        "УY",
        "ІI",
        "ЈJ",
        "ЅS",
        "ԌG",
        "ԜW",
        "οo",
        "αa",
        "εe",
        "νv",
        "ρp",
        "τt",
        "υu",
        "ιi",
        "κk",
        "χx",
        "βb",
        "ΑA",
        "ΒB",
        "ΕE",
        "ΖZ",
        "ΗH",
        "ΙI",
        "ΚK",
        "ΜM",
        "ΝN",
        "ΟO",
        "ΡP",
        "ΤT",
        "ΥY",
        "ΧX",
        "ɡg",
        "ɑa",
        "ıi",
        "оo",
        "սu",
        "օo",
        "ցg",
        "հh",
        "ոn",
        "ᴀa",
        "ʙb",
        "ᴄc",
        "ᴅd",
        "ᴇe",
        "ғf",
        "ɢg",
        "ʜh",
        "ɪi",
        "ᴊj",
        "ᴋk",
        "ʟl",
        "ᴍm",
        "ɴn",
        "ᴏo",
        "ᴘp",
        "ʀr",
        "ᴛt",
        "ᴜu",
        "ᴠv",
        "ᴡw",
        "ʏy",
        "ᴢz",
    ]
}
_MIXED_WORD = re.compile("(?=[^\\W\\d_]*[A-Za-z])(?=[^\\W\\d_]*[\u0250-\u02af\u0370-\u058f\u1d00-\u1d7f])[^\\W\\d_]{3,}")
_OTHER_LETTER = re.compile("[\u0250-\u02af\u0370-\u058f\u1d00-\u1d7f]")
_SPACED = re.compile(
    r"(?<![^\W_])(?:[^\W_]([ .\-_*|])(?=[^\W_](?:\1|[^\w]|$))){4,}[^\W_](?:(?:\1|[,.!?:;'\"])*(?:  ?| ?\1{2,3} ?)(?:[^\W_]\1?(?=[^\w]|$)[,.!?:;'\"]?)+)*"
)
BASE64 = re.compile(r"(?<![A-Za-z0-9+/_=-])[A-Za-z0-9+/_-]{20,}={0,2}(?![A-Za-z0-9+/])")
_HEX = re.compile(r"(?<![0-9A-Za-z])(?:(?:\\x|0x|%)?[0-9a-fA-F]{2}[ ,:]?){10,}(?![0-9A-Za-z])")
_BINARY = re.compile(r"(?<!\d)(?:[01]{8} ?){5,}(?!\d)")
_ESCAPES = re.compile(r"(?:\\u[0-9a-fA-F]{4}){3,}|(?:&#x?[0-9a-fA-F]{2,5};){3,}|(?:%[0-9a-fA-F]{2}){4,}|(?:[A-Za-z]*%20){3,}[^\s]*")
_LEET_WORD = re.compile(r"(?<![\w@$!|+])(?=[\w@$!|+]*[a-zA-Z])(?=[\w@$!|+]*[0134578@$!|+])[a-zA-Z0134578@$!|+]{2,}(?![\w@$])")
_LEET = str.maketrans("0134578@$!|+", "oieastbasilt")
_WORD = re.compile(r"[A-Za-z]{2,}")

# The hundred and more commonest words of English, and those that orders to a model are made of: enough to tell text from noise.
COMMON = frozenset(
    [
        "the",
        "of",
        "and",
        "to",
        "in",
        "is",
        "that",
        "for",
        "it",
        "as",
        "was",
        "with",
        "be",
        "by",
        "on",
        "not",
        "he",
        "his",
        "but",
        "at",
        "are",
        "this",
        "have",
        "from",
        "or",
        "had",
        "an",
        "they",
        "which",
        "one",
        "you",
        "were",
        "all",
        "her",
        "she",
        "there",
        "would",
        "their",
        "we",
        "him",
        "been",
        "has",
        "when",
        "who",
        "will",
        "no",
        "more",
        "if",
        "out",
        "so",
        "what",
        "up",
        "said",
        "its",
        "about",
        "into",
        "than",
        "them",
        "can",
        "only",
        "other",
        "time",
        "new",
        "some",
        "could",
        "these",
        "two",
        "may",
        "first",
        "then",
        "do",
        "any",
        "like",
        "my",
        "now",
        "over",
        "such",
        "our",
        "man",
        "me",
        "even",
        "most",
        "made",
        "after",
        "also",
        "did",
        "many",
        "must",
        "before",
        "back",
        "see",
        "through",
        "way",
        "where",
        "get",
        "much",
        "go",
        "well",
        "your",
        "know",
        "should",
        "down",
        "work",
        "year",
        "because",
        "come",
        "people",
        "just",
        "say",
        "each",
        "those",
        "take",
        "day",
        "good",
        "how",
        "long",
        "us",
        "own",
        "use",
        "make",
        "give",
        "please",
        "want",
        "need",
        "find",
        "ignore",
        "disregard",
        "forget",
        "previous",
        "prior",
        "above",
        "instructions",
        "instruction",
        "prompt",
        "system",
        "rules",
        "reveal",
        "print",
        "show",
        "tell",
        "repeat",
        "password",
        "secret",
        "key",
        "send",
        "email",
        "user",
        "assistant",
        "answer",
        "respond",
        "reply",
        "write",
        "output",
        "following",
        "text",
        "message",
        "developer",
        "mode",
        "restrictions",
        "act",
        "pretend",
        "without",
        "content",
        "model",
        "data",
        "help",
        "translate",
        "summarize",
        "explain",
        "what's",
        "hello",
        "thank",
        "account",
        "card",
        "order",
        "bank",
        "does",
        "mean",
        "why",
        "best",
        "list",
        "name",
        "number",
        "change",
        "update",
        "open",
        "let",
        "set",
        "using",
        "here",
        "every",
        "never",
        "always",
        "under",
        "between",
        "while",
        "again",
        "still",
        "write",
        "word",
        "words",
        "sentence",
        "question",
        "play",
        "music",
        "weather",
    ]
)


class Normalised:
    """`text`, and what was undone to get it. `span` leads back from places in it to places in the text as sent."""

    __slots__ = ("_steps", "kinds", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.kinds: list[str] = []
        # Of each step, its pieces: where each begins in the text after it, where in the text before it, and the sizes of both.
        self._steps: list[tuple[list[int], list[tuple[int, int, int]]]] = []

    def span(self, start: int, end: int, size: int) -> tuple[int, int]:
        """The part of the text as sent (of `size` characters) that characters start to end came from."""
        first, last = start, max(end - 1, start)
        for begins, pieces in reversed(self._steps):
            first, last = _before(first, begins, pieces), _before(last, begins, pieces)
        if not self._steps:
            return min(start, size), min(end, size)
        first = min(first, size)
        return first, min(max(last + 1, first), size)

    def outer(self, start: int, end: int) -> tuple[int, int, bool]:
        """All of the text as sent that characters start to end came from, changed pieces whole, and whether anything there was changed."""
        first, last, changed = start, max(end - 1, start), False
        for begins, pieces in reversed(self._steps):
            low, high = bisect_right(begins, first) - 1, bisect_right(begins, last) - 1
            if low < 0:
                break
            (before, size, now), (tail, tail_size, tail_now) = pieces[low], pieces[high]
            changed = changed or low != high or size != now
            first = before + (first - begins[low] if size == now else 0)
            last = tail + (last - begins[high] if tail_size == tail_now else max(tail_size - 1, 0))
        return first, last + 1, changed

    def replace(self, kind: str, pattern: re.Pattern[str], change: Callable[[str], str | None]) -> None:
        """Replace each match by what `change` makes of it; None leaves it."""
        parts: list[str] = []
        begins: list[int] = []
        pieces: list[tuple[int, int, int]] = []
        done = at = 0

        def add(part: str, start: int, size: int) -> None:
            nonlocal at
            if part:
                parts.append(part)
                begins.append(at)
                pieces.append((start, size, len(part)))
                at += len(part)

        for found in pattern.finditer(self.text):
            new = change(found[0])
            if new is None or new == found[0]:
                continue
            start, end = found.span()
            add(self.text[done:start], done, start - done)
            add(new, start, end - start)
            done = end
        if not done:
            return
        add(self.text[done:], done, len(self.text) - done)
        self.text = "".join(parts)
        self._steps.append((begins, pieces))
        if kind not in self.kinds:
            self.kinds.append(kind)


def _before(place: int, begins: list[int], pieces: list[tuple[int, int, int]]) -> int:
    """Where a character stood before a step: within what was replaced, by share."""
    number = bisect_right(begins, place) - 1
    if number < 0:
        return 0
    start, size, now = pieces[number]
    offset = min(place - begins[number], now - 1)
    return start + (offset if size == now else min(size - 1, offset * size // now))


_WHOLE = re.compile(r"(?s).+")
_SEGMENT = re.compile(r"[^\n:\"“”`]{12,}")


def normalise(text: str) -> Normalised:
    result = Normalised(text)
    if not text.isascii():
        _undo_characters(result)
    raw = result.text.encode("utf-8", "surrogatepass")
    size = len(raw)
    # Hints: counts of bytes, and the words; none of them looks at the text twice.
    digits = size - len(raw.translate(None, b"0123456789"))
    signs = size - len(raw.translate(None, b"0134578@$!|+"))
    pieces = result.text.split()
    if not pieces:
        return result
    sizes = list(map(len, pieces))
    longest = max(sizes)
    # Spaced letters stand one by one between spaces; of English, `a` and `I` do too, but not three in a row.
    alone = sizes.count(1) >= 5 and b"\x01\x01\x01" in bytes(map(min, sizes, repeat(2)))
    if alone or max(map(raw.count, (b".", b"-", b"_", b"*", b"|"))) * 4 > size:
        result.replace("spaced", _SPACED, _unspaced)
    if longest >= 20:
        result.replace("base64", BASE64, _unbase64)
    if digits * 5 > size or (longest >= 20 and digits >= 6):
        result.replace("hex", _HEX, _unhex)
        result.replace("binary", _BINARY, _unbinary)
    if b"\\u" in raw or b"&#" in raw or raw.count(b"%") >= 3:
        result.replace("escapes", _ESCAPES, _unescaped)
    if signs >= 4 and signs * 30 > size:
        sample = result.text[:20_000]
        if len(_LEET_WORD.findall(sample)) >= max(2, len(pieces) // 8):
            result.replace("leet", _LEET_WORD, _unleet)
    lowered = result.text.lower()
    common = sum(map(COMMON.__contains__, lowered.split()))
    if common * 6 < len(pieces):
        if result.text.isascii():
            _undo_whole(result)
    elif any(map(lowered.__contains__, _CIPHER_HINTS)):
        _undo_whole(result)
    return result


_CIPHER_HINTS = ("rot13", "rot-13", "rot 13", "revers", "backward", "decod", "deciph", "cipher", "caesar")


def _undo_characters(result: Normalised) -> None:
    if _TAGS.search(result.text):
        result.replace("tags", _TAGS, lambda run: " " + "".join(chr(ord(c) - 0xE0000) for c in run if 0xE0020 <= ord(c) < 0xE007F) + " ")
    if _SELECTORS.search(result.text):
        result.replace("selectors", _SELECTORS, _unselected)
    if 3 * len(_MARK.findall(result.text)) > len(result.text):
        result.replace("marks", _MARKS, lambda _: "")
    if len(INVISIBLE.findall(result.text)) >= 3:
        result.replace("invisible", INVISIBLE, lambda _: "")
    if COMPATIBLE.search(result.text):
        result.replace("compatible", COMPATIBLE, lambda char: unicodedata.normalize("NFKC", char))
    if _OTHER_LETTER.search(result.text) and _MIXED_WORD.search(result.text):
        result.replace("lookalikes", _MIXED_WORD, lambda word: word.translate(_LOOKALIKES))


def _share(text: str) -> float:
    """How much of it is common English."""
    words = _WORD.findall(text)
    return sum(map(COMMON.__contains__, map(str.lower, words))) / len(words) if len(words) >= 3 else 0.0


def _undo_whole(result: Normalised) -> None:
    def better(change: Callable[[str], str]) -> Callable[[str], str | None]:
        def apply(piece: str) -> str | None:
            changed = change(piece)
            return changed if _share(changed) >= max(0.25, _share(piece) + 0.2) else None

        return apply

    result.replace("rot13", _SEGMENT, better(lambda piece: codecs.encode(piece, "rot13")))
    before = result.text
    result.replace("reversed", _WHOLE, better(lambda piece: piece[::-1]))
    if result.text == before:
        result.replace("reversed", _SEGMENT, better(lambda piece: piece[::-1]))


def _readable(data: bytes) -> str | None:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return None
    if len(text) < 8 or not all(char.isprintable() or char in "\n\r\t" for char in text):
        return None
    letters = sum(char.isalpha() or char == " " for char in text)
    return f" {text} " if letters >= 0.8 * len(text) and " " in text.strip() else None


def _unselected(run: str) -> str | None:
    data = bytes(ord(char) - 0xFE00 if ord(char) < 0xFE10 else ord(char) - 0xE0100 + 16 for char in run)
    return _readable(data)


def _unbase64(run: str, layers: int = 3) -> str | None:
    body = run.rstrip("=").replace("-", "+").replace("_", "/")
    for size in (len(body), len(body) // 4 * 4):
        try:
            data = base64.b64decode(body[:size] + "=" * (-size % 4))
            inner = data.decode("ascii").strip() if layers > 1 and data.isascii() else ""
            if inner and BASE64.fullmatch(inner):
                return _unbase64(inner, layers - 1)
            return _readable(data)
        except (ValueError, binascii.Error):
            continue
    return None


def _unhex(run: str) -> str | None:
    digits = re.sub(r"\\x|0x|[% ,:]", "", run)
    try:
        return _readable(bytes.fromhex(digits[: len(digits) // 2 * 2]))
    except ValueError:
        return None


def _unbinary(run: str) -> str | None:
    bits = run.replace(" ", "")
    return _readable(bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits) // 8 * 8, 8)))


def _unescaped(run: str) -> str | None:
    if "\\u" in run:
        text = re.sub(r"\\u([0-9a-fA-F]{4})", lambda found: chr(int(found[1], 16)), run)
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")  # pairs joined, lone halves replaced
    return html.unescape(run).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace") if "&#" in run else unquote(run)


def _unspaced(run: str) -> str | None:
    separator = run[1]
    words = re.split(re.escape(separator) + r"{2,}| {2,}", run)
    joined = " ".join(word.replace(separator, "") for word in words)
    return joined if len(joined) >= 5 else None


def _unleet(word: str) -> str | None:
    if word.isalpha() or sum(char.isalpha() for char in word) * 3 < len(word):
        return None
    return word.lower().replace("11", "ll").translate(_LEET)
