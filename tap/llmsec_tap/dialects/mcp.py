"""Model Context Protocol over HTTP (https://modelcontextprotocol.io/specification): streamable HTTP, and the older transport with two routes.

One POST is one exchange. What a server asks of its client (sampling, elicitation) comes inside another answer, where it is a part of the answer; the
client answers by a POST of its own, with the same JSON-RPC id (`response_id`). Of the older transport, answers come in the stream of a GET.
"""

from __future__ import annotations

import re
from typing import ClassVar, Final

from llmsec_tap.dialects import claims, messages
from llmsec_tap.dialects.base import JSON, EventHandler, RequestView, ResponseView, dict_of, dump_json, list_of, text_of
from llmsec_tap.dialects.dialect import BaseDialect
from llmsec_tap.dialects.draft import Draft
from llmsec_tap.dialects.json_events import json_events
from llmsec_tap.dialects.jsonrpc import id_of, messages_of, method_of, read_error
from llmsec_tap.model import Message, Part, ToolDefinition

_HEADERS: Final = ("mcp-session-id", "mcp-protocol-version", "mcp-method")
_ROUTE: Final = re.compile(r"/mcp/?$|/sse/?$|/messages?/?$")
# Methods that other protocols over JSON-RPC (of language servers, for one) have as well.
_COMMON: Final = frozenset(("initialize", "ping", "shutdown"))
_PREFIXES: Final = (
    "notifications/",
    "resources/",
    "prompts/",
    "tools/",
    "completion/",
    "logging/",
    "roots/",
    "tasks/",
    "server/",
    "subscriptions/",
)
_ASKED_OF_CLIENT: Final = ("sampling/createMessage", "elicitation/create")
_ENDPOINT: Final = "endpoint"  # the event by which the older transport begins


class _MCP(BaseDialect):
    """`method` is the one that a subclass reads."""

    operation: ClassVar[str] = "other"
    method: ClassVar[str]

    def claims(self, request: RequestView) -> int:
        return claims.OWN_ROUTE if any(method_of(message) == self.method for message in messages_of(request.body)) else 0

    def decode_request(self, request: RequestView, draft: Draft) -> None:
        for message in messages_of(request.body):
            draft.response_id = draft.response_id or id_of(message)
            params = dict_of(message.get("params"))
            if method_of(message) == self.method:
                self.asked(id_of(message), params, draft)
            for name, given in dict_of(params.get("inputResponses")).items():
                draft.messages.append(Message(role="user", parts=[Part(type="other", name=name, content=messages.flat_text(given))]))
        messages.parameters({"method": self.method}, draft)

    def asked(self, identity: str | None, params: dict[str, JSON], draft: Draft) -> None:
        """A request's parameters."""

    def answered(self, identity: str | None, result: dict[str, JSON], ts_ns: int, draft: Draft) -> None:
        """A request's result."""

    def answer(self, request: RequestView | None, response: ResponseView, body: JSON, ts_ns: int, draft: Draft) -> None:
        for message in messages_of(body):
            self._message(message, ts_ns, draft)

    def stream(self, request: RequestView | None, response: ResponseView, draft: Draft) -> EventHandler:
        def on_object(ts_ns: int, _name: str | None, value: dict[str, JSON]) -> None:
            for message in messages_of(value):
                self._message(message, ts_ns, draft)

        in_general = json_events(draft, on_object)

        def on_event(ts_ns: int, name: str | None, data: bytes) -> None:
            if name == _ENDPOINT:
                draft.provider_hint = "mcp"
            elif data.strip():  # an event may be an id alone, to resume from
                in_general(ts_ns, name, data)

        return on_event

    def _message(self, message: dict[str, JSON], ts_ns: int, draft: Draft) -> None:
        draft.provider_hint = "mcp"
        if "method" in message:
            _of_server(method_of(message), id_of(message), dict_of(message.get("params")), draft)
            return
        if not read_error(message, draft):
            result = dict_of(message.get("result"))
            for name, asked in dict_of(result.get("inputRequests")).items():
                _of_server(method_of(dict_of(asked)), name, dict_of(dict_of(asked).get("params")), draft)
            self.answered(id_of(message), result, ts_ns, draft)
        if id_of(message) == draft.response_id or draft.response_id is None:
            draft.terminated = True


