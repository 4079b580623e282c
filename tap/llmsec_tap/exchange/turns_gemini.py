"""Where answers begin and end in the messages of Gemini Live."""

from __future__ import annotations

from typing import Final

import msgspec

from llmsec_tap import limits
from llmsec_tap.dialects.base import JSON, NotJSON, dict_of, parse_json, text_of
from llmsec_tap.dialects.gemini_live import either
from llmsec_tap.dialects.vectors import base64_bytes
from llmsec_tap.exchange.turns import Said, Turns, as_text, encoded

_CONTENT: Final = ("modelTurn", "outputTranscription", "groundingMetadata", "interrupted", "turnComplete", "generationComplete")
_TURN: Final = "turn"


class GeminiRules:
    """Gemini Live: an answer begins with content of the model and ends when its turn is complete, or when the client answers its calls."""

    def __init__(self) -> None:
        self._said = Said()
        self._setup = b"{}"
        self._media: dict[str, int] = {}
        self._media_ns = 0
        self._has_called = False

    @property
    def held(self) -> int:
        return self._said.size + len(self._setup)

    def client(self, turns: Turns, ts_ns: int, data: bytes) -> None:
        try:
            value = parse_json(data)
        except NotJSON:
            value = None
        if not isinstance(value, dict):
            self._said.add(ts_ns, as_text(data), tells=True)
            return
        if isinstance(value.get("setup"), dict):
            self._setup = (encoded(value["setup"]) if len(data) <= limits.MAX_SESSION_BYTES else None) or b"{}"
            if self._setup == b"{}":
                self._said.add(ts_ns, data, tells=False)
            return
        told = either(value, "realtimeInput")
        if isinstance(told, dict) and self._count_media(told):
            self._media_ns = ts_ns
            if not any(isinstance(item, str | dict | list) for item in told.values()):
                return
            data = encoded(value) or as_text(data)
        if self._has_called and isinstance(either(value, "toolResponse"), dict):
            turns.end(ts_ns, _TURN)
            self._has_called = False
        self._flush_media()
        self._said.add(ts_ns, data, tells=True)

    def _count_media(self, told: dict[str, JSON]) -> bool:
        """Takes sound and pictures out of a message, into sizes by type."""
        found = False
        for name in ("audio", "video", "mediaChunks", "media_chunks"):
            blobs = told.get(name)
            for blob in blobs if isinstance(blobs, list) else [blobs]:
                data = dict_of(blob).get("data")
                if isinstance(data, str) and " " not in data:
                    kind = (text_of(either(blob, "mimeType")) or ("audio/pcm" if name == "audio" else "other"))[:128]
                    if kind in self._media or len(self._media) < 16:
                        self._media[kind] = self._media.get(kind, 0) + base64_bytes(data)
                    dict_of(blob)["data"] = None
                    found = True
            if found and name in told and all(set(dict_of(b)) <= {"data", "mimeType", "mime_type"} for b in _as_list(blobs)):
                told[name] = None
        return found

    def _flush_media(self) -> None:
        if self._media:
            event = msgspec.json.encode({"media_bytes": self._media})
            self._media = {}
            self._said.add(self._media_ns, event, tells=False)

    def server(self, turns: Turns, ts_ns: int, data: bytes) -> None:
        try:
            value = dict_of(parse_json(data))
        except NotJSON:
            value = {}
        content = dict_of(either(value, "serverContent"))
        calls = isinstance(either(value, "toolCall"), dict)
        speaks = any(either(content, name) is not None for name in _CONTENT)
        if not turns.is_open(_TURN):
            if not speaks and not calls and not value.get("error"):
                if isinstance(heard := either(content, "inputTranscription"), dict):
                    self._flush_media()
                    event = encoded({"inputTranscription": heard})
                    if event is not None:
                        self._said.add(ts_ns, event, tells=False)
                return
            self._flush_media()
            asked_ns = self._said.asked_ns
            body = b'{"setup":' + self._setup + b',"messages":' + self._said.take() + b"}"
            turns.begin(ts_ns, _TURN, asked_ns or ts_ns, body)
            self._has_called = False
        self._has_called = self._has_called or calls
        turns.tell(ts_ns, _TURN, data)
        if either(content, "turnComplete") is True:
            turns.end(ts_ns, _TURN)

    def drop(self) -> None:
        self._said.take()
        self._media = {}
        self._setup = b"{}"

    def close(self, turns: Turns, ts_ns: int) -> None:
        if self._has_called:
            turns.end(ts_ns, _TURN)
        if self._said.tells:
            body = b'{"setup":' + self._setup + b',"messages":' + self._said.take() + b"}"
            turns.ask("at the end", ts_ns, body)


def _as_list(value: JSON) -> list[JSON]:
    return value if isinstance(value, list) else [value]
