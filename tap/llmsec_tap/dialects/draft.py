"""An exchange in the making: what dialects write into while requests, answers and stream events arrive.

A dialect calls the methods below; each is one normalised increment (text, reasoning, tool call, usage, finish, error) with
its capture time. Methods rather than delta objects: one call per streamed token is the hottest path above TCP.
A `DeltaListener` sees the same increments while the answer still streams.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable
from typing import Any, Protocol

from llmsec_tap.account import no_account
from llmsec_tap.anomalies import AnomalyName
from llmsec_tap.limits import (
    MAX_CHOICES,
    MAX_LATENCY_SAMPLES,
    MAX_TEXT_CHARS,
    MAX_TOOL_CALLS,
    MAX_UNREAD_EVENT_BYTES,
    MAX_UNREAD_EVENTS,
)
from llmsec_tap.model import Exchange, Message, OtherText, Part, ToolCall, ToolDefinition, Usage

COMPACT_AT = 32
_LONG = 4096  # a text that is not worth joining with others
# What CPython takes, measured: a choice with its buffers, a tool call, a message with one part, and a time per token.
_CHOICE_BYTES, _CALL_BYTES, _PART_BYTES, _TICK_BYTES = 1200, 600, 320, 8


class DeltaListener(Protocol):
    """Told of each increment of an answer as it arrives. `kind` is text, reasoning, refusal or tool_call.

    `finished` comes last, with the record, just before the record is passed downstream.
    """

    def delta(self, ts_ns: int, kind: str, choice: int, text: str) -> None: ...

    def finished(self, exchange: Exchange) -> None: ...


class Overlooked(Protocol):
    """Told of each event of a stream after its dialect has read it, to find what the dialect left.

    `is_clean`: the last event held nothing that its dialect left.
    """

    is_clean: bool

    def event(self, name: str | None, value: dict[str, Any], size: int, taken: int) -> None:
        """`size` is that of the event's data, `taken` how many characters of it the draft took."""


class TextBuffer:
    """Deltas joined in linear time and with little memory: the list is folded every few hundred parts."""

    __slots__ = ("_folded", "_last", "chars", "given", "parts")

    def __init__(self) -> None:
        self._folded: list[str] = []
        self._last = ""  # of what was folded
        self.parts: list[str] = []
        self.chars = 0
        self.given = False  # also an empty string was sent: "" and absent differ

    def append(self, text: str) -> None:
        self.parts.append(text)
        self.chars += len(text)
        if len(self.parts) >= COMPACT_AT:
            self.fold()

    def fold(self) -> str:
        """Join what came since the last time; returns that."""
        text = "".join(self.parts)
        if self.parts:
            self._last = self.parts[-1]
        self._folded.append(text)
        self.parts.clear()
        return text

    @property
    def last(self) -> str:
        """What was appended last, the same object."""
        return self.parts[-1] if self.parts else self._last

    def whole(self) -> str:
        """All of it, joined at most once for what comes between two calls."""
        if self.parts:
            self.fold()
        if len(self._folded) != 1:
            self._folded = ["".join(self._folded)]
        return self._folded[0]

    def replace(self, text: str) -> None:
        self._folded.clear()
        self.parts = [text]
        self.chars = len(text)

    def __bool__(self) -> bool:
        return self.chars > 0

    def __str__(self) -> str:
        return "".join(self._folded) + "".join(self.parts)


class ToolCallDraft:
    __slots__ = ("arguments", "id", "name", "server_side")

    def __init__(self) -> None:
        self.id: str | None = None
        self.name: str | None = None
        self.arguments = TextBuffer()
        self.server_side = False


