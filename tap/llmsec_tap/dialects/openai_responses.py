"""OpenAI Responses API, also as vLLM, SGLang, llama.cpp, LM Studio, xAI, Bedrock (mantle) and others serve it.

https://platform.openai.com/docs/api-reference/responses and .../responses-streaming. A stream names some fifty event types; the
last event repeats the whole answer. Deltas are taken as they come, and the repeats only fill what was not seen: a stream joined
in the middle, deltas lost by the capture, servers that send whole items without deltas.
"""

from __future__ import annotations

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
from llmsec_tap.dialects.dialect import BaseDialect
from llmsec_tap.dialects.draft import Draft
from llmsec_tap.dialects.failures import failure_of, read_stream_failure
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
_TRANSCRIPTS: Final = frozenset(
    f"response.{name}.{end}" for name in ("audio.transcript", "audio_transcript", "output_audio_transcript") for end in ("delta", "done")
)
_MAX_COMPARED_CHARS = 16 * 1024 * 1024  # of a stream's text, over all its repeats
_MAX_BETWEEN = 8  # characters that stand between two parts of one text: a blank line
_ENDINGS: Final = frozenset(("response.completed", "response.incomplete", "response.failed", "response.cancelled"))


class OpenAIResponses(BaseDialect):
    api: ClassVar[str] = "openai.responses"
    operation: ClassVar[str] = "chat"
    default_provider: ClassVar[str] = "openai_compatible"

    def claims(self, request: RequestView) -> int:
        path = request.path.rstrip("/")
        if request.is_websocket and request.get("type") == "response.create":
            return claims.OWN_ROUTE  # also where the upgrade was not captured
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
            draft.messages.extend(m for m in map(input_item, list_of(given)) if m is not None)
            draft.input_text = messages.last_user_text(draft.messages)
        stored = dict_of(body.get("prompt"))
        messages.variables(stored.get("variables"), draft)
        messages.system(body.get("instructions"), draft)
        messages.tools(body.get("tools"), draft)
        messages.parameters(body, draft)

    def answer(self, request: RequestView | None, response: ResponseView, body: JSON, ts_ns: int, draft: Draft) -> None:
        body = dict_of(dict_of(body).get("response")) or body
        if isinstance(body, dict):
            reader = ResponseReader(draft)
            reader.head(body)
            reader.whole(body, ts_ns)
            reader.ending(body, None)

    def stream(self, request: RequestView | None, response: ResponseView, draft: Draft) -> EventHandler:
        reader = ResponseReader(draft, is_stream=True)
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

        in_general = json_events(draft, on_object)
        decode = _decode_delta

        def on_event(ts_ns: int, name: str | None, data: bytes) -> None:
            try:
                said = decode(data)
            except (ValueError, RecursionError):  # another event, or one that holds more
                in_general(ts_ns, name, data)
                return
            if " " in said.item_id or " " in said.obfuscation:  # no id
                in_general(ts_ns, name, data)
                return
            touched.add(("text", said.output_index, said.content_index))
            text(ts_ns, 0, said.delta)

        return on_event


# The increments that most events are: decoded into what changes, and nothing else may be in them.
class _TextDelta(msgspec.Struct, tag_field="type", tag="response.output_text.delta", forbid_unknown_fields=True, gc=False):
    delta: str
    output_index: int = 0
    content_index: int = 0
    sequence_number: int = 0
    item_id: str = ""
    obfuscation: str = ""
    logprobs: msgspec.Raw = msgspec.Raw()


_decode_delta: Final = msgspec.json.Decoder(_TextDelta).decode


