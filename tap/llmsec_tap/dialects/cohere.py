"""Cohere chat (v1 and v2), generate and embed.

https://docs.cohere.com/v1/reference/chat, https://docs.cohere.com/reference/chat, .../chat-stream, .../embed. v1 streams JSON lines
with an `event_type`, v2 server-sent events with a `type`. What the model plans before calling tools is not answer text.
"""

from __future__ import annotations

from typing import ClassVar

from llmsec_tap.dialects import claims, messages
from llmsec_tap.dialects.base import (
    JSON,
    EventHandler,
    RequestView,
    ResponseView,
    dict_of,
    dump_json,
    int_of,
    list_of,
    text_of,
)
from llmsec_tap.dialects.calls import Calls
from llmsec_tap.dialects.dialect import BaseDialect
from llmsec_tap.dialects.draft import Draft
from llmsec_tap.dialects.failures import read_stream_failure
from llmsec_tap.dialects.json_events import json_events
from llmsec_tap.dialects.usage import cohere_usage
from llmsec_tap.dialects.vectors import count_vectors
from llmsec_tap.model import Framing, Message, Part


class CohereChatV1(BaseDialect):
    api: ClassVar[str] = "cohere.chat"
    operation: ClassVar[str] = "chat"
    default_provider: ClassVar[str] = "cohere"

    def claims(self, request: RequestView) -> int:
        if request.method != "POST" or not request.path.rstrip("/").endswith("/v1/chat"):
            return 0
        return claims.SHARED_ROUTE_AND_HINT if isinstance(request.get("message"), str) else 0

    def recognises(self, response: ResponseView, body: JSON) -> int:
        body = dict_of(body)
        if "event_type" in body and "is_finished" in body:
            return claims.OWN_FIELDS
        return claims.OWN_FIELDS if "generation_id" in body and isinstance(body.get("text"), str) else 0

    def decode_request(self, request: RequestView, draft: Draft) -> None:
        draft.request_model = text_of(request.get("model"))
        cohere_v1_request(request.body, draft)

    def answer(self, request: RequestView | None, response: ResponseView, body: JSON, ts_ns: int, draft: Draft) -> None:
        if isinstance(body, dict):
            CohereReader(draft).read(body, ts_ns)

    def stream(self, request: RequestView | None, response: ResponseView, draft: Draft) -> EventHandler:
        return _handler(CohereReader(draft), draft)

    def framing(self, request: RequestView, response: ResponseView) -> Framing | None:
        if response.content_type == "application/stream+json":
            return "ndjson"
        return super().framing(request, response)


class CohereGenerate(CohereChatV1):
    api: ClassVar[str] = "cohere.generate"
    operation: ClassVar[str] = "text_completion"
    default_provider: ClassVar[str] = "cohere"

    def claims(self, request: RequestView) -> int:
        if request.method != "POST" or not request.path.rstrip("/").endswith("/v1/generate"):
            return 0
        return claims.GENERIC_ROUTE_AND_SHAPE if isinstance(request.get("prompt"), str) else 0

    def recognises(self, response: ResponseView, body: JSON) -> int:
        generations = list_of(dict_of(body).get("generations"))
        return claims.LIKELY_FIELDS if generations and "text" in dict_of(generations[0]) else 0

    def decode_request(self, request: RequestView, draft: Draft) -> None:
        draft.request_model = text_of(request.get("model"))
        messages.prompt(request.get("prompt"), draft)
        messages.parameters(request.body, draft)


class CohereChatV2(BaseDialect):
    api: ClassVar[str] = "cohere.chat"
    operation: ClassVar[str] = "chat"
    default_provider: ClassVar[str] = "cohere"

    def claims(self, request: RequestView) -> int:
        if request.method != "POST" or not request.path.rstrip("/").endswith("/v2/chat"):
            return 0
        return claims.ROUTE_AND_FIELD if isinstance(request.get("messages"), list) else claims.FAINT

    def recognises(self, response: ResponseView, body: JSON) -> int:
        body = dict_of(body)
        if body.get("type") in ("message-start", "content-delta", "content-start", "tool-call-start", "tool-plan-delta", "message-end"):
            return claims.OWN_FIELDS
        return claims.SOME_FIELDS if isinstance(body.get("message"), dict) and "finish_reason" in body and "choices" not in body else 0

    def decode_request(self, request: RequestView, draft: Draft) -> None:
        draft.request_model = text_of(request.get("model"))
        messages.chat_messages(request.get("messages"), draft)
        messages.documents(request.get("documents"), draft)
        messages.tools(request.get("tools"), draft)
        messages.parameters(request.body, draft)

    def answer(self, request: RequestView | None, response: ResponseView, body: JSON, ts_ns: int, draft: Draft) -> None:
        if isinstance(body, dict):
            CohereReader(draft).read(body, ts_ns)

    def stream(self, request: RequestView | None, response: ResponseView, draft: Draft) -> EventHandler:
        return _handler(CohereReader(draft), draft)


