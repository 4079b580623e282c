"""A text made ready to be judged: hiding undone, signs found, windows cut, features taken. Shared by training and scanning."""

from __future__ import annotations

import re

import msgspec

from llmsec_analyzer.detectors.build import make_plan
from llmsec_analyzer.detectors.injection.features import Extractor, Window
from llmsec_analyzer.detectors.injection.normalise import Normalised, normalise
from llmsec_analyzer.detectors.stream import Plan, scan_whole
from llmsec_analyzer.rules.schema import Rule

# Texts longer than this are judged by their beginning, end and as many windows between as fit; the rest is marked not scanned.
MAX_CHARS = 200_000

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class Prepared(msgspec.Struct):
    normalised: Normalised
    windows: list[Window]
    size: int
    scanned: int


class Preparer:
    """`evidence`: the rules whose matches are features; they are looked for in the text once its hiding is undone."""

    def __init__(self, evidence: list[Rule], trusted: frozenset[str] = frozenset(), engine: str = "auto") -> None:
        self._plan: Plan = make_plan(evidence, trusted=trusted, engine=engine)
        self._extractor = Extractor()

    def prepare(self, text: str, role: str = "user") -> Prepared:
        size = len(text)
        if size > MAX_CHARS:
            text = text[: MAX_CHARS // 2] + "\n" + text[-MAX_CHARS // 2 :]
        if not text.isascii():
            text = _LONE_SURROGATE.sub("\ufffd", text)
        normalised = normalise(text)
        spots = [(match.start, match.end, match.rule.id) for match in scan_whole(self._plan, normalised.text, role).matches]
        marks = [f"undone:{kind}" for kind in normalised.kinds]
        return Prepared(normalised, self._extractor.windows(normalised.text, role, marks, spots), size, min(size, MAX_CHARS))