def _of_server(method: str, identity: str | None, params: dict[str, JSON], draft: Draft) -> None:
    """What the server asks or tells inside an answer."""
    if method == "sampling/createMessage":
        texts = [text_of(params.get("systemPrompt")) or "", messages.flat_text(params.get("messages"))]
        draft.part(0, Part(type="other", id=identity, name=method, content="\n".join(filter(None, texts))))
    elif method == "elicitation/create":
        texts = [text_of(params.get("message")) or "", messages.flat_text(params.get("requestedSchema"))]
        draft.part(0, Part(type="other", id=identity, name=method, content="\n".join(filter(None, texts))))
    elif method == "notifications/message":
        draft.part(0, Part(type="other", name=method, content=messages.flat_text(params.get("data"))))


class MCPToolCall(_MCP):
    api: ClassVar[str] = "mcp.tools/call"
    default_provider: ClassVar[str] = "mcp"
    operation: ClassVar[str] = "execute_tool"
    method: ClassVar[str] = "tools/call"

    def asked(self, identity: str | None, params: dict[str, JSON], draft: Draft) -> None:
        arguments = params.get("arguments")
        part = Part(
            type="tool_call", id=identity, name=text_of(params.get("name")), arguments=dump_json({} if arguments is None else arguments)
        )
        draft.messages.append(Message(role="assistant", parts=[part]))

    def answered(self, identity: str | None, result: dict[str, JSON], ts_ns: int, draft: Draft) -> None:
        name = next(
            (part.name for message in draft.messages for part in message.parts if part.type == "tool_call" and part.id == identity), None
        )
        _result(identity, name, result, draft)


def _result(identity: str | None, name: str | None, result: dict[str, JSON], draft: Draft) -> None:
    """What a tool gave: its texts as one response, media by their size."""
    content = list_of(result.get("content"))
    texts = [messages.flat_text(part) for part in content if dict_of(part).get("type") not in ("image", "audio")]
    if result.get("structuredContent") is not None:
        structured = messages.flat_text(result["structuredContent"])
        texts += [structured] if structured not in texts else []
    draft.choice(0).role = "tool"
    draft.part(0, Part(type="tool_call_response", id=identity, name=name, content="\n".join(filter(None, texts))))
    for part in content:
        if dict_of(part).get("type") in ("image", "audio"):
            draft.part(0, messages.base64_part(part.get("data"), part["type"], part.get("mimeType")))
    is_error = result.get("isError") is True
    draft.finish(0, text_of(result.get("resultType")) or ("error" if is_error else "complete"))
    if is_error:
        draft.error("tool_error")


class MCPToolList(_MCP):
    api: ClassVar[str] = "mcp.tools/list"
    default_provider: ClassVar[str] = "mcp"
    method: ClassVar[str] = "tools/list"

    def answered(self, identity: str | None, result: dict[str, JSON], ts_ns: int, draft: Draft) -> None:
        for tool in list_of(result.get("tools")):
            tool = dict_of(tool)
            if name := text_of(tool.get("name")):
                draft.tools.append(ToolDefinition(name=name, description=text_of(tool.get("description"))))


class MCPPrompt(_MCP):
    api: ClassVar[str] = "mcp.prompts/get"
    default_provider: ClassVar[str] = "mcp"
    method: ClassVar[str] = "prompts/get"

    def asked(self, identity: str | None, params: dict[str, JSON], draft: Draft) -> None:
        text = messages.flat_text(params.get("arguments"))
        if text:
            draft.messages.append(Message(role="user", parts=[Part(type="other", name=text_of(params.get("name")), content=text)]))

    def answered(self, identity: str | None, result: dict[str, JSON], ts_ns: int, draft: Draft) -> None:
        for message in list_of(result.get("messages")):
            for part in _parts(dict_of(message).get("content")):
                draft.part(0, part)


class MCPResource(_MCP):
    api: ClassVar[str] = "mcp.resources/read"
    default_provider: ClassVar[str] = "mcp"
    method: ClassVar[str] = "resources/read"

    def asked(self, identity: str | None, params: dict[str, JSON], draft: Draft) -> None:
        if uri := text_of(params.get("uri")):
            draft.messages.append(Message(role="user", parts=[Part(type="uri", modality="file", uri=uri[:2048])]))

    def answered(self, identity: str | None, result: dict[str, JSON], ts_ns: int, draft: Draft) -> None:
        for content in list_of(result.get("contents")):
            content = dict_of(content)
            if isinstance(content.get("text"), str):
                draft.part(0, Part(type="document", uri=text_of(content.get("uri")), content=content["text"]))
            elif "blob" in content:
                draft.part(0, messages.base64_part(content.get("blob"), "file", content.get("mimeType")))


