"""Ollama's own API, also served by SGLang and by LM Studio-like servers in its place.

https://github.com/ollama/ollama/blob/main/docs/api.md. Streams are JSON lines, and streaming is what happens without `stream`.
The last line has `done: true` and the counts; durations are nanoseconds; `context` is token ids, not text.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

from llmsec_tap.dialects import claims, messages
from llmsec_tap.dialects.base import JSON, EventHandler, RequestView, ResponseView, count_of, dict_of, int_of, list_of, text_of
from llmsec_tap.dialects.calls import Calls
from llmsec_tap.dialects.dialect import BaseDialect
from llmsec_tap.dialects.draft import Draft
from llmsec_tap.dialects.failures import read_stream_failure
from llmsec_tap.dialects.json_events import json_events
from llmsec_tap.dialects.usage import openai_usage
from llmsec_tap.dialects.vectors import count_vectors, dimensions
from llmsec_tap.model import Framing


class _Ollama(BaseDialect):
    route: ClassVar[str] = ""
    wants: ClassVar[str] = ""

    def claims(self, request: RequestView) -> int:
        if request.method != "POST" or not request.path.rstrip("/").endswith(self.route):
            return 0
        # The routes are too plain to be taken alone: many web applications have an `/api/chat`.
        return claims.SHARED_ROUTE_AND_SHAPE if isinstance(request.get("model"), str) and self.wants in request.body else 0

    def framing(self, request: RequestView, response: ResponseView) -> Framing | None:
        # Hosted ones label their lines as plain JSON.
        if request.get("stream") is not False and response.status < 400 and response.content_type in ("", "text/plain", "application/json"):
            return "ndjson"
        return None

    def _closing(self, value: dict[str, JSON], draft: Draft) -> None:
        draft.response_model = text_of(value.get("model")) or draft.response_model
        if (count := count_of(value.get("prompt_eval_count"))) is not None:
            draft.usage.input_tokens = count
        if (count := count_of(value.get("eval_count"))) is not None:
            draft.usage.output_tokens = count
        openai_usage(value.get("usage"), draft)  # gateways that count as OpenAI does
        if value.get("done") is True:
            draft.finish(0, text_of(value.get("done_reason")))
            draft.terminated = True
        if value.get("error"):
            read_stream_failure(value, draft)


# The lines that most are: decoded into what changes, and nothing else may be in them.
class _Said(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    role: str
    content: str


class _Line(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    model: str
    message: _Said
    done: bool
    created_at: str = ""


_decode_line = msgspec.json.Decoder(_Line).decode


class OllamaChat(_Ollama):
    api: ClassVar[str] = "ollama.chat"
    operation: ClassVar[str] = "chat"
    default_provider: ClassVar[str] = "ollama"
    route: ClassVar[str] = "/api/chat"
    wants: ClassVar[str] = "messages"

    def recognises(self, response: ResponseView, body: JSON) -> int:
        body = dict_of(body)
        return claims.OWN_FIELDS if isinstance(body.get("message"), dict) and "created_at" in body and "done" in body else 0

    def decode_request(self, request: RequestView, draft: Draft) -> None:
        draft.request_model = text_of(request.get("model"))
        messages.chat_messages(request.get("messages"), draft)
        messages.tools(request.get("tools"), draft)
        messages.parameters(request.body, draft, nested=("options",))

    def stream(self, request: RequestView | None, response: ResponseView, draft: Draft) -> EventHandler:
        calls = Calls(draft)
        in_general = json_events(draft, lambda ts_ns, _name, value: self._message(value, ts_ns, draft, calls))

        def on_event(ts_ns: int, name: str | None, data: bytes) -> None:
            try:
                line = _decode_line(data)
            except (ValueError, RecursionError):  # the last line, or one that holds more
                in_general(ts_ns, name, data)
                return
            said = line.message
            if line.done or line.model != draft.response_model or said.role != "assistant" or " " in line.created_at:
                in_general(ts_ns, name, data)
            else:
                draft.text(ts_ns, 0, said.content)

        return on_event

    def answer(self, request: RequestView | None, response: ResponseView, body: JSON, ts_ns: int, draft: Draft) -> None:
        self._message(dict_of(body), ts_ns, draft, Calls(draft))

    def _message(self, body: dict[str, JSON], ts_ns: int, draft: Draft, calls: Calls) -> None:
        message = body.get("message")
        if isinstance(message, dict):
            thought = text_of(message.get("thinking"))
            if thought:
                draft.reasoning(ts_ns, 0, thought)
            text = text_of(message.get("content"))
            if text is not None:
                draft.text(ts_ns, 0, text)
            for call in list_of(message.get("tool_calls")):
                part = messages.tool_call_part(call)
                index = int_of(dict_of(dict_of(call).get("function")).get("index"))
                key = calls.key(0, index=index, id=part.id, name=part.name, arguments=part.arguments)
                draft.tool_call(ts_ns, 0, key, id=part.id, name=part.name, arguments=part.arguments)
        self._closing(body, draft)


class OllamaGenerate(_Ollama):
    api: ClassVar[str] = "ollama.generate"
    operation: ClassVar[str] = "text_completion"
    default_provider: ClassVar[str] = "ollama"
    route: ClassVar[str] = "/api/generate"
    wants: ClassVar[str] = "prompt"

    def recognises(self, response: ResponseView, body: JSON) -> int:
        body = dict_of(body)
        return claims.OWN_FIELDS if isinstance(body.get("response"), str) and "created_at" in body and "done" in body else 0

    def decode_request(self, request: RequestView, draft: Draft) -> None:
        draft.request_model = text_of(request.get("model"))
        messages.prompt(request.get("prompt"), draft)
        for image in list_of(request.get("images")):
            if draft.messages:
                draft.messages[-1].parts.append(messages.base64_part(image, "image"))
        if request.get("system"):
            messages.system(request.get("system"), draft)
        messages.parameters(request.body, draft, nested=("options",))

    def answer(self, request: RequestView | None, response: ResponseView, body: JSON, ts_ns: int, draft: Draft) -> None:
        body = dict_of(body)
        thought = text_of(body.get("thinking"))
        if thought:
            draft.reasoning(ts_ns, 0, thought)
        text = text_of(body.get("response"))
        if text is not None:
            draft.text(ts_ns, 0, text)
        self._closing(body, draft)


class OllamaEmbed(_Ollama):
    api: ClassVar[str] = "ollama.embed"
    operation: ClassVar[str] = "embeddings"
    default_provider: ClassVar[str] = "ollama"
    route: ClassVar[str] = "/api/embed"
    wants: ClassVar[str] = "input"

    def recognises(self, response: ResponseView, body: JSON) -> int:
        body = dict_of(body)
        return claims.FEW_FIELDS if isinstance(body.get("embeddings"), list) and "total_duration" in body else 0

    def decode_request(self, request: RequestView, draft: Draft) -> None:
        draft.request_model = text_of(request.get("model"))
        messages.prompt(request.get(self.wants), draft)
        messages.parameters(request.body, draft, nested=("options",))

    def framing(self, request: RequestView, response: ResponseView) -> Framing | None:
        return None  # vectors come whole

    def answer(self, request: RequestView | None, response: ResponseView, body: JSON, ts_ns: int, draft: Draft) -> None:
        body = dict_of(body)
        if isinstance(body.get("embeddings"), list):
            count_vectors(body["embeddings"], draft)
        elif isinstance(body.get("embedding"), list):
            draft.embeddings = 1
            draft.embedding_dimensions = dimensions(body["embedding"])
        self._closing(body, draft)


class OllamaEmbeddings(OllamaEmbed):
    """The older route: one prompt, one vector."""

    api: ClassVar[str] = "ollama.embeddings"
    default_provider: ClassVar[str] = "ollama"
    route: ClassVar[str] = "/api/embeddings"
    wants: ClassVar[str] = "prompt"

    def recognises(self, response: ResponseView, body: JSON) -> int:
        body = dict_of(body)
        return claims.LONE_FIELD if len(body) == 1 and isinstance(body.get("embedding"), list) else 0
