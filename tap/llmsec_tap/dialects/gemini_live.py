"""Gemini Live: BidiGenerateContent over WebSocket, on the Gemini API and on Vertex AI (https://ai.google.dev/api/live).

One turn of the model is one exchange (exchange/turns.py): its request is `{"setup": …, "messages": […]}`, what the session began with and what
the client sent since the last turn (with transcripts of what was spoken, which the server gives).
"""

from __future__ import annotations

import re
from functools import cache
from typing import ClassVar, Final

from llmsec_tap.dialects import claims, messages
from llmsec_tap.dialects.audio import AudioFormat
from llmsec_tap.dialects.base import JSON, EventHandler, RequestView, ResponseView, dict_of, dump_json, int_of, list_of, text_of
from llmsec_tap.dialects.dialect import BaseDialect
from llmsec_tap.dialects.draft import Draft
from llmsec_tap.dialects.failures import read_stream_failure
from llmsec_tap.dialects.gemini import GeminiReader, content_message, tool_definitions
from llmsec_tap.dialects.json_events import json_events
from llmsec_tap.dialects.usage import gemini_usage
from llmsec_tap.dialects.vectors import base64_bytes
from llmsec_tap.model import Message, Part

LIVE_PATH: Final = re.compile(r"BidiGenerateContent(Constrained)?/?$")
_OUTPUT_RATE: Final = 24_000  # where the server does not name it


def either(value: JSON, camel: str) -> JSON:
    """A field under its JSON name, or under the one of the proto, which servers take as well."""
    value = dict_of(value)
    return value[camel] if camel in value else value.get(_proto_name(camel))


@cache
def _proto_name(camel: str) -> str:
    return re.sub(r"([A-Z])", lambda found: "_" + found[0].lower(), camel)


class GeminiLive(BaseDialect):
    api: ClassVar[str] = "gemini.live"
    operation: ClassVar[str] = "generate_content"
    default_provider: ClassVar[str] = "gcp.gemini"

    def claims(self, request: RequestView) -> int:
        """By the shape that exchange/turns_gemini.py makes. The upgrade itself has no body, and is an exchange of its own."""
        is_own = request.is_websocket and isinstance(request.body, dict) and request.body.keys() == {"setup", "messages"}
        return claims.OWN_ROUTE if is_own else 0

    def decode_request(self, request: RequestView, draft: Draft) -> None:
        setup = dict_of(request.get("setup"))
        model = text_of(setup.get("model"))
        draft.request_model = model.rpartition("models/")[2] if model is not None else None
        for tool in list_of(setup.get("tools")):
            tool_definitions(tool, draft)
        messages.parameters(
            {key: value for key, value in setup.items() if key != "model"}, draft, nested=("generationConfig", "generation_config")
        )
        seconds = 0.0
        heard: list[str] = []
        for message in list_of(request.get("messages")):
            for entry in list_of(either(either(message, "clientContent"), "turns")):
                content = content_message(entry)
                if content is not None:
                    draft.messages.append(content)
            for result in list_of(either(either(message, "toolResponse"), "functionResponses")):
                draft.messages.append(Message(role="user", parts=[_result(dict_of(result))]))
            told = either(message, "realtimeInput")
            if isinstance(text := dict_of(told).get("text"), str):
                draft.messages.append(Message(role="user", parts=[Part(type="text", content=text)]))
            for mime_type, size in dict_of(dict_of(message).get("media_bytes")).items():
                size = int_of(size) or 0
                if mime_type.startswith("audio/"):
                    audio = AudioFormat(mime_type)
                    draft.messages.append(Message(role="user", parts=[audio.part(size)]))
                    seconds += audio.seconds(size) or 0
                else:
                    blob = Part(type="blob", modality=messages.modality_of(mime_type), mime_type=mime_type[:128], size_bytes=size)
                    draft.messages.append(Message(role="user", parts=[blob]))
            piece = dict_of(either(message, "inputTranscription")).get("text")
            if isinstance(piece, str):
                heard.append(piece)
        if heard:
            draft.messages.append(Message(role="user", parts=[Part(type="text", content="".join(heard))]))
        if seconds:
            draft.parameters["input_audio_seconds"] = round(seconds, 3)
        system = content_message(either(setup, "systemInstruction"))
        if system is not None and system.parts:
            draft.messages.insert(0, Message(role="system", parts=system.parts))
        draft.input_text = messages.last_user_text(draft.messages)

    def stream(self, request: RequestView | None, response: ResponseView, draft: Draft) -> EventHandler:
        reader = _Reader(draft)
        draft.at_end = reader.end_turn
        return json_events(draft, reader.on_object)


