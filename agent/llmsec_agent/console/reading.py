"""A conversation as people read it: every text in its place, with what was found in it marked."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from llmsec_analyzer.judge.exchange_parts import text_parts
from llmsec_analyzer.risk import rank
from llmsec_tap.model import Exchange, Finding, Part
from llmsec_tap.visible import visible

# More of one text than this is cut: a browser lays out no megabytes.
MAX_TEXT: Final = 200_000


@dataclass(frozen=True)
class Run:
    """A piece of a text; `findings` are those that cover it, the gravest first."""

    text: str
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Passage:
    """One text: `title` says what it is, `cut` how many characters are not shown."""

    place: str
    role: str
    kind: str
    title: str
    runs: tuple[Run, ...]
    cut: int = 0
    folded: bool = False


_FOLDED: Final = frozenset(("reasoning", "tool_definition"))


def passages(exchange: Exchange) -> list[Passage]:
    """In the order of the conversation. Parts without text (images, files) say what they are."""
    by_place: dict[str, list[Finding]] = {}
    for finding in exchange.findings:
        by_place.setdefault(finding.location.part, []).append(finding)
    found = []
    for part in text_parts(exchange):
        place = str(part.place)
        title = " ".join(word for word in (part.kind.replace("_", " "), part.tool) if word)
        found.append(
            Passage(
                place, part.role, part.kind, visible(title), runs(part.text[:MAX_TEXT], by_place.get(place, ())),
                max(0, len(part.text) - MAX_TEXT), part.kind in _FOLDED,
            )
        )  # fmt: skip
    for side, messages in (("request.messages", exchange.request.messages), ("response.messages", exchange.response.messages)):
        for number, message in enumerate(messages):
            for index, piece in enumerate(message.parts):
                if not piece.content and not piece.arguments:
                    found.append(Passage(f"{side}[{number}].parts[{index}]", message.role, piece.type, "", (Run(described(piece)),)))
    return sorted(found, key=_order)


def described(part: Part) -> str:
    """What a part without text is."""
    what = [
        part.modality or part.type,
        part.mime_type,
        part.name,
        f"{part.size_bytes:,} bytes" if part.size_bytes is not None else None,
        part.uri,
    ]
    return visible(" · ".join(word for word in what if word))


def runs(text: str, findings: Sequence[Finding]) -> tuple[Run, ...]:
    """The text cut at the edges of findings. Each piece is made visible: nothing in it steers a page."""
    edges = {0, len(text)}
    for finding in findings:
        edges |= {min(max(finding.location.start, 0), len(text)), min(max(finding.location.end, 0), len(text))}
    cuts = sorted(edges)
    made = []
    for begin, end in itertools.pairwise(cuts):
        covering = tuple(
            sorted(
                (finding for finding in findings if finding.location.start <= begin and end <= finding.location.end),
                key=lambda finding: -rank(finding.severity),
            )
        )
        made.append(Run(visible(text[begin:end], keep_lines=True), covering))
    return tuple(made)


_GROUPS: Final = ("request.messages", "other_texts", "tags", "response.messages", "response.error_message", "request.tools")


def _order(passage: Passage) -> tuple[int, list[int]]:
    group = next((number for number, name in enumerate(_GROUPS) if passage.place.startswith(name)), len(_GROUPS))
    return group, [int(digits) for digits in "".join(char if char.isdigit() else " " for char in passage.place).split()]
