"""A conversation as people read it: every text in its place, with what was found in it marked."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from llmsec_analyzer.judge.exchange_parts import TextPart, text_parts
from llmsec_analyzer.risk import rank
from llmsec_tap.model import Exchange, Finding, Part
from llmsec_tap.visible import visible

# More of one text than this is cut, and of all texts together: a browser lays out no megabytes.
MAX_TEXT: Final = 200_000
MAX_TEXTS: Final = 2_000_000
MAX_PASSAGES: Final = 1_000
_MOST_OF_RUN: Final = 8


@dataclass(frozen=True)
class Run:
    """A piece of a text; `findings` are the gravest that cover it."""

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


def passages(exchange: Exchange) -> tuple[list[Passage], int]:
    """In the order of the conversation, and how many are left out of a long one: those with findings stay. Parts without text (images,
    files) say what they are.
    """
    by_place: dict[str, list[Finding]] = {}
    for finding in exchange.findings:
        by_place.setdefault(finding.location.part, []).append(finding)
    parts: list[TextPart | tuple[str, str, Part]] = list(text_parts(exchange))
    for side, messages in (("request.messages", exchange.request.messages), ("response.messages", exchange.response.messages)):
        for number, message in enumerate(messages):
            for index, piece in enumerate(message.parts):
                if not piece.content and not piece.arguments:
                    parts.append((f"{side}[{number}].parts[{index}]", message.role, piece))
    chosen = sorted(parts, key=lambda part: _place(part) not in by_place)[:MAX_PASSAGES]
    room = MAX_TEXTS
    found = []
    for part in sorted(chosen, key=lambda part: _order(_place(part))):
        made = _passage(part, by_place, room)
        room -= sum(len(run.text) for run in made.runs)
        found.append(made)
    return found, len(parts) - len(found)


def _place(part: TextPart | tuple[str, str, Part]) -> str:
    return part[0] if isinstance(part, tuple) else str(part.place)


def _passage(part: TextPart | tuple[str, str, Part], by_place: dict[str, list[Finding]], room: int) -> Passage:
    if isinstance(part, tuple):
        place, role, piece = part
        return Passage(place, role, piece.type, "", (Run(described(piece)),))
    place = str(part.place)
    title = " ".join(word for word in (part.kind.replace("_", " "), part.tool) if word)
    shown = part.text[: max(0, min(MAX_TEXT, room))]
    return Passage(
        place, part.role, part.kind, visible(title), runs(shown, by_place.get(place, ())), len(part.text) - len(shown), part.kind in _FOLDED
    )


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
            )[:_MOST_OF_RUN]
        )
        made.append(Run(visible(text[begin:end], keep_lines=True), covering))
    return tuple(made)


_GROUPS: Final = ("request.messages", "other_texts", "tags", "response.messages", "response.error_message", "request.tools")


def _order(place: str) -> tuple[int, list[int]]:
    group = next((number for number, name in enumerate(_GROUPS) if place.startswith(name)), len(_GROUPS))
    return group, [int(digits[:18]) for digits in re.findall("[0-9]+", place)]