def _result(result: dict[str, JSON]) -> Part:
    content = result.get("response")
    return Part(
        type="tool_call_response",
        id=text_of(result.get("id")),
        name=text_of(result.get("name")),
        content=content if isinstance(content, str) else dump_json(content),
    )


class _Reader(GeminiReader):
    __slots__ = ("_audio_bytes", "_format", "_heard")

    def __init__(self, draft: Draft) -> None:
        super().__init__(draft)
        self._audio_bytes = 0
        self._format: AudioFormat | None = None
        self._heard: list[str] = []

    def on_object(self, ts_ns: int, _name: str | None, value: dict[str, JSON]) -> None:
        draft = self._draft
        content = dict_of(either(value, "serverContent"))
        turn = either(content, "modelTurn")
        if isinstance(turn, dict):
            self._count_audio(turn)
            self.read({"candidates": [{"content": turn, "groundingMetadata": either(content, "groundingMetadata")}]}, ts_ns)
        spoken = dict_of(either(content, "outputTranscription")).get("text")
        if isinstance(spoken, str):
            draft.text(ts_ns, 0, spoken)
        heard = dict_of(either(content, "inputTranscription")).get("text")
        if isinstance(heard, str):  # pieces, which may come while the model answers
            self._heard.append(heard)
        for call in list_of(either(either(value, "toolCall"), "functionCalls")):
            self.read({"candidates": [{"content": {"parts": [{"functionCall": call}]}}]}, ts_ns)
            draft.terminated = True
        usage = either(value, "usageMetadata")
        if isinstance(usage, dict):
            counts = {**usage, "candidatesTokenCount": usage.get("responseTokenCount", usage.get("candidatesTokenCount"))}
            gemini_usage(counts, draft)
        if value.get("error"):
            read_stream_failure(value, draft)
        if either(content, "interrupted") is True:
            draft.finish(0, "interrupted")
        if either(content, "turnComplete") is True:
            chosen = draft.choices.get(0)
            reason = text_of(either(content, "turnCompleteReason")) or "turnComplete"
            draft.finish(0, (chosen.finish_reason if chosen is not None else None) or reason)
            draft.terminated = True

    def _count_audio(self, turn: dict[str, JSON]) -> None:
        for part in list_of(turn.get("parts")):
            blob = dict_of(either(part, "inlineData"))
            mime_type = text_of(either(blob, "mimeType")) or ""
            if mime_type.startswith("audio/") and isinstance(blob.get("data"), str):
                self._format = self._format or AudioFormat(mime_type, None if "rate=" in mime_type else _OUTPUT_RATE)
                self._audio_bytes += base64_bytes(blob["data"])

    def end_turn(self) -> None:
        draft = self._draft
        self.end(draft.last_text_ns)
        if self._format is not None:
            draft.part(0, self._format.part(self._audio_bytes))
            if (seconds := self._format.seconds(self._audio_bytes)) is not None:
                draft.parameters["output_audio_seconds"] = seconds
        if self._heard:
            draft.messages.append(Message(role="user", parts=[Part(type="text", content="".join(self._heard))]))
            draft.input_text = messages.last_user_text(draft.messages)
