"""Who serves a call, and what is no call to a model at all."""

from __future__ import annotations

from typing import Any

import pytest

from llmsec_tap.dialects.base import RequestView, ResponseView
from llmsec_tap.dialects.draft import Draft
from llmsec_tap.dialects.registry import classify_response
from llmsec_tap.identity.classify import classify
from llmsec_tap.identity.non_inference import auxiliary
from llmsec_tap.identity.who import identify
from llmsec_tap.providers.hosts import bare_host, provider_of_host

CHAT = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
ANSWER = {"id": "chatcmpl-1", "model": "m", "choices": [{"index": 0, "message": {"content": "y"}, "finish_reason": "stop"}]}


def who(
    method: str,
    path: str,
    host: str = "node7.internal:9000",
    body: Any = None,
    answer: Any = None,
    status: int = 200,
    headers: dict[str, str] | None = None,
    **request_headers: str,
) -> tuple[str | None, str | None, str | None]:
    """(provider, api, operation) as a pipeline reports them."""
    view = RequestView(method, path, {"host": host, **{k.replace("_", "-"): v for k, v in request_headers.items()}})
    view.body, view.body_is_json = body, body is not None
    response = ResponseView(status, {"content-type": "application/json", **(headers or {})})
    draft = Draft()
    dialect = classify(view)
    if dialect is not None:
        dialect.decode_request(view, draft)
        dialect.decode_response(view, response, answer, 1, draft)
    api = dialect.api if dialect is not None else None
    provider = identify(view, response, draft, dialect)
    if provider is None:
        return None, None, None
    return provider, api, (draft.operation or dialect.operation) if dialect is not None else auxiliary(view, response)


@pytest.mark.parametrize(
    ("host", "path", "expected"),
    [
        ("api.openai.com", "/v1/anything", "openai"),
        ("API.OpenAI.com:443", "/v1/x", "openai"),
        ("my-res.openai.azure.com", "/openai/v1/responses", "azure.ai.openai"),
        ("us-east5-aiplatform.googleapis.com", "/v1/x", "gcp.vertex_ai"),
        ("bedrock-runtime.eu-west-1.amazonaws.com", "/model/x/converse", "aws.bedrock"),
        ("vpce-1-x.bedrock-runtime.us-east-1.vpce.amazonaws.com", "/model/x/converse", "aws.bedrock"),
        ("org.snowflakecomputing.com", "/api/v2/cortex/inference:complete", "snowflake"),
        ("org.snowflakecomputing.com", "/api/v2/statements", None),
        ("openrouter.ai", "/api/v1/chat/completions", "openrouter"),
        ("openrouter.ai", "/docs", None),
        ("huggingface.co", "/api/models/gpt2", None),
        ("notapi.openai.com.evil.example", "/v1/x", None),
        ("openai.internal", "/v1/x", None),
        ("[::1]:8000", "/v1/x", None),
    ],
)
def test_hosts(host: str, path: str, expected: str | None):
    assert provider_of_host(host, path) == expected


def test_bare_host():
    assert [bare_host(h) for h in ("a.b:443", "[::1]:80", "a.b.", "A.B", "::1")] == ["a.b", "::1", "a.b", "a.b", ":"]


@pytest.mark.parametrize(
    ("answer", "headers", "expected"),
    [
        (ANSWER, {}, "openai_compatible"),
        ({**ANSWER, "timings": {}}, {}, "llamacpp"),
        ({**ANSWER, "system_fingerprint": "b4567-abc1234"}, {}, "llamacpp"),
        ({**ANSWER, "system_fingerprint": "fp_ollama"}, {}, "ollama"),
        ({**ANSWER, "system_fingerprint": "2.4.1-native"}, {}, "tgi"),
        ({**ANSWER, "kv_transfer_params": None}, {}, "vllm"),
        ({**ANSWER, "metadata": {"weight_version": "default"}}, {}, "sglang"),
        (ANSWER, {"server": "llama.cpp"}, "llamacpp"),
        (ANSWER, {"x-groq-region": "us"}, "groq"),
        (ANSWER, {"openai-organization": "o"}, "openai"),
    ],
)
def test_private_hosts_are_told_by_the_answer(answer: Any, headers: dict[str, str], expected: str):
    assert who("POST", "/v1/chat/completions", body=CHAT, answer=answer, headers=headers)[0] == expected


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (("GET", "/v1/models", "api.openai.com"), ("openai", None, "model")),
        (("GET", "/v1/files/file-1", "api.openai.com"), ("openai", None, "file")),
        (("POST", "/v1/moderations", "api.openai.com"), ("openai", None, "moderation")),
        (("POST", "/v1/new_thing", "api.openai.com"), ("openai", None, "other")),
        (("GET", "/v1/responses/resp_1", "api.openai.com"), ("openai", None, "stored_response")),
        (("POST", "/v1/messages/count_tokens", "api.anthropic.com", CHAT), ("anthropic", None, "count_tokens")),
        (("POST", "/v1/messages/count_tokens", "node7.internal", CHAT), ("openai_compatible", None, "count_tokens")),
        (("POST", "/v1/rerank", "node7.internal", {"query": "a", "documents": ["b"]}), ("openai_compatible", None, "rerank")),
        (("POST", "/tokenize", "node7.internal", {"model": "m", "prompt": "x"}), ("openai_compatible", None, "tokenize")),
        (("POST", "/v1beta/models/g:countTokens", "generativelanguage.googleapis.com", {}), ("gcp.gemini", None, "count_tokens")),
        (("POST", "/v1/chat/completions", "node7.internal", CHAT, None, 500), ("openai_compatible", "openai.chat", "chat")),
        (("POST", "/api/chat", "node7.internal", CHAT, {"error": "model not found"}, 404), ("ollama", "ollama.chat", "chat")),
    ],
)
def test_calls_beside_the_conversation(call: tuple[Any, ...], expected: tuple[str, str | None, str]):
    assert who(*call) == expected


