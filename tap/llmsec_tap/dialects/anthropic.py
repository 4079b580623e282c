"""Anthropic Messages, and the older text completions.

https://docs.claude.com/en/api/messages, .../messages-streaming, .../complete. The same bodies travel through Vertex AI
(`publishers/anthropic/models/{model}:rawPredict`), Bedrock's InvokeModel, gateways, and servers that imitate the route (vLLM,
SGLang, llama.cpp). Counts in `message_delta` are cumulative; pings and unknown events are to be ignored.
"""

from __future__ import annotations

import re
from typing import ClassVar, Final

import msgspec

from llmsec_tap.dialects import claims, messages
from llmsec_tap.dialects.base import (
    JSON,
    EventHandler,
    RequestView,
    ResponseView,
    dict_of,
    dump_json,
    list_of,
    text_of,
)
from llmsec_tap.dialects.calls import Calls
from llmsec_tap.dialects.dialect import BaseDialect
from llmsec_tap.dialects.draft import Draft
from llmsec_tap.dialects.failures import read_stream_failure
from llmsec_tap.dialects.json_events import json_events
from llmsec_tap.dialects.usage import anthropic_usage
from llmsec_tap.model import Message, Part
from llmsec_tap.providers.answers import provider_of_anthropic_id

_RAW_PREDICT: Final = re.compile(r"/publishers/anthropic/models/[^/]+:(stream)?[rR]awPredict$")
_EVENTS: Final = frozenset(
    ("message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta", "message_stop")
)


# The increments that most events are: decoded into what changes, and nothing else may be in them.
class _TextDelta(msgspec.Struct, tag_field="type", tag="text_delta", forbid_unknown_fields=True, gc=False):
    text: str


class _ThinkingDelta(msgspec.Struct, tag_field="type", tag="thinking_delta", forbid_unknown_fields=True, gc=False):
    thinking: str


class _BlockDelta(msgspec.Struct, tag_field="type", tag="content_block_delta", forbid_unknown_fields=True, gc=False):
    delta: _TextDelta | _ThinkingDelta
    index: int = 0


_decode_delta: Final = msgspec.json.Decoder(_BlockDelta).decode


class AnthropicMessages(BaseDialect):
    api: ClassVar[str] = "anthropic.messages"
    operation: ClassVar[str] = "chat"
    default_provider: ClassVar[str] = "anthropic_compatible"

    def claims(self, request: RequestView) -> int:
        if request.method != "POST":
            return 0
        path = request.path.rstrip("/")
        if _RAW_PREDICT.search(path):
            return claims.OWN_ROUTE
        if not path.endswith("/messages") or "/threads/" in path:
            return 0
        if "anthropic-version" in request.headers:
            return claims.ROUTE_AND_SHAPE
        if isinstance(request.get("messages"), list):
            return claims.ROUTE_AND_FIELD if "max_tokens" in request.body or "model" in request.body else claims.GENERIC_ROUTE
        return claims.GENERIC_ROUTE if path.endswith("/v1/messages") and not request.body_is_json else 0

    def recognises(self, response: ResponseView, body: JSON) -> int:
        if not isinstance(body, dict):
            return 0
        if body.get("type") == "message" and isinstance(body.get("content"), list) and "role" in body:
            return claims.NAMES_ITSELF
        return claims.NAMES_ITSELF if text_of(body.get("type")) in _EVENTS else 0

    def decode_request(self, request: RequestView, draft: Draft) -> None:
        draft.request_model = text_of(request.get("model"))
        if draft.request_model is None and _RAW_PREDICT.search(request.path):
            draft.request_model = request.segments[-1].rpartition(":")[0]
        anthropic_request(request.body, draft)

    def answer(self, request: RequestView | None, response: ResponseView, body: JSON, ts_ns: int, draft: Draft) -> None:
        if isinstance(body, dict):
            AnthropicReader(draft).whole(body, ts_ns)

    def stream(self, request: RequestView | None, response: ResponseView, draft: Draft) -> EventHandler:
        reader = AnthropicReader(draft)
        draft.at_end = lambda: reader.flush(draft.last_text_ns)
        in_general = json_events(draft, reader.event)
        text, reasoning, decode = draft.text, draft.reasoning, _decode_delta

        def on_event(ts_ns: int, name: str | None, data: bytes) -> None:
            if b"_json_delta" not in data:
                try:
                    delta = decode(data).delta
                except (ValueError, RecursionError):  # another event, or one that holds more
                    pass
                else:
                    if isinstance(delta, _TextDelta):
                        text(ts_ns, 0, delta.text)
                    else:
                        reasoning(ts_ns, 0, delta.thinking)
                    return
            in_general(ts_ns, name, data)

        return on_event


