"""What the SDK records of a call equals, field by field, what a tap decodes from the bytes of the same call on the wire."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from llmsec_tap.model import Exchange
from llmsec_trace.clients import hooks_in
from llmsec_trace.instrumenting import Instrumentation
from llmsec_trace.recorder import Recorder
from support.recording_relay import Relay
from support.replay import replay
from support.sdk_recording import differences, recording
from support.sniff import free_port
from support.vendor_server import TEXT, vendor_server

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("default")]

PROMPT = "What do passive taps see?"
MESSAGES: Any = [{"role": "user", "content": PROMPT}]


class Instrument:
    """What a run has its client recorded with, or clients that are made later."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def __call__(self, client: Any) -> Any:
        hooks = hooks_in(client)
        assert hooks
        for hook, owner in hooks:
            hook.put(owner, self._recorder, again=True)
        return client

    def later(self) -> Instrumentation:
        return Instrumentation(self._recorder)


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


def async_azure_openai(url: str, on: Instrument) -> None:
    module = pytest.importorskip("openai", reason="in the dependency group `peers`")

    async def run() -> None:
        key, version = "0123456789abcdef0123456789abcdef", "2024-06-01"
        async with on(module.AsyncAzureOpenAI(azure_endpoint=url, api_key=key, api_version=version, max_retries=0)) as client:
            for stream in (False, True):
                with pytest.raises(module.NotFoundError):
                    await client.chat.completions.create(model="my-deployment", messages=MESSAGES, stream=stream)

    asyncio.run(run())


def openai_over_aiohttp(url: str, on: Instrument) -> None:
    """Recorded once, though both libraries are."""
    module = pytest.importorskip("openai", reason="in the dependency group `peers`")

    async def run() -> None:
        with on.later():
            http = module.DefaultAioHttpClient()
            async with module.AsyncOpenAI(
                base_url=f"{url}/v1", api_key="sk-test-0123456789abcdef", max_retries=0, http_client=http
            ) as client:
                await client.chat.completions.create(model="m", messages=MESSAGES)
                stream = await client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
                assert "".join([c.choices[0].delta.content or "" async for c in stream]) == TEXT

    asyncio.run(run())


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
    module = _anthropic("boto3")
    _claude(on(module.AnthropicBedrock(base_url=url, **AWS)), "anthropic.claude-x-v1:0")


def async_anthropic_bedrock(url: str, on: Instrument) -> None:
    module = _anthropic("boto3")
    asyncio.run(_async_claude(on(module.AsyncAnthropicBedrock(base_url=url, **AWS)), "anthropic.claude-x-v1:0"))


def anthropic_bedrock_mantle(url: str, on: Instrument) -> None:
    module = _anthropic("boto3")
    _claude(on(module.AnthropicBedrockMantle(base_url=url, **AWS)), "anthropic.claude-x")


def async_anthropic_bedrock_mantle(url: str, on: Instrument) -> None:
    module = _anthropic("boto3")
    asyncio.run(_async_claude(on(module.AsyncAnthropicBedrockMantle(base_url=url, **AWS)), "anthropic.claude-x"))


def anthropic_vertex(url: str, on: Instrument) -> None:
    module = _anthropic("google.auth")
    _claude(on(module.AnthropicVertex(base_url=url, region="us-east5", project_id="p", access_token="ya29.test-0123456789")), "claude-x")


def async_anthropic_vertex(url: str, on: Instrument) -> None:
    module = _anthropic("google.auth")
    client = module.AsyncAnthropicVertex(base_url=url, region="us-east5", project_id="p", access_token="ya29.test-0123456789")
    asyncio.run(_async_claude(on(client), "claude-x"))


AWS: Any = {
    "aws_access_key": "AKIAIOSFODNN7EXAMPLE",
    "aws_secret_key": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "aws_region": "us-east-1",
}


def _anthropic(signer: str) -> Any:
    pytest.importorskip(signer, reason="in the dependency group `peers`")
    return pytest.importorskip("anthropic", reason="in the dependency group `peers`")


def _claude(client: Any, model: str) -> None:
    with client:
        assert client.messages.create(model=model, max_tokens=20, messages=MESSAGES).content[0].text == TEXT
        with client.messages.create(model=model, max_tokens=20, messages=MESSAGES, stream=True) as events:
            assert "".join(e.delta.text for e in events if e.type == "content_block_delta") == TEXT


async def _async_claude(client: Any, model: str) -> None:
    async with client:
        assert (await client.messages.create(model=model, max_tokens=20, messages=MESSAGES)).content[0].text == TEXT
        async with await client.messages.create(model=model, max_tokens=20, messages=MESSAGES, stream=True) as events:
            assert "".join([e.delta.text async for e in events if e.type == "content_block_delta"]) == TEXT