class CohereEmbed(BaseDialect):
    api: ClassVar[str] = "cohere.embed"
    operation: ClassVar[str] = "embeddings"
    default_provider: ClassVar[str] = "cohere"

    def claims(self, request: RequestView) -> int:
        path = request.path.rstrip("/")
        if request.method != "POST" or not path.endswith(("/v1/embed", "/v2/embed")):
            return 0
        return (
            claims.ROUTE_AND_FIELD
            if any(key in dict_of(request.body) for key in ("texts", "images", "inputs", "input_type"))
            else claims.GENERIC_ROUTE
        )

    def recognises(self, response: ResponseView, body: JSON) -> int:
        return claims.OWN_FIELDS if str(dict_of(body).get("response_type")).startswith("embeddings_") else 0

    def decode_request(self, request: RequestView, draft: Draft) -> None:
        draft.request_model = text_of(request.get("model"))
        body = dict_of(request.body)
        texts = [t for t in list_of(body.get("texts")) if isinstance(t, str)]
        for entry in list_of(body.get("inputs")):
            texts += [p.content for p in messages.content_parts(dict_of(entry).get("content")) if p.type == "text" and p.content]
        messages.prompt(texts, draft)
        images = [i for i in list_of(body.get("images")) if isinstance(i, str)]
        draft.messages.extend(Message(role="user", parts=[messages.data_uri(image, "image")]) for image in images)
        messages.parameters(body, draft)

    def answer(self, request: RequestView | None, response: ResponseView, body: JSON, ts_ns: int, draft: Draft) -> None:
        body = dict_of(body)
        draft.response_id = text_of(body.get("id"))
        vectors = body.get("embeddings")
        if isinstance(vectors, dict):
            vectors = next((v for v in vectors.values() if isinstance(v, list)), None)
        count_vectors(vectors, draft)
        cohere_usage(body.get("meta"), draft)