class AnthropicComplete(BaseDialect):
    api: ClassVar[str] = "anthropic.complete"
    operation: ClassVar[str] = "text_completion"
    default_provider: ClassVar[str] = "anthropic"

    def claims(self, request: RequestView) -> int:
        if request.method != "POST" or not request.path.rstrip("/").endswith("/complete"):
            return 0
        return claims.ROUTE_AND_FIELD if "anthropic-version" in request.headers or request.get("max_tokens_to_sample") is not None else 0

    def recognises(self, response: ResponseView, body: JSON) -> int:
        return claims.LIKELY_FIELDS if isinstance(body, dict) and body.get("type") == "completion" and "completion" in body else 0

    def decode_request(self, request: RequestView, draft: Draft) -> None:
        draft.request_model = text_of(request.get("model"))
        messages.prompt(request.get("prompt"), draft)
        messages.parameters(request.body, draft)

    def answer(self, request: RequestView | None, response: ResponseView, body: JSON, ts_ns: int, draft: Draft) -> None:
        body = dict_of(body)
        if body.get("type") == "error" or body.get("error"):
            read_stream_failure(body, draft)
            return
        if not isinstance(body.get("completion"), str):
            return  # a ping
        draft.response_id = draft.response_id or text_of(body.get("id"))
        draft.response_model = draft.response_model or text_of(body.get("model"))
        draft.text(ts_ns, 0, body["completion"])
        reason = text_of(body.get("stop_reason"))
        if reason:
            draft.finish(0, reason)
            draft.terminated = True


class AnthropicReader:
    """Whole answers and stream events. A tool's input may come whole at the start of its block, or as deltas: held until it stops."""

    __slots__ = ("_calls", "_draft", "_inputs", "_open", "_streamed")

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self._calls = Calls(draft)
        self._open: dict[int | None, int] = {}  # by block index: the key of the call that its deltas are of; None: the latest
        self._inputs: dict[int, JSON] = {}
        self._streamed: set[int] = set()

    def whole(self, body: dict[str, JSON], ts_ns: int) -> None:
        if body.get("error") or body.get("type") == "error":
            read_stream_failure(body, self._draft)
            return
        self._head(body)
        content = body.get("content")
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else list_of(content)
        for index, block in enumerate(blocks):
            if isinstance(block, dict):
                self._block(block, index, ts_ns)
        self.flush(ts_ns)
        self._draft.finish(0, text_of(body.get("stop_reason")))

    def event(self, ts_ns: int, name: str | None, value: dict[str, JSON]) -> None:
        draft = self._draft
        kind = value.get("type") or name
        if kind == "content_block_delta":
            delta = value.get("delta")
            if not isinstance(delta, dict):
                return
            text = delta.get("text")
            if isinstance(text, str):
                draft.text(ts_ns, 0, text)
                return
            text = delta.get("partial_json")
            if isinstance(text, str):
                index = _index(value)
                if text:
                    key = self._open.get(index if index in self._open else None)
                    if key is None:  # the block's start was lost
                        key = self._open[index] = self._open[None] = self._calls.begin(0, index=index, id=None)
                    self._streamed.add(key)
                    draft.tool_call(ts_ns, 0, key, arguments=text)
                return
            text = delta.get("thinking")
            if isinstance(text, str):
                draft.reasoning(ts_ns, 0, text)
            elif "citation" in delta:
                messages.cite([delta["citation"]], draft, 0)
            elif delta.get("type") == "compaction_delta":
                draft.part(0, Part(type="other", name="compaction", content=text_of(delta.get("content"))))
        elif kind == "content_block_start":
            self._block(dict_of(value.get("content_block")), _index(value), ts_ns)
        elif kind == "content_block_stop":
            index = _index(value)
            self._close(self._open.get(index if index in self._open else None), ts_ns)
        elif kind == "message_start":
            self._head(dict_of(value.get("message")))
        elif kind == "message_delta":
            anthropic_usage(value.get("usage") or dict_of(value.get("delta")).get("usage"), draft)
            draft.finish(0, text_of(dict_of(value.get("delta")).get("stop_reason")))
        elif kind == "message_stop":
            anthropic_usage(value.get("usage") or dict_of(value.get("message")).get("usage"), draft)
            self.flush(ts_ns)
            draft.terminated = True
        elif kind == "error":
            read_stream_failure(value, draft)
            draft.terminated = True
        elif kind == "message":  # a server that answers whole inside an event stream
            self.whole(value, ts_ns)

    def _head(self, message: dict[str, JSON]) -> None:
        draft = self._draft
        draft.response_id = draft.response_id or text_of(message.get("id")) or None
        draft.response_model = draft.response_model or text_of(message.get("model")) or None
        if draft.provider_hint is None and draft.response_id is not None:
            draft.provider_hint = provider_of_anthropic_id(draft.response_id)
        anthropic_usage(message.get("usage"), draft)

    def _block(self, block: dict[str, JSON], index: int | None, ts_ns: int) -> None:
        draft = self._draft
        kind = text_of(block.get("type")) or ""
        if kind == "text":
            text = text_of(block.get("text"))
            if text is not None:
                draft.text(ts_ns, 0, text)
            messages.cite(block.get("citations"), draft, 0)
        elif kind == "thinking":
            draft.reasoning(ts_ns, 0, text_of(block.get("thinking")) or "")
        elif kind.endswith("tool_result"):  # of a tool that ran on the server, or of an MCP server it asked
            for part in _block_parts(block):
                draft.part(0, part)
        elif kind == "compaction":
            draft.part(0, _block_part(block))
        elif kind.endswith("tool_use"):  # tool_use is the client's; server_tool_use and mcp_tool_use ran already
            key = self._calls.begin(0, index=index, id=text_of(block.get("id")))
            self._open[index] = self._open[None] = key
            self._inputs[key] = block.get("input")
            draft.tool_call(ts_ns, 0, key, id=text_of(block.get("id")), name=text_of(block.get("name")), server_side=kind != "tool_use")

    def _close(self, key: int | None, ts_ns: int) -> None:
        if key is not None and key in self._inputs:
            given = self._inputs.pop(key)
            if key not in self._streamed and given is not None:
                self._draft.tool_call(ts_ns, 0, key, arguments=given if isinstance(given, str) else dump_json(given))

    def flush(self, ts_ns: int) -> None:
        for key in list(self._inputs):
            self._close(key, ts_ns)


