"""One row per behaviour: a request, its answer (whole or as stream events), and what the record must say.

Bodies are written here in the shapes of the vendors' references; streams and whole forms of one answer stand side by side.
"""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from llmsec_tap.dialects.base import RequestView, ResponseView
from llmsec_tap.dialects.draft import Draft
from llmsec_tap.identity.classify import classify
from llmsec_tap.identity.who import identify

SSE = "text/event-stream"
AWS = "application/vnd.amazon.eventstream"
NDJSON = "application/x-ndjson"
JSON_TYPE = "application/json"


def request(path: str, body: Any, host: str = "node7.internal", method: str = "POST", **headers: str) -> RequestView:
    view = RequestView(method, path, {"host": host, **{k.replace("_", "-"): v for k, v in headers.items()}})
    view.body = body
    view.body_is_json = body is not None
    return view


def decode(
    view: RequestView, answer: Any, *, status: int = 200, content_type: str | None = None, **headers: str
) -> tuple[Draft, str | None]:
    """`answer` is a body, or a list of events: JSON values, bytes, or (name, JSON value)."""
    events = isinstance(answer, list) and content_type not in (None, JSON_TYPE)
    response = ResponseView(status, {"content-type": content_type or JSON_TYPE, **{k.replace("_", "-"): v for k, v in headers.items()}})
    draft = Draft()
    dialect = classify(view)
    assert dialect is not None, "no dialect claims the request"
    dialect.decode_request(view, draft)
    if events:
        handler = dialect.stream(view, response, draft)
        for at, event in enumerate(answer):
            name, value = event if isinstance(event, tuple) else (None, event)
            handler(at + 1, name, value if isinstance(value, bytes) else json.dumps(value).encode())
    else:
        dialect.decode_response(view, response, answer, 1, draft)
    return draft, identify(view, response, draft, dialect)


def summary(draft: Draft) -> dict[str, Any]:
    choice = draft.choices.get(0)
    found: dict[str, Any] = {
        "model": draft.request_model,
        "input": draft.input_text,
        "served": draft.response_model,
        "id": draft.response_id,
        "text": str(choice.text) if choice else None,
        "thought": str(choice.reasoning) if choice else "",
        "refusal": str(choice.refusal) if choice else "",
        "calls": [(call.name, call.arguments) for call in draft.tool_calls()],
        "finish": [reason for reason in draft.finish_reasons() if reason],
        "in": draft.usage.input_tokens,
        "out": draft.usage.output_tokens,
        "cached": draft.usage.cached_input_tokens,
        "written": draft.usage.cache_write_tokens,
        "reasoned": draft.usage.reasoning_tokens,
        "error": draft.error_type,
        "vectors": draft.embeddings,
        "dimensions": draft.embedding_dimensions,
        "ended": draft.terminated,
    }
    return {key: value for key, value in found.items() if value not in (None, "", [], False)}


HELLO = {"model": "m1", "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}], "temperature": 0.5}


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "m1-0613", "choices": choices, **more}


def bedrock_chunk(value: dict[str, Any]) -> tuple[str, dict[str, str]]:
    return "chunk", {"bytes": base64.b64encode(json.dumps(value).encode()).decode(), "p": "abcdefghijkl"}


