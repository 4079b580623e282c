"""OpenAI Responses API, also as vLLM, SGLang, llama.cpp, LM Studio, xAI, Bedrock (mantle) and others serve it.

https://platform.openai.com/docs/api-reference/responses and .../responses-streaming. A stream names some fifty event types; the
last event repeats the whole answer. Deltas are taken as they come, and the repeats only fill what was not seen: a stream joined
in the middle, deltas lost by the capture, servers that send whole items without deltas.
"""

from __future__ import annotations

from typing import ClassVar, Final

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
from llmsec_tap.dialects.dialect import BaseDialect
from llmsec_tap.dialects.draft import Draft
from llmsec_tap.dialects.failures import read_stream_failure
from llmsec_tap.dialects.json_events import json_events
from llmsec_tap.dialects.openai_chat import azure_deployment
from llmsec_tap.dialects.usage import openai_usage
from llmsec_tap.model import Message, Part
from llmsec_tap.providers.answers import provider_of_answer

# Output items that the client must run, and the field that holds what to run.
_CLIENT_CALLS: Final[dict[str, str]] = {
    "function_call": "arguments",
    "custom_tool_call": "input",
}
_CLIENT_ACTIONS: Final = frozenset(("local_shell_call", "computer_call", "apply_patch_call"))
_ENDINGS: Final = frozenset(("response.completed", "response.incomplete", "response.failed", "response.cancelled"))


class OpenAIResponses(BaseDialect):
    api: ClassVar[str] = "openai.responses"
    operation: ClassVar[str] = "chat"
    default_provider: ClassVar[str] = "openai_compatible"

    def claims(self, request: RequestView) -> int:
        path = request.path.rstrip("/")
        if request.method != "POST" or not path.endswith("/responses"):
            return 0
        body = request.body
        if isinstance(body, dict):
            return (
                claims.ROUTE_AND_SHAPE
                if "input" in body or "model" in body or "prompt" in body or "conversation" in body
                else claims.GENERIC_ROUTE
            )
        return claims.GENERIC_ROUTE

    def recognises(self, response: ResponseView, body: JSON) -> int:
        if not isinstance(body, dict):
            return 0
        if body.get("object") == "response" and "output" in body:
            return claims.NAMES_ITSELF
        kind = body.get("type")
        return claims.NAMES_ITSELF if isinstance(kind, str) and kind.startswith("response.") else 0

    def decode_request(self, request: RequestView, draft: Draft) -> None:
        body = request.body
        draft.request_model = text_of(request.get("model")) or azure_deployment(request)
        if not isinstance(body, dict):
            return
        given = body.get("input")
        if isinstance(given, str):
            messages.prompt(given, draft)
        else:
            draft.messages.extend(m for m in map(_input_item, list_of(given)) if m is not None)
            draft.input_text = messages.last_user_text(draft.messages)
        messages.system(body.get("instructions"), draft)
        messages.tools(body.get("tools"), draft)
        messages.parameters(body, draft)

    def answer(self, request: RequestView | None, response: ResponseView, body: JSON, ts_ns: int, draft: Draft) -> None:
        if isinstance(body, dict):
            reader = _Reader(draft)
            reader.head(body)
            reader.whole(body, ts_ns)
            reader.ending(body, None)

    def stream(self, request: RequestView | None, response: ResponseView, draft: Draft) -> EventHandler:
        reader = _Reader(draft)
        text = draft.text
        touched = reader.seen

        def on_object(ts_ns: int, name: str | None, value: dict[str, JSON]) -> None:
            kind = value.get("type")
            if kind == "response.output_text.delta":
                delta = value.get("delta")
                if isinstance(delta, str):
                    touched.add(reader.slot("text", value))
                    text(ts_ns, 0, delta)
                return
            reader.event(kind if isinstance(kind, str) else name, value, ts_ns)

        return json_events(draft, on_object)