class CohereReader:
    """Both versions, whole or streamed: their field names do not meet."""

    __slots__ = ("_calls", "_draft", "_streamed", "_v2")

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self._calls = 0
        self._v2 = Calls(draft)
        self._streamed = False

    def read(self, value: dict[str, JSON], ts_ns: int) -> None:
        kind = value.get("type")
        event = value.get("event_type")
        if isinstance(event, str):
            self._v1_event(event, value, ts_ns)
        elif isinstance(kind, str) and "-" in kind:
            self._v2_event(kind, value, ts_ns)
        elif isinstance(value.get("message"), dict):
            self._v2_whole(value, ts_ns)
        else:
            self._v1_whole(value, ts_ns)

    def _v1_event(self, event: str, value: dict[str, JSON], ts_ns: int) -> None:
        draft = self._draft
        if event == "text-generation":
            self._streamed = True
            draft.text(ts_ns, 0, text_of(value.get("text")) or "")
        elif event == "tool-calls-generation":
            if not self._calls:  # else it repeats what came in chunks
                self._v1_calls(value.get("tool_calls"), ts_ns)
        elif event == "tool-calls-chunk":
            piece = dict_of(value.get("tool_call_delta"))
            index, name = int_of(piece.get("index")), text_of(piece.get("name"))
            key = ("piece", self._v2.key(0, index=index, id=None, name=name))
            arguments = text_of(piece.get("parameters")) or text_of(piece.get("raw_text"))
            if name or piece.get("parameters"):
                self._calls += 1
                draft.tool_call(ts_ns, 0, key, name=name, arguments=arguments)
        elif event == "search-results":
            messages.cite(value.get("documents"), draft, 0)
        elif event == "stream-end":
            answer = dict_of(value.get("response"))
            if not self._streamed:
                self._v1_whole(answer, ts_ns)
            else:
                draft.response_id = draft.response_id or text_of(answer.get("response_id"))
                cohere_usage(answer.get("meta"), draft)
                if not self._calls:
                    self._v1_calls(answer.get("tool_calls"), ts_ns)
            draft.finish(0, text_of(value.get("finish_reason")) or text_of(answer.get("finish_reason")))
            draft.terminated = True

    def _v1_whole(self, body: dict[str, JSON], ts_ns: int) -> None:
        draft = self._draft
        draft.response_id = draft.response_id or text_of(body.get("response_id")) or text_of(body.get("id"))
        generations = body.get("generations")
        if isinstance(generations, list):
            for index, generation in enumerate(generations):
                generation = dict_of(generation)
                if isinstance(generation.get("text"), str):
                    draft.text(ts_ns, index, generation["text"])
                draft.finish(index, text_of(generation.get("finish_reason")))
        elif isinstance(body.get("text"), str):
            draft.text(ts_ns, 0, body["text"])
        self._v1_calls(body.get("tool_calls"), ts_ns)
        messages.cite(body.get("documents"), draft, 0)
        messages.cite(body.get("search_results"), draft, 0)
        reason = text_of(body.get("finish_reason"))
        draft.finish(0, reason)
        if reason or body.get("is_finished") is True:
            draft.terminated = True
        cohere_usage(body.get("meta"), draft)

    def _cite(self, citations: JSON) -> None:
        """The documents and results of tools that an answer names as its sources."""
        for citation in list_of(citations):
            messages.cite(dict_of(citation).get("sources"), self._draft, 0)

    def _v1_calls(self, calls: JSON, ts_ns: int) -> None:
        for call in list_of(calls):
            call = dict_of(call)
            self._calls += 1
            self._draft.tool_call(
                ts_ns,
                0,
                self._calls,
                id=text_of(call.get("id")),
                name=text_of(call.get("name")),
                arguments=dump_json(call.get("parameters")) if "parameters" in call else None,
            )

    def _v2_event(self, kind: str, value: dict[str, JSON], ts_ns: int) -> None:
        draft = self._draft
        delta = dict_of(value.get("delta"))
        message = dict_of(delta.get("message"))
        if kind in ("content-delta", "content-start"):
            content = dict_of(message.get("content"))
            text = content.get("text")
            if isinstance(text, str):
                draft.text(ts_ns, 0, text)
            draft.reasoning(ts_ns, 0, text_of(content.get("thinking")) or "")
        elif kind in ("tool-call-start", "tool-call-delta"):
            calls = message.get("tool_calls")
            for call in calls if isinstance(calls, list) else [calls]:
                call = dict_of(call)
                function = dict_of(call.get("function"))
                index, identity, name = int_of(value.get("index")), text_of(call.get("id")), text_of(function.get("name"))
                if kind == "tool-call-start":
                    key = self._v2.begin(0, index=index, id=identity)
                else:
                    key = self._v2.key(0, index=index, id=identity, name=name)
                draft.tool_call(ts_ns, 0, key, id=identity, name=name, arguments=text_of(function.get("arguments")))
        elif kind == "citation-start":
            cited = message.get("citations")
            self._cite(cited if isinstance(cited, list) else [cited])
        elif kind == "message-start":
            draft.response_id = draft.response_id or text_of(value.get("id"))
        elif kind == "message-end":
            draft.finish(0, text_of(delta.get("finish_reason")))
            cohere_usage(delta.get("usage") or value.get("usage"), draft)
            kind_of_error = text_of(delta.get("error_type"))
            if isinstance(delta.get("error"), str) or kind_of_error:
                draft.error(kind_of_error, text_of(delta.get("error")) or text_of(delta.get("message")))
            draft.terminated = True

    def _v2_whole(self, body: dict[str, JSON], ts_ns: int) -> None:
        draft = self._draft
        draft.response_id = draft.response_id or text_of(body.get("id"))
        message = dict_of(body.get("message"))
        content = message.get("content")
        for part in [{"text": content}] if isinstance(content, str) else list_of(content):
            part = dict_of(part)
            if isinstance(part.get("text"), str):
                draft.text(ts_ns, 0, part["text"])
            draft.reasoning(ts_ns, 0, text_of(part.get("thinking")) or "")
        self._cite(message.get("citations"))
        plan = text_of(message.get("tool_plan"))
        if plan:
            draft.part(0, Part(type="reasoning", name="tool_plan", content=plan))
        for index, call in enumerate(list_of(message.get("tool_calls"))):
            call = dict_of(call)
            function = dict_of(call.get("function"))
            draft.tool_call(
                ts_ns, 0, index, id=text_of(call.get("id")), name=text_of(function.get("name")), arguments=messages.arguments_of(function)
            )
        draft.finish(0, text_of(body.get("finish_reason")))
        cohere_usage(body.get("usage"), draft)


def cohere_v1_request(body: JSON, draft: Draft) -> None:
    body = dict_of(body)
    for turn in list_of(body.get("chat_history")):
        turn = dict_of(turn)
        draft.messages.append(
            Message(role=text_of(turn.get("role")) or "USER", parts=messages.content_parts(turn.get("message") or turn.get("content")))
        )
    message = body.get("message")
    if isinstance(message, str):
        draft.messages.append(Message(role="user", parts=[Part(type="text", content=message)]))
        draft.input_text = message
    for result in list_of(body.get("tool_results")):
        result = dict_of(result)
        name = text_of(dict_of(result.get("call")).get("name"))
        part = Part(type="tool_call_response", name=name, content=dump_json(result.get("outputs")))
        draft.messages.append(Message(role="tool", parts=[part]))
    messages.documents(body.get("documents"), draft)
    messages.system(body.get("preamble"), draft)
    messages.tools(body.get("tools"), draft)
    messages.parameters(body, draft)


def _handler(reader: CohereReader, draft: Draft) -> EventHandler:
    def on_object(ts_ns: int, name: str | None, value: dict[str, JSON]) -> None:
        if value.get("error"):
            read_stream_failure(value, draft)
        else:
            reader.read(value, ts_ns)

    return json_events(draft, on_object)
