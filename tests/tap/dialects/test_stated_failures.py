"""A failure or a block that a server states under status 200, in the field of its own API: an error on the record, whole and streamed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmsec_tap.dialects.base import RequestView, ResponseView
from llmsec_tap.dialects.draft import Draft
from llmsec_tap.dialects.registry import DIALECTS
from llmsec_tap.identity.classify import classify
from llmsec_tap.model import Exchange
from support.replay import replay
from support.wire import Talk, pcap

HI = [{"role": "user", "content": "hi"}]
# A request of every dialect, by its api.
ASKED: list[tuple[str, str, Any]] = [
    ("openai.chat", "/v1/chat/completions", {"model": "m", "messages": HI}),
    ("openai.completions", "/v1/completions", {"model": "m", "prompt": "hi"}),
    ("mistral.fim", "/v1/fim/completions", {"model": "m", "prompt": "hi"}),
    ("openai.embeddings", "/v1/embeddings", {"model": "m", "input": "hi"}),
    ("openai.responses", "/v1/responses", {"model": "m", "input": "hi"}),
    ("anthropic.messages", "/v1/messages", {"model": "m", "max_tokens": 3, "messages": HI}),
    ("anthropic.complete", "/v1/complete", {"model": "m", "max_tokens_to_sample": 3, "prompt": "hi"}),
    ("gemini.generate", "/v1beta/models/m:generateContent", {"contents": [{"parts": [{"text": "hi"}]}]}),
    ("gemini.embed", "/v1beta/models/m:embedContent", {"content": {"parts": [{"text": "hi"}]}}),
    ("vertex.predict", "/v1/projects/p/locations/l/publishers/google/models/m:predict", {"instances": [{"content": "hi"}]}),
    ("bedrock.converse", "/model/m/converse", {"messages": [{"role": "user", "content": [{"text": "hi"}]}]}),
    ("bedrock.invoke", "/model/m/invoke", {"prompt": "hi"}),
    ("ollama.chat", "/api/chat", {"model": "m", "messages": HI}),
    ("ollama.generate", "/api/generate", {"model": "m", "prompt": "hi"}),
    ("ollama.embed", "/api/embed", {"model": "m", "input": "hi"}),
    ("ollama.embeddings", "/api/embeddings", {"model": "m", "prompt": "hi"}),
    ("sagemaker.invoke", "/endpoints/e/invocations", {"inputs": "hi"}),
    ("hf.text_generation", "/models/a/b", {"inputs": "hi"}),
    ("hf.feature_extraction", "/models/a/b/pipeline/feature-extraction", {"inputs": "hi"}),
    ("tgi.generate", "/generate", {"inputs": "hi"}),
    ("sglang.generate", "/generate", {"text": "hi", "sampling_params": {}}),
    ("vllm.generate", "/generate", {"prompt": "hi"}),
    ("llamacpp.completion", "/completion", {"prompt": "hi", "n_predict": 3}),
    ("llamacpp.embedding", "/embedding", {"content": "hi"}),
    ("cohere.chat", "/v2/chat", {"model": "m", "messages": HI}),
    ("cohere.chat", "/v1/chat", {"model": "m", "message": "hi"}),
    ("cohere.generate", "/v1/generate", {"model": "m", "prompt": "hi"}),
    ("cohere.embed", "/v2/embed", {"model": "m", "texts": ["hi"], "input_type": "x"}),
    ("watsonx.generate", "/ml/v1/text/generation", {"model_id": "m", "input": "hi"}),
    ("watsonx.chat", "/ml/v1/text/chat", {"model_id": "m", "messages": HI}),
    ("watsonx.embed", "/ml/v1/text/embeddings", {"model_id": "m", "inputs": ["hi"]}),
    ("aleph_alpha.complete", "/complete", {"model": "m", "prompt": "hi", "maximum_tokens": 3}),
    ("replicate.predict", "/v1/models/a/b/predictions", {"input": {"prompt": "hi"}}),
    ("cloudflare.run", "/client/v4/accounts/a/ai/run/@cf/a/m", {"messages": HI}),
    ("triton.generate", "/v2/models/m/generate", {"text_input": "hi"}),
    (
        "kserve.infer",
        "/inference.GRPCInferenceService/ModelInfer",
        {"inputs": [{"name": "text_input", "datatype": "BYTES", "contents": {"bytes_contents": ["hi"]}}]},
    ),
    ("vllm.engine", "/vllm.grpc.engine.VllmEngine/Generate", {"text": "hi"}),
    ("tgi.shard", "/generate.v3.TextGenerationService/Prefill", {"batch": {"requests": [{"inputs": "hi"}]}}),
]
# What any of them, or a gateway before it, may answer: (body, type, message)
STATED: list[tuple[Any, str, str | None]] = [
    ({"error": {"message": "no", "type": "overloaded", "code": 7}}, "overloaded", "no"),
    ({"error": {"message": "no", "code": 1305}}, "1305", "no"),
    ({"error": {"message": "no", "code": "busy"}}, "busy", "no"),
    ({"error": "no", "error_type": "overloaded"}, "overloaded", "no"),
    ({"success": False, "error": {"code": "BUSY", "message": "no"}}, "BUSY", "no"),
    ({"success": False, "errors": [{"code": 7009, "message": "no"}], "result": None}, "7009", "no"),
    ({"base_resp": {"status_code": 1008, "status_msg": "no"}}, "1008", "no"),
    ({"error_code": 336003, "error_msg": "no"}, "336003", "no"),
    ({"header": {"code": 10013, "message": "no", "sid": "s"}}, "10013", "no"),
    ({"Response": {"Error": {"Code": "LimitExceeded", "Message": "no"}, "RequestId": "r"}}, "LimitExceeded", "no"),
    ({"code": "Throttling", "message": "no", "request_id": "r"}, "Throttling", "no"),
    ({"code": 1210, "msg": "no", "success": False}, "1210", "no"),
    ({"object": "error", "message": "no", "type": "BadRequestError", "code": 400}, "BadRequestError", "no"),
    ({"detail": "no"}, "unknown", "no"),
    ({"message": "no"}, "unknown", "no"),
    ({"Output": {"__type": "com.amazon.coral.service#UnknownOperationException"}, "Version": "1.0"}, "UnknownOperationException", None),
]


def view_of(path: str, body: Any) -> RequestView:
    view = RequestView("POST", path, {"host": "h"})
    view.body, view.body_is_json = body, True
    return view


def test_every_dialect_is_asked() -> None:
    # The others read no whole answer, or state failures as JSON-RPC does (test_mcp.py).
    others = {
        dialect.api
        for dialect in DIALECTS
        if dialect.api.startswith(("rpc.", "openai.realtime", "gemini.live", "websocket.", "mcp.", "a2a."))
    }
    assert {row[0] for row in ASKED} == {dialect.api for dialect in DIALECTS} - others
    for api, path, body in ASKED:
        dialect = classify(view_of(path, body))
        assert dialect is not None
        assert dialect.api == api


@pytest.mark.parametrize(("api", "path", "asked"), ASKED, ids=[f"{row[0]} {row[1]}" for row in ASKED])
def test_a_failure_in_a_200_is_an_error(api: str, path: str, asked: Any) -> None:
    for body, kind, said in STATED:
        for streaming in (False, True):
            view = view_of(path, asked)
            dialect = classify(view)
            assert dialect is not None
            draft = Draft()
            if not streaming:
                dialect.decode_response(view, ResponseView(200, {"content-type": "application/json"}), body, 1, draft)
            elif api == "bedrock.invoke":
                continue  # its events are wrapped
            else:
                dialect.stream(view, ResponseView(200, {"content-type": "text/event-stream"}), draft)(1, None, json.dumps(body).encode())
            assert draft.error_type == kind, (body, streaming)
            assert said is None or said in (draft.error_message or ""), (body, streaming)


@pytest.mark.parametrize(
    "body",
    [
        {"base_resp": {"status_code": 0, "status_msg": ""}, "choices": []},
        {"error": None, "errors": [], "success": True, "message": "", "code": 0},
        {"header": {"code": 0, "message": "Success"}, "choices": []},
        {"error_code": 0, "choices": []},
        {"code": 200, "msg": "ok", "data": {"choices": []}},
        {"error": {}, "choices": []},
        {"id": "x", "model": "m", "message": {"role": "assistant", "content": "hi"}},
        {"promptFeedback": {"safetyRatings": []}, "candidates": []},
        {"status": "starting", "id": "p", "error": None, "output": None},
    ],
)
def test_no_failure_is_none(body: Any) -> None:
    for _, path, asked in ASKED:
        view = view_of(path, asked)
        dialect = classify(view)
        assert dialect is not None
        draft = Draft()
        dialect.decode_response(view, ResponseView(200, {"content-type": "application/json"}), body, 1, draft)
        assert draft.error_type is None, (path, body)


OWN: list[tuple[str, Any, Any, str, str | None]] = [
    ("/v1beta/models/m:generateContent", ASKED[7][2], {"promptFeedback": {"blockReason": "SAFETY", "blockReasonMessage": "no"}}, "SAFETY", "no"),
    ("/v1/messages", ASKED[5][2], {"type": "error", "error": {"type": "overloaded_error", "message": "no"}}, "overloaded_error", "no"),
    ("/v1/responses", ASKED[4][2], {"object": "response", "status": "failed", "output": [], "error": {"code": "server_error", "message": "no"}}, "server_error", "no"),
    ("/v1/models/a/b/predictions", {"input": {"prompt": "x"}}, {"id": "p", "status": "failed", "error": "no", "output": None}, "failed", "no"),
    ("/v1/chat/completions", ASKED[0][2], {"choices": [{"index": 0, "message": {"content": ""}, "error": {"code": 502, "message": "no"}, "finish_reason": "error"}]}, "502", "no"),
    ("/generate", {"text": "hi", "sampling_params": {}}, {"text": "", "meta_info": {"finish_reason": {"type": "abort", "err_type": "Busy", "message": "no"}}}, "Busy", "no"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "asked", "body", "kind", "said"), OWN, ids=[f"{row[0]} {row[3]}" for row in OWN])
def test_a_failure_in_the_apis_own_field(path: str, asked: Any, body: Any, kind: str, said: str | None) -> None:
    view = view_of(path, asked)
    dialect = classify(view)
    assert dialect is not None
    draft = Draft()
    dialect.decode_response(view, ResponseView(200, {"content-type": "application/json"}), body, 1, draft)
    assert (draft.error_type, draft.error_message) == (kind, said)


STREAMED: list[tuple[str, Any, list[Any], str]] = [
    ("/v2/chat", ASKED[24][2], [{"type": "message-start", "id": "c"}, {"type": "message-end", "delta": {"finish_reason": "ERROR", "error_type": "overloaded", "error": "no"}}], "overloaded"),
    ("/v2/chat", ASKED[24][2], [{"type": "message-start", "id": "c"}, {"type": "message-end", "error_type": "overloaded", "error_message": "no"}], "overloaded"),
    ("/v1/responses", ASKED[4][2], [{"type": "error", "code": "rate_limited", "message": "no"}], "rate_limited"),
    ("/v1/responses", ASKED[4][2], [{"type": "response.failed", "response": {"status": "failed", "error": {"code": "server_error", "message": "no"}}}], "server_error"),
    ("/v1/messages", ASKED[5][2], [{"type": "error", "error": {"type": "overloaded_error", "message": "no"}}], "overloaded_error"),
    ("/v1/chat/completions", ASKED[0][2], [{"id": "c", "model": "m", "choices": [{"index": 0, "delta": {"content": "x"}}]}, {"id": "c", "model": "m", "choices": [], "base_resp": {"status_code": 1027, "status_msg": "no"}}], "1027"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "asked", "events", "kind"), STREAMED, ids=[f"{row[0]} {row[3]} {number}" for number, row in enumerate(STREAMED)]
)
def test_a_failure_in_an_event(path: str, asked: Any, events: list[Any], kind: str) -> None:
    view = view_of(path, asked)
    dialect = classify(view)
    assert dialect is not None
    draft = Draft()
    handler = dialect.stream(view, ResponseView(200, {"content-type": "text/event-stream"}), draft)
    for at, event in enumerate(events):
        handler(at, None, json.dumps(event).encode())
    assert draft.error_type == kind


def exchange_of(path: str, asked: Any, answer: bytes, answer_type: str) -> Exchange:
    raw = json.dumps(asked).encode()
    talk = Talk().open()
    talk.say(
        0, f"POST {path} HTTP/1.1\r\nHost: node\r\nContent-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n".encode() + raw
    )
    talk.say(1, f"HTTP/1.1 200 OK\r\nContent-Type: {answer_type}\r\nContent-Length: {len(answer)}\r\n\r\n".encode() + answer).close()
    (exchange,), _ = replay(pcap(talk.frames))
    return exchange


@pytest.mark.parametrize(
    "answer_type", ["text/event-stream", "application/x-ndjson", "application/json", "application/vnd.amazon.eventstream"]
)
@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/v1/chat/completions", {"model": "m", "messages": HI, "stream": True}),
        ("/v1/messages", {"model": "m", "max_tokens": 3, "messages": HI, "stream": True}),
        ("/v1/responses", {"model": "m", "input": "hi", "stream": True}),
        ("/v1beta/models/m:streamGenerateContent?alt=sse", {"contents": [{"parts": [{"text": "hi"}]}]}),
        ("/v1beta/models/m:streamGenerateContent", {"contents": [{"parts": [{"text": "hi"}]}]}),
        ("/model/m/converse-stream", {"messages": [{"role": "user", "content": [{"text": "hi"}]}]}),
        ("/model/m/invoke-with-response-stream", {"prompt": "hi"}),
        ("/ml/v1/text/generation_stream", {"model_id": "m", "input": "hi"}),
        ("/v1/completions", {"model": "m", "prompt": "hi", "stream": True}),
    ],
)
def test_a_failure_as_json_on_the_route_of_a_stream(path: str, asked: Any, answer_type: str) -> None:
    exchange = exchange_of(path, asked, b'{"error":{"message":"no room","type":"overloaded"}}', answer_type)
    assert (exchange.error_type, exchange.response.error_message) == ("overloaded", "no room")
    assert exchange.completeness == "complete"
    assert not [anomaly.name for anomaly in exchange.anomalies]