class _Reader:
    """What was already taken from deltas is in `seen`, so that its repeats are not taken again."""

    __slots__ = ("_draft", "_reasoning_slot", "seen")

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self.seen: set[tuple[object, ...]] = set()
        self._reasoning_slot: tuple[object, ...] | None = None

    @staticmethod
    def slot(kind: str, value: dict[str, JSON], index: str = "content_index") -> tuple[object, ...]:
        """Which part of which item an event is about."""
        item, part = value.get("output_index"), value.get(index)
        return (kind, item if isinstance(item, int) else 0, part if isinstance(part, int) else 0)

    def head(self, answer: dict[str, JSON]) -> None:
        draft = self._draft
        draft.response_id = draft.response_id or text_of(answer.get("id")) or None
        draft.response_model = draft.response_model or text_of(answer.get("model")) or None
        if draft.provider_hint is None:
            draft.provider_hint = provider_of_answer(answer)

    def event(self, kind: str | None, value: dict[str, JSON], ts_ns: int) -> None:
        draft = self._draft
        if kind is None:
            kind = ""
        answer = value.get("response")
        if isinstance(answer, dict):
            self.head(answer)
        delta = value.get("delta")
        if kind in _ENDINGS:
            answer = dict_of(answer)
            draft.response_id = text_of(answer.get("id")) or draft.response_id  # Copilot's differ from event to event
            self.repeat(answer, ts_ns)
            self.ending(answer, kind.removeprefix("response."))
            draft.terminated = True
        elif kind == "error" or (value.get("error") and not kind.startswith("response.")):
            read_stream_failure(value, draft)
        elif kind in ("response.output_text.done", "response.refusal.done"):
            what = "refusal" if "refusal" in kind else "text"
            missed = text_of(value.get(what))
            slot = self.slot(what, value)
            if missed is not None and slot not in self.seen:
                self.seen.add(slot)
                (draft.text if what == "text" else draft.refusal)(ts_ns, 0, missed)
        elif kind == "response.refusal.delta" and isinstance(delta, str):
            self.seen.add(self.slot("refusal", value))
            draft.refusal(ts_ns, 0, delta)
        elif kind in ("response.reasoning_summary_text.delta", "response.reasoning_text.delta", "response.reasoning.delta"):
            if isinstance(delta, str):
                self._reasoning(self._reasoning_slot_of(kind, value), delta, ts_ns)
        elif kind in ("response.reasoning_summary_text.done", "response.reasoning_text.done"):
            slot = self._reasoning_slot_of(kind, value)
            missed = text_of(value.get("text"))
            if missed and slot not in self.seen:
                self._reasoning(slot, missed, ts_ns)
        elif kind == "response.output_item.added":
            self._item_added(dict_of(value.get("item")), value.get("output_index"), ts_ns)
        elif kind in ("response.function_call_arguments.delta", "response.custom_tool_call_input.delta"):
            if isinstance(delta, str):
                key = _key(value.get("output_index"))
                self.seen.add(("arguments", key))
                draft.tool_call(ts_ns, 0, key, arguments=delta)
        elif kind == "response.output_item.done":
            self._item(dict_of(value.get("item")), value.get("output_index"), ts_ns)

    def whole(self, answer: dict[str, JSON], ts_ns: int) -> None:
        for position, item in enumerate(list_of(answer.get("output"))):
            if isinstance(item, dict):
                self._item(item, position, ts_ns)

    def repeat(self, answer: dict[str, JSON], ts_ns: int) -> None:
        """The last event's whole answer against what was taken: text that is not the same was lost on the way."""
        output = list_of(answer.get("output"))
        if not output:
            return
        whole = "".join(
            text_of(part.get("text")) or ""
            for item in output
            if isinstance(item, dict) and item.get("type") in ("message", None)
            for part in list_of(item.get("content"))
            if isinstance(part, dict) and part.get("type") in ("output_text", "text")
        )
        chosen = self._draft.choices.get(0)
        have = str(chosen.text) if chosen is not None else ""
        if whole and whole != have and len(whole) > len(have):
            self._draft.cumulative_text(ts_ns, 0, whole)
        for position, item in enumerate(output):
            if isinstance(item, dict) and item.get("type") != "message":
                self._item(item, position, ts_ns)

    def ending(self, answer: dict[str, JSON], event: str | None) -> None:
        draft = self._draft
        openai_usage(answer.get("usage"), draft)
        status = text_of(answer.get("status")) or event
        reason = text_of(dict_of(answer.get("incomplete_details")).get("reason")) if status == "incomplete" else None
        draft.finish(0, reason or status)
        failure = answer.get("error")
        if isinstance(failure, dict) and failure:
            draft.error(text_of(failure.get("type")) or text_of(failure.get("code")), text_of(failure.get("message")))
        elif status == "failed":
            draft.error("failed")

    def _item_added(self, item: dict[str, JSON], index: JSON, ts_ns: int) -> None:
        kind = text_of(item.get("type")) or ""
        if kind in _CLIENT_CALLS:
            key = _key(index)
            name = text_of(item.get("name"))
            self.seen.add(("call", key))
            self._draft.tool_call(ts_ns, 0, key, id=text_of(item.get("call_id")) or text_of(item.get("id")), name=name)

    def _item(self, item: dict[str, JSON], index: JSON, ts_ns: int) -> None:
        """A whole item of the output: whatever part of it was not seen yet."""
        draft = self._draft
        kind = text_of(item.get("type")) or "message"
        key = _key(index)
        if kind == "message":
            self._message(item, key, ts_ns)
        elif kind == "reasoning":
            for field, what in (("summary", "summary"), ("content", "content")):
                for position, part in enumerate(list_of(item.get(field))):
                    slot = (what, key, position)
                    text = text_of(dict_of(part).get("text"))
                    if text and slot not in self.seen:
                        self._reasoning(slot, text, ts_ns)
        elif kind in _CLIENT_CALLS:
            text = item.get(_CLIENT_CALLS[kind])
            arguments = text if isinstance(text, str) else "" if text is None else dump_json(text)
            if ("arguments", key) in self.seen:
                arguments = ""
            elif arguments:
                self.seen.add(("arguments", key))
            self.seen.add(("call", key))
            identity = text_of(item.get("call_id")) or text_of(item.get("id"))
            draft.tool_call(ts_ns, 0, key, id=identity, name=text_of(item.get("name")), arguments=arguments)
        elif kind.endswith("_call") and ("call", key) not in self.seen:
            self.seen.add(("call", key))
            action = item.get("action") or item.get("operation") or item.get("arguments")
            draft.tool_call(
                ts_ns,
                0,
                key,
                id=text_of(item.get("call_id")) or text_of(item.get("id")),
                name=text_of(item.get("name")) or kind,
                arguments=action if isinstance(action, str) else dump_json(action) if action is not None else None,
                server_side=kind not in _CLIENT_ACTIONS,
            )

    def _message(self, item: dict[str, JSON], key: object, ts_ns: int) -> None:
        draft = self._draft
        content = item.get("content")
        parts = [{"type": "output_text", "text": content}] if isinstance(content, str) else list_of(content)
        for position, part in enumerate(parts):
            part = dict_of(part)
            if part.get("type") in ("output_text", "text"):
                text = text_of(part.get("text"))
                if text is not None and ("text", key, position) not in self.seen:
                    self.seen.add(("text", key, position))
                    draft.text(ts_ns, 0, text)
            elif part.get("type") == "refusal" and ("refusal", key, position) not in self.seen:
                self.seen.add(("refusal", key, position))
                draft.refusal(ts_ns, 0, text_of(part.get("refusal")) or "")

    def _reasoning_slot_of(self, kind: str, value: dict[str, JSON]) -> tuple[object, ...]:
        if "summary" in kind:
            return self.slot("summary", value, "summary_index")
        return self.slot("content", value)

    def _reasoning(self, slot: tuple[object, ...], text: str, ts_ns: int) -> None:
        """Parts are separated by a blank line, as clients show them."""
        if slot != self._reasoning_slot:
            if self._reasoning_slot is not None:
                text = "\n\n" + text
            self._reasoning_slot = slot
        self.seen.add(slot)
        self._draft.reasoning(ts_ns, 0, text)