def anthropic_request(body: JSON, draft: Draft) -> None:
    """`messages`, `system`, `tools` and scalars; shared with Bedrock and Vertex."""
    if not isinstance(body, dict):
        return
    draft.messages.extend(m for m in map(_message, list_of(body.get("messages"))) if m is not None)
    draft.input_text = messages.last_user_text(draft.messages)
    messages.system(body.get("system"), draft)
    messages.tools(body.get("tools"), draft)
    messages.parameters(body, draft)


def _message(message: JSON) -> Message | None:
    if not isinstance(message, dict):
        return None
    content = message.get("content")
    blocks: list[JSON] = [{"type": "text", "text": content}] if isinstance(content, str) else list_of(content)
    return Message(
        role=text_of(message.get("role")) or "user", parts=[part for b in blocks if isinstance(b, dict) for part in _block_parts(b)]
    )


def _block_parts(block: dict[str, JSON]) -> list[Part]:
    """A block, and the sources that it cites."""
    found = [_block_part(block)]
    if block.get("citations") and isinstance(block["citations"], list):
        found += [part for part in map(messages.document_part, block["citations"]) if part is not None]
    return found


def _block_part(block: dict[str, JSON]) -> Part:
    kind = text_of(block.get("type")) or "other"
    if kind.endswith("tool_use"):
        value = block.get("input")
        text = value if isinstance(value, str) else dump_json(value)
        return Part(type="tool_call", id=text_of(block.get("id")), name=text_of(block.get("name")), arguments=text)
    if kind.endswith("tool_result"):
        return Part(type="tool_call_response", id=text_of(block.get("tool_use_id")), content=_result_text(block.get("content")))
    if kind == "thinking":
        return Part(type="reasoning", content=text_of(block.get("thinking")) or "")
    if kind == "compaction":
        return Part(type="other", name=kind, content=text_of(block.get("content")))
    if kind == "search_result" and (result := messages.document_part(block)) is not None:
        return result
    source = block.get("source")
    if isinstance(source, dict):
        modality = messages.modality_of(kind)
        if isinstance(source.get("url"), str):
            return messages.data_uri(source["url"], modality)
        if isinstance(source.get("file_id"), str):
            return Part(type="file", modality=modality, id=source["file_id"])
        if source.get("type") in ("text", "content"):
            said = [block.get("title"), source.get("data"), source.get("content"), block.get("context")]
            return Part(type="document", content=messages.flat_text(said))
        written = messages.text_file(source.get("data"), source.get("media_type"))
        if written is not None:
            return Part(type="document", content=messages.flat_text([block.get("title"), written, block.get("context")]))
        if source.get("type") == "base64":
            return messages.base64_part(source.get("data"), modality, source.get("media_type"))
        return Part(type="blob", modality=modality, mime_type=text_of(source.get("media_type")), size_bytes=_size(source.get("data")))
    return messages.content_part(block)


def _result_text(content: JSON) -> str | None:
    """What a tool gave: text parts as they are, of all other shapes (search results, documents, output of code) every text."""
    if content is None or isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        return messages.plain_text(content)
    return messages.flat_text(content)


def _size(data: JSON) -> int | None:
    return len(data) if isinstance(data, str) else None


def _index(value: dict[str, JSON]) -> int | None:
    index = value.get("index")
    return index if isinstance(index, int) else None
