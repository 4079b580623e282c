"""Thirteen calls by the standard library, one connection each: URL on the command line, what was received as JSON lines on output."""

import json
import ssl
import sys
import urllib.request

url, cafile = sys.argv[1:3]
context = ssl.create_default_context(cafile=cafile)
for number in range(13):
    asked = {
        "model": "tiny",
        "messages": [{"role": "user", "content": f"call {number} by plain"}],
        "max_tokens": 12,
        "stream": number % 2 == 1,
    }
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(asked).encode(), {"content-type": "application/json", "X-Call": f"plain-{number}"}
    )
    with urllib.request.urlopen(request, context=context) as answer:
        print(json.dumps({"call": number, "body": answer.read().decode()}), flush=True)