ANTHROPIC_EVENTS = [
    {"type": "message_start", "message": {"id": "msg_1", "model": "claude-x", "content": [], "usage": {"input_tokens": 9, "output_tokens": 1, "cache_read_input_tokens": 4, "cache_creation_input_tokens": 2}}},
    {"type": "ping"},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "hm"}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "c2ln"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "Hi "}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "there"}},
    {"type": "content_block_stop", "index": 1},
    {"type": "content_block_start", "index": 2, "content_block": {"type": "tool_use", "id": "t1", "name": "weather", "input": {}}},
    {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": '{"city":'}},
    {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": '"Oslo"}'}},
    {"type": "content_block_stop", "index": 2},
    {"type": "content_block_start", "index": 3, "content_block": {"type": "tool_use", "id": "t2", "name": "now", "input": {}}},
    {"type": "content_block_stop", "index": 3},
    {"type": "content_block_start", "index": 4, "content_block": {"type": "server_tool_use", "id": "t3", "name": "web_search", "input": {}}},
    {"type": "content_block_stop", "index": 4},
    {"type": "something_new", "text": "ignored"},
    {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 20}},
    {"type": "message_stop"},
]  # fmt: skip
ANTHROPIC_WHOLE = {
    "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x", "stop_reason": "tool_use",
    "content": [
        {"type": "thinking", "thinking": "hm", "signature": "c2ln"},
        {"type": "text", "text": "Hi there"},
        {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Oslo"}},
        {"type": "tool_use", "id": "t2", "name": "now", "input": {}},
        {"type": "server_tool_use", "id": "t3", "name": "web_search", "input": {}},
    ],
    "usage": {"input_tokens": 9, "output_tokens": 20, "cache_read_input_tokens": 4, "cache_creation_input_tokens": 2},
}  # fmt: skip
ANTHROPIC_SAYS = {
    "model": "m1", "input": "hello", "served": "claude-x", "id": "msg_1", "text": "Hi there", "thought": "hm",
    "calls": [("weather", '{"city":"Oslo"}'), ("now", "{}")], "finish": ["tool_use"], "in": 9, "out": 20, "cached": 4, "written": 2,
}  # fmt: skip

RESPONSES_WHOLE = {
    "id": "resp_1", "object": "response", "status": "completed", "model": "m1-r",
    "output": [
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "one"}, {"type": "summary_text", "text": "two"}]},
        {"type": "message", "id": "msg_1", "content": [{"type": "output_text", "text": "Hi there"}]},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city":"Oslo"}'},
        {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"query": "q"}},
    ],
    "usage": {"input_tokens": 9, "output_tokens": 20, "input_tokens_details": {"cached_tokens": 4}, "output_tokens_details": {"reasoning_tokens": 7}},
}  # fmt: skip
RESPONSES_EVENTS = [
    {"type": "response.created", "response": {"id": "resp_1", "model": "m1-r", "status": "in_progress", "output": []}},
    {"type": "response.output_item.added", "output_index": 0, "item": {"type": "reasoning", "summary": []}},
    {"type": "response.reasoning_summary_text.delta", "output_index": 0, "summary_index": 0, "delta": "o"},
    {"type": "response.reasoning_summary_text.delta", "output_index": 0, "summary_index": 0, "delta": "ne"},
    {"type": "response.reasoning_summary_text.delta", "output_index": 0, "summary_index": 1, "delta": "two"},
    {"type": "response.output_item.added", "output_index": 1, "item": {"type": "message", "content": []}},
    {"type": "response.output_text.delta", "output_index": 1, "content_index": 0, "delta": "Hi "},
    {"type": "response.output_text.delta", "output_index": 1, "content_index": 0, "delta": "there"},
    {"type": "response.output_text.done", "output_index": 1, "content_index": 0, "text": "Hi there"},
    {"type": "response.output_item.done", "output_index": 1, "item": RESPONSES_WHOLE["output"][1]},
    {"type": "response.output_item.added", "output_index": 2, "item": {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": ""}},
    {"type": "response.function_call_arguments.delta", "output_index": 2, "delta": '{"city":'},
    {"type": "response.function_call_arguments.delta", "output_index": 2, "delta": '"Oslo"}'},
    {"type": "response.output_item.done", "output_index": 2, "item": RESPONSES_WHOLE["output"][2]},
    {"type": "response.output_item.done", "output_index": 3, "item": RESPONSES_WHOLE["output"][3]},
    {"type": "response.completed", "response": RESPONSES_WHOLE},
]  # fmt: skip
RESPONSES_SAYS = {
    "model": "m1", "input": "hello", "served": "m1-r", "id": "resp_1", "text": "Hi there", "thought": "one\n\ntwo",
    "calls": [("weather", '{"city":"Oslo"}')], "finish": ["completed"], "in": 9, "out": 20, "cached": 4, "reasoned": 7,
}  # fmt: skip
RESPONSES_BODY = {
    "model": "m1",
    "instructions": "be brief",
    "input": [{"role": "user", "content": [{"type": "input_text", "text": "hello"}]}],
}

CONVERSE_BODY = {"messages": [{"role": "user", "content": [{"text": "hello"}, {"image": {"format": "png", "source": {"bytes": "QUJD"}}}]}]}
CONVERSE_SAYS = {
    "model": "arn:aws:bedrock:us-east-1:1:inference-profile/us.m1", "input": "hello", "text": "Hi there", "thought": "hm",
    "calls": [("weather", '{"city":"Oslo"}'), ("now", "{}")], "finish": ["tool_use"], "in": 9, "out": 20, "cached": 4,
}  # fmt: skip
CONVERSE_PATH = "/model/arn%3Aaws%3Abedrock%3Aus-east-1%3A1%3Ainference-profile%2Fus.m1/converse"
GEMINI_BODY = {"contents": [{"role": "user", "parts": [{"text": "hello"}]}], "systemInstruction": {"parts": [{"text": "be brief"}]}}
GEMINI_SAYS = {
    "model": "gemini-x", "input": "hello", "served": "gemini-x-001", "id": "r1", "text": "Hi there", "thought": "hm",
    "calls": [("weather", '{"city":"Oslo"}')], "finish": ["STOP"], "in": 9, "out": 20, "reasoned": 7, "ended": True,
}  # fmt: skip
GEMINI_CHUNKS = [
    {"candidates": [{"content": {"parts": [{"text": "hm", "thought": True}]}}], "modelVersion": "gemini-x-001", "responseId": "r1"},
    {"candidates": [{"content": {"parts": [{"text": "Hi "}]}}], "usageMetadata": {"promptTokenCount": 9}},
    {"candidates": [{"content": {"parts": [{"text": "there"}, {"functionCall": {"name": "weather", "args": {"city": "Oslo"}}}]}, "finishReason": "STOP"}],
     "usageMetadata": {"promptTokenCount": 9, "candidatesTokenCount": 20, "thoughtsTokenCount": 7}},
]  # fmt: skip
OLLAMA_SAYS = {
    "model": "m1",
    "input": "hello",
    "served": "m1",
    "text": "Hi there",
    "thought": "hm",
    "finish": ["stop"],
    "in": 9,
    "out": 20,
    "ended": True,
}

# (name, request, answer, content type, expected summary, expected provider)
ROWS: list[tuple[str, RequestView, Any, str, dict[str, Any], str]] = [
    (
        "chat whole, with details and a tool call",
        request("/v1/chat/completions", HELLO, "api.openai.com"),
        {"id": "chatcmpl-1", "object": "chat.completion", "model": "m1-0613",
         "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hi there", "reasoning_content": "hm",
             "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}}]}}],
         "usage": {"prompt_tokens": 9, "completion_tokens": 20, "prompt_tokens_details": {"cached_tokens": 4}, "completion_tokens_details": {"reasoning_tokens": 7}}},
        JSON_TYPE,
        {"model": "m1", "input": "hello", "served": "m1-0613", "id": "chatcmpl-1", "text": "Hi there", "thought": "hm",
         "calls": [("weather", '{"city":"Oslo"}')], "finish": ["stop"], "in": 9, "out": 20, "cached": 4, "reasoned": 7},
        "openai",
    ),
    (
        "chat stream, usage in a chunk without choices",
        request("/v1/chat/completions", HELLO, "api.openai.com"),
        [chunk({"role": "assistant", "content": ""}), chunk({"content": "Hi "}), chunk({"content": "there"}, obfuscation="zz"),
         chunk({"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "weather", "arguments": ""}}]}),
         chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"city":"Oslo"}'}}]}),
         chunk({}, "tool_calls"), chunk(None, usage={"prompt_tokens": 9, "completion_tokens": 20}), b"[DONE]"],
        SSE,
        {"model": "m1", "input": "hello", "served": "m1-0613", "id": "chatcmpl-1", "text": "Hi there", "calls": [("weather", '{"city":"Oslo"}')],
         "finish": ["tool_calls"], "in": 9, "out": 20, "ended": True},
        "openai",
    ),
    (
        "parallel calls that all have index 0 are told apart by id",
        request("/v1/chat/completions", HELLO),
        [chunk({"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f", "arguments": "{}"}}]}),
         chunk({"tool_calls": [{"index": 0, "id": "b", "function": {"name": "g", "arguments": "{}"}}]}), chunk({}, "tool_calls")],
        SSE,
        {"model": "m1", "input": "hello", "served": "m1-0613", "id": "chatcmpl-1", "calls": [("f", "{}"), ("g", "{}")], "finish": ["tool_calls"]},
        "openai_compatible",
    ),
    (
        "Azure: the deployment is the model; filter results come first",
        request("/openai/deployments/my-dep/chat/completions?api-version=1", {"messages": HELLO["messages"]}, "res.openai.azure.com"),
        [{"choices": [], "id": "", "model": "", "prompt_filter_results": []}, chunk({"content": "Hi there"}), chunk({}, "stop"), b"[DONE]"],
        SSE,
        {"model": "my-dep", "input": "hello", "served": "m1-0613", "id": "chatcmpl-1", "text": "Hi there", "finish": ["stop"], "ended": True},
        "azure.ai.openai",
    ),
    (
        "Mistral thinking parts in content",
        request("/v1/chat/completions", HELLO, "api.mistral.ai"),
        [chunk({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]}), chunk({"content": [{"type": "text", "text": "Hi "}]}),
         chunk({"content": "there"}), chunk({"content": ""}, "stop", usage={"prompt_tokens": 9, "completion_tokens": 20, "num_cached_tokens": 4})],
        SSE,
        {"model": "m1", "input": "hello", "served": "m1-0613", "id": "chatcmpl-1", "text": "Hi there", "thought": "hm", "finish": ["stop"],
         "in": 9, "out": 20, "cached": 4, "ended": True},
        "mistral_ai",
    ),
    (
        "vLLM: continuous usage is cumulative, reasoning without content, engine dies inside a 200 stream",
        request("/v1/chat/completions", HELLO),
        [chunk({"role": "assistant", "content": ""}, prompt_token_ids=None, usage={"prompt_tokens": 9, "completion_tokens": 0}),
         chunk({"reasoning": "hm", "content": None}, usage={"prompt_tokens": 9, "completion_tokens": 1}),
         chunk({"content": "Hi"}, usage={"prompt_tokens": 9, "completion_tokens": 2}),
         {"error": {"message": "engine", "type": "InternalServerError", "code": 500}}, b"[DONE]"],
        SSE,
        {"model": "m1", "input": "hello", "served": "m1-0613", "id": "chatcmpl-1", "text": "Hi", "thought": "hm", "in": 9, "out": 2,
         "error": "InternalServerError", "ended": True},
        "vllm",
    ),
    (
        "refusal is not answer text",
        request("/v1/chat/completions", HELLO),
        [chunk({"content": None, "refusal": "I can"}), chunk({"refusal": "not"}), chunk({}, "stop"), b"[DONE]"],
        SSE,
        {"model": "m1", "input": "hello", "served": "m1-0613", "id": "chatcmpl-1", "refusal": "I cannot", "finish": ["stop"], "ended": True},
        "openai_compatible",
    ),
    (
        "llama.cpp: a null event, then timings",
        request("/v1/completions", {"prompt": ["one", "two"], "model": "m1"}),
        [b"null", {"id": "c", "model": "m1", "choices": [{"text": "Hi ", "index": 0}]},
         {"id": "c", "model": "m1", "choices": [{"text": "there", "index": 0, "finish_reason": "length"}], "timings": {"predicted_n": 2}}, b"[DONE]"],
        SSE,
        {"model": "m1", "input": "two", "served": "m1", "id": "c", "text": "Hi there", "finish": ["length"], "ended": True},
        "llamacpp",
    ),
    (
        "fill in the middle: a prompt in, a message out",
        request("/v1/fim/completions", {"model": "m1", "prompt": "def f(", "suffix": "return"}, "codestral.mistral.ai"),
        {"id": "x", "model": "m1", "choices": [{"index": 0, "message": {"content": "a):"}, "finish_reason": "stop"}]},
        JSON_TYPE,
        {"model": "m1", "input": "def f(", "served": "m1", "id": "x", "text": "a):", "finish": ["stop"]},
        "mistral_ai",
    ),
    (
        "embeddings in base64, total_tokens only",
        request("/v1/embeddings", {"model": "m1", "input": ["a", "b"]}, "api.voyageai.com"),
        {"model": "m1", "data": [{"embedding": base64.b64encode(b"\0" * 16).decode(), "index": 0}, {"embedding": "AAAAAA==", "index": 1}], "usage": {"total_tokens": 2}},
        JSON_TYPE,
        {"model": "m1", "input": "b", "served": "m1", "in": 2, "vectors": 2, "dimensions": 4},
        "voyage",
    ),
    ("responses whole", request("/v1/responses", RESPONSES_BODY, "api.openai.com"), RESPONSES_WHOLE, JSON_TYPE, RESPONSES_SAYS, "openai"),
    ("responses stream", request("/v1/responses", RESPONSES_BODY, "api.openai.com"), RESPONSES_EVENTS, SSE, {**RESPONSES_SAYS, "ended": True}, "openai"),
    (
        "responses stream that lost its deltas is filled from the last event",
        request("/v1/responses", RESPONSES_BODY, "api.openai.com"),
        [RESPONSES_EVENTS[0], RESPONSES_EVENTS[7], RESPONSES_EVENTS[-1]],
        SSE,
        {**RESPONSES_SAYS, "ended": True},
        "openai",
    ),
    (
        "responses incomplete gives the reason, though the event says completed",
        request("/v1/responses", {"model": "m1", "input": "hello"}),
        [{"type": "response.output_text.delta", "delta": "Hi"},
         {"type": "response.completed", "response": {"id": "r", "model": "m1", "status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}}],
        SSE,
        {"model": "m1", "input": "hello", "served": "m1", "id": "r", "text": "Hi", "finish": ["max_output_tokens"], "ended": True},
        "openai_compatible",
    ),
    (
        "responses failed",
        request("/v1/responses", {"model": "m1", "input": "hello"}, "api.openai.com"),
        [{"type": "response.failed", "response": {"id": "r", "status": "failed", "error": {"code": "server_error", "message": "no"}}}],
        SSE,
        {"model": "m1", "input": "hello", "id": "r", "finish": ["failed"], "error": "server_error", "ended": True},
        "openai",
    ),
    ("messages whole", request("/v1/messages", {**HELLO, "max_tokens": 5}, "api.anthropic.com"), ANTHROPIC_WHOLE, JSON_TYPE, ANTHROPIC_SAYS, "anthropic"),
    ("messages stream", request("/v1/messages", {**HELLO, "max_tokens": 5}), ANTHROPIC_EVENTS, SSE, {**ANTHROPIC_SAYS, "ended": True}, "anthropic_compatible"),
    (
        "messages stream that fails",
        request("/v1/messages", {**HELLO, "max_tokens": 5}, "api.anthropic.com"),
        [*ANTHROPIC_EVENTS[:8], ("error", {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}})],
        SSE,
        {"model": "m1", "input": "hello", "served": "claude-x", "id": "msg_1", "text": "Hi ", "thought": "hm", "in": 9, "out": 1, "cached": 4, "written": 2,
         "error": "overloaded_error", "ended": True},
        "anthropic",
    ),
    (
        "messages through Vertex: the model is in the path",
        request("/v1/projects/p/locations/l/publishers/anthropic/models/claude-x@1:streamRawPredict", {"anthropic_version": "vertex-2023-10-16", "messages": HELLO["messages"]},
                "us-east5-aiplatform.googleapis.com"),
        ANTHROPIC_EVENTS,
        SSE,
        {**ANTHROPIC_SAYS, "model": "claude-x@1", "ended": True},
        "gcp.vertex_ai",
    ),
    (
        "converse whole",
        request(CONVERSE_PATH, CONVERSE_BODY, "bedrock-runtime.us-east-1.amazonaws.com"),
        {"output": {"message": {"role": "assistant", "content": [
            {"reasoningContent": {"reasoningText": {"text": "hm"}}}, {"text": "Hi "}, {"citationsContent": {"content": [{"text": "there"}]}},
            {"toolUse": {"toolUseId": "t", "name": "weather", "input": {"city": "Oslo"}}}, {"toolUse": {"toolUseId": "u", "name": "now", "input": {}}}]}},
         "stopReason": "tool_use", "usage": {"inputTokens": 9, "outputTokens": 20, "cacheReadInputTokens": 4}},
        JSON_TYPE,
        CONVERSE_SAYS,
        "aws.bedrock",
    ),
    (
        "converse stream",
        request(CONVERSE_PATH + "-stream", CONVERSE_BODY, "bedrock-runtime.us-east-1.amazonaws.com"),
        [("messageStart", {"role": "assistant", "p": "abc"}),
         ("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"reasoningContent": {"text": "hm"}}}),
         ("contentBlockDelta", {"contentBlockIndex": 1, "delta": {"text": "Hi "}, "p": "never text"}),
         ("contentBlockDelta", {"contentBlockIndex": 1, "delta": {"text": "there"}}),
         ("contentBlockStart", {"contentBlockIndex": 2, "start": {"toolUse": {"toolUseId": "t", "name": "weather"}}}),
         ("contentBlockDelta", {"contentBlockIndex": 2, "delta": {"toolUse": {"input": '{"city":"Oslo"}'}}}),
         ("contentBlockStop", {"contentBlockIndex": 2}),
         ("contentBlockStart", {"contentBlockIndex": 3, "start": {"toolUse": {"toolUseId": "u", "name": "now"}}}),
         ("contentBlockStop", {"contentBlockIndex": 3}),
         ("messageStop", {"stopReason": "tool_use"}),
         ("metadata", {"usage": {"inputTokens": 9, "outputTokens": 20, "cacheReadInputTokens": 4}})],
        AWS,
        {**CONVERSE_SAYS, "ended": True},
        "aws.bedrock",
    ),
    (
        "converse stream with an exception",
        request("/model/m1/converse-stream", CONVERSE_BODY),
        [("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "Hi"}}), ("exception:throttlingException", {"message": "slow down"})],
        AWS,
        {"model": "m1", "input": "hello", "text": "Hi", "error": "throttlingException", "ended": True},
        "aws.bedrock",
    ),
    (
        "an unknown route is answered with 200",
        request("/model/m1/converse", CONVERSE_BODY, "bedrock-runtime.us-east-1.amazonaws.com"),
        {"Output": {"__type": "com.amazon.coral.service#UnknownOperationException"}, "Version": "1.0"},
        JSON_TYPE,
        {"model": "m1", "input": "hello", "error": "UnknownOperationException"},
        "aws.bedrock",
    ),
    (
        "invoke: Anthropic stream in base64 chunks",
        request("/model/anthropic.claude-x/invoke-with-response-stream", {"anthropic_version": "bedrock-2023-05-31", "messages": HELLO["messages"]}),
        [*map(bedrock_chunk, ANTHROPIC_EVENTS[:-1]), bedrock_chunk({"type": "message_stop", "amazon-bedrock-invocationMetrics": {"inputTokenCount": 99, "outputTokenCount": 99}})],
        AWS,
        {**ANTHROPIC_SAYS, "model": "anthropic.claude-x", "ended": True},
        "aws.bedrock",
    ),
    (
        "invoke: Titan",
        request("/model/amazon.titan/invoke", {"inputText": "hello", "textGenerationConfig": {"maxTokenCount": 5}}),
        {"inputTextTokenCount": 9, "results": [{"tokenCount": 20, "outputText": "Hi there", "completionReason": "FINISH"}]},
        JSON_TYPE,
        {"model": "amazon.titan", "input": "hello", "text": "Hi there", "finish": ["FINISH"], "in": 9, "out": 20, "ended": True},
        "aws.bedrock",
    ),
    (
        "invoke: Llama stream, counts of the chunks before the metrics",
        request("/model/meta.llama/invoke-with-response-stream", {"prompt": "hello"}),
        [bedrock_chunk({"generation": "Hi ", "prompt_token_count": 9, "generation_token_count": 1}),
         bedrock_chunk({"generation": "there", "prompt_token_count": None, "generation_token_count": 20, "stop_reason": "stop",
                        "amazon-bedrock-invocationMetrics": {"inputTokenCount": 1, "outputTokenCount": 1}})],
        AWS,
        {"model": "meta.llama", "input": "hello", "text": "Hi there", "finish": ["stop"], "in": 9, "out": 20, "ended": True},
        "aws.bedrock",
    ),
    (
        "invoke: Mistral stream, counts from the metrics",
        request("/model/mistral.m/invoke-with-response-stream", {"prompt": "hello"}),
        [bedrock_chunk({"outputs": [{"text": "Hi ", "stop_reason": None}]}),
         bedrock_chunk({"outputs": [{"text": "there", "stop_reason": "stop"}], "amazon-bedrock-invocationMetrics": {"inputTokenCount": 9, "outputTokenCount": 20}})],
        AWS,
        {"model": "mistral.m", "input": "hello", "text": "Hi there", "finish": ["stop"], "in": 9, "out": 20, "ended": True},
        "aws.bedrock",
    ),
    (
        "invoke: Nova stream",
        request("/model/amazon.nova/invoke-with-response-stream", {"messages": [{"role": "user", "content": [{"text": "hello"}]}], "inferenceConfig": {}}),
        [bedrock_chunk({"messageStart": {"role": "assistant"}}), bedrock_chunk({"contentBlockDelta": {"delta": {"text": "Hi there"}, "contentBlockIndex": 0}}),
         bedrock_chunk({"messageStop": {"stopReason": "end_turn"}}), bedrock_chunk({"metadata": {"usage": {"inputTokens": 9, "outputTokens": 20}}})],
        AWS,
        {"model": "amazon.nova", "input": "hello", "text": "Hi there", "finish": ["end_turn"], "in": 9, "out": 20, "ended": True},
        "aws.bedrock",
    ),
    (
        "invoke: Cohere embeddings by type",
        request("/model/cohere.embed/invoke", {"texts": ["a", "b"], "input_type": "search_document"}),
        {"id": "e", "embeddings": {"float": [[1, 2, 3], [4, 5, 6]]}},
        JSON_TYPE,
        {"model": "cohere.embed", "input": "b", "id": "e", "vectors": 2, "dimensions": 3},
        "aws.bedrock",
    ),
    (
        "Gemini whole",
        request("/v1beta/models/gemini-x:generateContent?key=k", GEMINI_BODY, "generativelanguage.googleapis.com"),
        {"candidates": [{"content": {"parts": [{"text": "hm", "thought": True}, {"text": "Hi there"}, {"functionCall": {"name": "weather", "args": {"city": "Oslo"}}}]},
                         "finishReason": "STOP"}], "modelVersion": "gemini-x-001", "responseId": "r1",
         "usageMetadata": {"promptTokenCount": 9, "candidatesTokenCount": 20, "thoughtsTokenCount": 7}},
        JSON_TYPE,
        GEMINI_SAYS,
        "gcp.gemini",
    ),
    ("Gemini stream", request("/v1beta/models/gemini-x:streamGenerateContent?alt=sse", GEMINI_BODY), GEMINI_CHUNKS, SSE, GEMINI_SAYS, "gcp.gemini"),
    (
        "Gemini embeddings in a batch",
        request("/v1beta/models/emb:batchEmbedContents", {"requests": [{"content": {"parts": [{"text": "a"}]}}, {"content": {"parts": [{"text": "b"}, {"text": "c"}]}}]}),
        {"embeddings": [{"values": [1, 2]}, {"values": [3, 4]}]},
        JSON_TYPE,
        {"model": "emb", "input": "b\nc", "vectors": 2, "dimensions": 2},
        "gcp.gemini",
    ),
    (
        "Ollama chat stream",
        request("/api/chat", HELLO),
        [{"model": "m1", "created_at": "t", "message": {"role": "assistant", "content": "", "thinking": "hm"}, "done": False},
         {"model": "m1", "created_at": "t", "message": {"content": "Hi "}, "done": False}, {"model": "m1", "message": {"content": "there"}, "done": False},
         {"model": "m1", "message": {"content": ""}, "done": True, "done_reason": "stop", "prompt_eval_count": 9, "eval_count": 20, "total_duration": 123}],
        NDJSON,
        OLLAMA_SAYS,
        "ollama",
    ),
    (
        "Ollama chat whole",
        request("/api/chat", {**HELLO, "stream": False}),
        {"model": "m1", "message": {"content": "Hi there", "thinking": "hm"}, "done": True, "done_reason": "stop", "prompt_eval_count": 9, "eval_count": 20},
        JSON_TYPE,
        OLLAMA_SAYS,
        "ollama",
    ),
    (
        "Ollama generate: context is not text",
        request("/api/generate", {"model": "m1", "prompt": "hello"}),
        [{"model": "m1", "response": "Hi", "done": False}, {"model": "m1", "response": "", "done": True, "context": [1, 2], "done_reason": "length"}],
        NDJSON,
        {"model": "m1", "input": "hello", "served": "m1", "text": "Hi", "finish": ["length"], "ended": True},
        "ollama",
    ),
    (
        "TGI stream: the last event repeats the text without special tokens",
        request("/generate_stream", {"inputs": "hello", "parameters": {"max_new_tokens": 5}}),
        [{"token": {"id": 1, "text": "Hi ", "special": False}, "generated_text": None, "details": None},
         {"token": {"id": 2, "text": "there", "special": False}, "generated_text": None},
         {"token": {"id": 3, "text": "</s>", "special": True}, "generated_text": "Hi there", "details": {"finish_reason": "eos_token", "generated_tokens": 20, "input_length": 9}}],
        SSE,
        {"model": None, "input": "hello", "text": "Hi there", "finish": ["eos_token"], "in": 9, "out": 20, "ended": True},
        "tgi",
    ),
    (
        "SGLang: cumulative text, choices interleaved, an id per choice",
        request("/generate", {"text": "hello", "sampling_params": {"n": 2}, "stream": True}),
        [{"text": "Hi ", "output_ids": [1], "index": 0, "meta_info": {"id": "a", "finish_reason": None, "prompt_tokens": 9, "completion_tokens": 1}},
         {"text": "Other", "output_ids": [7], "index": 1, "meta_info": {"id": "b", "finish_reason": None, "prompt_tokens": 9, "completion_tokens": 1}},
         {"text": "Hi there", "output_ids": [1, 2], "index": 0, "meta_info": {"id": "a", "finish_reason": {"type": "length", "length": 2}, "prompt_tokens": 9, "completion_tokens": 2}},
         b"[DONE]"],
        SSE,
        {"input": "hello", "id": "a", "text": "Hi there", "finish": ["length"], "in": 9, "out": 2, "ended": True},
        "sglang",
    ),
    (
        "SGLang, only new text in each event",
        request("/generate", {"text": "hello", "sampling_params": {}, "stream": True}),
        [{"text": "Hi ", "output_ids": [1], "meta_info": {"id": "a", "completion_tokens": 1}}, {"text": "there", "output_ids": [2], "meta_info": {"id": "a", "completion_tokens": 2}}],
        SSE,
        {"input": "hello", "id": "a", "text": "Hi there", "out": 2},
        "sglang",
    ),
    (
        "SGLang, an error inside a 200 stream",
        request("/generate", {"text": "hello", "sampling_params": {}, "stream": True}, server="sglang"),
        [{"text": "Hi", "output_ids": [1], "meta_info": {"id": "a", "completion_tokens": 1}}, {"error": {"message": "bad", "type": "BadRequest"}}, b"[DONE]"],
        SSE,
        {"input": "hello", "id": "a", "text": "Hi", "out": 1, "error": "BadRequest", "ended": True},
        "sglang",
    ),
    (
        "vLLM's demo server repeats the prompt",
        request("/generate", {"prompt": "hello", "stream": True}),
        [{"text": ["hello Hi"]}, {"text": ["hello Hi there"]}],
        NDJSON,
        {"input": "hello", "text": " Hi there"},
        "vllm",
    ),
    (
        "llama.cpp's own route",
        request("/completion", {"prompt": "hello", "n_predict": 5, "stream": True}),
        [{"index": 0, "content": "Hi ", "stop": False, "tokens_predicted": 1, "tokens_evaluated": 9}, {"index": 0, "content": "there", "stop": False},
         {"index": 0, "content": "", "stop": True, "stop_type": "limit", "model": "m1", "tokens_predicted": 20, "tokens_evaluated": 9}],
        SSE,
        {"input": "hello", "served": "m1", "text": "Hi there", "finish": ["limit"], "in": 9, "out": 20, "ended": True},
        "llamacpp",
    ),
    (
        "Cohere v1 stream",
        request("/v1/chat", {"model": "m1", "message": "hello"}, "api.cohere.com"),
        [{"is_finished": False, "event_type": "text-generation", "text": "Hi "}, {"is_finished": False, "event_type": "text-generation", "text": "there"},
         {"is_finished": True, "event_type": "stream-end", "finish_reason": "COMPLETE",
          "response": {"response_id": "r", "text": "Hi there", "meta": {"billed_units": {"input_tokens": 1, "output_tokens": 1}, "tokens": {"input_tokens": 9, "output_tokens": 20}}}}],
        NDJSON,
        {"model": "m1", "input": "hello", "id": "r", "text": "Hi there", "finish": ["COMPLETE"], "in": 9, "out": 20, "ended": True},
        "cohere",
    ),
    (
        "Cohere v2 stream: the tool plan is not text",
        request("/v2/chat", HELLO, "api.cohere.com"),
        [{"type": "message-start", "id": "r"}, {"type": "tool-plan-delta", "delta": {"message": {"tool_plan": "I will"}}},
         {"type": "content-start", "index": 0, "delta": {"message": {"content": {"type": "text", "text": ""}}}},
         {"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": "Hi there"}}}},
         {"type": "tool-call-start", "index": 0, "delta": {"message": {"tool_calls": {"id": "c", "function": {"name": "weather", "arguments": ""}}}}},
         {"type": "tool-call-delta", "index": 0, "delta": {"message": {"tool_calls": {"function": {"arguments": '{"city":"Oslo"}'}}}}},
         {"type": "message-end", "delta": {"finish_reason": "TOOL_CALL", "usage": {"tokens": {"input_tokens": 9, "output_tokens": 20}}}}],
        SSE,
        {"model": "m1", "input": "hello", "id": "r", "text": "Hi there", "calls": [("weather", '{"city":"Oslo"}')], "finish": ["TOOL_CALL"], "in": 9, "out": 20, "ended": True},
        "cohere",
    ),
    (
        "watsonx stream: zero means unsaid for the input",
        request("/ml/v1/text/generation_stream?version=1", {"model_id": "m1", "input": "hello"}, "us-south.ml.cloud.ibm.com"),
        [{"model_id": "m1", "results": [{"generated_text": "", "input_token_count": 9, "generated_token_count": 0, "stop_reason": "not_finished"}]},
         {"results": [{"generated_text": "Hi there", "input_token_count": 0, "generated_token_count": 20, "stop_reason": "eos_token"}]}],
        SSE,
        {"model": "m1", "input": "hello", "served": "m1", "text": "Hi there", "finish": ["eos_token"], "in": 9, "out": 20, "ended": True},
        "ibm.watsonx.ai",
    ),
    (
        "feature extraction, one vector a token",
        request("/hf-inference/pipeline/feature-extraction/org/bert", {"inputs": "hello"}, "router.huggingface.co"),
        [[[1.0, 2.0], [3.0, 4.0]]],
        JSON_TYPE,
        {"model": "org/bert", "input": "hello", "vectors": 1, "dimensions": 2},
        "huggingface",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("view", "answer", "content_type", "expected", "provider"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS]
)
def test_dialect_reads(view: RequestView, answer: Any, content_type: str, expected: dict[str, Any], provider: str):
    draft, found = decode(view, answer, content_type=content_type)
    said = summary(draft)
    if content_type == JSON_TYPE:  # a closing event is a matter of streams
        expected = {**expected, "ended": said.get("ended")}
    assert said == {key: value for key, value in expected.items() if value is not None}
    assert found == provider
    assert draft.anomalies == {}


@pytest.mark.parametrize(
    ("body", "headers", "expected"),
    [
        ({"error": {"message": "m", "type": "invalid_request_error", "code": "model_not_found"}}, {}, ("invalid_request_error", "m")),
        ({"error": {"message": "m", "code": "context_length_exceeded"}}, {}, ("context_length_exceeded", "m")),
        ({"type": "error", "error": {"type": "not_found_error", "message": "m"}}, {}, ("not_found_error", "m")),
        ({"error": {"code": 404, "status": "NOT_FOUND", "message": "m"}}, {}, ("NOT_FOUND", "m")),
        ([{"error": {"code": 404, "status": "NOT_FOUND", "message": "m"}}], {}, ("NOT_FOUND", "m")),
        ({"object": "error", "message": "m", "type": "BadRequestError", "code": 400}, {}, ("BadRequestError", "m")),
        ({"error": "m", "error_type": "validation"}, {}, ("validation", "m")),
        ({"error": "m"}, {}, ("404", "m")),
        ({"detail": "Not Found"}, {}, ("404", "Not Found")),
        ({"message": "m"}, {"x_amzn_errortype": "ValidationException:http://internal/"}, ("ValidationException", "m")),
        (None, {}, ("404", None)),
        ("plain", {}, ("404", "plain")),
    ],
)
def test_failures_of_every_shape(body: Any, headers: dict[str, str], expected: tuple[str, str | None]):
    draft, _ = decode(request("/v1/chat/completions", HELLO), body, status=404, **headers)
    assert (draft.error_type, draft.error_message) == expected


def test_bedrock_counts_from_headers():
    view = request("/model/cohere.command/invoke", {"prompt": "hello"})
    draft, _ = decode(view, {"generations": [{"text": "Hi"}]}, x_amzn_bedrock_input_token_count="9", x_amzn_bedrock_output_token_count="20")
    assert (draft.usage.input_tokens, draft.usage.output_tokens) == (9, 20)


def test_media_are_noted_by_size_never_kept():
    image = "data:image/png;base64," + base64.b64encode(b"x" * 300).decode()
    body = {
        "model": "m1",
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "what"}, {"type": "image_url", "image_url": {"url": image}}]},
            {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "QUJD", "format": "wav"}}]},
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://example.org/i.png"}}]},
        ],
    }
    draft, _ = decode(request("/v1/chat/completions", body), {"choices": []})
    parts = [part for message in draft.messages for part in message.parts]
    assert draft.input_text == "what"
    assert [(p.type, p.modality, p.size_bytes, p.uri) for p in parts[1:]] == [
        ("blob", "image", 300, None),
        ("blob", "audio", 3, None),
        ("uri", "image", None, "https://example.org/i.png"),
    ]