def gemini(url: str, on: Instrument) -> None:
    genai = pytest.importorskip("google.genai", reason="in the dependency group `peers`")
    with on(genai.Client(api_key="AIzaSyTest-0123456789abcdefghijklmnopqrs", http_options={"base_url": url})) as client:
        assert client.models.generate_content(model="gemini-x", contents=PROMPT).text == TEXT
        parts = client.models.generate_content_stream(model="gemini-x", contents=PROMPT)
        assert "".join(part.text or "" for part in parts) == TEXT


async def _both_ways(gemini: Any) -> None:
    assert (await gemini.aio.models.generate_content(model="gemini-x", contents=PROMPT)).text == TEXT
    parts = await gemini.aio.models.generate_content_stream(model="gemini-x", contents=PROMPT)
    assert "".join([part.text or "" async for part in parts]) == TEXT


def async_gemini(url: str, on: Instrument) -> None:
    genai = pytest.importorskip("google.genai", reason="in the dependency group `peers`")

    async def run() -> None:
        client = on(genai.Client(api_key="AIzaSyTest-0123456789abcdefghijklmnopqrs", http_options={"base_url": url}))
        await _both_ways(client)
        await client.aio.aclose()
        client.close()

    asyncio.run(run())


def gemini_over_aiohttp(url: str, on: Instrument) -> None:
    """A session of the application's own; one of Gemini's own is used by `async_gemini`, where aiohttp is there."""
    genai = pytest.importorskip("google.genai", reason="in the dependency group `peers`")
    aiohttp = pytest.importorskip("aiohttp", reason="in the dependency group `peers`")

    async def run() -> None:
        async with aiohttp.ClientSession() as session:
            options = {"base_url": url, "aiohttp_client": session}
            client = on(genai.Client(api_key="AIzaSyTest-0123456789abcdefghijklmnopqrs", http_options=options))
            await _both_ways(client)
            client.close()

    asyncio.run(run())


def gemini_over_httpx(url: str, on: Instrument) -> None:
    """As where aiohttp is not installed."""
    genai = pytest.importorskip("google.genai", reason="in the dependency group `peers`")
    import httpx

    async def run() -> None:
        async with httpx.AsyncClient() as http:
            options = {"base_url": url, "httpx_async_client": http}
            client = on(genai.Client(api_key="AIzaSyTest-0123456789abcdefghijklmnopqrs", http_options=options))
            await _both_ways(client)
            client.close()

    asyncio.run(run())


def _mistral() -> Any:
    pytest.importorskip("mistralai", reason="in the dependency group `peers`")
    try:
        from mistralai.client import Mistral
    except ImportError:
        from mistralai import Mistral
    return Mistral


def async_mistral(url: str, on: Instrument) -> None:
    async def run() -> None:
        async with on(_mistral()(api_key="0123456789abcdefghijklmnopqrstuv", server_url=url)) as client:
            answer = await client.chat.complete_async(model="mistral-x", messages=MESSAGES)
            assert answer.choices[0].message.content == TEXT
            events = await client.chat.stream_async(model="mistral-x", messages=MESSAGES)
            assert "".join([event.data.choices[0].delta.content or "" async for event in events]) == TEXT

    asyncio.run(run())


def mistral(url: str, on: Instrument) -> None:
    with on(_mistral()(api_key="0123456789abcdefghijklmnopqrstuv", server_url=url)) as client:
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


def async_cohere(url: str, on: Instrument) -> None:
    module = pytest.importorskip("cohere", reason="in the dependency group `peers`")

    async def run() -> None:
        client = on(module.AsyncClientV2(api_key="0123456789abcdefghijklmnopqrstuvwxyzABCD", base_url=url))
        assert (await client.chat(model="command-x", messages=MESSAGES)).message.content[0].text == TEXT
        events = client.chat_stream(model="command-x", messages=MESSAGES)
        assert "".join([e.delta.message.content.text async for e in events if e.type == "content-delta"]) == TEXT
        for _, transport in hooks_in(client):  # as above
            await transport.aclose()

    asyncio.run(run())


def async_ollama(url: str, on: Instrument) -> None:
    module = pytest.importorskip("ollama", reason="in the dependency group `peers`")

    async def run() -> None:
        async with on(module.AsyncClient(host=url)) as client:
            parts = await client.chat(model="tiny", messages=MESSAGES, stream=True)
            assert "".join([part.message.content async for part in parts]) == TEXT
            await client.embed(model="tiny", input=[PROMPT, "b"])

    asyncio.run(run())


def huggingface(url: str, on: Instrument) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="in the dependency group `peers`")
    hub.close_session()  # all its clients share one, which is to be made while it is recorded
    with on.later(), hub.InferenceClient(base_url=url, api_key="hf_test0123456789abcdefghijklmnopqrs") as client:
        assert client.chat_completion(MESSAGES, model="m").choices[0].message.content == TEXT
        assert "".join(part.choices[0].delta.content or "" for part in client.chat_completion(MESSAGES, model="m", stream=True)) == TEXT
    hub.close_session()


def huggingface_text_generation(url: str, on: Instrument) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="in the dependency group `peers`")
    hub.close_session()
    with on.later(), hub.InferenceClient(url) as client:
        assert client.text_generation(PROMPT, max_new_tokens=6) == TEXT
        assert "".join(client.text_generation(PROMPT, max_new_tokens=6, stream=True)) == TEXT
    hub.close_session()


