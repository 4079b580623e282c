"""Masking: what was found to be secret or personal is replaced by its type, wherever it stands in the exchange.

Texts repeat within an exchange (the last user message is also `input_text`, an answer also `output_text`), so the values of
findings are masked, not only their places. Matches beyond the findings (excess.py) are masked by place, in their text and in
the copies of it: there may be millions. Offsets of findings go on meaning the text as it was sent.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import chain
from typing import Any

import msgspec
from ahocorasick_rs import BytesAhoCorasick, MatchKind

from llmsec_analyzer.engine.excess import Mask, is_masked
from llmsec_analyzer.judge.exchange_parts import text_parts
from llmsec_tap.model import AnomalyCount, Exchange

_SHORTEST = 4


def redacted(exchange: Exchange, masks: Sequence[Mask] = (), *, everything: bool = True, rules: Collection[str] = ()) -> Exchange:
    """The exchange with what was found in it masked: what its findings name, and the places of `masks`.

    `everything`: all secrets and personal data (names of addresses stay). `rules`: whatever these rules found, besides.
    """
    places: dict[str, list[tuple[int, int, str]]] = {}
    for finding in exchange.findings:
        if (everything and is_masked(finding.category, finding.type)) or finding.rule_id in rules:
            places.setdefault(finding.location.part, []).append((finding.location.start, finding.location.end, finding.type))
    beyond = {mask.part: mask for mask in masks if mask.places}
    values: dict[bytes, bytes] = {}
    whole: dict[str, str] = {}
    for part in text_parts(exchange):
        name = str(part.place)
        known = places.get(name, ())
        by_place = False  # a short value may stand anywhere for something else: it is masked where it was found
        for start, end, kind in known:
            value = part.text[start:end]
            if len(value) >= _SHORTEST:
                values.setdefault(_bytes(value), _bytes(f"[{kind}]"))
            else:
                by_place = True
        mask = beyond.get(name)
        if mask is not None or by_place:
            whole[part.text] = _without(part.text, [*known, *(mask.spans() if mask is not None else ())])
    if not values and not whole:
        return exchange
    _add_joined(exchange, whole)
    replaced = _replacer(values)

    def masked(value: Any) -> Any:
        if isinstance(value, str):
            return replaced(whole.get(value, value))
        if isinstance(value, list):
            return [masked(item) for item in value]
        if isinstance(value, dict):
            return {key: masked(item) for key, item in value.items()}
        if isinstance(value, msgspec.Struct):
            return msgspec.structs.replace(value, **{name: masked(getattr(value, name)) for name in value.__struct_fields__})
        return value

    # A preview knows what was found around it; of a long repetition (repeats.py) not every copy is looked at.
    findings = [msgspec.structs.replace(finding, preview=replaced(finding.preview)) for finding in exchange.findings]
    return msgspec.structs.replace(
        exchange,
        findings=findings,
        **{
            name: masked(getattr(exchange, name))
            for name in (
                "input_text",
                "output_text",
                "reasoning_text",
                "refusal_text",
                "tool_calls",
                "request",
                "response",
                "other_texts",
                "tags",
                "session_id",
                "request_id",
            )
        },
    )


def withheld(exchange: Exchange) -> Exchange:
    """The exchange without its texts: they should have been masked, and were not looked at."""
    bare = exchange.without_content()
    return msgspec.structs.replace(bare, anomalies=[*bare.anomalies, AnomalyCount(name="content_withheld", count=1)])


def _without(text: str, spans: list[tuple[int, int, str]]) -> str:
    pieces: list[str] = []
    at = 0
    for start, end, kind in sorted(spans):
        if end <= at:
            continue
        pieces += (text[at:start], f"[{kind}]")
        at = end
    pieces.append(text[at:])
    return "".join(pieces)


def _add_joined(exchange: Exchange, whole: dict[str, str]) -> None:
    """The texts of a message joined, as `input_text` and its like hold them."""
    if not whole:
        return
    for message in chain(exchange.request.messages, exchange.response.messages):
        texts = [part.content for part in message.parts if part.type == "text" and part.content is not None]
        if len(texts) > 1 and any(text in whole for text in texts):
            for joint in ("\n", ""):
                whole[joint.join(texts)] = joint.join(whole.get(text, text) for text in texts)


def _replacer(values: dict[bytes, bytes]) -> Callable[[str], str]:
    """All values at once, in time that does not grow with their number; of two at one place the longer."""
    if not values:
        return lambda text: text
    masks = list(values.values())
    find = BytesAhoCorasick(list(values), matchkind=MatchKind.LeftmostLongest).find_matches_as_indexes

    def replaced(text: str) -> str:
        data = _bytes(text)
        found = find(data)
        if not found:
            return text
        pieces: list[bytes] = []
        at = 0
        for number, start, end in found:
            pieces += (data[at:start], masks[number])
            at = end
        pieces.append(data[at:])
        return b"".join(pieces).decode("utf-8", "surrogatepass")

    return replaced


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
