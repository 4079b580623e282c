"""Codes that a model can read back: bases of every usual alphabet, numbers of characters, Morse, Braille, spelling words, shifted alphabets.

Each function takes what looks like a code and gives the text that it stands for, or None where that is no readable text. They are
called where a cheap hint asks for it (normalise.py), so most texts meet none of them. What they take is bounded in length, and codes
inside codes in depth.
"""

from __future__ import annotations

import base64
import binascii
import quopri
import re
import string
from collections.abc import Callable
from functools import lru_cache, partial
from operator import mul
from typing import Final

# Codes in codes: what a model still undoes by itself.
_MAX_DEPTH: Final = 3
# Bases that are no power of two are read as one number, whose cost grows with the square of its length.
_LONGEST_NUMBER: Final = 1024
_LONGEST_ASCII85: Final = 8192
_FEWEST_BYTES: Final = 12

_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
_BASE91 = string.ascii_uppercase + string.ascii_lowercase + string.digits + '!#$%&()*+,./:;<=>?@[]^_`{|}~"'
_BASE45 = string.digits + string.ascii_uppercase + " $%*+-./:"
_Z85 = string.digits + string.ascii_lowercase + string.ascii_uppercase + ".-:+=^!/*?&<>()[]{}@%$#"
_RFC1924 = string.digits + string.ascii_uppercase + string.ascii_lowercase + "!#$%&()*+-;<=>?@^_`{|}~"
_FROM_Z85 = bytes.maketrans(_Z85.encode(), _RFC1924.encode())
_FROM_BASE32HEX = bytes.maketrans(b"0123456789ABCDEFGHIJKLMNOPQRSTUV", b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567")
_FROM_CROCKFORD = bytes.maketrans(b"0123456789ABCDEFGHJKMNPQRSTVWXYZ", b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567")

# What a run of characters of an alphabet may be, and nothing else.
_HEX = re.compile(r"(?:[0-9a-fA-F]{2}){8,}")
_UPPER32 = re.compile(r"[A-Za-z2-7]{16,}={0,6}")
_UPPER32HEX = re.compile(r"[0-9A-Va-v]{16,}={0,6}")
_CROCKFORD = re.compile(r"[0-9A-HJKMNP-TV-Za-hjkmnp-tv-z]{16,}")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{12,}={0,2}")
_ALNUM = re.compile(r"[0-9A-Za-z]{16,}")
_MIXED = re.compile(r"(?=.*[0-9])(?=.*[a-z])(?=.*[A-Z])")
_ASCII85 = re.compile(r"(?:<~)?[!-uz\s]{15,}(?:~>)?")

_NO_DIGITS = str.maketrans("", "", string.digits)
PRINTABLE = bytes([9, 10, 13, *range(0x20, 0x7F)])


def readable(data: bytes) -> str | None:
    """The text, where it is one: mostly letters, in more than one word."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return None
    if len(text) < 8 or not all(char.isprintable() or char in "\n\r\t" for char in text):
        return None
    letters = sum(char.isalpha() or char == " " for char in text)
    return f" {text} " if letters >= 0.8 * len(text) and " " in text.strip() else None


def unwrapped(run: str, depth: int = _MAX_DEPTH) -> tuple[str, str] | None:
    """The kind of code, and the text that a run without white space stands for, in any base and in one another; also written backwards."""
    for kind, decode in _decoders(run):
        try:
            data = decode(run)
        except (ValueError, binascii.Error, OverflowError):
            continue
        text = readable(data)
        if text is None and depth > 1 and len(data) >= 12 and not data.translate(None, PRINTABLE):
            inner = unwrapped(data.decode("ascii").strip(), depth - 1)
            text = inner[1] if inner is not None else None
        if text is not None:
            return kind, text
    if run.startswith("=") and depth > 1:
        return unwrapped(run[::-1], depth - 1)
    return None


def plain(run: str) -> str | None:
    """The printable ASCII that a run stands for in base 16, 32, 36, 58 or 62, readable or not: a key is no text."""
    for kind, decode in _decoders(run):
        if kind == "base64":
            continue
        try:
            data = decode(run)
        except (ValueError, binascii.Error, OverflowError):
            continue
        if len(data) >= _FEWEST_BYTES and not data.translate(None, PRINTABLE):
            return f" {data.decode('ascii')} "
    return None


def _decoders(run: str) -> list[tuple[str, Callable[[str], bytes]]]:
    found: list[tuple[str, Callable[[str], bytes]]] = []
    bare = run.rstrip("=")
    one_case = bare == bare.upper() or bare == bare.lower()
    if one_case and bare.translate(_NO_DIGITS) == bare:
        return found  # words
    if _HEX.fullmatch(run):
        found.append(("hex", bytes.fromhex))
    if _BASE64.fullmatch(run) and not (one_case and len(bare) > 24):
        found.append(("base64", _of_base64))
    if one_case:
        if _UPPER32.fullmatch(run):
            found.append(("base32", _of_base32))
        if _UPPER32HEX.fullmatch(run):
            found.append(("base32", lambda text: _of_base32(text, _FROM_BASE32HEX)))
        if _CROCKFORD.fullmatch(run):
            found.append(("base32", lambda text: _of_base32(text, _FROM_CROCKFORD)))
        if _ALNUM.fullmatch(run) and len(run) <= _LONGEST_NUMBER:
            found.append(("base36", _of_base36))
    elif _ALNUM.fullmatch(run) and len(run) <= _LONGEST_NUMBER and _MIXED.match(run):
        if not set(run) - set(_BASE58):
            found.append(("base58", lambda text: _of_number(text, _BASE58)))
        found.append(("base62", lambda text: _of_number(text, _BASE62)))
    return found


def is_random(run: str) -> bool:
    """Random characters hold some of every kind; code, words and addresses do not."""
    if "://" in run or not run.isascii():
        return False
    data = run[:_LONGEST_ASCII85].encode()
    return all((len(data) - len(data.translate(None, kind))) * 10 >= len(data) for kind in (_SIGNS, _CAPITALS, _SMALLS))


def of_punctuation(run: str) -> str | None:
    """Text of ascii85, RFC 1924's and ZeroMQ's base 85, and base 91: runs of letters, digits and many signs."""
    data = run.encode("ascii", "replace")
    if len(run) > _LONGEST_ASCII85:
        return None
    if not is_random(run):
        return None
    tries: list[Callable[[], bytes]] = []
    if run.startswith("<~") or _ASCII85.fullmatch(run):
        body = data.removeprefix(b"<~").removesuffix(b"~>")
        tries.append(lambda: base64.a85decode(body))
    tries += [lambda: base64.b85decode(data), lambda: base64.b85decode(data.translate(_FROM_Z85)), lambda: _of_base91(run)]
    for attempt in tries:
        try:
            text = readable(attempt())
        except ValueError:
            continue
        if text is not None:
            return text
    return None


def of_base45(run: str) -> str | None:
    """RFC 9285: three characters of 45 for two bytes."""
    out = bytearray()
    digits = list(map(_BASE45.find, run.strip()))
    if -1 in digits or len(digits) % 3 == 1:
        return None
    for at in range(0, len(digits), 3):
        group = digits[at : at + 3]
        number = group[0] + 45 * group[1] + (2025 * group[2] if len(group) == 3 else 0)
        if number > (65_535 if len(group) == 3 else 255):
            return None
        out += number.to_bytes(len(group) - 1, "big")
    return readable(bytes(out))


def _of_base64(run: str) -> bytes:
    body = run.rstrip("=").replace("-", "+").replace("_", "/")
    if len(body) % 4 == 1:
        body = body[:-1]
    return base64.b64decode(body + "=" * (-len(body) % 4))


def _of_base32(run: str, table: bytes | None = None) -> bytes:
    body = run.rstrip("=").upper().encode()
    if table is not None:
        body = body.translate(table)
    body = body[: len(body) - (len(body) % 8 in (1, 3, 6))]
    return base64.b32decode(body + b"=" * (-len(body) % 8))


def _of_base36(run: str) -> bytes:
    number = int(run, 36)
    return number.to_bytes((number.bit_length() + 7) // 8, "big")


def _of_number(run: str, alphabet: str) -> bytes:
    number, base = 0, len(alphabet)
    for char in run:
        number = number * base + alphabet.index(char)
    return number.to_bytes((number.bit_length() + 7) // 8, "big")


def _of_base91(run: str) -> bytes:
    out, value, queue, bits = bytearray(), -1, 0, 0
    for char in run:
        digit = _BASE91.find(char)
        if digit < 0:
            raise ValueError("no base 91")
        if value < 0:
            value = digit
            continue
        value += digit * 91
        queue |= value << bits
        bits += 13 if value & 8191 > 88 else 14
        value = -1
        while bits > 7:
            out.append(queue & 255)
            queue >>= 8
            bits -= 8
    if value >= 0:
        out.append((queue | value << bits) & 255)
    return bytes(out)


def of_numbers(run: str) -> str | None:
    """Characters by their numbers: `73 103 110`, `111, 147, 156` (octal), `0x49 0x67`, seven or eight binary digits."""
    words = re.findall(r"(?<![A-Za-z])(?:0[xo])?[0-9][0-9A-Fa-f]*|(?<![A-Za-z])[a-f][0-9a-f]\b", run)
    for base in (10, 8, 16, 2) if words else ():
        try:
            codes = [int(word, base) for word in words]
        except ValueError:
            continue
        if min(codes) >= 9 and max(codes) < 127:
            text = readable(bytes(codes))
            if text is not None:
                return text
    return None


def of_octal(run: str) -> str | None:
    return readable(bytes(int(number, 8) for number in re.findall(r"[01][0-7]{2}", run)))


def of_quoted_printable(run: str) -> str | None:
    """RFC 2045: `=49=67` for a byte each, and a line that goes on after `=`."""
    return readable(quopri.decodestring(run.encode("utf-8", "replace")))


_MORSE_CODES = (
    ".- -... -.-. -.. . ..-. --. .... .. .--- -.- .-.. -- -. --- .--. --.- .-. ... - ..- ...- .-- -..- -.-- --.. "
    "----- .---- ..--- ...-- ....- ..... -.... --... ---.. ----. .-.-.- --..-- ..--.. -.-.-- -..-. .----. -....- ---... .-..-."
)
_MORSE = dict(zip(_MORSE_CODES.split(), "abcdefghijklmnopqrstuvwxyz0123456789.,?!/'-:\"", strict=True))
_DASHES = str.maketrans("·•–—−_", "..----")


def of_morse(run: str) -> str | None:
    words = re.split(r"\s*[/|]\s*|\s{2,}", run.translate(_DASHES).strip())
    letters = ["".join(_MORSE.get(code, "\0") for code in word.split()) for word in words]
    text = " ".join(letters)
    return f" {text} " if "\0" not in text and len(text) >= 5 else None


# Dots 1 to 6 of the letters, as numbers of U+28xx.
_BRAILLE = dict(
    zip(
        (1, 3, 9, 25, 17, 11, 27, 19, 10, 26, 5, 7, 13, 29, 21, 15, 31, 23, 14, 30, 37, 39, 58, 45, 61, 53, 0, 2, 6, 22, 50, 38, 4),
        "abcdefghijklmnopqrstuvwxyz ,;!.?'",
        strict=True,
    )
)


def of_braille(run: str) -> str:
    return "".join(_BRAILLE.get(ord(char) - 0x2800, "") for char in run)


_SPELLING_WORDS = (
    "alpha alfa bravo charlie delta echo foxtrot golf hotel india "
    "juliet juliett kilo lima mike november oscar papa quebec romeo "
    "sierra tango uniform victor whiskey whisky xray x-ray yankee zulu"
)
_SPELLED = {word: word[0] for word in _SPELLING_WORDS.split()}
SPELLED = re.compile(r"(?i)(?<![A-Za-z])(?:(?:" + "|".join(_SPELLED) + r")(?:[ ,.|/\n-]{1,3}(?:space[ ,.|/\n-]{1,3})?|$)){5,}")


def of_spelling(run: str) -> str | None:
    """`India Golf November`: words of the spelling alphabet; two separators or `space` part words."""
    words = re.split(r"(?i)\bspace\b|[|/\n]|  +|, *, *", run)
    text = " ".join("".join(_SPELLED.get(word.lower(), "") for word in re.findall(r"[A-Za-z]+(?:-ray)?", part)) for part in words)
    return f" {text.strip()} " if len(text.strip()) >= 5 else None


_PIG = re.compile(r"([A-Za-z]+?)(ay)(?![A-Za-z])", re.IGNORECASE)


def of_pig_latin(text: str, known: frozenset[str]) -> str:
    """Each word that ends so turned back; of several ways the one that gives a known word."""

    def back(found: re.Match[str]) -> str:
        stem = found[1].lower()
        ways = [stem[:-1] if stem[-1] in "wy" else ""]
        ways += [stem[-size:] + stem[:-size] for size in (1, 2, 3) if len(stem) > size and not set(stem[-size:]) & set("aeiou")]
        ways = [way for way in ways if way]
        return next((way for way in reversed(ways) if way in known), ways[0] if ways else found[0])

    return _PIG.sub(back, text)


_CAPITALS, _SMALLS, _SIGNS = (letters.encode() for letters in (string.ascii_uppercase, string.ascii_lowercase, string.punctuation))

# How often each letter comes in a thousand of English.
_OFTEN: Final = (82, 15, 28, 43, 127, 22, 20, 61, 70, 2, 8, 40, 24, 67, 75, 19, 1, 60, 63, 91, 28, 10, 24, 2, 20, 1)
_ROTATED: Final = [[_OFTEN[(letter + shift) % 26] for letter in range(26)] for shift in range(26)]
_LOWER, _UPPER = string.ascii_lowercase, string.ascii_uppercase
_ATBASH = str.maketrans(_LOWER + _UPPER, _LOWER[::-1] + _UPPER[::-1])


_COMMONEST: Final = b"etaoinsr"
_MIRRORED: Final = _OFTEN[::-1]
_FEWEST_LETTERS: Final = 16
_MOST_COUNTED: Final = 2000


def substitutions(text: str, most: int = 2) -> list[tuple[str, Callable[[str], str]]]:
    """Which movings of the alphabet make letters come as often as in English, where they do not as the text stands: kind and change."""
    lowered = text[:_MOST_COUNTED].lower()
    data = lowered.encode("ascii", "replace")
    rest = data.translate(None, _SMALLS)
    if 2 * (len(data) - len(data.translate(None, _COMMONEST))) > len(data) - len(rest):
        return []  # letters come about as often as they do in languages
    counts = [lowered.count(letter) for letter in _LOWER]
    total = sum(counts)
    if total < _FEWEST_LETTERS:
        return []
    # In a thousand: English gives 65, letters at random 38.
    stands = sum(map(mul, counts, _OFTEN))
    if stands >= 58 * total:
        return []
    enough = max(46 * total, 1.1 * stands)
    scores = [sum(map(mul, counts, weights)) for weights in (*_ROTATED, _MIRRORED)]
    best = sorted((number for number in range(27) if scores[number] >= enough), key=scores.__getitem__, reverse=True)[:most]
    return [("atbash", mirrored) if number == 26 else ("caesar", partial(shifted, by=number)) for number in best]


def shifted(text: str, by: int) -> str:
    """Each letter of ASCII moved along the alphabet."""
    return text.translate(_moved(by))


@lru_cache(maxsize=26)
def _moved(by: int) -> dict[int, int]:
    return str.maketrans(_LOWER + _UPPER, _LOWER[by:] + _LOWER[:by] + _UPPER[by:] + _UPPER[:by])


def mirrored(text: str) -> str:
    """Atbash: a for z, b for y."""
    return text.translate(_ATBASH)
