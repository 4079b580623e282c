"""Where answers begin and end in the events of OpenAI's Realtime API, and of its Responses API over WebSocket."""

from __future__ import annotations

from collections import deque
from typing import Final

import msgspec

from llmsec_tap import limits
from llmsec_tap.dialects.base import JSON, NotJSON, dict_of, parse_json, text_of
from llmsec_tap.dialects.openai_realtime import AUDIO_APPENDED, TRANSCRIBED
from llmsec_tap.dialects.vectors import base64_bytes
from llmsec_tap.exchange.turns import MESSAGE_COST_BYTES, Said, Turns, as_text, encoded

_ENDS: Final = frozenset(
    ("response.done", "response.completed", "response.incomplete", "response.failed", "response.cancelled", "response.canceled")
)
_SESSION: Final = frozenset(("session.created", "session.updated"))
# What the server repeats of either side, or tells of its own work.
_ECHOES: Final = ("conversation.", "input_audio_buffer.", "output_audio_buffer.", "rate_limits.", "session.", "transcription_session.")
# What is no request, whatever it changes.
_SILENT: Final = frozenset(
    (
        "session.update",
        "input_audio_buffer.commit",
        "input_audio_buffer.clear",
        "output_audio_buffer.clear",
        "response.cancel",
        "conversation.item.truncate",
        "conversation.item.delete",
        "conversation.item.retrieve",
        AUDIO_APPENDED,
    )
)


class _Kind(msgspec.Struct, gc=False):
    """What tells where an event of OpenAI's belongs. Decoding it reads past all the rest."""

    type: str = ""
    response_id: str | None = None
    stream_id: str | None = None


_kind = msgspec.json.Decoder(_Kind).decode


class RealtimeRules:
    """Realtime: an answer begins with `response.created`, be it asked for or by the end of speech, and ends with `response.done`."""

    def __init__(self) -> None:
        self._said = Said()
        self._session: dict[str, JSON] = {}
        self._session_bytes = 0
        self._audio_bytes = 0
        self._audio_ns = 0

    @property
    def held(self) -> int:
        return self._said.size + self._session_bytes

    def client(self, turns: Turns, ts_ns: int, data: bytes) -> None:
        try:
            kind = _kind(data).type
        except (ValueError, RecursionError):
            self._said.add(ts_ns, as_text(data), tells=True)
            return
        if kind == AUDIO_APPENDED and (size := _audio_of(data)):
            self._audio_bytes += size
            self._audio_ns = ts_ns
            return
        self._flush_audio()
        if kind == "session.update":
            self._settle(data)
        self._said.add(ts_ns, data, tells=kind not in _SILENT)

    def server(self, turns: Turns, ts_ns: int, data: bytes) -> None:
        try:
            told = _kind(data)
        except (ValueError, RecursionError):
            self._tell(turns, ts_ns, turns.newest, data)
            return
        kind = told.type
        if kind in _SESSION:
            if not self._settle(data):
                self._said.add(ts_ns, data, tells=False)
        elif kind == TRANSCRIBED:
            if turns.newest is not None:
                turns.tell(ts_ns, turns.newest, data)
            else:
                self._flush_audio()
                self._said.add(ts_ns, data, tells=False)
        elif kind.startswith("response."):
            key = told.response_id or _response_id(data) or turns.newest or ""
            if not turns.is_open(key) and not turns.has_ended(key):
                self._begin(turns, ts_ns, key)
            turns.tell(ts_ns, key, data)
            if kind in _ENDS:
                turns.end(ts_ns, key)
        elif kind == "error":
            self._failed(turns, ts_ns, data)
        elif not kind.startswith(_ECHOES):
            self._tell(turns, ts_ns, turns.newest, data)

    def _tell(self, turns: Turns, ts_ns: int, key: str | None, data: bytes) -> None:
        if key is not None:
            turns.tell(ts_ns, key, data)

    def _failed(self, turns: Turns, ts_ns: int, data: bytes) -> None:
        """A failure is of the answer that is under way, or of what was asked last."""
        key = turns.newest
        if key is None:
            key = f"error {ts_ns}"
            self._begin(turns, ts_ns, key)
            turns.tell(ts_ns, key, data)
            turns.end(ts_ns, key)
        else:
            turns.tell(ts_ns, key, data)

    def _begin(self, turns: Turns, ts_ns: int, key: str) -> None:
        asked_ns, body = self._take()
        turns.begin(ts_ns, key, asked_ns or ts_ns, body)

    def _take(self) -> tuple[int, bytes]:
        self._flush_audio()
        asked_ns = self._said.asked_ns
        session = encoded(self._session) or b"{}"
        return asked_ns, b'{"session":' + session + b',"events":' + self._said.take() + b"}"

    def _flush_audio(self) -> None:
        if self._audio_bytes:
            event = f'{{"type":"{AUDIO_APPENDED}","audio_bytes":{self._audio_bytes}}}'.encode()
            self._audio_bytes = 0
            self._said.add(self._audio_ns, event, tells=False)

    def _settle(self, data: bytes) -> bool:
        """The session as it is now: each update changes the fields that it names. False where it is too long to be said again and again."""
        try:
            session = dict_of(dict_of(parse_json(data)).get("session"))
        except NotJSON:
            return False
        kept = {name: value for name, value in self._session.items() if name not in session}
        settled = {**kept, **session}
        size = len(data) + (self._session_bytes if kept else 0)
        if (
            size > limits.MAX_SESSION_BYTES and len(data) <= limits.MAX_SESSION_BYTES
        ):  # what was said before is counted with what it replaced
            size = len(encoded(settled) or data)
        if size > limits.MAX_SESSION_BYTES:
            return False
        self._session = settled
        self._session_bytes = size
        return True

    def drop(self) -> None:
        self._said.take()
        self._session = {}
        self._session_bytes = 0

    def close(self, turns: Turns, ts_ns: int) -> None:
        if self._said.tells:
            asked_ns, body = self._take()
            turns.ask("at the end", asked_ns or ts_ns, body)