@pytest.mark.parametrize(
    "call",
    [
        ("GET", "/"),
        ("GET", "/v1/schema"),
        ("POST", "/chat", "app.internal", {"message": "hi"}, {"reply": "hello"}),
        ("POST", "/chat", "app.internal", CHAT, {"reply": "hello"}),
        ("POST", "/api/chat", "app.internal", {"messages": CHAT["messages"]}, {"ok": True}),
        ("POST", "/api/chat", "app.internal", CHAT, {"ok": True}),
        ("POST", "/generate", "app.internal", {"prompt": "a report"}, {"text": ["something else"]}),
        ("POST", "/generate", "app.internal", {"prompt": "a report"}, {"url": "/r/1.pdf"}),
        ("POST", "/generate", "app.internal", {"text": "qr"}, {"image": "…"}),
        ("POST", "/v1/messages", "sms.internal", {"to": "+100", "body": "hi"}, {"sid": "1"}),
        ("POST", "/v1/responses", "survey.internal", {"survey": 1, "answers": [1]}, {"id": 7}),
        ("POST", "/v1/embed", "video.internal", {"url": "https://v"}, {"html": "<iframe>"}),
        ("POST", "/complete", "search.internal", {"prompt": "ap", "model": "suggest"}, {"items": []}),
        ("POST", "/tasks", "ci.internal", {"model": "x", "input": "y"}, {"task": 1}),
        ("POST", "/mcp", "tools.internal", {"jsonrpc": "2.0", "method": "message/stream", "params": {}}, {"result": {}}),
        ("POST", "/classify", "ml.internal", {"image": "AA"}, {"label": "cat"}),
        ("POST", "/", "form.internal", {"inputs": "x"}, {"outputs": "y"}),
        ("GET", "/v1/embeddings", "ml.internal"),
        ("GET", "/anything", "apim.internal", None, {"a": 1}, 200, {"apim-request-id": "1"}),
    ],
)
def test_ordinary_services_are_not_models(call: tuple[Any, ...]):
    assert who(*call) == (None, None, None)


@pytest.mark.parametrize(
    ("body", "content_type", "api"),
    [
        (ANSWER, "application/json", "openai.chat"),
        ({"object": "chat.completion.chunk", "choices": []}, "text/event-stream", "openai.chat"),
        ({"object": "text_completion", "choices": [{"text": "x"}]}, "application/json", "openai.completions"),
        ({"data": [{"embedding": [1], "index": 0}]}, "application/json", "openai.embeddings"),
        ({"type": "response.output_text.delta", "delta": "x"}, "text/event-stream", "openai.responses"),
        ({"type": "content_block_delta", "delta": {}}, "text/event-stream", "anthropic.messages"),
        ({"candidates": [{"content": {}}]}, "text/event-stream", "gemini.generate"),
        ({"bytes": "e30="}, "application/vnd.amazon.eventstream", "bedrock.invoke"),
        ({"contentBlockIndex": 0, "delta": {"text": "x"}}, "application/vnd.amazon.eventstream", "bedrock.converse"),
        ({"message": {"content": "x"}, "created_at": "t", "done": False}, "application/x-ndjson", "ollama.chat"),
        ({"response": "x", "created_at": "t", "done": False}, "application/x-ndjson", "ollama.generate"),
        ({"token": {"text": "x"}, "generated_text": None}, "text/event-stream", "tgi.generate"),
        ({"text": "x", "meta_info": {}}, "text/event-stream", "sglang.generate"),
        ({"content": "x", "stop": False, "tokens_predicted": 1}, "text/event-stream", "llamacpp.completion"),
        ({"type": "content-delta", "delta": {}}, "text/event-stream", "cohere.chat"),
        ({"ok": True}, "application/json", None),
        ([1, 2], "application/json", None),
        (None, "text/html", None),
    ],
)
def test_answers_without_a_request_are_recognised(body: Any, content_type: str, api: str | None):
    dialect = classify_response(ResponseView(200, {"content-type": content_type}), body)
    assert (dialect.api if dialect else None) == api
