"""OpenAI Realtime API over WebSocket, also as Azure, xAI, DashScope and vLLM serve it.

https://platform.openai.com/docs/api-reference/realtime-client-events and .../realtime-server-events; events have names of the beta and of
today's API. One answer is one exchange (exchange/turns.py): its request is `{"session": …, "events": […]}`, the session as both sides have
settled it, and what the client sent since the last answer (with transcripts of what was spoken, which the server gives).
"""

from __future__ import annotations

import re
from typing import ClassVar, Final

import msgspec

from llmsec_tap.dialects import claims, messages
from llmsec_tap.dialects.audio import AudioFormat, stated_format
from llmsec_tap.dialects.base import (
    JSON,
    EventHandler,
    NotJSON,
    RequestView,
    ResponseView,
    dict_of,
    int_of,
    list_of,
    parse_json,
    text_of,
)
from llmsec_tap.dialects.dialect import BaseDialect
from llmsec_tap.dialects.draft import Draft
from llmsec_tap.dialects.failures import failure_of
from llmsec_tap.dialects.json_events import json_events
from llmsec_tap.dialects.openai_chat import azure_deployment
from llmsec_tap.dialects.openai_responses import ResponseReader, input_item
from llmsec_tap.dialects.usage import openai_usage
from llmsec_tap.dialects.vectors import base64_bytes
from llmsec_tap.model import Message, Part

REALTIME_PATH: Final = re.compile(r"/realtime/?$")
AUDIO_APPENDED: Final = "input_audio_buffer.append"
TRANSCRIBED: Final = "conversation.item.input_audio_transcription.completed"


