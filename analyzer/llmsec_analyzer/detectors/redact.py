"""Masking: what was found to be secret or personal is replaced by its type, wherever it stands in the exchange.

Texts repeat within an exchange (the last user message is also `input_text`, an answer also `output_text`), so values are
masked, not places. Offsets of findings go on meaning the text as it was sent.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from llmsec_analyzer.detectors.exchange_parts import text_parts
from llmsec_tap.model import Exchange

_SHORTEST = 4


def redacted(exchange: Exchange) -> Exchange:
    """The exchange with secrets and personal data of its findings masked; those that are information only stay."""
    places: dict[str, list[tuple[int, int, str]]] = {}
    for finding in exchange.findings:
        if finding.category in ("secret", "pii") and finding.type not in ("URL", "DOMAIN_NAME"):
            places.setdefault(finding.location.part, []).append((finding.location.start, finding.location.end, finding.type))
    values: dict[str, str] = {}
    for part in text_parts(exchange):
        for start, end, kind in places.get(part.part, ()):
            value = part.text[start:end]
            if len(value) >= _SHORTEST:
                values.setdefault(value, f"[{kind}]")
    if not values:
        return exchange
    pattern = re.compile("|".join(re.escape(value) for value in sorted(values, key=lambda value: (-len(value), value))))

    def masked(value: Any) -> Any:
        if isinstance(value, str):
            return pattern.sub(lambda found: values[found[0]], value)
        if isinstance(value, list):
            return [masked(item) for item in value]
        if isinstance(value, dict):
            return {key: masked(item) for key, item in value.items()}
        if isinstance(value, msgspec.Struct):
            return msgspec.structs.replace(value, **{name: masked(getattr(value, name)) for name in value.__struct_fields__})
        return value

    return msgspec.structs.replace(
        exchange,
        **{
            name: masked(getattr(exchange, name))
            for name in ("input_text", "output_text", "reasoning_text", "refusal_text", "tool_calls", "request", "response", "other_texts")
        },
    )