def test_several_choices_are_kept_apart():
    events = [
        {"id": "c", "model": "m", "choices": [{"index": 1, "delta": {"content": "B"}}]},
        {"id": "c", "model": "m", "choices": [{"index": 0, "delta": {"content": "A"}}]},
        {"id": "c", "model": "m", "choices": [{"index": 1, "delta": {"content": "b"}, "finish_reason": "length"}]},
        {"id": "c", "model": "m", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    ]
    draft, _ = decode(request("/v1/chat/completions", HELLO), events, content_type=SSE)
    assert {index: str(choice.text) for index, choice in draft.choices.items()} == {0: "A", 1: "Bb"}
    assert list(draft.finish_reasons()) == ["stop", "length"]


ANTHROPIC = [
    {"type": "message_start", "message": {"id": "m", "model": "c", "content": []}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "a"}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "b"}},
]
STREAMS = [
    ("openai.chat", request("/v1/chat/completions", HELLO), [chunk({"content": "a"}), chunk({"content": "b"})]),
    ("anthropic.messages", request("/v1/messages", HELLO, anthropic_version="2023-06-01"), ANTHROPIC),
    (
        "openai.responses",
        request("/v1/responses", {"model": "m", "input": "x"}),
        [{"type": "response.output_text.delta", "delta": "a"}, {"type": "response.output_text.delta", "delta": "b"}],
    ),
    (
        "cohere.chat",
        request("/v1/chat", {"model": "m", "message": "x"}),
        [{"event_type": "text-generation", "text": "a"}, {"event_type": "text-generation", "text": "b"}],
    ),
    (
        "gemini.generate",
        request("/v1beta/models/g:streamGenerateContent", {"contents": []}),
        [{"candidates": [{"content": {"parts": [{"text": text}]}}]} for text in "ab"],
    ),
]


