"""Thirteen calls by the vendor's client, whole and streamed."""

import json
import sys

import anthropic
import httpx2 as httpx

url, cafile = sys.argv[1:3]
with anthropic.Anthropic(base_url=url, api_key="sk-ant-test", max_retries=0, http_client=httpx.Client(verify=cafile)) as client:
    for number in range(13):
        asked = {
            "model": "tiny",
            "max_tokens": 12,
            "messages": [{"role": "user", "content": f"call {number} by anthropic"}],
            "extra_headers": {"X-Call": f"anthropic-{number}"},
        }
        if number % 2:
            with client.messages.stream(**asked) as stream:
                text = "".join(stream.text_stream)
        else:
            text = "".join(block.text for block in client.messages.create(**asked).content if block.type == "text")
        print(json.dumps({"call": number, "text": text}), flush=True)
