"""A text made ready to be judged: hiding undone, signs found, windows cut, features taken. Shared by training and scanning."""

from __future__ import annotations

import re
from itertools import pairwise

import msgspec

from llmsec_analyzer.engine.repeats import Shortened, shortened
from llmsec_analyzer.engine.stream import Plan, scan_whole
from llmsec_analyzer.injection.features import Extractor, Window
from llmsec_analyzer.injection.normalise import Normalised, normalise
from llmsec_analyzer.recognizers.build import make_plan
from llmsec_analyzer.rules.schema import Rule

# Of longer texts, so much is judged, in pieces spread evenly from beginning to end; the rest is marked not scanned. A million
# characters cost about as many microseconds.
MAX_CHARS = 1_000_000
_PIECES = 20

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


# What the model was not taught apart: codes of bytes are to it as base 64, ciphers of letters as rot13.
_LIKE = {
    **dict.fromkeys(("base32", "base36", "base45", "base58", "base62", "base85", "punycode"), "base64"),
    **dict.fromkeys(("character codes", "morse", "braille", "spelling words"), "binary"),
    **dict.fromkeys(("caesar", "atbash", "pig latin"), "rot13"),
    "joined": "spaced",
}


class Prepared(msgspec.Struct):
    normalised: Normalised
    windows: list[Window]
    size: int
    scanned: int
    judged: int  # characters, after all ways
    ways: list[Shortened] = []  # back to the text as sent, the last one first

    def place(self, at: int) -> int:
        for way in reversed(self.ways):
            at = way.place(at)
        return at


class Preparer:
    """`evidence`: the rules whose matches are features; they are looked for in the text after its obfuscation is undone."""

    def __init__(self, evidence: list[Rule], trusted: frozenset[str] = frozenset(), engine: str = "auto") -> None:
        self._plan: Plan = make_plan(evidence, trusted=trusted, engine=engine)
        self.extractor = Extractor()

    def prepare(self, text: str, role: str = "user") -> Prepared:
        size = len(text)
        ways: list[Shortened] = []
        less = shortened(text)
        if less is not None:
            ways.append(less)
            text = less.text
        scanned = size
        if len(text) > MAX_CHARS:
            ways.append(Shortened(text, _gaps(len(text))))
            text, scanned = ways[-1].text, MAX_CHARS
        if not text.isascii():
            text = _LONE_SURROGATE.sub("\ufffd", text)
        normalised = normalise(text)
        spots = [(match.start, match.end, match.rule.id) for match in scan_whole(self._plan, normalised.text, role).matches]
        marks = [f"undone:{kind}" for kind in dict.fromkeys(_LIKE.get(kind, kind) for kind in normalised.kinds)]
        return Prepared(normalised, self.extractor.windows(normalised.text, role, marks, spots), size, scanned, len(text), ways)


def _gaps(size: int) -> list[tuple[int, int]]:
    """What lies between the pieces that are judged."""
    piece = MAX_CHARS // _PIECES
    begins = [(size - piece) * number // (_PIECES - 1) for number in range(_PIECES)]
    return [(begin + piece, following) for begin, following in pairwise(begins)]