def _key(index: JSON) -> int:
    return index if isinstance(index, int) else 0


def _input_item(item: JSON) -> Message | None:
    """An entry of `input`: a message, or an item of an earlier answer sent back."""
    if isinstance(item, str):
        return Message(role="user", parts=[Part(type="text", content=item)])
    if not isinstance(item, dict):
        return None
    kind = text_of(item.get("type")) or "message"
    if kind == "message":
        return Message(role=text_of(item.get("role")) or "user", parts=messages.content_parts(item.get("content")))
    if kind.endswith("_output"):
        part = Part(type="tool_call_response", id=text_of(item.get("call_id")), content=messages.plain_text(item.get("output")))
        return Message(role="tool", parts=[part])
    if kind in _CLIENT_CALLS:
        value = item.get(_CLIENT_CALLS[kind])
        text = value if isinstance(value, str) else dump_json(value)
        return Message(
            role="assistant",
            parts=[Part(type="tool_call", id=text_of(item.get("call_id")), name=text_of(item.get("name")), arguments=text)],
        )
    if kind == "reasoning":
        texts = [t for f in ("summary", "content") for p in list_of(item.get(f)) if (t := text_of(dict_of(p).get("text")))]
        return Message(role="assistant", parts=[Part(type="reasoning", content="\n\n".join(texts))])
    if kind.startswith("input_"):  # parts given without a message around them
        return Message(role="user", parts=[messages.content_part(item)])
    return Message(role=text_of(item.get("role")) or "assistant", parts=[Part(type="other", name=kind)])
