"""Dialects that have no real peer here, from bytes on the wire to the record: bodies in the shape of each API reference."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pytest

from llmsec_tap.dialects.registry import DIALECTS
from llmsec_tap.model import Exchange
from support.replay import replay
from support.wire import Talk, pcap


class Row(NamedTuple):
    api: str
    path: str
    body: dict[str, Any]
    answer: Any
    expected: dict[str, Any]
    host: str = "node-3.internal"


HELLO = {"output_text": "Hello.", "input_text": "Hi"}
ROWS = [
    Row("anthropic.complete", "/v1/complete",
        {"model": "claude-2.1", "prompt": "\n\nHuman: Hi\n\nAssistant:", "max_tokens_to_sample": 9},
        {"type": "completion", "id": "compl_1", "completion": " Hello.", "stop_reason": "stop_sequence", "stop": "\n\nHuman:", "model": "claude-2.1"},
        {"output_text": " Hello.", "finish_reasons": ["stop_sequence"], "request_model": "claude-2.1", "provider": "anthropic"}, "api.anthropic.com"),
    Row("vertex.predict", "/v1/projects/p/locations/us-central1/publishers/google/models/text-embedding-005:predict",
        {"instances": [{"content": "Hi"}, {"content": "Ho"}]},
        {"predictions": [{"embeddings": {"values": [0.1, 0.2, 0.3], "statistics": {"token_count": 2, "truncated": False}}}] * 2},
        {"embeddings": 2, "dimensions": 3, "operation": "embeddings", "provider": "gcp.vertex_ai"}, "us-central1-aiplatform.googleapis.com"),
    Row("ollama.embed", "/api/embed", {"model": "tiny", "input": ["Hi", "Ho"]},
        {"model": "tiny", "embeddings": [[0.1, 0.2], [0.3, 0.4]], "total_duration": 1, "load_duration": 1, "prompt_eval_count": 4},
        {"embeddings": 2, "dimensions": 2, "input_tokens": 4, "provider": "ollama"}),
    Row("ollama.embeddings", "/api/embeddings", {"model": "tiny", "prompt": "Hi"}, {"embedding": [0.1, 0.2, 0.3, 0.4]},
        {"embeddings": 1, "dimensions": 4, "input_text": "Hi", "provider": "ollama"}),
    Row("sagemaker.invoke", "/endpoints/llama-endpoint/invocations", {"inputs": "Hi", "parameters": {"max_new_tokens": 9}}, [{"generated_text": "Hello."}],
        HELLO | {"provider": "aws.sagemaker"}, "runtime.sagemaker.us-east-1.amazonaws.com"),
    Row("hf.text_generation", "/models/org/tiny", {"inputs": "Hi", "parameters": {"details": True}},
        [{"generated_text": "Hello.", "details": {"finish_reason": "length", "generated_tokens": 2, "prefill": [], "tokens": []}}],
        HELLO | {"output_tokens": 2, "finish_reasons": ["length"], "request_model": "org/tiny"}, "api-inference.huggingface.co"),
    Row("llamacpp.embedding", "/embedding", {"content": "Hi"}, [{"index": 0, "embedding": [[0.1, 0.2, 0.3]]}],
        {"embeddings": 1, "dimensions": 3, "provider": "llamacpp"}),
    Row("cohere.generate", "/v1/generate", {"model": "command", "prompt": "Hi", "max_tokens": 9},
        {"id": "g-1", "generations": [{"id": "g-1", "text": "Hello.", "finish_reason": "COMPLETE"}], "prompt": "Hi", "meta": {"api_version": {"version": "1"}, "billed_units": {"input_tokens": 1, "output_tokens": 2}}},
        HELLO | {"finish_reasons": ["COMPLETE"], "output_tokens": 2, "provider": "cohere"}, "api.cohere.com"),
    Row("cohere.embed", "/v2/embed", {"model": "embed-v4.0", "texts": ["Hi", "Ho"], "input_type": "search_document", "embedding_types": ["float"]},
        {"id": "e-1", "embeddings": {"float": [[0.1, 0.2], [0.3, 0.4]]}, "texts": ["Hi", "Ho"], "meta": {"billed_units": {"input_tokens": 2}}},
        {"embeddings": 2, "dimensions": 2, "input_tokens": 2, "provider": "cohere"}, "api.cohere.com"),
    Row("watsonx.chat", "/ml/v1/text/chat?version=2024-10-08", {"model_id": "ibm/granite-3-8b", "project_id": "p", "messages": [{"role": "user", "content": "Hi"}]},
        {"id": "chat-1", "model_id": "ibm/granite-3-8b", "created": 1, "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello."}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}},
        HELLO | {"request_model": "ibm/granite-3-8b", "output_tokens": 2}, "us-south.ml.cloud.ibm.com"),
    Row("watsonx.embed", "/ml/v1/text/embeddings?version=2024-10-08", {"model_id": "ibm/slate-30m", "project_id": "p", "inputs": ["Hi"]},
        {"model_id": "ibm/slate-30m", "created_at": "2026-01-01T00:00:00Z", "results": [{"embedding": [0.1, 0.2]}], "input_token_count": 3},
        {"embeddings": 1, "dimensions": 2, "input_tokens": 3}, "us-south.ml.cloud.ibm.com"),
    Row("aleph_alpha.complete", "/complete", {"model": "luminous-base", "prompt": "Hi", "maximum_tokens": 9},
        {"model_version": "2022-04", "completions": [{"completion": "Hello.", "finish_reason": "maximum_tokens"}], "num_tokens_prompt_total": 1, "num_tokens_generated": 2},
        HELLO | {"finish_reasons": ["maximum_tokens"], "output_tokens": 2}, "api.aleph-alpha.com"),
    Row("replicate.predict", "/v1/models/meta/tiny/predictions", {"input": {"prompt": "Hi"}},
        {"id": "r1", "model": "meta/tiny", "version": "1", "input": {"prompt": "Hi"}, "status": "succeeded", "output": ["Hel", "lo."], "error": None, "logs": "", "created_at": "2026-01-01T00:00:00Z", "urls": {}},
        HELLO | {"provider": "replicate"}, "api.replicate.com"),
    Row("cloudflare.run", "/client/v4/accounts/00ff/ai/run/@cf/meta/tiny", {"messages": [{"role": "user", "content": "Hi"}]},
        {"result": {"response": "Hello.", "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}}, "success": True, "errors": [], "messages": []},
        HELLO | {"output_tokens": 2}, "api.cloudflare.com"),
    Row("triton.generate", "/v2/models/ensemble/generate", {"text_input": "Hi", "max_tokens": 9, "bad_words": "", "stop_words": ""},
        {"model_name": "ensemble", "model_version": "1", "text_output": "Hello."}, HELLO | {"response_model": "ensemble"}),
]  # fmt: skip


def exchange_of(row: Row) -> Exchange:
    body, answer = json.dumps(row.body).encode(), json.dumps(row.answer).encode()
    head = f"POST {row.path} HTTP/1.1\r\nHost: {row.host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    talk = Talk().open().say(0, head.encode() + body)
    talk.say(1, b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(answer), answer)).close()
    (exchange,), _ = replay(pcap(talk.frames))
    return exchange


@pytest.mark.parametrize("row", ROWS, ids=[row.api for row in ROWS])
def test_records(row: Row) -> None:
    exchange = exchange_of(row)
    special = {
        "embeddings": exchange.response.embeddings,
        "dimensions": exchange.response.embedding_dimensions,
        "input_tokens": exchange.usage.input_tokens,
        "output_tokens": exchange.usage.output_tokens,
    }
    found = {key: special[key] if key in special else getattr(exchange, key) for key in row.expected}
    assert (exchange.api, found) == (row.api, row.expected)
    assert exchange.provider is not None
    assert exchange.completeness == "complete"


@pytest.mark.parametrize("row", ROWS, ids=[row.api for row in ROWS])
def test_behind_a_private_name_the_dialect_says_who_serves_it(row: Row) -> None:
    exchange = exchange_of(row._replace(host="node-3.internal"))
    assert {exchange.provider} == {dialect.default_provider for dialect in DIALECTS if dialect.api == row.api}