class ResponseReader:
    """What was already taken from deltas is in `seen`, so that its repeats are not taken again.

    Hosts differ: indexes are left out, are always 0, or are others in the done events than in the deltas; ids change from event to event.
    So a text that is not in `seen` is also looked for where the repeats have come to in the answer so far, and a call by its ids, then by
    its index, then as the one that is open.
    """

    __slots__ = ("_at_index", "_by_id", "_compared", "_done", "_draft", "_is_stream", "_latest", "_read_to", "_reasoning_slot", "seen")

    def __init__(self, draft: Draft, *, is_stream: bool = False) -> None:
        self._draft = draft
        self._is_stream = is_stream
        self.seen: set[tuple[object, ...]] = set()
        self._reasoning_slot: tuple[object, ...] | None = None
        self._read_to: dict[str, int] = {}  # by what repeats: how far it has come
        self._compared = 0
        self._by_id: dict[str, object] = {}  # calls
        self._at_index: dict[object, object] = {}
        self._latest: object = None
        self._done: set[object] = set()

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
        openai_usage(answer.get("usage"), draft)

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
            openai_usage(value.get("usage"), draft)
            self.repeat(answer, ts_ns)
            self.ending(answer, kind.removeprefix("response."))
            draft.terminated = True
        elif kind == "error" or (value.get("error") and not kind.startswith("response.")):
            read_stream_failure(value, draft)
        elif kind in ("response.output_text.done", "response.refusal.done"):
            what = "refusal" if "refusal" in kind else "text"
            missed = text_of(value.get(what))
            slot = self.slot(what, value)
            if missed is not None and not self._repeats("part " + what, slot, missed):
                (draft.text if what == "text" else draft.refusal)(ts_ns, 0, missed)
        elif kind in _TRANSCRIPTS:
            spoken = text_of(delta)
            if spoken is not None:
                self.seen.add(self.slot("audio", value))
                draft.text(ts_ns, 0, spoken)
            elif (spoken := text_of(value.get("transcript"))) and not self._repeats("part text", self.slot("audio", value), spoken):
                draft.text(ts_ns, 0, spoken)
        elif kind == "response.output_text.annotation.added":
            messages.cite([value.get("annotation")], draft, 0)
        elif kind == "response.refusal.delta" and isinstance(delta, str):
            self.seen.add(self.slot("refusal", value))
            draft.refusal(ts_ns, 0, delta)
        elif kind in ("response.reasoning_summary_text.delta", "response.reasoning_text.delta", "response.reasoning.delta"):
            if isinstance(delta, str):
                self._reasoning(self._reasoning_slot_of(kind, value), delta, ts_ns)
        elif kind in ("response.reasoning_summary_text.done", "response.reasoning_text.done"):
            slot = self._reasoning_slot_of(kind, value)
            missed = text_of(value.get("text"))
            if missed and not self._repeats("part reasoning", slot, missed):
                self._reasoning(slot, missed, ts_ns)
        elif kind == "response.output_item.added":
            self._item_added(dict_of(value.get("item")), value.get("output_index"), ts_ns)
        elif kind in ("response.function_call_arguments.delta", "response.custom_tool_call_input.delta"):
            if isinstance(delta, str):
                key = self._call(value.get("output_index"), _ids_in(value))
                self.seen.add(("arguments", key))
                draft.tool_call(ts_ns, 0, key, arguments=delta)
        elif kind in ("response.function_call_arguments.done", "response.custom_tool_call_input.done"):
            key = self._call(value.get("output_index"), _ids_in(value))
            whole = text_of(value.get("arguments")) or text_of(value.get("input"))
            if whole and ("arguments", key) not in self.seen:
                self.seen.add(("arguments", key))
                draft.tool_call(ts_ns, 0, key, arguments=whole)
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
            text_of(part.get("text")) or text_of(part.get("transcript")) or ""
            for item in output
            if isinstance(item, dict) and item.get("type") in ("message", None)
            for part in list_of(item.get("content"))
            if isinstance(part, dict) and part.get("type") in ("output_text", "text", "output_audio", "audio")
        )
        chosen = self._draft.choices.get(0)
        have = str(chosen.text) if chosen is not None else ""
        if whole and whole != have and len(whole) > len(have):
            self._draft.cumulative_text(ts_ns, 0, whole)
        calls = len(chosen.tool_calls) if chosen is not None else 0
        for position, item in enumerate(output):
            if not isinstance(item, dict):
                continue
            if item.get("type") in ("message", None):
                for part in list_of(item.get("content")):
                    messages.cite(dict_of(part).get("annotations"), self._draft, 0)
                continue
            if text_of(item.get("type")) in _CLIENT_CALLS:
                calls -= 1
                if calls >= 0 and not any(identity in self._by_id for identity in _ids(item)):
                    continue  # under another id it was there already
            self._item(item, position, ts_ns)

    def ending(self, answer: dict[str, JSON], event: str | None) -> None:
        draft = self._draft
        status = text_of(answer.get("status")) or event
        reason = text_of(dict_of(answer.get("incomplete_details")).get("reason")) if status == "incomplete" else None
        draft.finish(0, reason or status)
        if answer.get("error"):
            draft.error(*failure_of(answer))
        elif status == "failed":
            draft.error("failed")

    def _item_added(self, item: dict[str, JSON], index: JSON, ts_ns: int) -> None:
        kind = text_of(item.get("type")) or ""
        if kind in _CLIENT_CALLS:
            key = self._call(index, _ids(item), begins=True)
            name = text_of(item.get("name"))
            self.seen.add(("call", key))
            self._draft.tool_call(ts_ns, 0, key, id=text_of(item.get("call_id")) or text_of(item.get("id")), name=name)

    def _item(self, item: dict[str, JSON], index: JSON, ts_ns: int) -> None:
        """A whole item of the output: whatever part of it was not seen yet."""
        draft = self._draft
        kind = text_of(item.get("type")) or "message"
        key: object = index if isinstance(index, int) else 0
        if kind == "message":
            self._message(item, key, ts_ns)
        elif kind == "reasoning":
            for field, what in (("summary", "summary"), ("content", "content")):
                for position, part in enumerate(list_of(item.get(field))):
                    slot = (what, key, position)
                    text = text_of(dict_of(part).get("text"))
                    if text and not self._repeats("item reasoning", slot, text):
                        self._reasoning(slot, text, ts_ns)
        elif kind in _CLIENT_CALLS:
            key = self._call(index, _ids(item), ends=True)
            text = item.get(_CLIENT_CALLS[kind])
            arguments = text if isinstance(text, str) else "" if text is None else dump_json(text)
            if ("arguments", key) in self.seen:
                arguments = ""
            elif arguments:
                self.seen.add(("arguments", key))
            self.seen.add(("call", key))
            identity = text_of(item.get("call_id")) or text_of(item.get("id"))
            draft.tool_call(ts_ns, 0, key, id=identity, name=text_of(item.get("name")), arguments=arguments)
        elif kind.endswith("_call"):
            key = self._call(index, _ids(item), ends=True)
            if ("call", key) in self.seen:
                self._results(item, kind)
                return
            self.seen.add(("call", key))
            arguments_of_call = messages.call_arguments(item)
            draft.tool_call(
                ts_ns,
                0,
                key,
                id=text_of(item.get("call_id")) or text_of(item.get("id")),
                name=text_of(item.get("name")) or kind,
                arguments=arguments_of_call,
                server_side=kind not in _CLIENT_ACTIONS,
            )
            self._results(item, kind)
        elif kind == "compaction":
            draft.part(0, Part(type="other", name=kind, content=text_of(item.get("content"))))
        else:  # what MCP servers offer, outputs, programs, what is new
            for part in messages.call_parts(item, kind):
                if part.content or part.arguments:
                    draft.part(0, part)

    def _results(self, item: dict[str, JSON], kind: str) -> None:
        """What the server's own tools gave."""
        for part in messages.call_parts(item, kind):
            if part.type == "tool_call_response":
                self._draft.part(0, part)

    def _message(self, item: dict[str, JSON], key: object, ts_ns: int) -> None:
        draft = self._draft
        content = item.get("content")
        parts = [{"type": "output_text", "text": content}] if isinstance(content, str) else list_of(content)
        for position, part in enumerate(parts):
            part = dict_of(part)
            if part.get("type") in ("output_text", "text"):
                text = text_of(part.get("text"))
                if text is not None and not self._repeats("item text", ("text", key, position), text):
                    draft.text(ts_ns, 0, text)
                messages.cite(part.get("annotations"), draft, 0)
            elif part.get("type") in ("output_audio", "audio") and isinstance(part.get("transcript"), str):
                if not self._repeats("item text", ("audio", key, position), part["transcript"]):
                    draft.text(ts_ns, 0, part["transcript"])
            elif part.get("type") == "refusal":
                refused = text_of(part.get("refusal")) or ""
                if not self._repeats("item refusal", ("refusal", key, position), refused):
                    draft.refusal(ts_ns, 0, refused)

    def _repeats(self, level: str, slot: tuple[object, ...], text: str) -> bool:
        """Whether a done event or an item says what is there already; marks the slot as said either way."""
        is_seen = slot in self.seen
        self.seen.add(slot)
        chosen = self._draft.choices.get(0)
        if chosen is None or not self._is_stream:
            return is_seen
        buffer = chosen.reasoning if level.endswith("reasoning") else chosen.refusal if level.endswith("refusal") else chosen.text
        at = self._read_to.get(level, 0)
        if is_seen:
            self._read_to[level] = min(buffer.chars, at + len(text))
            return True
        self._compared += buffer.chars
        if not text or self._compared > _MAX_COMPARED_CHARS:
            return False
        found = buffer.whole().find(text, at, at + len(text) + _MAX_BETWEEN)
        is_there = found >= 0
        self._read_to[level] = (found if is_there else buffer.chars) + len(text)
        return is_there

    def _call(self, index: JSON, known: list[str], *, begins: bool = False, ends: bool = False) -> object:
        """The key of the call that an event is about."""
        key = next((self._by_id[identity] for identity in known if identity in self._by_id), None)
        if key is None and not begins:
            key = self._at_index.get(index) if isinstance(index, int) else self._latest
            if key in self._done:
                key = None
        if key is None:
            key = (
                index
                if isinstance(index, int) and index not in self._at_index
                else ("call", len(self._by_id), len(self._at_index), len(self._done))
            )
        if begins or not any(identity in self._by_id for identity in known):
            for identity in known:
                self._by_id.setdefault(identity, key)
        self._at_index[index if isinstance(index, int) else None] = key
        self._latest = key
        if ends:
            self._done.add(key)
        return key

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


