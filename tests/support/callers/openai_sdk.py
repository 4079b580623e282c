"""Thirteen calls by the vendor's client over one pool of connections, whole and streamed, sync or async."""

import asyncio
import json
import sys

import httpx2 as httpx
import openai

url, cafile, mode = sys.argv[1:4]


def asked(number: int) -> dict:
    return {
        "model": "tiny",
        "messages": [{"role": "user", "content": f"call {number} by openai-{mode}"}],
        "max_tokens": 12,
        "extra_headers": {"X-Call": f"openai-{mode}-{number}"},
    }


def sync() -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="sk-test", max_retries=0, http_client=httpx.Client(verify=cafile)) as client:
        for number in range(13):
            if number % 2:
                parts = client.chat.completions.create(**asked(number), stream=True)
                text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
            else:
                text = client.chat.completions.create(**asked(number)).choices[0].message.content
            print(json.dumps({"call": number, "text": text}), flush=True)


async def one(client: openai.AsyncOpenAI, number: int) -> None:
    if number % 2:
        parts = await client.chat.completions.create(**asked(number), stream=True)
        text = "".join([part.choices[0].delta.content or "" async for part in parts if part.choices])
    else:
        text = (await client.chat.completions.create(**asked(number))).choices[0].message.content
    print(json.dumps({"call": number, "text": text}), flush=True)


async def together() -> None:
    async with openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key="sk-test", max_retries=0, http_client=httpx.AsyncClient(verify=cafile)
    ) as client:
        await asyncio.gather(*(one(client, number) for number in range(13)))


if mode == "sync":
    sync()
else:
    asyncio.run(together())