class MCPSampling(_MCP):
    """The client's answer to a server that asked its model: a result without a method, told by its fields."""

    api: ClassVar[str] = "mcp.sampling/createMessage"
    default_provider: ClassVar[str] = "mcp"
    operation: ClassVar[str] = "chat"
    method: ClassVar[str] = "sampling/createMessage"

    def claims(self, request: RequestView) -> int:
        sampled = any({"role", "content", "model"} <= dict_of(message.get("result")).keys() for message in messages_of(request.body))
        return claims.OWN_ROUTE if sampled else super().claims(request)

    def decode_request(self, request: RequestView, draft: Draft) -> None:
        super().decode_request(request, draft)
        for message in messages_of(request.body):
            result = dict_of(message.get("result"))
            draft.response_model = text_of(result.get("model")) or draft.response_model
            parts = _parts(result.get("content"))
            if parts:
                draft.messages.append(Message(role=text_of(result.get("role")) or "assistant", parts=parts))


class MCPElicitation(_MCP):
    """The client's answer to a server that asked its user."""

    api: ClassVar[str] = "mcp.elicitation/create"
    default_provider: ClassVar[str] = "mcp"
    method: ClassVar[str] = "elicitation/create"

    def claims(self, request: RequestView) -> int:
        answers = (dict_of(message.get("result")).get("action") for message in messages_of(request.body))
        return claims.OWN_ROUTE if any(action in ("accept", "decline", "cancel") for action in answers) else super().claims(request)

    def decode_request(self, request: RequestView, draft: Draft) -> None:
        super().decode_request(request, draft)
        for message in messages_of(request.body):
            result = dict_of(message.get("result"))
            text = messages.flat_text(result.get("content"))
            part = Part(type="other", id=id_of(message), name=text_of(result.get("action")), content=text or None)
            draft.messages.append(Message(role="user", parts=[part]))


class MCPOther(_MCP):
    """Everything else: `initialize`, lists of prompts and resources, notifications, answers of the client, and the stream of a GET."""

    api: ClassVar[str] = "mcp.other"
    default_provider: ClassVar[str] = "mcp"
    method: ClassVar[str] = ""

    def claims(self, request: RequestView) -> int:
        is_marked = any(name in request.headers for name in _HEADERS)
        if request.method == "GET" and request.body is None:
            asks_stream = "text/event-stream" in request.headers.get("accept", "")
            return claims.OWN_ROUTE if asks_stream and (is_marked or _ROUTE.search(request.path)) else 0
        found = messages_of(request.body)
        if not found:
            return 0
        is_own = any(method_of(message).startswith(_PREFIXES) for message in found)
        is_common = any(method_of(message) in _COMMON or "method" not in message for message in found)
        if is_marked or is_own or (is_common and _ROUTE.search(request.path)):
            return claims.ROUTE
        return 0

    def decode_request(self, request: RequestView, draft: Draft) -> None:
        super().decode_request(request, draft)
        found = messages_of(request.body)
        messages.parameters({"method": next((method for message in found if (method := method_of(message))), "")}, draft)

    def answered(self, identity: str | None, result: dict[str, JSON], ts_ns: int, draft: Draft) -> None:
        if "content" in result:
            _result(identity, None, result, draft)  # in the stream of the older transport
        for tool in list_of(result.get("tools")):
            tool = dict_of(tool)
            if name := text_of(tool.get("name")):
                draft.tools.append(ToolDefinition(name=name, description=text_of(tool.get("description"))))
        for name in ("prompts", "resources", "resourceTemplates", "contents", "messages"):
            for entry in list_of(result.get(name)):
                if text := messages.flat_text(entry):
                    draft.part(0, Part(type="other", name=name, content=text))
        if isinstance(told := result.get("instructions"), str):
            draft.part(0, Part(type="other", name="instructions", content=told))


def _parts(content: JSON) -> list[Part]:
    """Content of a prompt's or a sample's message: one block, or several."""
    return [_part(block) for block in (content if isinstance(content, list) else [content]) if isinstance(block, dict)]


def _part(block: dict[str, JSON]) -> Part:
    kind = block.get("type")
    if kind in ("image", "audio"):
        return messages.base64_part(block.get("data"), kind, block.get("mimeType"))
    if kind == "tool_use":
        return Part(type="tool_call", id=text_of(block.get("id")), name=text_of(block.get("name")), arguments=dump_json(block.get("input")))
    if kind == "tool_result":
        return Part(type="tool_call_response", id=text_of(block.get("toolUseId")), content=messages.flat_text(block.get("content")))
    if kind == "resource":
        resource = dict_of(block.get("resource"))
        return Part(type="document", uri=text_of(resource.get("uri")), content=text_of(resource.get("text")))
    return Part(type="text", content=text_of(block.get("text")) or messages.flat_text(block))
