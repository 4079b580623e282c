"""Amazon Bedrock Converse and ConverseStream: one shape for every model.

https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_Converse.html and ..._ConverseStream.html. The model, a
profile or an ARN (with its slash percent-encoded, or not) is in the path. Exceptions may come inside a stream that began with 200,
and an unknown route is answered with 200 and `UnknownOperationException`. The field `p` of events is padding, not text.
"""

from __future__ import annotations

import re
from typing import ClassVar, Final

from llmsec_tap.dialects import claims, messages
from llmsec_tap.dialects.base import (
    JSON,
    EventHandler,
    NotJSON,
    RequestView,
    ResponseView,
    dict_of,
    dump_json,
    list_of,
    parse_json,
    text_of,
)
from llmsec_tap.dialects.calls import Calls
from llmsec_tap.dialects.dialect import BaseDialect
from llmsec_tap.dialects.draft import Draft
from llmsec_tap.dialects.json_events import json_events
from llmsec_tap.dialects.usage import converse_usage
from llmsec_tap.model import Message, Part

_ROUTE: Final = re.compile(r"/model/.+/converse(-stream)?$")
_EVENTS: Final = ("messageStart", "contentBlockStart", "contentBlockDelta", "contentBlockStop", "messageStop", "metadata")


class BedrockConverse(BaseDialect):
    api: ClassVar[str] = "bedrock.converse"
    operation: ClassVar[str] = "chat"
    default_provider: ClassVar[str] = "aws.bedrock"

    def claims(self, request: RequestView) -> int:
        return claims.OWN_ROUTE if request.method == "POST" and _ROUTE.search(request.path) else 0

    def recognises(self, response: ResponseView, body: JSON) -> int:
        body = dict_of(body)
        if "stopReason" in body and isinstance(dict_of(body.get("output")).get("message"), dict):
            return claims.NAMES_ITSELF
        if response.content_type == "application/vnd.amazon.eventstream":
            return claims.SOME_FIELDS if "contentBlockIndex" in body or body.get("role") == "assistant" or "stopReason" in body else 0
        return 0

    def decode_request(self, request: RequestView, draft: Draft) -> None:
        draft.request_model = model_in_path(request)
        converse_request(request.body, draft)

    def answer(self, request: RequestView | None, response: ResponseView, body: JSON, ts_ns: int, draft: Draft) -> None:
        if isinstance(body, dict):
            ConverseReader(draft).whole(body, ts_ns)

    def stream(self, request: RequestView | None, response: ResponseView, draft: Draft) -> EventHandler:
        reader = ConverseReader(draft)
        read = json_events(draft, lambda ts_ns, name, value: reader.event(name or "", value, ts_ns))

        def on_event(ts_ns: int, name: str | None, data: bytes) -> None:
            if name is not None and name.startswith("exception:"):
                stream_exception(name, data, draft)
            else:
                read(ts_ns, name, data)

        return on_event


class ConverseReader:
    """Also reads Amazon Nova's own bodies, which have this shape inside InvokeModel."""

    __slots__ = ("_calls", "_draft", "_open", "_without_input")

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self._calls = Calls(draft)
        self._open: dict[int | None, int] = {}  # by block index: the key of the call that its deltas are of; None: the latest
        self._without_input: set[int] = set()

    def whole(self, body: dict[str, JSON], ts_ns: int) -> None:
        draft = self._draft
        unknown = text_of(dict_of(body.get("Output")).get("__type"))
        if unknown:
            draft.error(unknown.rpartition("#")[2], text_of(dict_of(body.get("Output")).get("message")))
            return
        message = dict_of(dict_of(body.get("output")).get("message"))
        for index, block in enumerate(list_of(message.get("content"))):
            if isinstance(block, dict):
                self._block(block, index, ts_ns)
        draft.finish(0, text_of(body.get("stopReason")))
        converse_usage(body.get("usage"), draft)

    def event(self, name: str, value: dict[str, JSON], ts_ns: int) -> None:
        draft = self._draft
        if name == "contentBlockDelta":
            delta = value.get("delta")
            if isinstance(delta, dict):
                self._block(delta, value.get("contentBlockIndex"), ts_ns)
        elif name == "contentBlockStart":
            start = value.get("start")
            if isinstance(start, dict):
                self._block(start, value.get("contentBlockIndex"), ts_ns)
        elif name == "contentBlockStop":
            index = value.get("contentBlockIndex")
            self._close(self._open.get(index if isinstance(index, int) and index in self._open else None), ts_ns)
        elif name == "messageStop":
            self.flush(ts_ns)
            draft.finish(0, text_of(value.get("stopReason")))
            draft.terminated = True
        elif name == "metadata":
            converse_usage(value.get("usage"), draft)
            draft.terminated = True

    def _block(self, block: dict[str, JSON], index: JSON, ts_ns: int) -> None:
        draft = self._draft
        text = block.get("text")
        if isinstance(text, str):
            draft.text(ts_ns, 0, text)
            return
        thought = block.get("reasoningContent")
        if isinstance(thought, dict):
            inner = dict_of(thought.get("reasoningText")) or thought
            draft.reasoning(ts_ns, 0, text_of(inner.get("text")) or "")
            return
        call = block.get("toolUse")
        if isinstance(call, dict):
            given = call.get("input")
            identity = text_of(call.get("toolUseId"))
            at = index if isinstance(index, int) else None
            key = self._open.get(at if at in self._open else None)
            if identity or key is None:
                key = self._open[at] = self._open[None] = self._calls.begin(0, index=at, id=identity)
            if given:
                self._without_input.discard(key)
            elif given is None:
                self._without_input.add(key)
            draft.tool_call(
                ts_ns,
                0,
                key,
                id=identity,
                name=text_of(call.get("name")),
                arguments=given if isinstance(given, str) else dump_json(given) if given is not None else None,
                server_side=call.get("type") == "server_tool_use",
            )
            return
        cited = block.get("citationsContent")
        if isinstance(cited, dict):
            for piece in list_of(cited.get("content")):
                draft.text(ts_ns, 0, text_of(dict_of(piece).get("text")) or "")
            messages.cite(cited.get("citations"), draft, 0)
        messages.cite([block.get("citation")], draft, 0)
        result = block.get("toolResult")
        if isinstance(result, dict):  # of a tool that Bedrock ran
            part = _part(block)
            if part.content:
                draft.part(0, part)

    def _close(self, key: int | None, ts_ns: int) -> None:
        """A tool without parameters streams no input; the whole form of the same answer has an empty object."""
        if key is not None and key in self._without_input:
            self._without_input.discard(key)
            self._draft.tool_call(ts_ns, 0, key, arguments="{}")

    def flush(self, ts_ns: int) -> None:
        for key in list(self._without_input):
            self._close(key, ts_ns)


