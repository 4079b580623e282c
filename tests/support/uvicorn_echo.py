"""tls_echo's answers by uvicorn with TLS: uvicorn_echo.py PORT CERT KEY WORKERS."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


async def app(scope: Any, receive: Any, send: Any) -> None:
    from support.tls_echo import reply

    if scope["type"] != "http":
        return
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    kind, pieces = reply(body)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind.encode())]})
    for piece in pieces:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


if __name__ == "__main__":
    import uvicorn

    os.chdir(Path(__file__).parent)
    port, cert, key, workers = sys.argv[1:5]
    uvicorn.run(
        "uvicorn_echo:app", host="127.0.0.1", port=int(port), ssl_certfile=cert, ssl_keyfile=key, workers=int(workers), log_level="error"
    )
