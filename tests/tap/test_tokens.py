"""Token estimates: by a tokenizer where there is one, else by characters, and the record says which."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmsec_tap.identity.credentials import fingerprinter
from llmsec_tap.model import Exchange, Message, Part, Request, Response, Usage
from llmsec_tap.pipeline import Pipeline
from llmsec_tap.tokens import TokenEstimator
from support.replay import KEY
from support.wire import Talk, pcap


def said(model: str, **more: Any) -> Exchange:
    return Exchange(
        exchange_id="x",
        client="a:1",
        server="b:2",
        provider="p",
        operation="text_completion",
        status=200,
        request_model=model,
        request=Request(messages=[Message(role="user", parts=[Part(type="text", content="a" * 70)])]),
        response=Response(messages=[Message(role="assistant", parts=[Part(type="text", content="b" * 28)])]),
        **more,
    )


@pytest.mark.parametrize(
    ("model", "counts", "how"),
    [
        ("claude-haiku-4-5", (20, 8), "3.5 characters per token"),
        ("anthropic.claude-x-v1:0", (20, 8), "3.5 characters per token"),
        ("mistral-large", (18, 7), "4 characters per token"),
        ("llama-3", (18, 7), "4 characters per token"),
        ("", (18, 7), "4 characters per token"),
    ],
)
def test_families_without_a_tokenizer_are_counted_by_characters(model: str, counts: tuple[int, int], how: str) -> None:
    exchange = said(model)
    TokenEstimator().estimate(exchange)
    estimate = exchange.usage_estimated
    assert estimate is not None
    assert (estimate.input_tokens, estimate.output_tokens, estimate.tokenizer) == (*counts, how)


def test_a_family_whose_tokenizer_ships_is_counted_by_it() -> None:
    pytest.importorskip("bpe_openai", reason="in the extra `tokens`")
    exchange = said("gpt-4o")
    TokenEstimator().estimate(exchange)
    assert exchange.usage_estimated is not None
    assert exchange.usage_estimated.tokenizer == "o200k_base"


def test_what_the_server_states_is_not_estimated() -> None:
    exchange = said("llama-3", usage=Usage(input_tokens=1, output_tokens=2))
    TokenEstimator().estimate(exchange)
    assert exchange.usage_estimated is None
    half = said("llama-3", usage=Usage(input_tokens=1))
    TokenEstimator().estimate(half)
    assert half.usage_estimated is not None
    assert (half.usage_estimated.input_tokens, half.usage_estimated.output_tokens) == (None, 7)


def test_tokens_are_known_while_an_answer_streams() -> None:
    seen: list[int] = []

    class Listener:
        def __init__(self, assembly: Any) -> None:
            self.assembly = assembly

        def delta(self, ts_ns: int, kind: str, choice: int, text: str) -> None:
            seen.append(self.assembly.output_tokens_so_far)

        def finished(self, exchange: Exchange) -> None: ...

    body = json.dumps({"model": "llama-3", "stream": True, "messages": [{"role": "user", "content": "hi"}]}).encode()
    talk = Talk().open()
    talk.say(0, b"POST /v1/chat/completions HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    chunk = {"id": "c", "model": "llama-3", "choices": [{"index": 0, "delta": {"content": "word" * 5}}]}
    events = [b"data: " + json.dumps(chunk).encode() + b"\n\n"] * 3
    talk.say(1, b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n", *events).close(1)
    from io import BytesIO

    from llmsec_tap.capture.files.pcap import CaptureReader

    pipeline = Pipeline(lambda _exchange: None, fingerprinter(KEY), listener_factory=Listener, shield=False)
    CaptureReader(pipeline).read_stream(BytesIO(pcap(talk.frames)), "memory")
    pipeline.close()
    assert seen == [5, 10, 15]
