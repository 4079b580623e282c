"""A realtime session over TLS by the `websockets` package: `realtime_echo.py serve|call PORT CERT KEY`; the server repeats what is asked."""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
from typing import Any

import websockets

CALLS = 13


async def answer(socket: Any) -> None:
    number, asked = 0, ""
    async for message in socket:
        event = json.loads(message)
        if event["type"] == "conversation.item.create":
            asked = event["item"]["content"][0]["text"]
        if event["type"] != "response.create":
            continue
        number += 1
        place = {"response_id": f"resp_{number}", "item_id": "item_1", "output_index": 0, "content_index": 0}
        response = {"id": f"resp_{number}", "object": "realtime.response", "status": "in_progress"}
        await socket.send(json.dumps({"type": "response.created", "response": response}))
        for word in ("echo ", asked):
            await socket.send(json.dumps({"type": "response.output_text.delta", **place, "delta": word}))
        await socket.send(json.dumps({"type": "response.done", "response": {**response, "status": "completed"}}))


async def serve(port: int, context: ssl.SSLContext) -> None:
    async with websockets.serve(answer, "127.0.0.1", port, ssl=context):
        await asyncio.Future()


async def call(port: int, context: ssl.SSLContext) -> None:
    async with websockets.connect(f"wss://127.0.0.1:{port}/v1/realtime?model=m", ssl=context, server_hostname="localhost") as socket:
        for number in range(CALLS):
            content = [{"type": "input_text", "text": f"call {number}"}]
            await socket.send(
                json.dumps({"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": content}})
            )
            await socket.send(json.dumps({"type": "response.create"}))
            while json.loads(await socket.recv())["type"] != "response.done":
                pass


def main() -> None:
    mode, port, cert, key = sys.argv[1:5]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if mode == "serve" else ssl.PROTOCOL_TLS_CLIENT)
    if mode == "serve":
        context.load_cert_chain(cert, key)
        asyncio.run(serve(int(port), context))
    else:
        context.load_verify_locations(cert)
        context.check_hostname = False
        asyncio.run(call(int(port), context))


if __name__ == "__main__":
    main()
