"""Tool calls that are streamed in pieces, however a server numbers them; texts that a stream repeats; usage wherever it stands; first content."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmsec_tap.dialects.base import RequestView, ResponseView
from llmsec_tap.dialects.draft import Draft
from llmsec_tap.identity.classify import classify

SSE = "text/event-stream"
BERGEN = ("weather", '{"city":"Bergen"}')
OSLO = ("weather", '{"city":"Oslo"}')
NOW = ("now", "{}")
HALVES = ('{"city":', '"Oslo"}')
CHAT = ("/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True})
RESPONSES = ("/v1/responses", {"model": "m", "input": "hi", "stream": True})
MESSAGES = ("/v1/messages", {"model": "m", "max_tokens": 3, "messages": [{"role": "user", "content": "hi"}], "stream": True})
GEMINI = ("/v1beta/models/m:streamGenerateContent?alt=sse", {"contents": [{"parts": [{"text": "hi"}]}]})
CONVERSE = ("/model/m/converse-stream", {"messages": [{"role": "user", "content": [{"text": "hi"}]}]})
COHERE = ("/v2/chat", {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True})
COHERE_1 = ("/v1/chat", {"model": "m", "message": "hi", "stream": True})
OLLAMA = ("/api/chat", {"model": "m", "messages": [{"role": "user", "content": "hi"}]})
CLOUDFLARE = ("/client/v4/accounts/a/ai/run/@cf/a/m", {"messages": [{"role": "user", "content": "hi"}], "stream": True})
WATSONX = ("/ml/v1/text/chat_stream", {"model_id": "m", "messages": [{"role": "user", "content": "hi"}]})


def streamed(asked: tuple[str, Any], events: list[Any], *, answer_type: str = SSE) -> Draft:
    path, body = asked
    view = RequestView("POST", path, {"host": "h"})
    view.body, view.body_is_json = body, True
    dialect = classify(view)
    assert dialect is not None
    draft = Draft()
    dialect.decode_request(view, draft)
    handler = dialect.stream(view, ResponseView(200, {"content-type": answer_type}), draft)
    for at, event in enumerate(events):
        name, value = event if isinstance(event, tuple) else (None, event)
        handler(at + 1, name, value if isinstance(value, bytes) else json.dumps(value).encode())
    if draft.at_end is not None:
        draft.at_end()
    return draft


def whole(asked: tuple[str, Any], answer: Any) -> Draft:
    path, body = asked
    view = RequestView("POST", path.replace("converse-stream", "converse").replace("stream", ""), {"host": "h"})
    view.body, view.body_is_json = {key: value for key, value in body.items() if key != "stream"}, True
    dialect = classify(view)
    assert dialect is not None
    draft = Draft()
    dialect.decode_response(view, ResponseView(200, {"content-type": "application/json"}), answer, 1, draft)
    return draft


def piece(arguments: str | None = None, **more: Any) -> dict[str, Any]:
    """A chunk with one piece of a call. `name`, `id` and `index` where they are given."""
    function = {key: value for key, value in (("name", more.pop("name", None)), ("arguments", arguments)) if value is not None}
    return {
        "id": "c",
        "model": "m",
        "choices": [{"index": more.pop("choice", 0), "delta": {"tool_calls": [{**more, "function": function}]}}],
    }


def added(identity: str, name: str = "weather", **more: Any) -> dict[str, Any]:
    return {
        "type": "response.output_item.added",
        "item": {"type": "function_call", "id": "fc" + identity, "call_id": identity, "name": name, "arguments": ""},
        **more,
    }


def arguments(delta: str, **more: Any) -> dict[str, Any]:
    return {"type": "response.function_call_arguments.delta", "delta": delta, **more}


def done(identity: str, text: str, name: str = "weather", **more: Any) -> dict[str, Any]:
    return {
        "type": "response.output_item.done",
        "item": {"type": "function_call", "id": "fc" + identity, "call_id": identity, "name": name, "arguments": text},
        **more,
    }


def completed(*output: Any) -> dict[str, Any]:
    return {"type": "response.completed", "response": {"id": "r", "status": "completed", "output": list(output)}}


def begins(identity: str, name: str, **more: Any) -> dict[str, Any]:
    return {"type": "content_block_start", "content_block": {"type": "tool_use", "id": identity, "name": name, "input": {}}, **more}


def goes_on(text: str, **more: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "delta": {"type": "input_json_delta", "partial_json": text}, **more}


def parts(*calls: Any) -> dict[str, Any]:
    return {"candidates": [{"content": {"role": "model", "parts": [{"functionCall": call} for call in calls]}}]}


def tool(block: dict[str, Any], event: str = "contentBlockDelta", **more: Any) -> tuple[str, Any]:
    key = "start" if event == "contentBlockStart" else "delta"
    return event, {key: {"toolUse": block}, **more}


def cohere(kind: str, identity: str | None = None, name: str | None = None, text: str | None = None, **more: Any) -> dict[str, Any]:
    function = {key: value for key, value in (("name", name), ("arguments", text)) if value is not None}
    return {"type": kind, "delta": {"message": {"tool_calls": {**({"id": identity} if identity else {}), "function": function}}}, **more}


def ollama(*calls: Any) -> dict[str, Any]:
    return {"model": "m", "created_at": "x", "message": {"role": "assistant", "content": "", "tool_calls": list(calls)}, "done": False}


CALLS: list[tuple[str, tuple[str, Any], list[Any], list[tuple[str, str]]]] = [
    ("by index", CHAT, [piece(index=0, id="1", name="weather", arguments=""), piece(index=0, arguments=HALVES[0]), piece(index=0, arguments=HALVES[1]), piece(index=1, id="2", name="now", arguments="{}")], [OSLO, NOW]),
    ("by index, interleaved", CHAT, [piece(index=0, id="1", name="weather", arguments=HALVES[0]), piece(index=1, id="2", name="now", arguments="{"), piece(index=0, arguments=HALVES[1]), piece(index=1, arguments="}")], [OSLO, NOW]),
    ("by id alone", CHAT, [piece(id="1", name="weather", arguments=HALVES[0]), piece(id="2", name="now", arguments="{"), piece(id="1", arguments=HALVES[1]), piece(id="2", arguments="}")], [OSLO, NOW]),
    ("by nothing", CHAT, [piece(name="weather", arguments=HALVES[0]), piece(arguments=HALVES[1]), piece(name="now", arguments="{}")], [OSLO, NOW]),
    ("by nothing, whole calls of one name", CHAT, [piece(name="weather", arguments=OSLO[1]), piece(name="weather", arguments=BERGEN[1])], [OSLO, BERGEN]),
    ("all at index 0, other ids", CHAT, [piece(index=0, id="1", name="weather", arguments=OSLO[1]), piece(index=0, id="2", name="weather", arguments=""), piece(index=0, arguments=BERGEN[1])], [OSLO, BERGEN]),
    ("all at index 0, no ids", CHAT, [piece(index=0, name="weather", arguments=OSLO[1]), piece(index=0, name="weather", arguments=BERGEN[1])], [OSLO, BERGEN]),
    ("another id on every piece", CHAT, [piece(index=0, id="1", name="weather", arguments=HALVES[0]), piece(index=0, id="2", arguments=HALVES[1])], [OSLO]),
    ("another id on every piece, no index", CHAT, [piece(id="1", name="weather", arguments=HALVES[0]), piece(id="2", arguments=HALVES[1])], [OSLO]),
    ("the name on every piece", CHAT, [piece(index=0, id="1", name="weather", arguments=HALVES[0]), piece(index=0, id="1", name="weather", arguments=HALVES[1])], [OSLO]),
    ("the name on every piece, no ids", CHAT, [piece(index=0, name="weather", arguments=HALVES[0]), piece(index=0, name="weather", arguments=HALVES[1])], [OSLO]),
    ("the index on the first piece only", CHAT, [piece(index=0, id="1", name="weather", arguments=HALVES[0]), piece(arguments=HALVES[1])], [OSLO]),
    ("the id after the name", CHAT, [piece(index=0, name="weather", arguments=""), piece(index=0, id="1", arguments=OSLO[1])], [OSLO]),
    ("empty id and name on later pieces", CHAT, [piece(index=0, id="1", name="weather", arguments=""), piece(index=0, id="", name="", arguments=OSLO[1])], [OSLO]),
    ("arguments as an object", CHAT, [piece(index=0, id="1", name="weather", arguments={"city": "Oslo"})], [OSLO]),  # type: ignore[arg-type]
    ("watsonx, no index", WATSONX, [piece(id="1", name="weather", arguments=HALVES[0]), piece(arguments=HALVES[1])], [OSLO]),
    ("cloudflare, no index", CLOUDFLARE, [{"tool_calls": [{"name": "weather", "arguments": {"city": "Oslo"}}]}, {"tool_calls": [{"name": "now", "arguments": {}}]}], [OSLO, NOW]),
    ("cloudflare, pieces", CLOUDFLARE, [{"response": "", "tool_calls": [{"index": 0, "id": "1", "function": {"name": "weather", "arguments": HALVES[0]}}]}, {"tool_calls": [{"index": 0, "function": {"arguments": HALVES[1]}}]}], [OSLO]),
    ("responses by output_index", RESPONSES, [added("1", output_index=0), arguments(HALVES[0], output_index=0), added("2", output_index=1), arguments(HALVES[1], output_index=0), arguments(BERGEN[1], output_index=1), done("1", OSLO[1], output_index=0), done("2", BERGEN[1], output_index=1)], [OSLO, BERGEN]),
    ("responses by item_id", RESPONSES, [added("1"), added("2"), arguments(HALVES[0], item_id="fc1"), arguments(BERGEN[1], item_id="fc2"), arguments(HALVES[1], item_id="fc1"), done("1", OSLO[1]), done("2", BERGEN[1])], [OSLO, BERGEN]),
    ("responses, all at index 0", RESPONSES, [added("1", output_index=0), arguments(OSLO[1], output_index=0), done("1", OSLO[1], output_index=0), added("2", output_index=0), arguments(BERGEN[1], output_index=0), done("2", BERGEN[1], output_index=0)], [OSLO, BERGEN]),
    ("responses, by nothing", RESPONSES, [added("1"), arguments(HALVES[0]), arguments(HALVES[1]), added("2", "now"), arguments("{}")], [OSLO, NOW]),
    ("responses, other ids in every event", RESPONSES, [added("1", output_index=0), arguments(HALVES[0], output_index=0, item_id="x"), arguments(HALVES[1], output_index=0, item_id="y"), done("9", OSLO[1], output_index=0), completed({"type": "function_call", "id": "z", "call_id": "zz", "name": "weather", "arguments": OSLO[1]})], [OSLO]),
    ("responses, other indexes in the done events", RESPONSES, [added("1", output_index=0), arguments(OSLO[1], output_index=0), done("1", OSLO[1], output_index=3), completed({"type": "function_call", "id": "fc1", "call_id": "1", "name": "weather", "arguments": OSLO[1]})], [OSLO]),
    ("responses, arguments in the done event only", RESPONSES, [added("1", output_index=0), {"type": "response.function_call_arguments.done", "output_index": 0, "arguments": OSLO[1]}], [OSLO]),
    ("messages by index", MESSAGES, [begins("1", "weather", index=1), goes_on(HALVES[0], index=1), goes_on(HALVES[1], index=1), {"type": "content_block_stop", "index": 1}, begins("2", "now", index=2), {"type": "content_block_stop", "index": 2}], [OSLO, NOW]),
    ("messages, all at index 0", MESSAGES, [begins("1", "weather", index=0), goes_on(OSLO[1], index=0), {"type": "content_block_stop", "index": 0}, begins("2", "weather", index=0), goes_on(BERGEN[1], index=0), {"type": "content_block_stop", "index": 0}], [OSLO, BERGEN]),
    ("messages, by nothing", MESSAGES, [begins("1", "weather"), goes_on(HALVES[0]), goes_on(HALVES[1]), {"type": "content_block_stop"}, begins("2", "now"), {"type": "content_block_stop"}], [OSLO, NOW]),
    ("messages, never stopped", MESSAGES, [begins("2", "now", index=0)], [NOW]),
    ("gemini, whole calls", GEMINI, [parts({"name": "weather", "args": {"city": "Oslo"}}), parts({"name": "weather", "args": {"city": "Bergen"}})], [OSLO, BERGEN]),
    ("gemini, args after the name", GEMINI, [parts({"name": "weather", "willContinue": True}), parts({"args": {"city": "Oslo"}})], [OSLO]),
    ("gemini, partial arguments", GEMINI, [parts({"name": "weather", "willContinue": True, "partialArgs": [{"jsonPath": "$.city", "stringValue": "Os", "willContinue": True}]}), parts({"partialArgs": [{"jsonPath": "$.city", "stringValue": "lo"}], "willContinue": True}), parts({}), parts({"name": "now"})], [OSLO, NOW]),
    ("gemini, partial arguments by id", GEMINI, [parts({"id": "1", "name": "weather", "willContinue": True}), parts({"id": "1", "name": "weather", "partialArgs": [{"jsonPath": "$['city']", "stringValue": "Oslo"}]}), parts({"id": "2", "name": "now"})], [OSLO, NOW]),
    ("gemini, lists and objects", GEMINI, [parts({"name": "f", "willContinue": True, "partialArgs": [{"jsonPath": "$.a[0].b", "numberValue": 1}, {"jsonPath": "$.a[1].b", "boolValue": True}, {"jsonPath": "$.c", "nullValue": None}]}), parts({})], [("f", '{"a":[{"b":1},{"b":true}],"c":null}')]),
    ("gemini, cut", GEMINI, [parts({"name": "weather", "willContinue": True, "partialArgs": [{"jsonPath": "$.city", "stringValue": "Oslo", "willContinue": True}]})], [OSLO]),
    ("converse by index", CONVERSE, [tool({"toolUseId": "1", "name": "weather"}, "contentBlockStart", contentBlockIndex=0), tool({"input": HALVES[0]}, contentBlockIndex=0), tool({"input": HALVES[1]}, contentBlockIndex=0), ("contentBlockStop", {"contentBlockIndex": 0}), tool({"toolUseId": "2", "name": "now"}, "contentBlockStart", contentBlockIndex=1), ("contentBlockStop", {"contentBlockIndex": 1})], [OSLO, NOW]),
    ("converse, all at index 0", CONVERSE, [tool({"toolUseId": "1", "name": "weather"}, "contentBlockStart", contentBlockIndex=0), tool({"input": OSLO[1]}, contentBlockIndex=0), ("contentBlockStop", {"contentBlockIndex": 0}), tool({"toolUseId": "2", "name": "weather"}, "contentBlockStart", contentBlockIndex=0), tool({"input": BERGEN[1]}, contentBlockIndex=0), ("contentBlockStop", {"contentBlockIndex": 0})], [OSLO, BERGEN]),
    ("converse, by nothing", CONVERSE, [tool({"toolUseId": "1", "name": "weather"}, "contentBlockStart"), tool({"input": HALVES[0]}), tool({"input": HALVES[1]}), tool({"toolUseId": "2", "name": "now"}, "contentBlockStart"), ("messageStop", {"stopReason": "tool_use"})], [OSLO, NOW]),
    ("cohere by index", COHERE, [cohere("tool-call-start", "1", "weather", "", index=0), cohere("tool-call-delta", text=HALVES[0], index=0), cohere("tool-call-delta", text=HALVES[1], index=0), cohere("tool-call-start", "2", "now", "{}", index=1)], [OSLO, NOW]),
    ("cohere, all at index 0", COHERE, [cohere("tool-call-start", "1", "weather", "", index=0), cohere("tool-call-delta", text=OSLO[1], index=0), cohere("tool-call-start", "2", "weather", "", index=0), cohere("tool-call-delta", text=BERGEN[1], index=0)], [OSLO, BERGEN]),
    ("cohere, by nothing", COHERE, [cohere("tool-call-start", "1", "weather", ""), cohere("tool-call-delta", text=HALVES[0]), cohere("tool-call-delta", text=HALVES[1])], [OSLO]),
    ("cohere v1, chunks and then the whole", COHERE_1, [{"event_type": "tool-calls-chunk", "tool_call_delta": {"index": 0, "name": "weather"}}, {"event_type": "tool-calls-chunk", "tool_call_delta": {"index": 0, "parameters": HALVES[0]}}, {"event_type": "tool-calls-chunk", "tool_call_delta": {"index": 0, "parameters": HALVES[1]}}, {"event_type": "tool-calls-generation", "tool_calls": [{"name": "weather", "parameters": {"city": "Oslo"}}]}], [OSLO]),
    ("ollama, whole calls", OLLAMA, [ollama({"function": {"name": "weather", "arguments": {"city": "Oslo"}}}), ollama({"function": {"name": "weather", "arguments": {"city": "Bergen"}}})], [OSLO, BERGEN]),
    ("ollama, index 0 on each", OLLAMA, [ollama({"function": {"index": 0, "name": "weather", "arguments": {"city": "Oslo"}}}), ollama({"function": {"index": 0, "name": "weather", "arguments": {"city": "Bergen"}}})], [OSLO, BERGEN]),
    ("ollama, pieces", OLLAMA, [ollama({"function": {"name": "weather", "arguments": HALVES[0]}}), ollama({"function": {"arguments": HALVES[1]}})], [OSLO]),
]  # fmt: skip


@pytest.mark.parametrize(("asked", "events", "calls"), [row[1:] for row in CALLS], ids=[row[0] for row in CALLS])
def test_pieces_go_to_their_call(asked: tuple[str, Any], events: list[Any], calls: list[tuple[str, str]]) -> None:
    draft = streamed(asked, events)
    assert [(call.name, call.arguments) for call in draft.tool_calls()] == calls


def test_calls_of_two_choices_stay_apart() -> None:
    events = [
        piece(index=0, id="1", name="weather", arguments=HALVES[0]),
        piece(index=0, id="2", name="now", arguments="{", choice=1),
        piece(index=0, arguments=HALVES[1]),
        piece(index=0, arguments="}", choice=1),
    ]
    draft = streamed(CHAT, events)
    assert [[(call.name, call.arguments) for call in draft.tool_calls(choice)] for choice in (0, 1)] == [[OSLO], [NOW]]


def text(delta: str, **more: Any) -> dict[str, Any]:
    return {"type": "response.output_text.delta", "delta": delta, **more}


def text_done(said: str, **more: Any) -> dict[str, Any]:
    return {"type": "response.output_text.done", "text": said, **more}


def message(*said: str, identity: str = "m1") -> dict[str, Any]:
    return {"type": "message", "id": identity, "role": "assistant", "content": [{"type": "output_text", "text": part} for part in said]}


def item_done(*said: str, identity: str = "m1", **more: Any) -> dict[str, Any]:
    return {"type": "response.output_item.done", "item": message(*said, identity=identity), **more}


REPEATS: list[tuple[str, list[Any], str]] = [
    ("deltas alone", [text("Hi ", output_index=0), text("there", output_index=0)], "Hi there"),
    ("all repeats", [text("Hi there", output_index=0), text_done("Hi there", output_index=0), item_done("Hi there", output_index=0), completed(message("Hi there"))], "Hi there"),
    ("another index in the repeats", [text("Hi there", output_index=0), text_done("Hi there", output_index=1), item_done("Hi there", output_index=2), completed(message("Hi there"))], "Hi there"),
    ("no index in the deltas", [text("Hi there", item_id="a"), text_done("Hi there", item_id="b", output_index=1, content_index=3), item_done("Hi there", identity="c", output_index=1)], "Hi there"),
    ("another content_index", [text("Hi there", output_index=0, content_index=0), item_done("Hi there", output_index=0), text_done("Hi there", output_index=0, content_index=1)], "Hi there"),
    ("one text twice is two texts", [text("OK", output_index=0), text_done("OK", output_index=0), item_done("OK", output_index=0), text("OK", output_index=1), text_done("OK", output_index=1), item_done("OK", output_index=1), completed(message("OK"), message("OK"))], "OKOK"),
    ("one text twice, other indexes", [text("OK", output_index=0), text_done("OK", output_index=7), text("OK", output_index=1), text_done("OK", output_index=8), completed(message("OK"), message("OK"))], "OKOK"),
    ("no deltas at all", [text_done("Hi ", output_index=0), item_done("Hi ", output_index=0), text_done("there", output_index=1), item_done("there", output_index=1)], "Hi there"),
    ("items alone", [item_done("Hi ", output_index=0), item_done("there", output_index=1), completed(message("Hi "), message("there"))], "Hi there"),
    ("the last event alone", [completed(message("Hi there"))], "Hi there"),
]  # fmt: skip


@pytest.mark.parametrize(("events", "said"), [row[1:] for row in REPEATS], ids=[row[0] for row in REPEATS])
def test_a_text_that_is_repeated_counts_once(events: list[Any], said: str) -> None:
    assert str(streamed(RESPONSES, events).choices[0].text) == said


def test_reasoning_that_is_repeated_counts_once() -> None:
    kind = "response.reasoning_summary_text"
    events = [
        {"type": f"{kind}.delta", "output_index": 0, "summary_index": 0, "delta": "one"},
        {"type": f"{kind}.done", "output_index": 4, "summary_index": 0, "text": "one"},
        {"type": f"{kind}.delta", "output_index": 0, "summary_index": 1, "delta": "two"},
        {"type": f"{kind}.done", "output_index": 4, "summary_index": 1, "text": "two"},
        {
            "type": "response.output_item.done",
            "output_index": 5,
            "item": {"type": "reasoning", "summary": [{"text": "one"}, {"text": "two"}]},
        },
    ]
    assert str(streamed(RESPONSES, events).choices[0].reasoning) == "one\n\ntwo"


def chunk(content: str | None = "x", finish: str | None = None, choice: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {
        "id": "c",
        "model": "m",
        "choices": [{"index": 0, "delta": {"content": content}, "finish_reason": finish, **(choice or {})}],
        **more,
    }


OPENAI_COUNTS = {"prompt_tokens": 9, "completion_tokens": 20}
USAGE: list[tuple[str, tuple[str, Any], list[Any]]] = [
    ("beside the choices", CHAT, [chunk(), chunk(None, "stop", usage=OPENAI_COUNTS)]),
    ("in an extra chunk", CHAT, [chunk(), chunk(None, "stop"), {"choices": [], "usage": OPENAI_COUNTS}]),
    ("in the choice", CHAT, [chunk(), chunk(None, "stop", {"usage": OPENAI_COUNTS})]),
    ("in the choice of a chunk with text", CHAT, [chunk(), chunk("y", "stop", {"usage": OPENAI_COUNTS})]),
    ("in the delta", CHAT, [chunk(), {"id": "c", "model": "m", "choices": [{"index": 0, "delta": {"usage": OPENAI_COUNTS}, "finish_reason": "stop"}]}]),
    ("under x_groq", CHAT, [chunk(), chunk(None, "stop", x_groq={"usage": OPENAI_COUNTS})]),
    ("fractions", CHAT, [chunk(), chunk(None, "stop", usage={"prompt_tokens": 9.0, "completion_tokens": 19.6})]),
    ("digits in texts", CHAT, [chunk(), chunk(None, "stop", usage={"prompt_tokens": "9", "completion_tokens": "20"})]),
    ("with an unfinished beginning", CHAT, [chunk(usage={"prompt_tokens": 9, "completion_tokens": 0}), chunk(None, "stop", usage=OPENAI_COUNTS)]),
    ("messages: input in the last event", MESSAGES, [{"type": "message_start", "message": {"id": "m", "usage": {"input_tokens": 0, "output_tokens": 0}}}, {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"input_tokens": 9, "output_tokens": 20}}]),
    ("messages: in message_stop", MESSAGES, [{"type": "message_start", "message": {"id": "m"}}, {"type": "message_stop", "usage": {"input_tokens": 9, "output_tokens": 20}}]),
    ("responses: beside the response", RESPONSES, [text("x"), {"type": "response.completed", "response": {"status": "completed", "output": []}, "usage": {"input_tokens": 9, "output_tokens": 20}}]),
    ("responses: while in progress", RESPONSES, [text("x"), {"type": "response.in_progress", "response": {"usage": {"input_tokens": 9, "output_tokens": 20}}}]),
    ("gemini: in a chunk of its own", GEMINI, [parts(), {"usageMetadata": {"promptTokenCount": 9, "candidatesTokenCount": 20}}]),
    ("converse: metadata", CONVERSE, [("metadata", {"usage": {"inputTokens": 9, "outputTokens": 20}})]),
    ("cohere: billed fractions", COHERE, [{"type": "message-end", "delta": {"finish_reason": "COMPLETE", "usage": {"billed_units": {"input_tokens": 9.0, "output_tokens": 20.0}}}}]),
    ("cohere: beside the delta", COHERE, [{"type": "message-end", "delta": {"finish_reason": "COMPLETE"}, "usage": {"tokens": {"input_tokens": 9, "output_tokens": 20}}}]),
    ("ollama: OpenAI's usage", OLLAMA, [{**ollama(), "done": True, "usage": OPENAI_COUNTS}]),
    ("cloudflare: last chunk", CLOUDFLARE, [{"response": "x"}, {"response": "", "usage": OPENAI_COUNTS}]),
]  # fmt: skip


@pytest.mark.parametrize(("asked", "events"), [row[1:] for row in USAGE], ids=[row[0] for row in USAGE])
def test_usage_wherever_it_stands(asked: tuple[str, Any], events: list[Any]) -> None:
    usage = streamed(asked, events).usage
    assert (usage.input_tokens, usage.output_tokens) == (9, 20)


FIRSTS: list[tuple[str, tuple[str, Any], list[Any], int | None]] = [
    ("chat: after a role", CHAT, [chunk(""), chunk(""), chunk("x")], 3),
    ("chat: reasoning", CHAT, [chunk(""), {"id": "c", "model": "m", "choices": [{"index": 0, "delta": {"reasoning_content": "x"}}]}], 2),
    ("chat: refusal", CHAT, [chunk(""), {"id": "c", "model": "m", "choices": [{"index": 0, "delta": {"refusal": "x"}}]}], 2),
    ("chat: a call's name", CHAT, [chunk(""), piece(index=0, id="1", name="f", arguments="")], 2),
    ("chat: a transcript", CHAT, [chunk(""), {"id": "c", "model": "m", "choices": [{"index": 0, "delta": {"audio": {"transcript": "x"}}}]}], 2),
    ("chat: filter results, usage", CHAT, [{"id": "c", "model": "m", "choices": [], "prompt_filter_results": []}, chunk(""), {"choices": [], "usage": OPENAI_COUNTS}], None),
    ("responses", RESPONSES, [{"type": "response.created", "response": {}}, {"type": "response.output_item.added", "item": message()}, text("x")], 3),
    ("responses: a call", RESPONSES, [{"type": "response.created", "response": {}}, added("1", output_index=0)], 2),
    ("responses: a refusal", RESPONSES, [{"type": "response.created", "response": {}}, {"type": "response.refusal.delta", "delta": "x"}], 2),
    ("messages", MESSAGES, [{"type": "message_start", "message": {"id": "m"}}, {"type": "ping"}, {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}, {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "x"}}], 4),
    ("messages: thinking", MESSAGES, [{"type": "message_start", "message": {"id": "m"}}, {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "x"}}], 2),
    ("messages: a call", MESSAGES, [{"type": "message_start", "message": {"id": "m"}}, begins("1", "now", index=0)], 2),
    ("gemini", GEMINI, [{"usageMetadata": {"promptTokenCount": 1}}, {"candidates": [{"content": {"parts": [{"text": ""}]}}]}, {"candidates": [{"content": {"parts": [{"text": "x"}]}}]}], 3),
    ("gemini: a thought", GEMINI, [{"candidates": [{"content": {"parts": [{"thought": True, "text": "x"}]}}]}], 1),
    ("gemini: a call that goes on", GEMINI, [{"usageMetadata": {}}, parts({"name": "f", "willContinue": True}), parts({"args": {}})], 2),
    ("converse", CONVERSE, [("messageStart", {"role": "assistant"}), ("contentBlockDelta", {"delta": {"text": "x"}, "contentBlockIndex": 0})], 2),
    ("cohere", COHERE, [{"type": "message-start", "id": "c"}, {"type": "content-start", "delta": {"message": {"content": {"type": "text", "text": ""}}}}, {"type": "content-delta", "delta": {"message": {"content": {"text": "x"}}}}], 3),
    ("cohere v1", COHERE_1, [{"event_type": "stream-start", "generation_id": "g"}, {"event_type": "text-generation", "text": "x"}], 2),
    ("ollama", OLLAMA, [ollama(), {**ollama(), "message": {"role": "assistant", "content": "x"}}], 2),
    ("sglang", ("/generate", {"text": "hi", "sampling_params": {}, "stream": True}), [{"text": "", "meta_info": {}}, {"text": "x", "meta_info": {}}], 2),
    ("vllm", ("/generate", {"prompt": "hi", "stream": True}), [{"text": ["hi"]}, {"text": ["hix"]}], 2),
    ("tgi", ("/generate_stream", {"inputs": "hi"}), [{"token": {"id": 1, "text": "", "special": True}}, {"token": {"id": 2, "text": "x"}}], 2),
    ("llamacpp", ("/completion", {"prompt": "hi", "n_predict": 3, "stream": True}), [{"content": "", "stop": False}, {"content": "x", "stop": False}], 2),
    ("watsonx", ("/ml/v1/text/generation_stream", {"model_id": "m", "input": "hi"}), [{"results": [{"generated_text": "", "input_token_count": 3}]}, {"results": [{"generated_text": "x"}]}], 2),
    ("triton", ("/v2/models/m/generate_stream", {"text_input": "hi"}), [{"model_name": "m", "text_output": ""}, {"model_name": "m", "text_output": "x"}], 2),
]  # fmt: skip


@pytest.mark.parametrize(("asked", "events", "at"), [row[1:] for row in FIRSTS], ids=[row[0] for row in FIRSTS])
def test_the_first_token_is_the_first_content(asked: tuple[str, Any], events: list[Any], at: int | None) -> None:
    assert streamed(asked, events).first_text_ns == at
