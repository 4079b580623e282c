"""OpenAI Chat Completions, and the many servers that speak it.

https://platform.openai.com/docs/api-reference/chat and .../chat-streaming. Served by OpenAI, Azure (deployment in the path, filter
results first), vLLM, SGLang, llama.cpp, TGI, Ollama, Mistral, Groq, DeepSeek, OpenRouter and more; their additions are read where
seen: `reasoning_content` or `reasoning` beside `content`, content as a list with thinking parts (Mistral), `x_groq.usage`.

The handler of a stream is the hottest code above TCP. A chunk of the common shape is decoded into structs that hold only what
changes from chunk to chunk; msgspec skips the rest without building it. Anything else in a chunk (a tool call, usage, an
unknown field of the delta, a type that does not fit) takes the general path, which decodes the chunk again, whole.
"""

from __future__ import annotations

import sys
from typing import ClassVar

import msgspec

from llmsec_tap.dialects import claims, messages
from llmsec_tap.dialects.base import (
    JSON,
    EventHandler,
    RequestView,
    ResponseView,
    dict_of,
    int_of,
    list_of,
    text_of,
)
from llmsec_tap.dialects.calls import Calls
from llmsec_tap.dialects.dialect import BaseDialect
from llmsec_tap.dialects.draft import Draft
from llmsec_tap.dialects.failures import read_stream_failure
from llmsec_tap.dialects.json_events import json_events
from llmsec_tap.dialects.usage import openai_usage
from llmsec_tap.providers.answers import provider_of_answer