# The increments that most events are: decoded into what changes, and nothing else may be in them.
class _Delta(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    type: str
    delta: str
    event_id: str = ""
    response_id: str = ""
    item_id: str = ""
    output_index: int = 0
    content_index: int = 0
    obfuscation: str = ""


_decode_delta: Final = msgspec.json.Decoder(_Delta).decode
_SOUND_MARK: Final = b"audio.delta"
# Where their text belongs (`ResponseReader.slot`).
_SLOTS: Final = {
    "response.text.delta": "text",
    "response.output_text.delta": "text",
    "response.audio_transcript.delta": "audio",
    "response.output_audio_transcript.delta": "audio",
    "response.audio.delta": "sound",
    "response.output_audio.delta": "sound",
}


class OpenAIRealtime(BaseDialect):
    api: ClassVar[str] = "openai.realtime"
    operation: ClassVar[str] = "chat"
    default_provider: ClassVar[str] = "openai_compatible"

    def claims(self, request: RequestView) -> int:
        """By the shape that exchange/turns_openai.py makes. The upgrade itself has no body, and is an exchange of its own."""
        is_own = request.is_websocket and isinstance(request.body, dict) and request.body.keys() == {"session", "events"}
        return claims.OWN_ROUTE if is_own else 0

    def decode_request(self, request: RequestView, draft: Draft) -> None:
        session = dict_of(request.get("session"))
        query = request.query
        draft.request_model = text_of(session.get("model")) or query.get("model") or query.get("deployment") or azure_deployment(request)
        messages.tools(session.get("tools"), draft)
        messages.parameters(session, draft)
        draft.parameters["output_audio_format"] = stated_format(session, "output").name
        told = stated_format(session, "input")
        spoken = 0
        for event in list_of(request.get("events")):
            event = dict_of(event)
            kind = event.get("type")
            if kind == "conversation.item.create":
                message = input_item(event.get("item"))
                if message is not None:
                    draft.messages.append(message)
            elif kind == "response.create":
                _asked(dict_of(event.get("response")), draft)
            elif kind == AUDIO_APPENDED:
                size = int_of(event.get("audio_bytes")) or 0
                spoken += size
                draft.messages.append(Message(role="user", parts=[told.part(size)]))
            elif kind == TRANSCRIBED and isinstance(event.get("transcript"), str):
                draft.messages.append(_said(event["transcript"]))
        messages.system(session.get("instructions"), draft)
        if (seconds := told.seconds(spoken)) and spoken:
            draft.parameters["input_audio_seconds"] = seconds
        draft.input_text = messages.last_user_text(draft.messages)

    def stream(self, request: RequestView | None, response: ResponseView, draft: Draft) -> EventHandler:
        reader = _Reader(draft)
        in_general = json_events(draft, reader.on_object)
        decode, text, seen = _decode_delta, draft.text, reader.seen

        def on_event(ts_ns: int, name: str | None, data: bytes) -> None:
            try:
                said = decode(data)
                slot = _SLOTS[said.type]
            except (ValueError, RecursionError, KeyError):  # another event, or one that holds more
                if _SOUND_MARK not in data[:256] or not reader.is_sound_event(data):
                    in_general(ts_ns, name, data)
                return
            if slot == "sound":
                if reader.is_sound(said.delta):
                    return
            elif " " not in said.item_id and " " not in said.event_id and " " not in said.response_id and " " not in said.obfuscation:
                seen.add((slot, said.output_index, said.content_index))
                text(ts_ns, 0, said.delta)
                return
            in_general(ts_ns, name, data)

        draft.at_end = reader.end
        return on_event


def _said(transcript: str) -> Message:
    return Message(role="user", parts=[Part(type="text", content=transcript)])


def _asked(asked: dict[str, JSON], draft: Draft) -> None:
    """What `response.create` gives for this answer alone."""
    draft.messages += [message for item in list_of(asked.get("input")) if (message := input_item(item)) is not None]
    messages.system(asked.get("instructions"), draft)
    messages.tools(asked.get("tools"), draft)
    messages.parameters(asked, draft)


class _Reader(ResponseReader):
    __slots__ = ("_audio_bytes",)

    def __init__(self, draft: Draft) -> None:
        super().__init__(draft, is_stream=True)
        self._audio_bytes = 0

    def is_sound(self, delta: str) -> bool:
        """Counts a piece of sound, which nobody else has to look at."""
        if " " in delta:
            return False  # no base64
        self._audio_bytes += base64_bytes(delta)
        return True

    def is_sound_event(self, data: bytes) -> bool:
        """The same, of an event that holds more than OpenAI's does."""
        try:
            value = dict_of(parse_json(data))
        except NotJSON:
            return False
        kind, delta = value.get("type"), value.get("delta")
        return isinstance(kind, str) and _SLOTS.get(kind) == "sound" and isinstance(delta, str) and self.is_sound(delta)

    def on_object(self, ts_ns: int, name: str | None, value: dict[str, JSON]) -> None:
        kind = text_of(value.get("type")) or name or ""
        draft = self._draft
        if kind == TRANSCRIBED:
            if isinstance(value.get("transcript"), str):  # it may come long after the model has begun to answer
                draft.messages.append(_said(value["transcript"]))
                draft.input_text = messages.last_user_text(draft.messages)
        elif kind == "response.done":
            answer = dict_of(value.get("response"))
            self.head(answer)
            self._usage(answer)
            self.repeat(answer, ts_ns)
            self._ending(answer)
        else:
            kind = kind.replace("response.text.", "response.output_text.", 1)
            if kind == "response.output_text.delta":
                delta = value.get("delta")
                if isinstance(delta, str):
                    self.seen.add(self.slot("text", value))
                    draft.text(ts_ns, 0, delta)
            else:
                self.event(kind, value, ts_ns)

    def _usage(self, answer: dict[str, JSON]) -> None:
        usage = answer.get("usage")
        if isinstance(usage, dict):
            openai_usage({**usage, "input_tokens_details": usage.get("input_token_details")}, self._draft)

    def _ending(self, answer: dict[str, JSON]) -> None:
        draft = self._draft
        details = dict_of(answer.get("status_details"))
        status = text_of(answer.get("status")) or text_of(details.get("type")) or "completed"
        draft.finish(0, text_of(details.get("reason")) or status)
        if details.get("error") or status == "failed":
            kind, message = failure_of(details)
            draft.error(kind or draft.error_type or "failed", message)
        draft.terminated = True

    def end(self) -> None:
        draft, size = self._draft, self._audio_bytes
        if not size:
            return
        told = AudioFormat(str(draft.parameters.get("output_audio_format") or "pcm16"))
        draft.part(0, told.part(size))
        if (seconds := told.seconds(size)) is not None:
            draft.parameters["output_audio_seconds"] = seconds
