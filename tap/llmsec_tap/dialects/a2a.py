"""Agent2Agent protocol (https://a2a-protocol.org/latest/specification/), its binding to JSON-RPC: a message to an agent, and what it gives."""

from __future__ import annotations

from typing import ClassVar, Final

from llmsec_tap.dialects import claims, messages
from llmsec_tap.dialects.base import JSON, RequestView, ResponseView, dict_of, dump_json, list_of, text_of
from llmsec_tap.dialects.dialect import BaseDialect
from llmsec_tap.dialects.draft import Draft
from llmsec_tap.dialects.jsonrpc import id_of, messages_of, method_of, read_error
from llmsec_tap.model import Message, Part

# As they were until version 0.3, and since.
_METHODS: Final = frozenset(("message/send", "message/stream", "SendMessage", "SendStreamingMessage"))


class A2AMessage(BaseDialect):
    api: ClassVar[str] = "a2a.message"
    operation: ClassVar[str] = "invoke_agent"
    default_provider: ClassVar[str] = "a2a"

    def claims(self, request: RequestView) -> int:
        return (
            claims.OWN_ROUTE
            if any(method_of(message) in _METHODS and _parts(_message(message)) for message in messages_of(request.body))
            else 0
        )

    def decode_request(self, request: RequestView, draft: Draft) -> None:
        for message in messages_of(request.body):
            draft.response_id = draft.response_id or id_of(message)
            said = _message(message)
            draft.messages.append(Message(role=text_of(said.get("role")) or "user", parts=_parts(said)))
            messages.parameters({"method": method_of(message)}, draft)
        texts = [part.content for message in draft.messages for part in message.parts if part.type == "text" and part.content]
        draft.input_text = "\n".join(texts) or None

    def answer(self, request: RequestView | None, response: ResponseView, body: JSON, ts_ns: int, draft: Draft) -> None:
        for message in messages_of(body):
            if read_error(message, draft):
                draft.terminated = True
                continue
            result = dict_of(message.get("result"))
            _said(result, ts_ns, draft)
            for name in ("task", "message", "statusUpdate", "artifactUpdate"):
                _said(dict_of(result.get(name)), ts_ns, draft)


def _message(request: dict[str, JSON]) -> dict[str, JSON]:
    """What a request says."""
    return dict_of(dict_of(request.get("params")).get("message"))


def _said(result: dict[str, JSON], ts_ns: int, draft: Draft) -> None:
    """A message, a task with its artifacts, or one update of either."""
    status = dict_of(result.get("status"))
    for holder in (
        result,
        dict_of(status.get("message")),
        dict_of(result.get("artifact")),
        *map(dict_of, list_of(result.get("artifacts"))),
    ):
        for part in _parts(holder):
            if part.type == "text" and part.content:
                draft.text(ts_ns, 0, part.content)
            else:
                draft.part(0, part)
    if state := text_of(status.get("state")):
        draft.finish(0, state)
    if result.get("kind") == "message" or "role" in result or result.get("final") is True:
        draft.choice(0)
        draft.terminated = True


def _parts(holder: dict[str, JSON]) -> list[Part]:
    parts: list[Part] = []
    for part in list_of(holder.get("parts")):
        part = dict_of(part)
        file = dict_of(part.get("file"))
        if isinstance(part.get("text"), str):
            parts.append(Part(type="text", content=part["text"]))
        elif "data" in part:
            parts.append(Part(type="other", name="data", content=dump_json(part["data"])))
        elif uri := text_of(file.get("uri")):
            parts.append(messages.data_uri(uri, "file"))
        elif file:
            parts.append(messages.base64_part(file.get("bytes"), "file", file.get("mimeType")))
    return parts