class _Delta(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    content: str | None = None
    role: str | None = None
    # Sent as null by servers that write every field; with a value they need the general path.
    tool_calls: None = None
    function_call: None = None
    refusal: None = None
    reasoning: None = None
    reasoning_content: None = None
    audio: None = None


class _Choice(msgspec.Struct, gc=False):
    delta: _Delta
    index: int = 0
    finish_reason: str | None = None
    usage: None = None
    error: None = None


class _Chunk(msgspec.Struct, gc=False):
    choices: tuple[_Choice]  # exactly one
    usage: None = None
    error: None = None
    x_groq: None = None
    timings: None = None


_SOURCES = frozenset(("search_results", "citations"))
_BESIDE_TEXT = frozenset(("audio", "refusal", "annotations", "citations", "executed_tools"))
_SPARE_BYTES = 4  # counts are not all of one length
_decode_chunk = msgspec.json.Decoder(_Chunk).decode


class OpenAIChat(BaseDialect):
    api: ClassVar[str] = "openai.chat"
    operation: ClassVar[str] = "chat"
    default_provider: ClassVar[str] = "openai_compatible"

    def claims(self, request: RequestView) -> int:
        if request.method != "POST":
            return 0
        path = request.path.rstrip("/")
        body = request.body
        if path.endswith("/chat/completions"):
            return claims.ROUTE_AND_SHAPE if request.body_is_json and isinstance(request.get("messages"), list) else claims.ROUTE
        if not isinstance(body, dict) or not chat_shaped(body):
            return 0
        if path.endswith("/completions"):  # Portkey's prompts, proxies that fold both routes into one
            return claims.SHARED_ROUTE_AND_HINT
        # Writer's /v1/chat, gateways with routes of their own: a model and messages in the shape of this API, confirmed by the answer.
        if isinstance(body.get("model"), str) and "anthropic_version" not in body:
            return claims.GENERIC_ROUTE_AND_SHAPE if path.endswith("/chat") else claims.FAINT
        return 0

    def recognises(self, response: ResponseView, body: JSON) -> int:
        if not isinstance(body, dict):
            return 0
        if text_of(body.get("object")) in ("chat.completion", "chat.completion.chunk"):
            return claims.NAMES_ITSELF
        choices = list_of(body.get("choices"))
        if choices and isinstance(choices[0], dict) and ("delta" in choices[0] or "message" in choices[0]):
            return claims.LIKELY_FIELDS
        return 0

    def decode_request(self, request: RequestView, draft: Draft) -> None:
        body = request.body
        if not isinstance(body, dict):
            draft.request_model = azure_deployment(request)
            return
        draft.request_model = text_of(body.get("model")) or azure_deployment(request)
        messages.chat_messages(body.get("messages"), draft)
        if not draft.messages and "prompt" in body:
            messages.prompt(body.get("prompt"), draft)
        messages.tools(body.get("tools"), draft)
        messages.tools(body.get("functions"), draft)
        messages.documents(body.get("documents"), draft)
        messages.parameters(body, draft)

    def answer(self, request: RequestView | None, response: ResponseView, body: JSON, ts_ns: int, draft: Draft) -> None:
        if isinstance(body, dict):
            Reader(draft, whole=True).read(body, ts_ns)

    def stream(self, request: RequestView | None, response: ResponseView, draft: Draft) -> EventHandler:
        read = Reader(draft).read
        part = draft.increment
        choices = draft.choices
        finish = draft.finish
        decode_chunk = _decode_chunk
        has_head = False  # the id and the model are known

        def on_object(ts_ns: int, name: str | None, value: dict[str, JSON]) -> None:
            nonlocal has_head
            if name == "error" and "choices" not in value:
                read_stream_failure(value, draft)
                return
            read(value, ts_ns)
            has_head = bool(draft.response_id and draft.response_model)

        in_general = json_events(draft, on_object)
        overlooked = draft.overlooked
        spare = -1 if overlooked is not None else sys.maxsize

        def on_event(ts_ns: int, name: str | None, data: bytes) -> None:
            nonlocal spare
            size = 0
            if has_head:
                try:
                    choice = decode_chunk(data).choices[0]
                except (ValueError, RecursionError):  # another shape, "[DONE]", or no JSON at all
                    pass
                else:
                    content = choice.delta.content
                    # A chunk of this shape that is longer than its text and what was seen beside that of another holds something else.
                    size = len(data) - len(content) if content else len(data)
                    if size <= spare or (
                        content and not content.isascii() and len(data) - len(content.encode("utf-8", "replace")) <= spare
                    ):
                        if content is not None:
                            # Draft.text, written out: this runs once per token.
                            chosen = choices.get(choice.index)
                            if chosen is None or not content:
                                draft.text(ts_ns, choice.index, content)
                            else:
                                part(ts_ns, choice.index, chosen.text, "text", content)
                        if choice.finish_reason is not None:
                            finish(choice.index, choice.finish_reason)
                        return
                    size = size if content else 0
            if data == b"[DONE]":
                draft.terminated = True
            else:
                in_general(ts_ns, name, data)
                if size and overlooked is not None and overlooked.is_clean and (spare < 0 or size < spare):
                    spare = size + _SPARE_BYTES

        return on_event


def _usage_in(choice: dict[str, JSON]) -> JSON:
    return choice.get("usage") or dict_of(choice.get("delta")).get("usage") or dict_of(choice.get("message")).get("usage")


def chat_shaped(body: dict[str, JSON]) -> bool:
    """`messages` is a list of objects with a role, as in the chat API."""
    entries = body.get("messages")
    return isinstance(entries, list) and bool(entries) and isinstance(entries[0], dict) and isinstance(entries[0].get("role"), str)


def azure_deployment(request: RequestView) -> str | None:
    """The deployment in the path stands for the model (learn.microsoft.com/azure/ai-foundry/openai/reference)."""
    segments = request.segments
    if "deployments" in segments:
        at = segments.index("deployments") + 1
        if at < len(segments):
            return segments[at]
    return None


class Reader:
    """Reads whole answers and chunks; keeps which tool call an increment belongs to."""

    __slots__ = ("_calls", "_draft", "_said_in")

    def __init__(self, draft: Draft, *, whole: bool = False) -> None:
        self._draft = draft
        # Perplexity and Writer send both: the other one is empty in a whole answer, and all text so far in a chunk.
        self._said_in = ("message", "delta") if whole else ("delta", "message")
        self._calls = Calls(draft)

    def read(self, value: dict[str, JSON], ts_ns: int) -> None:
        draft = self._draft
        if not draft.response_id:
            draft.response_id = text_of(value.get("id")) or None
        if not draft.response_model:
            draft.response_model = text_of(value.get("model")) or None
        if draft.provider_hint is None or "timings" in value:
            draft.provider_hint = provider_of_answer(value) or draft.provider_hint
        choices = value.get("choices")
        if isinstance(choices, list):
            for position, choice in enumerate(choices):
                if isinstance(choice, dict):
                    self._choice(choice, position, ts_ns)
        elif isinstance(value.get("value"), str):  # Writer's completions
            draft.text(ts_ns, 0, value["value"])
        if not _SOURCES.isdisjoint(value):  # Perplexity and others, in every chunk
            messages.cite(value.get("search_results"), draft, 0)
            messages.cite(value.get("citations"), draft, 0)
        usage = value.get("usage")
        if usage is None:
            usage = dict_of(value.get("x_groq")).get("usage")
        if usage is None and isinstance(choices, list) and choices:  # Moonshot
            usage = next((found for choice in choices if isinstance(choice, dict) and (found := _usage_in(choice))), None)
        if usage is not None:
            openai_usage(usage, draft)
            # Counts come last. Servers that end without [DONE] (Perplexity, transformers) are told to have ended by them.
            if draft.choices and all(choice.finish_reason for choice in draft.choices.values()):
                draft.terminated = True
        if value.get("error") or value.get("object") == "error":
            read_stream_failure(value, draft)

    def _choice(self, choice: dict[str, JSON], position: int, ts_ns: int) -> None:
        draft = self._draft
        index = choice.get("index")
        if not isinstance(index, int) or isinstance(index, bool):
            index = position
        draft.choice(index)  # it exists, even if it is cut before it says anything
        said = choice.get(self._said_in[0])
        if not isinstance(said, dict):
            said = choice.get(self._said_in[1])
        if isinstance(said, dict):
            self._said(said, index, ts_ns)
        elif isinstance(choice.get("text"), str):
            draft.text(ts_ns, index, choice["text"])
        if isinstance(choice.get("error"), dict):  # OpenRouter: a failure of the model behind it
            read_stream_failure(choice, draft)
        reason = choice.get("finish_reason")
        if isinstance(reason, str):
            draft.finish(index, reason)

    def _said(self, said: dict[str, JSON], index: int, ts_ns: int) -> None:
        draft = self._draft
        for key in ("reasoning_content", "reasoning", "reasoning_text"):
            thought = said.get(key)
            if isinstance(thought, str) and thought:
                draft.reasoning(ts_ns, index, thought)
                break
        else:
            for detail in list_of(said.get("reasoning_details")):  # OpenRouter, Snowflake
                thought = dict_of(detail).get("text") or dict_of(detail).get("summary")
                if isinstance(thought, str):
                    draft.reasoning(ts_ns, index, thought)
        content = said.get("content")
        if isinstance(content, str):
            draft.text(ts_ns, index, content)
        elif isinstance(content, list):
            for part in content:
                self._part(part, index, ts_ns)
        if not _BESIDE_TEXT.isdisjoint(said):
            self._beside_text(said, index, ts_ns)
        calls = said.get("tool_calls")
        if isinstance(calls, list):
            for call in calls:
                if isinstance(call, dict):
                    self.call(call, index, ts_ns)
        call = said.get("function_call")
        if isinstance(call, dict) and (call.get("name") or call.get("arguments")):  # some send it empty, as a placeholder
            name, arguments = text_of(call.get("name")), messages.arguments_of(call)
            draft.tool_call(ts_ns, index, "function_call", name=name, arguments=arguments)

    def _beside_text(self, said: dict[str, JSON], index: int, ts_ns: int) -> None:
        draft = self._draft
        audio = said.get("audio")
        if isinstance(audio, dict) and isinstance(audio.get("transcript"), str):
            draft.text(ts_ns, index, audio["transcript"])
        refusal = said.get("refusal")
        if isinstance(refusal, str):
            draft.refusal(ts_ns, index, refusal)
        messages.cite(said.get("annotations"), draft, index)
        messages.cite(said.get("citations"), draft, index)
        for tool in list_of(said.get("executed_tools")):  # Groq's own tools
            for part in messages.call_parts(tool, "tool") if isinstance(tool, dict) else ():
                draft.part(index, part)

    def _part(self, part: JSON, index: int, ts_ns: int) -> None:
        if isinstance(part, str):
            self._draft.text(ts_ns, index, part)
            return
        part = dict_of(part)
        kind = part.get("type")
        if kind in ("thinking", "reasoning"):
            thought = part.get("thinking") or part.get("text") or part.get("reasoning")
            for piece in thought if isinstance(thought, list) else [thought]:
                text = piece if isinstance(piece, str) else text_of(dict_of(piece).get("text"))
                if text:
                    self._draft.reasoning(ts_ns, index, text)
        elif kind == "refusal":
            self._draft.refusal(ts_ns, index, text_of(part.get("refusal")) or "")
        elif isinstance(part.get("text"), str):
            self._draft.text(ts_ns, index, part["text"])

    def call(self, call: dict[str, JSON], index: int, ts_ns: int) -> None:
        """A tool call of choice `index`, or a piece of one."""
        function = dict_of(call.get("function")) or dict_of(call.get("custom")) or call
        given = text_of(call.get("id")) or None
        name = text_of(function.get("name")) or None
        arguments = messages.arguments_of(function)
        at = int_of(call.get("index"))
        if not (given or name or arguments):
            return  # a signature, a type: no piece of a call
        key = self._calls.key(index, index=at, id=given, name=name, arguments=arguments)
        self._draft.tool_call(ts_ns, index, key, id=given, name=name, arguments=arguments)
