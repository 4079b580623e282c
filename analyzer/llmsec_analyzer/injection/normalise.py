"""Undoes obfuscation: invisible and look-alike characters, spaced letters, encodings, reversal.

Each undoing runs only where a cheap hint asks for it. The result keeps, for every character, the place it came from,
so that whatever is found in it can be shown in the text as sent. That a text was obfuscated is not by itself evidence of
an attack: `kinds` is a feature among others, and harmless texts are encoded too.
"""

from __future__ import annotations

import html
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable
from itertools import repeat
from urllib.parse import unquote

from llmsec_analyzer.injection import codes
from llmsec_analyzer.injection.codes import readable, unwrapped

INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufe00-\ufe0f\ufeff\U000e0100-\U000e01ef]"
)
# A letter under each of which marks are heaped; a byte in each selector of a variation (16 in one block, 240 in the other).
_MARKS = re.compile("(?<=[^\\W\\d_])[\u0300-\u036f]+")
_SELECTORS = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]{4,}")
_MARK = re.compile("[\u0300-\u036f]")
_TAGS = re.compile("[\U000e0000-\U000e007f]+")
# Letters in another dress: modifiers, super- and subscripts, letter-like, enclosed, full width, mathematical, squared, regional.
COMPATIBLE = re.compile(
    "[\u02b0-\u02b8\u02e1-\u02e3\u1d2c-\u1d6a\u2070-\u209c\u2100-\u214f\u2460-\u24ff\u2c7c\u2c7d\uff00-\uffef"
    "\U0001d400-\U0001d7ff\U0001f110-\U0001f189\U0001f1e6-\U0001f1ff]"
)
# Rows of letters that Unicode does not map to the plain ones, by where they begin.
_ROWS = (0x1F110, 0x1F130, 0x1F150, 0x1F170, 0x1F1E6, 0x249C)
# Letters turned upside down, as texts that are written from the end use them.
_TURNED = dict(zip(map(ord, "ɐqɔpǝɟƃɓɥᴉıɾʞʅןɯuodbɹsʇnʌʍxʎz"), "abcdefgghiijkllmnopqrstuvwxyz", strict=True))
_TURNED_LETTERS = re.compile("[ɐɔǝɟƃɥᴉɾʞɯɹʇʌʍʎ]")
_OVERRIDDEN = re.compile("[\u202e\u2067]([^\u202c\u2069\n]{8,})[\u202c\u2069]?")
_ACCENTED = re.compile("[\u00c0-\u024f\u1e00-\u1eff]")
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
        "ꜰf",
        "ꜱs",
        "ǫq",
        "ʋv",
        "ɯw",
        "ɩi",
        "ʐz",
        "ҫc",
        "ӓa",
        "ӧo",
        "ԍg",
        "ʟl",
        "ⅼl",
    ]
}
_SMALL_CAPITALS = re.compile("[\u0250-\u02af\u1d00-\u1d25\ua730\ua731\u0493]")
_MIXED_WORD = re.compile("(?=[^\\W\\d_]*[A-Za-z])(?=[^\\W\\d_]*[\u0250-\u02af\u0370-\u058f\u1d00-\u1d7f])[^\\W\\d_]{3,}")
_OTHER_WORD = re.compile("[^\\W\\d_]*[\u0370-\u058f][^\\W\\d_]*")
_OTHER_LETTER = re.compile("[\u0250-\u02af\u0370-\u058f\u1d00-\u1d7f]")
_SPACED = re.compile(
    r"(?<![^\W_])(?:[^\W_]([ .\-_*|])(?=[^\W_](?:\1|[^\w]|$))){4,}[^\W_](?:(?:\1|[,.!?:;'\"])*(?:  ?| ?\1{2,3} ?)(?:[^\W_]\1?(?=[^\w]|$)[,.!?:;'\"]?)+)*"
)
BASE64 = re.compile(r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{20,}={0,2}(?![A-Za-z0-9+/])")
_RUN = re.compile(r"(?<![A-Za-z0-9+/_-])={0,2}[A-Za-z0-9+/_-]{20,}={0,6}(?![A-Za-z0-9+/])")
# Base 85 and base 91: no white space, and signs among the letters all over.
_SIGNS_RUN = re.compile(r"(?<!\S)(?=[!-~]{0,40}[!#$%&()*+;<>?@^`{|}~\[\]][!-~]{0,12}[!#$%&()*+;<>?@^`{|}~\[\]])[!-~]{20,}(?!\S)")
_BASE45 = re.compile(r"(?<![0-9A-Za-z])(?=[A-Z $%*+./:-]{0,24}[0-9])[0-9A-Z$%*+./:-][0-9A-Z $%*+./:-]{22,}[0-9A-Z$%*+./:-](?![0-9A-Za-z])")
_NUMBERS = re.compile(r"(?<![\w.])(?:(?:0[xo])?[0-9a-fA-F]{2,3}[ ,;|\n]{1,3}){8,}(?:0[xo])?[0-9a-fA-F]{2,3}(?![\w.])")
_CHARACTERS = re.compile(r"(?i)(?:chr\((?:0x)?[0-9a-f]{2,3}\)(?:\s{0,2}[+.,&]\s{0,2})?){4,}|(?:from)?charcodes?\([0-9a-fx, ]{12,}\)")
_MORSE = re.compile(r"(?<![\w.·•–—−-])(?:[.·•–—−_-]{1,6}(?:[ ]{1,3}|[ ]?[/|][ ]?)){5,}[.·•–—−_-]{1,6}(?![\w.·•–—−-])")
_BRAILLE = re.compile("[\u2800-\u283f]+(?:[ \n][\u2800-\u283f]+)*")
_QUOTED_PRINTABLE = re.compile(r"=(?:[0-9A-F]{2}|\n)(?:[A-Za-z ,.]{0,12}=(?:[0-9A-F]{2}|\n)){3,}")
_OCTAL = re.compile(r"(?:\\[01][0-7]{2}[ ]?){4,}")
_PUNYCODE = re.compile(r"(?<![a-z0-9-])xn--[a-z0-9-]{2,59}")
_HEX = re.compile(r"(?<![0-9A-Za-z])(?:(?:\\x|0x|%)?[0-9a-fA-F]{2}[ ,:]?){10,}(?![0-9A-Za-z])")
_BINARY = re.compile(r"(?<!\d)(?:[01]{8} ?){5,}(?!\d)")
_ESCAPES = re.compile(
    r"(?:(?:\\u\{?|%u|U\+)(?:00)?[0-9a-fA-F]{2,4}\}?[ ,]{0,2}){3,}|(?:&#x?[0-9a-fA-F]{2,5};){3,}|(?:%[0-9a-fA-F]{2}){4,}|(?:[A-Za-z0-9.,!'-]*%[2-7][0-9a-fA-F]){3,}[^\s]*"
)
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

    def replace(self, kind: str, pattern: re.Pattern[str], change: Callable[[str], str | tuple[str, str] | None]) -> None:
        """Replace each match by what `change` makes of it, which may be with its own kind; None leaves it."""
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
            made = change(found[0])
            named, new = made if isinstance(made, tuple) else (kind, made)
            if new is None or new == found[0]:
                continue
            if named not in self.kinds:
                self.kinds.append(named)
            start, end = found.span()
            add(self.text[done:start], done, start - done)
            add(new, start, end - start)
            done = end
        if not done:
            return
        add(self.text[done:], done, len(self.text) - done)
        self.text = "".join(parts)
        self._steps.append((begins, pieces))


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


# What was undone may have hidden something else; so often the hints are looked at again.
_PASSES = 3
# Letters in another dress hide no code that is not looked for right after.
_DRESS = frozenset(("tags", "marks", "invisible", "compatible", "lookalikes", "leet", "spaced"))


def normalise(text: str) -> Normalised:
    result = Normalised(text)
    for _ in range(_PASSES):
        before, known = result.text, len(result.kinds)
        if not before.isascii():
            _undo_characters(result)
        _undo_codes(result)
        if result.text == before or _DRESS.issuperset(result.kinds[known:]):
            break
    return result


_UPPER = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def _undo_codes(result: Normalised) -> None:
    raw = result.text.encode("utf-8", "surrogatepass")
    size = len(raw)
    # Hints: counts of bytes, and the words; none of them looks at the text twice.
    digits = size - len(raw.translate(None, b"0123456789"))
    signs = size - len(raw.translate(None, b"0134578@$!|+"))
    pieces = result.text.split()
    if not pieces:
        return
    sizes = list(map(len, pieces))
    longest = max(sizes)
    # Spaced letters stand one by one between spaces; of English, `a` and `I` do too, but not three in a row.
    alone = sizes.count(1) >= 5 and b"\x01\x01\x01" in bytes(map(min, sizes, repeat(2)))
    if b".- " in raw or b"-. " in raw or (size > len(result.text) and max(map(result.text.count, "·•–—−")) >= 5):
        result.replace("morse", _MORSE, codes.of_morse)
    if alone or max(map(raw.count, (b".", b"-", b"_", b"*", b"|"))) * 4 > size:
        result.replace("spaced", _SPACED, _unspaced)
    if longest >= 20:
        result.replace("base64", _RUN, unwrapped)
        if any(length >= 20 and codes.is_random(piece) for length, piece in zip(sizes, pieces, strict=True)):
            result.replace("base85", _SIGNS_RUN, codes.of_punctuation)
    if digits * 5 > size or (longest >= 20 and digits >= 6):
        result.replace("hex", _HEX, _unhex)
        result.replace("binary", _BINARY, _unbinary)
    if digits >= 2 and 2 * (size - len(raw.translate(None, _UPPER)) + digits) > size:
        result.replace("base45", _BASE45, codes.of_base45)
    if digits >= 16:
        if digits * 5 > size or b"ASCII" in raw or b"ascii" in raw or b"ecimal" in raw or b"octal" in raw or b"0x" in raw:
            result.replace("character codes", _NUMBERS, codes.of_numbers)
        if b"hr(" in raw or b"ode(" in raw or b"odes(" in raw:
            result.replace("character codes", _CHARACTERS, codes.of_numbers)
    if b"\\u" in raw or b"&#" in raw or b"U+" in raw or raw.count(b"%") >= 3:
        result.replace("escapes", _ESCAPES, _unescaped)
    if b"\\1" in raw or b"\\0" in raw:
        result.replace("escapes", _OCTAL, codes.of_octal)
    if raw.count(b"=") >= 4:
        result.replace("escapes", _QUOTED_PRINTABLE, codes.of_quoted_printable)
    if b"xn--" in raw:
        result.replace("punycode", _PUNYCODE, _unpunycode)
    if signs >= 4 and signs * 30 > size:
        sample = result.text[:20_000]
        if len(_LEET_WORD.findall(sample)) >= max(2, len(pieces) // 8):
            result.replace("leet", _LEET_WORD, _unleet)
    if b"+" in raw and (b'"' in raw or b"'" in raw):
        result.replace("joined", _JOINED, _rejoined)
        if raw.count(b"=") >= 2:
            _undo_variables(result)
    lowered = result.text.lower()
    if ("romeo" in lowered and "echo" in lowered) or ("tango" in lowered and "november" in lowered):
        result.replace("spelling words", codes.SPELLED, codes.of_spelling)
    if lowered.count("ay") * 3 > len(pieces) > 2:
        result.replace("pig latin", _WHOLE, _better(lambda piece: codes.of_pig_latin(piece, COMMON)))
    common = sum(map(COMMON.__contains__, lowered.split()))
    told = any(map(lowered.__contains__, _CIPHER_HINTS))
    if told or (common * 6 < len(pieces) and size == len(result.text)):
        _undo_whole(result, told=told)


_CIPHER_HINTS = (
    "rot13",
    "rot-13",
    "rot 13",
    "revers",
    "backward",
    "decod",
    "deciph",
    "cipher",
    "caesar",
    "atbash",
    "shift cipher",
    "shifted by",
)


def _undo_characters(result: Normalised) -> None:
    latin = _in_latin_1(result.text)
    if latin is not None:  # of what is below, such a text may hold soft hyphens and accents only
        if latin.count(b"\xad") >= 3:
            result.replace("invisible", INVISIBLE, lambda _: "")
        if 4 * (len(latin) - len(latin.translate(None, _HIGH))) > len(latin):
            result.replace("marks", _WHOLE, _better(_without_accents))
        return
    if _TAGS.search(result.text):
        result.replace("tags", _TAGS, lambda run: " " + "".join(chr(ord(c) - 0xE0000) for c in run if 0xE0020 <= ord(c) < 0xE007F) + " ")
    if _SELECTORS.search(result.text):
        result.replace("selectors", _SELECTORS, _unselected)
    if 3 * len(_MARK.findall(result.text)) > len(result.text):
        result.replace("marks", _MARKS, lambda _: "")
    if len(INVISIBLE.findall(result.text)) >= 3:
        result.replace("invisible", INVISIBLE, lambda _: "")
    if "\u202e" in result.text or "\u2067" in result.text:
        result.replace("reversed", _OVERRIDDEN, _better(lambda run: run.strip("\u202e\u202c\u2067\u2069")[::-1]))
    if COMPATIBLE.search(result.text):
        result.replace("compatible", COMPATIBLE, plain_letter)
    if _OTHER_LETTER.search(result.text):
        if ("ǝ" in result.text or "ɐ" in result.text) and len(_TURNED_LETTERS.findall(result.text)) >= 4:
            result.replace("reversed", _WHOLE, _better(_upside_down))
            result.replace("reversed", _SEGMENT, _better(_upside_down))
        if _MIXED_WORD.search(result.text):
            result.replace("lookalikes", _MIXED_WORD, lambda word: word.translate(_LOOKALIKES))
            others = len(_OTHER_LETTER.findall(result.text))
            if 4 * others < len(result.text):  # Latin text: short words, and those of look-alikes alone, are meant to be Latin too
                result.replace("lookalikes", _OTHER_WORD, _all_alike)
        if len(_SMALL_CAPITALS.findall(result.text)) >= 6:
            result.replace("lookalikes", _SMALL_CAPITALS, lambda word: word.translate(_LOOKALIKES))
    if _BRAILLE.search(result.text):
        result.replace("braille", _BRAILLE, codes.of_braille)
    if 5 * len(result.text.encode("utf-8", "surrogatepass")) > 6 * len(result.text) and 4 * len(_ACCENTED.findall(result.text)) > len(
        result.text
    ):
        result.replace("marks", _WHOLE, _better(_without_accents))


_HIGH = bytes(range(0xC0, 0x100))


def _in_latin_1(text: str) -> bytes | None:
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return None


def _upside_down(text: str) -> str:
    return text.translate(_TURNED)[::-1]


def _all_alike(word: str) -> str | None:
    changed = word.translate(_LOOKALIKES)
    return changed if changed.isascii() else None


def plain_letter(char: str) -> str:
    """The letter that one of another dress stands for."""
    code = ord(char)
    for begins in _ROWS:
        if begins <= code < begins + 26:
            return chr(0x61 + code - begins) if begins == 0x249C else chr(0x41 + code - begins)
    return unicodedata.normalize("NFKC", char)


def _without_accents(text: str) -> str:
    return "".join(char for char in unicodedata.normalize("NFD", text) if not unicodedata.combining(char))


def _share(text: str) -> float:
    """How much of it is common English."""
    words = _WORD.findall(text)
    return sum(map(COMMON.__contains__, map(str.lower, words))) / len(words) if len(words) >= 3 else 0.0


def _better(change: Callable[[str], str], finish: Callable[[str], str] | None = None) -> Callable[[str], str | None]:
    """The change, where it makes English of what was none; then with a last touch to it."""

    def apply(piece: str) -> str | None:
        changed = change(piece)
        if _share(changed) < 0.25 or _share(changed) < _share(piece) + 0.2:
            return None
        return changed if finish is None else finish(changed)

    return apply


def _undo_whole(result: Normalised, *, told: bool) -> None:
    """Ciphers that take a letter for a letter, and what is written from its end. `told`: the text speaks of a cipher."""
    result.replace("rot13", _SEGMENT, _better(lambda piece: codes.shifted(piece, 13)))
    if told:  # one of its segments may be meant
        result.replace("caesar", _SEGMENT, _unshifted)
    else:
        for kind, change in codes.substitutions(result.text):
            result.replace(kind, _SEGMENT, _better(change))
    before = result.text
    result.replace("reversed", _WHOLE, _better(_reversed, _in_order))
    if result.text == before:
        result.replace("reversed", _SEGMENT, _better(_reversed, _in_order))


def _unshifted(piece: str) -> tuple[str, str] | None:
    for kind, change in codes.substitutions(piece) if _share(piece) < 0.2 else ():
        changed = _better(change)(piece)
        if changed is not None:
            return kind, changed
    return None


_WORD_LETTERS = re.compile(r"[A-Za-z']+")


# No sentence ends with one of these.
_NOT_LAST = frozenset(
    [
        "the",
        "a",
        "an",
        "of",
        "to",
        "in",
        "on",
        "at",
        "for",
        "from",
        "with",
        "and",
        "or",
        "your",
        "my",
        "our",
        "their",
        "this",
        "all",
        "any",
        "is",
        "are",
        "be",
        "please",
        "ignore",
        "tell",
        "what",
        "how",
    ]
)


def _reversed(piece: str) -> str:
    return piece[::-1]


def _in_order(text: str) -> str:
    """What was read from its end; or word by word, where the words then stand in the order of a sentence."""
    by_word = _WORD_LETTERS.sub(lambda word: word[0][::-1], text[::-1])
    return max(text, by_word, key=_sentence_like)


def _sentence_like(text: str) -> int:
    words = _WORD_LETTERS.findall(text)
    if not words:
        return 0
    return 2 * int(words[0][0].isupper()) - 2 * int(words[-1][0].isupper()) - 3 * int(words[-1].lower() in _NOT_LAST)


# Pieces of quoted text that are added up, and variables that hold such pieces.
_JOINED = re.compile(r"(?:\"[^\"\n]{0,80}\"|'[^'\n]{0,80}')(?:\s{0,3}\+\s{0,3}(?:\"[^\"\n]{0,80}\"|'[^'\n]{0,80}')){1,64}")
_QUOTED = re.compile(r"\"([^\"\n]{0,80})\"|'([^'\n]{0,80})'")
_ASSIGNMENT = re.compile(r"(?<![\w.])([A-Za-z_]\w{0,15})\s{0,3}:?=\s{0,3}(?:\"([^\"\n]{0,200})\"|'([^'\n]{0,200})')")
_SUM = re.compile(r"(?<![\w.])[A-Za-z_]\w{0,15}(?:\s{0,3}\+\s{0,3}[A-Za-z_]\w{0,15}){1,64}(?!\w)")
_MOST_VARIABLES = 256


def _undo_variables(result: Normalised) -> None:
    values: dict[str, str] = {}
    for found in _ASSIGNMENT.finditer(result.text):
        values[found[1]] = found[2] or found[3] or ""
        if len(values) >= _MOST_VARIABLES:
            break
    if len(values) < 2:
        return

    def summed(expression: str) -> str | None:
        names = re.split(r"\s*\+\s*", expression)
        return _one_text([values[name] for name in names]) if all(name in values for name in names) else None

    result.replace("joined", _SUM, summed)


def _rejoined(run: str) -> str | None:
    return _one_text([double or single for double, single in _QUOTED.findall(run)])


def _one_text(parts: list[str]) -> str | None:
    """The parts as one text, where a cut went through a word that is whole again; parts that end with a word are how programs are written."""
    text = "".join(parts)
    cuts, at = set(), 0
    for part in parts[:-1]:
        at += len(part)
        cuts.add(at)
    for word in _WORD.finditer(text):
        if word[0].lower() in COMMON and any(word.start() < cut < word.end() for cut in cuts):
            return f" {text} "
    return None


def _unselected(run: str) -> str | None:
    data = bytes(ord(char) - 0xFE00 if ord(char) < 0xFE10 else ord(char) - 0xE0100 + 16 for char in run)
    return readable(data)


def _unhex(run: str) -> str | None:
    digits = re.sub(r"\\x|0x|[% ,:]", "", run)
    try:
        return readable(bytes.fromhex(digits[: len(digits) // 2 * 2]))
    except ValueError:
        return None


def _unbinary(run: str) -> str | None:
    bits = run.replace(" ", "")
    return readable(bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits) // 8 * 8, 8)))


_UNIT = re.compile(r"(?:\\u\{?|%u|U\+)([0-9a-fA-F]{2,6})\}?[ ,]{0,2}")


def _unescaped(run: str) -> str | None:
    if "\\u" in run or "%u" in run or "U+" in run:
        text = _UNIT.sub(lambda found: chr(int(found[1], 16)) if int(found[1], 16) < 0x11_0000 else found[0], run)
    elif "&#" in run:
        text = html.unescape(run)
    else:
        return unquote(run)
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")  # pairs joined, lone halves replaced


def _unpunycode(label: str) -> str | None:
    try:
        return label[4:].encode("ascii").decode("punycode")
    except (UnicodeError, ValueError, OverflowError):
        return None


def _unspaced(run: str) -> str | None:
    separator = run[1]
    words = re.split(re.escape(separator) + r"{2,}| {2,}", run)
    joined = " ".join(word.replace(separator, "") for word in words)
    return joined if len(joined) >= 5 else None


def _unleet(word: str) -> str | None:
    if word.isalpha() or sum(char.isalpha() for char in word) * 4 < len(word):
        return None
    return word.lower().replace("11", "ll").translate(_LEET)
