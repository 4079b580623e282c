"""Audio of a conversation: how much of it there was. Its bytes are never kept."""

from __future__ import annotations

from typing import Final

from llmsec_tap.dialects.base import JSON, dict_of, int_of, text_of
from llmsec_tap.model import Part

# Bytes a second: 16-bit samples at the rate that is named (24 kHz where none is), and G.711, 8,000 samples a second of a byte each.
_DEFAULT_RATE: Final = 24_000
_G711: Final = frozenset(("g711_ulaw", "g711_alaw", "audio/pcmu", "audio/pcma"))
_PCM: Final = ("pcm16", "audio/pcm", "audio/l16")
_MAX_RATE: Final = 768_000


class AudioFormat:
    """Of one direction. `name` is as the session says it, `bytes_per_second` None for what is compressed."""

    __slots__ = ("bytes_per_second", "name")

    def __init__(self, name: str, rate: int | None = None) -> None:
        self.name = name
        kind, _, rest = name.lower().partition(";")
        stated = rest.strip().removeprefix("rate=")
        if rate is None and stated.isascii() and stated.isdigit() and len(stated) < 7:
            rate = int(stated)
        self.bytes_per_second: int | None = None
        if kind.strip() in _G711:
            self.bytes_per_second = 8_000
        elif kind.strip() in _PCM:
            self.bytes_per_second = 2 * (rate if rate is not None and 0 < rate <= _MAX_RATE else _DEFAULT_RATE)
            if rate is not None and not rest:
                self.name = f"{name};rate={rate}"

    def seconds(self, size: int) -> float | None:
        return round(size / self.bytes_per_second, 3) if self.bytes_per_second else None

    def part(self, size: int) -> Part:
        return Part(type="blob", modality="audio", mime_type=self.name[:128], size_bytes=size)


def stated_format(session: JSON, direction: str) -> AudioFormat:
    """The format of `input` or `output`: `audio.input.format`, or `input_audio_format` of the beta API; OpenAI's default is pcm16."""
    session = dict_of(session)
    told = dict_of(dict_of(session.get("audio")).get(direction)).get("format")
    if isinstance(told, dict):
        return AudioFormat(text_of(told.get("type")) or "audio/pcm", int_of(told.get("rate")))
    return AudioFormat(text_of(told) or text_of(session.get(f"{direction}_audio_format")) or "pcm16")
