"""A model-like server over TLS with the standard library's own sockets: threads, asyncio (memory BIOs), or one fork per connection.

It answers /v1/chat/completions with the prompt's text back, whole or streamed, so that every exchange has its own known text.
    tls_echo.py MODE PORT CERT KEY
"""

from __future__ import annotations

import asyncio
import http.server
import json
import os
import socketserver
import ssl
import sys
import time
from typing import Any


def reply(body: bytes) -> tuple[str, list[bytes]]:
    """Content type and the pieces of the answer's body."""
    try:
        asked: dict[str, Any] = json.loads(body)
    except ValueError:
        return "text/plain", [b"not JSON"]
    content = asked["messages"][-1]["content"]
    text = f"echo {content[:80]} of {len(content)}"
    if not asked.get("stream"):
        message = {"role": "assistant", "content": text}
        answer = {
            "id": "x",
            "object": "chat.completion",
            "model": "echo",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        }
        return "application/json", [json.dumps(answer).encode()]
    pieces = []
    for word in [text[at : at + 7] for at in range(0, len(text), 7)]:
        chunk = {
            "id": "x",
            "object": "chat.completion.chunk",
            "model": "echo",
            "choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}],
        }
        pieces.append(b"data: " + json.dumps(chunk).encode() + b"\n\n")
    end = {"id": "x", "object": "chat.completion.chunk", "model": "echo", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    return "text/event-stream", [*pieces, b"data: " + json.dumps(end).encode() + b"\n\n", b"data: [DONE]\n\n"]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        kind, pieces = reply(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for piece in [*pieces, b""]:
            self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")

    def date_time_string(self, timestamp: float | None = None) -> str:
        return "Thu, 01 Jan 1970 00:00:00 GMT"  # the same conversation is the same bytes

    def log_message(self, *args: object) -> None:
        pass


class Forking(socketserver.ForkingMixIn, http.server.HTTPServer):
    pass


async def _talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pause_s: float) -> None:
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = next(int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
            kind, pieces = reply(await reader.readexactly(length))
            writer.write(f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n\r\n".encode())
            for piece in [*pieces, b""]:
                writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
                await writer.drain()
                await asyncio.sleep(pause_s)
    except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
        pass
    finally:
        writer.close()


async def _serve(port: int, context: ssl.SSLContext, pause_s: float) -> None:
    server = await asyncio.start_server(lambda r, w: _talk(r, w, pause_s), "127.0.0.1", port, ssl=context, limit=1 << 24)
    async with server:
        await server.serve_forever()


def main() -> None:
    mode, port, cert, key = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    if mode.startswith("asyncio"):
        asyncio.run(_serve(port, context, 0.005 if mode == "asyncio-slow" else 0))
        return
    kind = Forking if mode == "fork" else http.server.ThreadingHTTPServer
    kind.request_queue_size = 128
    server = kind(("127.0.0.1", port), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=mode != "threads")
    while True:
        try:
            server.serve_forever()
        except (ssl.SSLError, OSError):
            time.sleep(0)


if __name__ == "__main__":
    os.environ.pop("PYTHONPATH", None)
    main()