def async_huggingface(url: str, on: Instrument) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="in the dependency group `peers`")

    async def run() -> None:
        with on.later():
            async with hub.AsyncInferenceClient(base_url=url, api_key="hf_test0123456789abcdefghijklmnopqrs") as client:
                assert (await client.chat_completion(MESSAGES, model="m")).choices[0].message.content == TEXT
                parts = await client.chat_completion(MESSAGES, model="m", stream=True)
                assert "".join([part.choices[0].delta.content or "" async for part in parts]) == TEXT

    asyncio.run(run())


def ollama(url: str, on: Instrument) -> None:
    with on(pytest.importorskip("ollama", reason="in the dependency group `peers`").Client(host=url)) as client:
        parts = client.chat(model="tiny", messages=MESSAGES, stream=True)
        assert "".join(part.message.content for part in parts) == TEXT
        client.embed(model="tiny", input=[PROMPT, "b"])


def bedrock(url: str, on: Instrument) -> None:
    session = pytest.importorskip("botocore.session", reason="in the dependency group `peers`").get_session()
    session.set_credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
    _bedrock(on(session.create_client("bedrock-runtime", region_name="us-east-1", endpoint_url=url)))


def boto3(url: str, on: Instrument) -> None:
    module = pytest.importorskip("boto3", reason="in the dependency group `peers`")
    session = module.Session("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", region_name="us-east-1")
    _bedrock(on(session.client("bedrock-runtime", endpoint_url=url)))


def _bedrock(client: Any) -> None:
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


def aiohttp(url: str, on: Instrument) -> None:
    module = pytest.importorskip("aiohttp", reason="in the dependency group `peers`")
    chat = f"{url}/v1/chat/completions"

    async def pieces() -> AsyncIterator[bytes]:
        for part in (json.dumps(BODY)[:20], json.dumps(BODY)[20:]):
            yield part.encode()

    def form() -> Any:
        made = module.FormData()
        made.add_field("model", "whisper-x")
        made.add_field("file", b"RIFF" + bytes(range(256)) * 300, filename="a.wav", content_type="audio/wav")
        return made

    async def run() -> None:
        async with on(module.ClientSession(headers=KEYED)) as session:
            for coded in ({}, {"X-Coded": "gzip"}):
                async with session.post(f"{chat}?key=AIzaSyTest-0123456789abcdefghijklmnopqrs", json=BODY, headers=coded) as answer:
                    assert (await answer.json())["choices"][0]["message"]["content"] == TEXT
                async with session.post(chat, json=BODY | {"stream": True}, headers=coded) as answer:
                    assert sum([len(part) async for part in answer.content.iter_any()]) > 500
            length = {"Content-Length": str(len(json.dumps(BODY)))}
            for how, status in (
                ({"data": pieces()}, 200),
                ({"data": pieces(), "headers": length}, 200),
                ({"json": BODY, "compress": "deflate"}, 200),
                ({"data": pieces(), "compress": "gzip"}, 200),
                ({"data": io.BytesIO(json.dumps(BODY).encode())}, 200),
                ({"url": f"{url}/v1/audio/transcriptions", "data": form()}, 404),
                ({"url": f"{url}/moved/v1/chat/completions", "json": BODY}, 200),
                ({"url": f"{url}/v1/embeddings", "json": {"model": "m", "input": "a"}, "expect100": True}, 404),
            ):
                async with session.post(**{"url": chat} | how) as answer:
                    await answer.read()
                    assert answer.status == status

    asyncio.run(run())


RUNS = [
    openai, async_openai, azure_openai, async_azure_openai, openai_over_aiohttp, anthropic, async_anthropic, anthropic_bedrock,
    async_anthropic_bedrock, anthropic_bedrock_mantle, async_anthropic_bedrock_mantle, anthropic_vertex, async_anthropic_vertex, gemini,
    async_gemini, gemini_over_aiohttp, gemini_over_httpx, mistral, async_mistral, cohere, async_cohere, ollama, async_ollama, huggingface,
    huggingface_text_generation, async_huggingface, bedrock, boto3, raw_httpx, requests, aiohttp,
]  # fmt: skip
_counts = [0, 0]


def _by_request(exchange: Exchange) -> tuple[Any, ...]:
    """The relay keeps no times, so records of several connections are paired by what was asked."""
    return str(exchange.path), exchange.request.body_bytes, str(exchange.input_text)


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.__name__)
def test_a_client_s_records_equal_those_of_the_wire(run: Callable[[str, Instrument], None]) -> None:
    port = free_port()
    with vendor_server(port), Relay(port) as relay, recording() as sdk:
        run(f"http://127.0.0.1:{relay.port}", Instrument(sdk.recorder))
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
        assert mine.client.startswith("127.0.0.1:" if run is not openai_over_aiohttp else "0.0.0.0:0")  # httpx is not told it there
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