class Choice:
    """One choice (OpenAI), candidate (Gemini) or output of the answer."""

    __slots__ = ("finish_reason", "others", "reasoning", "refusal", "role", "text", "tool_calls")

    def __init__(self) -> None:
        self.role = "assistant"
        self.text = TextBuffer()
        self.reasoning = TextBuffer()
        self.refusal = TextBuffer()
        self.tool_calls: dict[object, ToolCallDraft] = {}
        self.others: list[Part] = []  # what the server's own tools gave, sources that are cited, …
        self.finish_reason: str | None = None

    def message(self) -> Message:
        parts: list[Part] = []
        if self.reasoning:
            parts.append(Part(type="reasoning", content=str(self.reasoning)))
        if self.text or self.text.given:
            parts.append(Part(type="text", content=str(self.text)))
        if self.refusal:
            parts.append(Part(type="refusal", content=str(self.refusal)))
        parts += [Part(type="tool_call", id=call.id, name=call.name, arguments=str(call.arguments)) for call in self.tool_calls.values()]
        parts += self.others
        return Message(role=self.role, parts=parts, finish_reason=self.finish_reason)


class Draft:
    """Everything said so far about one exchange. Attributes are plain; dialects set them as they learn."""

    __slots__ = (
        "_is_full",
        "_part_chars",
        "_parts",
        "_reserve",
        "_stride",
        "_tool_count",
        "_untaken",
        "anomalies",
        "at_end",
        "chars",
        "choices",
        "embedding_dimensions",
        "embeddings",
        "error_message",
        "error_type",
        "events",
        "first_text_ns",
        "gaps_ns",
        "input_text",
        "last_text_ns",
        "listener",
        "messages",
        "operation",
        "other_texts",
        "overlooked",
        "parameters",
        "part_texts",
        "provider_hint",
        "request_model",
        "response_id",
        "response_model",
        "terminated",
        "tools",
        "touched",
        "unread",
        "usage",
    )

    def __init__(self, listener: DeltaListener | None = None, reserve: Callable[[int], bool] = no_account) -> None:
        """`reserve` gives room for what is kept (account.py)."""
        self._reserve = reserve
        self._is_full = False
        self.operation: str | None = None  # set where a dialect serves several operations
        self.provider_hint: str | None = None  # who serves it, as fields of the answer show (providers/answers.py)
        self.request_model: str | None = None
        self.messages: list[Message] = []
        self.tools: list[ToolDefinition] = []
        self.parameters: dict[str, str | int | float | bool | None] = {}
        self.input_text: str | None = None
        self.response_model: str | None = None
        self.response_id: str | None = None
        self.choices: dict[int, Choice] = {}
        self.usage = Usage()
        self.error_type: str | None = None
        self.error_message: str | None = None
        self.embeddings: int | None = None
        self.embedding_dimensions: int | None = None
        self.events = 0
        self.terminated = False  # the stream's own closing event was seen
        self.first_text_ns: int | None = None  # the first text, reasoning, refusal or tool call
        self.gaps_ns: array[int] = array("q")
        self.anomalies: dict[AnomalyName, int] = {}
        self.other_texts: list[OtherText] = []
        self.unread: list[bytes] = []  # data of events that no dialect could read; a few, for detection to look at
        self.listener = listener
        self.overlooked: Overlooked | None = None
        self.at_end: Callable[[], None] | None = None  # of a stream's reader: nothing more comes, what is held back is all there is
        self.last_text_ns = 0
        self._stride = 1
        self._untaken = 0
        self.chars = 0  # of what the model has said so far: text, reasoning, refusals, arguments
        self._part_chars = 0
        self.touched: list[ToolCallDraft] = []  # calls that this event said more of; `overlooked` clears it
        self._tool_count = 0
        self._parts: set[tuple[str | None, ...]] = set()
        self.part_texts = TextBuffer()  # all of them in one, to look texts up in

    # --- increments of the answer -------------------------------------------------------------------------------------

    def text(self, ts_ns: int, choice: int, text: str) -> None:
        """Answer text. An empty string is remembered as sent, but is no token."""
        chosen = self.choices.get(choice) or self.choice(choice)
        if text:
            self.increment(ts_ns, choice, chosen.text, "text", text)
        else:
            chosen.text.given = True

    def cumulative_text(self, ts_ns: int, choice: int, whole: str) -> None:
        """The whole text so far (SGLang, vLLM `/generate`): only what is new counts as the increment."""
        buffer = (self.choices.get(choice) or self.choice(choice)).text
        if whole and len(whole) >= buffer.chars:
            # Servers may revise the last character (an incomplete UTF-8 sequence shows as U+FFFD), so compare before cutting.
            old = str(buffer)
            if whole.startswith(old):
                self.text(ts_ns, choice, whole[len(old) :])
                return
        is_new = bool(whole)
        buffer.replace(whole)
        buffer.given = True
        if is_new:
            self._tick(ts_ns)

    def reasoning(self, ts_ns: int, choice: int, text: str) -> None:
        if text:
            self.increment(ts_ns, choice, (self.choices.get(choice) or self.choice(choice)).reasoning, "reasoning", text)

    def refusal(self, ts_ns: int, choice: int, text: str) -> None:
        if text:
            self.increment(ts_ns, choice, (self.choices.get(choice) or self.choice(choice)).refusal, "refusal", text)

    def tool_call(
        self,
        ts_ns: int,
        choice: int,
        key: object,
        *,
        id: str | None = None,  # noqa: A002 - the wire's own name
        name: str | None = None,
        arguments: str | None = None,
        server_side: bool = False,
    ) -> None:
        """An increment of the tool call `key` (its index or id on the wire) of a choice. Arguments are appended."""
        chosen = self.choices.get(choice) or self.choice(choice)
        call = chosen.tool_calls.get(key)
        if call is None:
            if self._tool_count >= MAX_TOOL_CALLS or not self._room(_CALL_BYTES):
                self.anomaly("choice_limit")
                return
            self._tool_count += 1
            call = chosen.tool_calls[key] = ToolCallDraft()
        if id:
            call.id = id
        if name:
            call.name = name
        call.server_side = call.server_side or server_side
        if self.overlooked is not None:
            self.touched.append(call)
        if arguments:
            self.increment(ts_ns, choice, call.arguments, "tool_call", arguments)
        elif name:
            self._tick(ts_ns)

    def part(self, choice: int, part: Part) -> None:
        """A part of the answer that is neither its own text nor a call to the client: a result of the server's tools, a cited source."""
        said = (part.type, part.id, part.name, part.uri, part.content, part.arguments)
        if said in self._parts:
            return  # some servers repeat their sources in every chunk
        others = (self.choices.get(choice) or self.choice(choice)).others
        size = _text_bytes(part.content) + _text_bytes(part.arguments)
        self._part_chars += len(part.content or "") + len(part.arguments or "")
        if len(others) >= MAX_TOOL_CALLS:
            self.anomaly("choice_limit")
        elif self._part_chars > MAX_TEXT_CHARS:
            self.anomaly("text_limit")
        elif self._room(_PART_BYTES + size):
            self._parts.add(said)
            others.append(part)
            self.part_texts.append("\0".join([text for text in said if text is not None]) + "\0")

    def finish(self, choice: int, reason: str | None) -> None:
        if reason:
            (self.choices.get(choice) or self.choice(choice)).finish_reason = reason

    def error(self, type: str | None, message: str | None = None) -> None:  # noqa: A002 - the wire's own name
        """The server reports a failure, by status or inside a stream that began well."""
        self.error_type = type or self.error_type or "unknown"
        if message:
            self.error_message = message

    # --- bookkeeping --------------------------------------------------------------------------------------------------

    def choice(self, index: int) -> Choice:
        found = self.choices.get(index)
        if found is None:
            if len(self.choices) >= MAX_CHOICES or not self._room(_CHOICE_BYTES):
                self.anomaly("choice_limit")
                return Choice()  # written to, never shown
            found = self.choices[index] = Choice()
        return found

    def anomaly(self, name: AnomalyName, count: int = 1) -> None:
        self.anomalies[name] = self.anomalies.get(name, 0) + count

    def unread_event(self, data: bytes) -> None:
        """An event whose data is not what its dialect promises."""
        self.anomaly("event_bad_json")
        if len(self.unread) < MAX_UNREAD_EVENTS:
            self.unread.append(data[:MAX_UNREAD_EVENT_BYTES])

    def tool_calls(self, choice: int = 0) -> list[ToolCall]:
        """The calls the client must run; those that the server ran itself are left out."""
        chosen = self.choices.get(choice)
        if chosen is None:
            return []
        return [ToolCall(id=c.id, name=c.name, arguments=str(c.arguments)) for c in chosen.tool_calls.values() if not c.server_side]

    def finish_reasons(self) -> list[str | None]:
        """By choice; null for a choice that ended without one (a stream that was broken off)."""
        return [c.finish_reason for _, c in sorted(self.choices.items())]

    def request_cost(self, body: object) -> None:
        """The request is decoded: what its texts take goes into the account, `body` being what else is kept of it."""
        size = sum(_text_bytes(value) for value in body.values()) if isinstance(body, dict) else 0
        for message in self.messages:
            size += _PART_BYTES + sum(_PART_BYTES + _text_bytes(part.content) + _text_bytes(part.arguments) for part in message.parts)
        size += sum(_PART_BYTES + _text_bytes(tool.description) for tool in self.tools)
        size += sum(_PART_BYTES + _text_bytes(other.text) for other in self.other_texts)
        self._room(size)

    def close(self) -> None:
        """Nothing more comes. Cuts the cycle through the account of its exchange."""
        self._reserve = no_account

    def has_room(self, size: int) -> bool:
        """Whether so much could be kept now, for a moment."""
        has_room = self._reserve(size)
        if has_room:
            self._reserve(-size)
        return has_room

    def _room(self, size: int) -> bool:
        """Room for so much more; without it the texts that come are left out."""
        if not self._is_full and not self._reserve(size):
            self._is_full = True
            self.anomaly("memory_limit")
        return not self._is_full

    def increment(self, ts_ns: int, choice: int, buffer: TextBuffer, kind: str, text: str) -> None:
        """Text, reasoning, refusal or arguments (`kind`) that are not empty, into the buffer of their choice."""
        size = len(text)
        self.chars += size
        if self.chars > MAX_TEXT_CHARS or self._is_full:
            self.anomaly("memory_limit" if self._is_full else "text_limit")
            return
        # TextBuffer.append and _tick, written out: this runs once per streamed token, and a call costs as much as its body.
        parts = buffer.parts
        parts.append(text)
        buffer.chars += size
        if len(parts) >= COMPACT_AT or size > _LONG:
            self._room(sys.getsizeof(buffer.fold()) + COMPACT_AT * _TICK_BYTES)
        if self.first_text_ns is None or self._stride > 1:
            self._tick(ts_ns)
        else:
            gaps = self.gaps_ns
            gaps.append(ts_ns - self.last_text_ns)
            self.last_text_ns = ts_ns
            if len(gaps) >= MAX_LATENCY_SAMPLES:
                self._thin()
        if self.listener is not None:
            self.listener.delta(ts_ns, kind, choice, text)

    def _tick(self, ts_ns: int) -> None:
        """Note the time of a token: the first one, then the gaps between them."""
        if self.first_text_ns is None:
            self.first_text_ns = ts_ns
            self.last_text_ns = ts_ns
            return
        gap = ts_ns - self.last_text_ns
        self.last_text_ns = ts_ns
        if self._stride > 1:
            self._untaken += 1
            if self._untaken < self._stride:
                return
            self._untaken = 0
        self.gaps_ns.append(gap)
        if len(self.gaps_ns) >= MAX_LATENCY_SAMPLES:
            self._thin()

    def _thin(self) -> None:
        self.gaps_ns = self.gaps_ns[::2]
        self._stride *= 2


def _text_bytes(value: object) -> int:
    return sys.getsizeof(value) if isinstance(value, str) else 0