def model_in_path(request: RequestView) -> str | None:
    """What stands between `model` and the verb; an ARN that was not encoded keeps its slash."""
    segments = request.segments
    if "model" not in segments:
        return None
    return "/".join(segments[segments.index("model") + 1 : -1]) or None


def stream_exception(name: str, data: bytes, draft: Draft) -> None:
    """`:exception-type` of an event stream; the payload has the message."""
    try:
        body = dict_of(parse_json(data))
    except NotJSON:
        body = {}
    draft.error(name.removeprefix("exception:"), text_of(body.get("message")) or text_of(body.get("Message")))
    draft.terminated = True


def converse_request(body: JSON, draft: Draft) -> None:
    if not isinstance(body, dict):
        return
    for message in list_of(body.get("messages")):
        if isinstance(message, dict):
            content = message.get("content")
            blocks: list[JSON] = [{"text": content}] if isinstance(content, str) else list_of(content)
            parts = [_part(b) for b in blocks if isinstance(b, dict)]
            draft.messages.append(Message(role=text_of(message.get("role")) or "user", parts=parts))
    draft.input_text = messages.last_user_text(draft.messages)
    system = body.get("system")
    if isinstance(system, list):
        parts = [_part(b) if isinstance(b, dict) else Part(type="text", content=str(b)) for b in system if isinstance(b, dict | str)]
        draft.messages[:0] = [Message(role="system", parts=parts)] if parts else []
    else:
        messages.system(system, draft)
    messages.variables(body.get("promptVariables"), draft)
    for tool in list_of(dict_of(body.get("toolConfig")).get("tools")):
        spec = dict_of(tool).get("toolSpec") or dict_of(tool).get("systemTool")
        if isinstance(spec, dict):
            messages.tools([spec], draft)
    messages.parameters(body, draft, nested=("inferenceConfig",))


def _part(block: dict[str, JSON]) -> Part:
    text = block.get("text", block.get("inputText"))
    if isinstance(text, str):
        return Part(type="text", content=text)
    call = block.get("toolUse")
    if isinstance(call, dict):
        return Part(
            type="tool_call", id=text_of(call.get("toolUseId")), name=text_of(call.get("name")), arguments=dump_json(call.get("input"))
        )
    guarded = block.get("guardContent")
    if isinstance(guarded, dict) and isinstance(text_of(dict_of(guarded.get("text")).get("text")), str):
        return Part(type="text", content=guarded["text"]["text"])
    result = block.get("toolResult")
    if isinstance(result, dict):
        texts = [
            text_of(piece.get("text")) or (dump_json(piece["json"]) if "json" in piece else messages.flat_text(piece))
            for piece in list_of(result.get("content"))
            if isinstance(piece, dict)
        ]
        return Part(type="tool_call_response", id=text_of(result.get("toolUseId")), content="\n".join(texts))
    thought = block.get("reasoningContent")
    if isinstance(thought, dict):
        return Part(type="reasoning", content=text_of(dict_of(thought.get("reasoningText")).get("text")) or "")
    for kind in ("image", "document", "video", "audio"):
        media = block.get(kind)
        if isinstance(media, dict):
            source = dict_of(media.get("source"))
            text = messages.text_file(source.get("bytes"), media.get("format")) or source.get("text")
            said = messages.flat_text([text, source.get("content"), media.get("context")])
            if said:
                return Part(type="document", content=messages.flat_text([media.get("name"), said]))
            uri = dict_of(source.get("s3Location")).get("uri")
            if isinstance(uri, str):
                return messages.data_uri(uri, kind)
            return messages.base64_part(source.get("bytes"), kind, media.get("format"))
    found = block.get("searchResult")
    if isinstance(found, dict) and (part := messages.document_part(found)) is not None:
        return part
    cited = block.get("citationsContent")
    if isinstance(cited, dict):
        return Part(type="text", content=messages.flat_text(cited.get("content")))
    return messages.content_part(block) if "type" in block else Part(type="other", name=next(iter(block), "other"))