def _response_id(data: bytes) -> str | None:
    """`response.created` and the like name the answer inside."""
    try:
        return text_of(dict_of(dict_of(parse_json(data)).get("response")).get("id")) or None
    except NotJSON:
        return None


def _audio_of(data: bytes) -> int:
    try:
        audio = dict_of(parse_json(data)).get("audio")
    except NotJSON:
        return 0
    return base64_bytes(audio) if isinstance(audio, str) and " " not in audio else 0


class ResponsesRules:
    """Responses over WebSocket: each `response.create` is a request, whose body is what a POST would have; a stream's id tells those apart
    that run side by side.
    """

    def __init__(self) -> None:
        self._asked: deque[tuple[int, str, bytes]] = deque()
        self._beside = Said()  # what the client sent that is no request of its own
        self._asked_bytes = 0

    @property
    def held(self) -> int:
        return self._asked_bytes + self._beside.size

    def client(self, turns: Turns, ts_ns: int, data: bytes) -> None:
        try:
            told = _kind(data)
        except (ValueError, RecursionError):
            self._beside.add(ts_ns, as_text(data), tells=True)
            return
        if told.type == "response.create":
            self._asked.append((ts_ns, told.stream_id or "", data))
            self._asked_bytes += len(data) + MESSAGE_COST_BYTES
        else:
            self._beside.add(ts_ns, data, tells=told.type not in _SILENT)

    def server(self, turns: Turns, ts_ns: int, data: bytes) -> None:
        try:
            told = _kind(data)
        except (ValueError, RecursionError):
            told = _Kind()
        key = "stream " + told.stream_id if told.stream_id else turns.newest or "stream "
        if not turns.is_open(key) and (told.type.startswith("response.") or told.type == "error"):
            asked_ns, body = self._next(told.stream_id or "")
            turns.begin(ts_ns, key, asked_ns or ts_ns, body)
        turns.tell(ts_ns, key, data)
        if told.type in _ENDS or told.type == "error":
            turns.end(ts_ns, key)

    def _next(self, stream: str) -> tuple[int, bytes]:
        for number, (asked_ns, asked_stream, body) in enumerate(self._asked):
            if asked_stream == stream or not stream:
                del self._asked[number]
                self._asked_bytes -= len(body) + MESSAGE_COST_BYTES
                return asked_ns, self._with_beside(body)
        return 0, self._with_beside(b"{}")

    def _with_beside(self, body: bytes) -> bytes:
        if not self._beside.events:
            return body
        beside = b'{"events":' + self._beside.take()
        rest = body.lstrip()[1:].lstrip()
        return beside + (b"" if rest.startswith(b"}") else b",") + rest

    def drop(self) -> None:
        self._asked.clear()
        self._asked_bytes = 0
        self._beside.take()

    def close(self, turns: Turns, ts_ns: int) -> None:
        if self._beside.tells and not self._asked:
            self._asked.append((self._beside.asked_ns, "", b"{}"))
        number = 0
        while self._asked:
            asked_ns, body = self._next("")
            number += 1
            turns.ask(f"at the end {number}", asked_ns or ts_ns, body)
