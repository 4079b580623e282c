"""What the SDK records of a call equals, field by field, what a tap decodes from the bytes of the same call on the wire."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from llmsec_tap.model import Exchange
from llmsec_trace.clients import hooks_in
from support.recording_relay import Relay
from support.replay import replay
from support.sdk_recording import recording
from support.sniff import free_port
from support.vendor_server import TEXT, vendor_server

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("default")]

PROMPT = "What do passive taps see?"
MESSAGES: Any = [{"role": "user", "content": PROMPT}]
# What may differ: where and when it was seen, and by whom; what only the SDK knows.
MAY_DIFFER = {
    "exchange_id", "client", "server", "process", "node", "capture_kind", "tags", "trace_id",
    "started_ns", "first_byte_ns", "first_token_ns", "ended_ns", "ttft_ms", "itl_ms_p50", "itl_ms_p95", "output_tokens_per_s",
}  # fmt: skip

Instrument = Callable[[Any], Any]


def openai(url: str, on: Instrument) -> None:
    module = pytest.importorskip("openai", reason="in the dependency group `peers`")
    with on(module.OpenAI(base_url=f"{url}/v1", api_key="sk-test-0123456789abcdef", max_retries=0)) as client:
        client.chat.completions.create(model="m", messages=MESSAGES)
        assert (
            "".join(c.choices[0].delta.content or "" for c in client.chat.completions.create(model="m", messages=MESSAGES, stream=True))
            == TEXT
        )
        with pytest.raises(module.NotFoundError):
            client.embeddings.create(model="m", input="a")


def async_openai(url: str, on: Instrument) -> None:
    module = pytest.importorskip("openai", reason="in the dependency group `peers`")

    async def run() -> None:
        async with on(module.AsyncOpenAI(base_url=f"{url}/v1", api_key="sk-test-0123456789abcdef", max_retries=0)) as client:
            await client.chat.completions.create(model="m", messages=MESSAGES)
            stream = await client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
            assert "".join([c.choices[0].delta.content or "" async for c in stream]) == TEXT

    asyncio.run(run())


def azure_openai(url: str, on: Instrument) -> None:
    module = pytest.importorskip("openai", reason="in the dependency group `peers`")
    client = module.AzureOpenAI(azure_endpoint=url, api_key="0123456789abcdef0123456789abcdef", api_version="2024-06-01", max_retries=0)
    with on(client), pytest.raises(module.NotFoundError):
        client.chat.completions.create(model="my-deployment", messages=MESSAGES)


def anthropic(url: str, on: Instrument) -> None:
    module = pytest.importorskip("anthropic", reason="in the dependency group `peers`")
    with on(module.Anthropic(base_url=url, api_key="sk-ant-test-0123456789", max_retries=0)) as client:
        client.messages.create(model="claude-x", max_tokens=20, messages=MESSAGES)
        with client.messages.stream(model="claude-x", max_tokens=20, messages=MESSAGES) as stream:
            assert "".join(stream.text_stream) == TEXT


def async_anthropic(url: str, on: Instrument) -> None:
    module = pytest.importorskip("anthropic", reason="in the dependency group `peers`")

    async def run() -> None:
        async with on(module.AsyncAnthropic(base_url=url, api_key="sk-ant-test-0123456789", max_retries=0)) as client:
            await client.messages.create(model="claude-x", max_tokens=20, messages=MESSAGES)
            async with client.messages.stream(model="claude-x", max_tokens=20, messages=MESSAGES) as stream:
                assert "".join([text async for text in stream.text_stream]) == TEXT

    asyncio.run(run())


def anthropic_bedrock(url: str, on: Instrument) -> None:
    module = pytest.importorskip("anthropic", reason="in the dependency group `peers`")
    pytest.importorskip("boto3", reason="AnthropicBedrock signs with it")
    client = module.AnthropicBedrock(
        base_url=url,
        aws_access_key="AKIAIOSFODNN7EXAMPLE",
        aws_secret_key="wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
        aws_region="us-east-1",
    )
    with on(client):
        client.messages.create(model="anthropic.claude-x-v1:0", max_tokens=20, messages=MESSAGES)


def gemini(url: str, on: Instrument) -> None:
    genai = pytest.importorskip("google.genai", reason="in the dependency group `peers`")
    with on(genai.Client(api_key="AIzaSyTest-0123456789abcdefghijklmnopqrs", http_options={"base_url": url})) as client:
        assert client.models.generate_content(model="gemini-x", contents=PROMPT).text == TEXT
        parts = client.models.generate_content_stream(model="gemini-x", contents=PROMPT)
        assert "".join(part.text or "" for part in parts) == TEXT


def async_gemini(url: str, on: Instrument) -> None:
    genai = pytest.importorskip("google.genai", reason="in the dependency group `peers`")

    async def run() -> None:
        client = on(genai.Client(api_key="AIzaSyTest-0123456789abcdefghijklmnopqrs", http_options={"base_url": url}))
        assert (await client.aio.models.generate_content(model="gemini-x", contents=PROMPT)).text == TEXT
        parts = await client.aio.models.generate_content_stream(model="gemini-x", contents=PROMPT)
        assert "".join([part.text or "" async for part in parts]) == TEXT
        await client.aio.aclose()
        client.close()

    asyncio.run(run())


def mistral(url: str, on: Instrument) -> None:
    pytest.importorskip("mistralai", reason="in the dependency group `peers`")
    try:
        from mistralai.client import Mistral
    except ImportError:
        from mistralai import Mistral
    with on(Mistral(api_key="0123456789abcdefghijklmnopqrstuv", server_url=url)) as client:
        assert client.chat.complete(model="mistral-x", messages=MESSAGES).choices[0].message.content == TEXT
        events = client.chat.stream(model="mistral-x", messages=MESSAGES)
        assert "".join(event.data.choices[0].delta.content or "" for event in events) == TEXT


def cohere(url: str, on: Instrument) -> None:
    module = pytest.importorskip("cohere", reason="in the dependency group `peers`")
    client = on(module.ClientV2(api_key="0123456789abcdefghijklmnopqrstuvwxyzABCD", base_url=url))
    assert client.chat(model="command-x", messages=MESSAGES).message.content[0].text == TEXT
    events = client.chat_stream(model="command-x", messages=MESSAGES)
    assert "".join(e.delta.message.content.text for e in events if e.type == "content-delta") == TEXT
    for _, transport in hooks_in(client):  # this client has no way to be closed
        transport.close()


def ollama(url: str, on: Instrument) -> None:
    with on(pytest.importorskip("ollama", reason="in the dependency group `peers`").Client(host=url)) as client:
        parts = client.chat(model="tiny", messages=MESSAGES, stream=True)
        assert "".join(part.message.content for part in parts) == TEXT
        client.embed(model="tiny", input=[PROMPT, "b"])


def bedrock(url: str, on: Instrument) -> None:
    session = pytest.importorskip("botocore.session", reason="in the dependency group `peers`").get_session()
    session.set_credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
    client = on(session.create_client("bedrock-runtime", region_name="us-east-1", endpoint_url=url))
    messages = [{"role": "user", "content": [{"text": PROMPT}]}]
    model = "anthropic.claude-x-v1:0"
    assert client.converse(modelId=model, messages=messages)["output"]["message"]["content"][0]["text"] == TEXT
    stream = client.converse_stream(modelId=model, messages=messages)["stream"]
    assert "".join(event["contentBlockDelta"]["delta"]["text"] for event in stream if "contentBlockDelta" in event) == TEXT
    claude = json.dumps({"anthropic_version": "bedrock-2023-05-31", "max_tokens": 20, "messages": MESSAGES})
    assert json.loads(client.invoke_model(modelId=model, body=claude)["body"].read())["content"][0]["text"] == TEXT
    assert list(client.invoke_model_with_response_stream(modelId=model, body=claude)["body"])
    client.close()


BODY = {"model": "m", "messages": MESSAGES}
KEYED = {"Authorization": "Bearer sk-test-0123456789abcdef"}


def raw_httpx(url: str, on: Instrument) -> None:
    httpx = pytest.importorskip("httpx", reason="in the dependency group `peers`")
    with on(httpx.Client(headers=KEYED)) as client:
        assert client.post(f"{url}/v1/chat/completions?key=AIzaSyTest-0123456789abcdefghijklmnopqrs", json=BODY).status_code == 200
        with client.stream("POST", f"{url}/v1/chat/completions", json=BODY | {"stream": True}) as answer:
            assert sum(map(len, answer.iter_raw())) > 500
        pieces = [part.encode() for part in (json.dumps(BODY)[:20], json.dumps(BODY)[20:])]
        length = {"Content-Length": str(sum(map(len, pieces)))}
        assert client.post(f"{url}/v1/chat/completions", content=iter(pieces), headers=length).status_code == 200


def requests(url: str, on: Instrument) -> None:
    module = pytest.importorskip("requests", reason="in the dependency group `peers`")
    with on(module.Session()) as session:
        assert session.post(f"{url}/v1/chat/completions", json=BODY, headers=KEYED).json()["choices"]
        with session.post(f"{url}/v1/chat/completions", json=BODY | {"stream": True}, headers=KEYED, stream=True) as answer:
            assert len(list(answer.iter_lines())) > 6
        with session.post(f"{url}/v1/chat/completions", json=BODY | {"stream": True}, headers=KEYED, stream=True) as answer:
            assert len(answer.raw.read()) > 500


RUNS = [
    openai, async_openai, azure_openai, anthropic, async_anthropic, anthropic_bedrock, gemini, async_gemini, mistral, cohere, ollama, bedrock,
    raw_httpx, requests,
]  # fmt: skip
_counts = [0, 0]


def _by_request(exchange: Exchange) -> tuple[Any, ...]:
    """The relay keeps no times, so records of several connections are paired by what was asked."""
    return str(exchange.path), exchange.request.body_bytes, str(exchange.input_text)


def differences(ours: Exchange, theirs: Exchange) -> dict[str, tuple[Any, Any]]:
    left, right = msgspec.to_builtins(ours), msgspec.to_builtins(theirs)
    return {name: (left[name], right[name]) for name in left if name not in MAY_DIFFER and left[name] != right[name]}


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.__name__)
def test_a_client_s_records_equal_those_of_the_wire(run: Callable[[str, Instrument], None]) -> None:
    port = free_port()
    with vendor_server(port), Relay(port) as relay, recording() as sdk:

        def on(client: Any) -> Any:
            hooks = hooks_in(client)
            assert hooks
            for hook, owner in hooks:
                hook.put(owner, sdk.recorder, again=True)
            return client

        run(f"http://127.0.0.1:{relay.port}", on)
        ours = sorted(sdk.flush(), key=_by_request)
    theirs = sorted((one for one in replay(relay.capture())[0] if one.is_request), key=_by_request)
    _counts[1] += len(theirs)
    assert len(ours) == len(theirs) > 0
    for mine, tapped in zip(ours, theirs, strict=True):
        assert differences(mine, tapped) == {}
        assert mine.capture_kind == "sdk"
        assert (mine.ttft_ms is None) == (tapped.ttft_ms is None)
        assert mine.started_ns is not None
        assert mine.ended_ns is not None
        assert mine.ended_ns >= (mine.first_byte_ns or 0) >= mine.started_ns
        assert mine.client.startswith("127.0.0.1:")
        assert mine.server == f"127.0.0.1:{relay.port}"
        _counts[0] += 1
    print(f"{run.__name__}: {len(ours)} of {len(theirs)} equal; so far {_counts[0]} of {_counts[1]}")


@pytest.mark.parametrize("is_async", [False, True])
def test_records_of_http_2_equal_those_of_the_wire(is_async: bool) -> None:
    httpx = pytest.importorskip("httpx", reason="in the dependency group `peers`")
    pytest.importorskip("hypercorn", reason="in the dependency group `peers`")
    from peers.test_http2_peers import BODY as BODY_2
    from peers.test_http2_peers import serving

    async def run(client: Any, url: str) -> None:
        async with client:
            for body in (BODY_2, BODY_2 | {"model": "gpt-4o-mini"}):
                async with client.stream("POST", url, json=body, headers=KEYED) as answer:
                    assert b"[DONE]" in await answer.aread()

    with serving() as port, Relay(port) as relay, recording() as sdk:
        url = f"http://127.0.0.1:{relay.port}/v1/chat/completions"
        client = (httpx.AsyncClient if is_async else httpx.Client)(http1=False, http2=True)
        for hook, owner in hooks_in(client):
            hook.put(owner, sdk.recorder, again=True)
        if is_async:
            asyncio.run(run(client, url))
        else:
            with client:
                for body in (BODY_2, BODY_2 | {"model": "gpt-4o-mini"}):
                    assert b"[DONE]" in client.post(url, json=body, headers=KEYED).content
        ours = sorted(sdk.flush(), key=_by_request)
    theirs = sorted(replay(relay.capture())[0], key=_by_request)
    assert len(ours) == len(theirs) == 2
    for mine, tapped in zip(ours, theirs, strict=True):
        assert differences(mine, tapped) == {}
        assert mine.http_version == "2"
        assert mine.streaming