@pytest.mark.parametrize(("view", "events"), [row[1:] for row in STREAMS], ids=[row[0] for row in STREAMS])
def test_an_event_that_is_not_json_is_noted_and_kept_for_detection(view: RequestView, events: list[Any]):
    draft, _ = decode(view, [*events[:-1], b"{nonsense", events[-1]], content_type=SSE)
    assert str(draft.choices[0].text) == "ab"
    assert (draft.anomalies, draft.unread) == ({"event_bad_json": 1}, [b"{nonsense"])


@pytest.mark.parametrize(("view", "events"), [row[1:] for row in STREAMS], ids=[row[0] for row in STREAMS])
def test_events_parted_by_one_line_feed_are_read_one_by_one(view: RequestView, events: list[Any]):
    draft, _ = decode(view, [b"\n".join([*(json.dumps(event).encode() for event in events), b"[DONE]"])], content_type=SSE)
    assert str(draft.choices[0].text) == "ab"
    assert (draft.anomalies, draft.terminated) == ({}, True)


@pytest.mark.parametrize(("view", "events"), [row[1:] for row in STREAMS], ids=[row[0] for row in STREAMS])
def test_lines_of_which_one_is_no_json_are_unread_as_a_whole(view: RequestView, events: list[Any]):
    data = json.dumps(events[-1]).encode() + b"\nnonsense\n[DONE]"
    draft, _ = decode(view, [*events[:-1], data], content_type=SSE)
    assert (draft.unread, draft.terminated) == ([data], False)
