"""The vendors' own clients must accept what our fixture server sends, and we must decode from the wire what they read."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from llmsec_tap.model import Exchange
from llmsec_tap.wire.eventstream import EventStreamParser
from support.aws import message
from support.replay import replay
from support.sniff import can_sniff, free_port, sniff
from support.vendor_server import TEXT, vendor_server

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("default")]
needs_capture = pytest.mark.skipif(not can_sniff(), reason="recording loopback traffic needs root or CAP_NET_RAW")
PROMPT = "What do passive taps see?"


def bedrock(url: str) -> list[str]:
    session = pytest.importorskip("botocore.session", reason="in the dependency group `peers`").get_session()
    session.set_credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
    client = session.create_client("bedrock-runtime", region_name="us-east-1", endpoint_url=url)
    messages = [{"role": "user", "content": [{"text": PROMPT}]}]
    model = "anthropic.claude-x-v1:0"
    claude = json.dumps({"anthropic_version": "bedrock-2023-05-31", "max_tokens": 20, "messages": [{"role": "user", "content": PROMPT}]})
    seen = [client.converse(modelId=model, messages=messages)["output"]["message"]["content"][0]["text"]]
    stream = client.converse_stream(modelId=model, messages=messages)["stream"]
    seen.append("".join(event["contentBlockDelta"]["delta"]["text"] for event in stream if "contentBlockDelta" in event))
    seen.append(json.loads(client.invoke_model(modelId=model, body=claude)["body"].read())["content"][0]["text"])
    chunks = [json.loads(event["chunk"]["bytes"]) for event in client.invoke_model_with_response_stream(modelId=model, body=claude)["body"]]
    seen.append("".join(chunk["delta"]["text"] for chunk in chunks if chunk["type"] == "content_block_delta"))
    return seen


def ollama(url: str) -> list[str]:
    with pytest.importorskip("ollama", reason="in the dependency group `peers`").Client(host=url) as client:
        parts = client.chat(model="tiny", messages=[{"role": "user", "content": PROMPT}], stream=True)
        seen = ["".join(part.message.content for part in parts)]
        seen.append("".join(part.response for part in client.generate(model="tiny", prompt=PROMPT, stream=True)))
        assert len(client.embed(model="tiny", input=[PROMPT, "b"]).embeddings) == 2
    return seen


def tgi(url: str) -> list[str]:
    hub = pytest.importorskip("huggingface_hub", reason="in the dependency group `peers`")
    with hub.InferenceClient(url) as client:
        seen = [client.text_generation(PROMPT, max_new_tokens=6, details=True).generated_text]
        seen.append("".join(client.text_generation(PROMPT, max_new_tokens=6, stream=True)))
    hub.close_session()  # else the connection that all its clients share ends in a later test, as a ResourceWarning there
    return seen


def gemini(url: str) -> list[str]:
    genai = pytest.importorskip("google.genai", reason="in the dependency group `peers`")
    with genai.Client(api_key="AIzaSyTest-0123456789abcdefghijklmnopqrs", http_options={"base_url": url}) as client:
        seen = [client.models.generate_content(model="gemini-x", contents=PROMPT).text]
        seen.append("".join(part.text or "" for part in client.models.generate_content_stream(model="gemini-x", contents=PROMPT)))
    return seen


def mistral(url: str) -> list[str]:
    pytest.importorskip("mistralai", reason="in the dependency group `peers`")
    try:
        from mistralai.client import Mistral
    except ImportError:
        from mistralai import Mistral
    with Mistral(api_key="0123456789abcdefghijklmnopqrstuv", server_url=url) as client:
        messages: Any = [{"role": "user", "content": PROMPT}]
        seen = [client.chat.complete(model="mistral-x", messages=messages).choices[0].message.content]
        stream = client.chat.stream(model="mistral-x", messages=messages)
        seen.append("".join(event.data.choices[0].delta.content or "" for event in stream))
    return seen


@needs_capture
@pytest.mark.parametrize(
    ("run", "apis", "framing", "usage"),
    [
        (bedrock, ["bedrock.converse", "bedrock.converse", "bedrock.invoke", "bedrock.invoke"], "aws-eventstream", (11, 6)),
        (ollama, ["ollama.chat", "ollama.generate", "ollama.embed"], "ndjson", (11, 6)),
        (tgi, ["tgi.generate", "tgi.generate"], "sse", (11, 6)),
        (gemini, ["gemini.generate", "gemini.generate"], "sse", (11, 6)),
        (mistral, ["openai.chat", "openai.chat"], "sse", (11, 6)),
    ],
)
def test_clients_accept_our_fixtures_and_we_decode_what_they_read(
    run: Callable[[str], list[str]], apis: list[str], framing: str, usage: tuple[int, int]
) -> None:
    port = free_port()
    with vendor_server(port) as url, sniff(port) as recording:
        seen = run(url)
    assert seen == [TEXT] * len(seen)
    exchanges: list[Exchange] = sorted((e for e in replay(recording.capture())[0] if e.method == "POST"), key=lambda e: e.started_ns or 0)
    assert [e.api for e in exchanges] == apis
    for exchange in exchanges[: len(seen)]:
        assert exchange.output_text == TEXT
        assert exchange.input_text == PROMPT
        assert exchange.completeness == "complete"
        assert exchange.anomalies == []
        assert exchange.usage.output_tokens == usage[1]
        assert exchange.usage.input_tokens == usage[0] or not exchange.streaming
        assert (exchange.framing == framing) == exchange.streaming
    assert any(e.streaming for e in exchanges)


def test_botocore_and_we_read_the_same_event_stream() -> None:
    eventstream = pytest.importorskip("botocore.eventstream", reason="in the dependency group `peers`")
    data = b"".join(
        message(
            {":message-type": "event", ":event-type": f"kind{n}", ":content-type": "application/json"},
            json.dumps({"n": n}).encode() * (n + 1),
        )
        for n in range(20)
    )
    buffer = eventstream.EventStreamBuffer()
    ours: list[tuple[str | None, bytes]] = []
    parser = EventStreamParser(lambda _ts, name, payload: ours.append((name, payload)), pytest.fail)
    theirs = []
    for at in range(0, len(data), 37):
        buffer.add_data(data[at : at + 37])
        theirs += [(event.headers[":event-type"], event.payload) for event in buffer]
        parser.feed(0, data[at : at + 37])
    assert ours == theirs
    assert len(ours) == 20
