"""Thirteen calls over BoringSSL (curl_cffi), on one session."""

import json
import sys

from curl_cffi import requests

url, cafile = sys.argv[1:3]
with requests.Session(verify=cafile, http_version="v1") as session:
    for number in range(13):
        asked = {
            "model": "tiny",
            "messages": [{"role": "user", "content": f"call {number} by curl_cffi"}],
            "max_tokens": 12,
            "stream": number % 2 == 1,
        }
        answer = session.post(f"{url}/v1/chat/completions", json=asked, headers={"X-Call": f"curl_cffi-{number}"})
        print(json.dumps({"call": number, "body": answer.text}), flush=True)