def _ids(item: dict[str, JSON]) -> list[str]:
    return [item[name] for name in ("call_id", "id") if isinstance(item.get(name), str) and item[name]]


def _ids_in(event: dict[str, JSON]) -> list[str]:
    return [event[name] for name in ("item_id", "call_id") if isinstance(event.get(name), str) and event[name]]


def input_item(item: JSON) -> Message | None:
    """An entry of `input`: a message, or an item of an earlier answer sent back."""
    if isinstance(item, str):
        return Message(role="user", parts=[Part(type="text", content=item)])
    if not isinstance(item, dict):
        return None
    kind = text_of(item.get("type")) or "message"
    if kind == "message":
        return Message(role=text_of(item.get("role")) or "user", parts=messages.content_parts(item.get("content")))
    if kind.endswith("_output"):
        text = messages.result_text(item.get("output")) or messages.flat_text(item.get("tools"))
        return Message(role="tool", parts=[Part(type="tool_call_response", id=text_of(item.get("call_id")), content=text)])
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
    if kind.endswith(("_call", "_list_tools")) or kind.startswith("mcp_"):
        return Message(role="assistant", parts=messages.call_parts(item, kind))
    if kind == "compaction":
        return Message(role="assistant", parts=[Part(type="other", name=kind, content=text_of(item.get("content")))])
    if kind.startswith("input_"):  # parts given without a message around them
        return Message(role="user", parts=[messages.content_part(item)])
    return Message(role=text_of(item.get("role")) or "assistant", parts=[Part(type="other", name=kind)])
