"""What servers of models say over WebSocket: handlers for `websockets.serve`; and a client that is hard to point at them."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

WORDS = ["The ", "quick ", "brown ", "fox."] * 5
SOUND = base64.b64encode(bytes(24_000)).decode()


async def realtime(socket: Any) -> None:
    """Each `response.create` is answered with words, as text, or as sound and its transcript; a question for the time with a call."""

    async def send(kind: str, **more: Any) -> None:
        await socket.send(json.dumps({"type": kind, "event_id": "event_1", **more}))

    session: dict[str, Any] = {"type": "realtime", "object": "realtime.session", "id": "sess_1", "model": "gpt-realtime"}
    await send("session.created", session=session)
    number = 0
    async for message in socket:
        event = json.loads(message)
        if event["type"] == "session.update":
            session.update(event["session"])
            await send("session.updated", session=session)
        if event["type"] == "conversation.item.create":
            await send("conversation.item.added", item={"id": "item_0", "status": "completed", **event["item"]})
        if event["type"] != "response.create":
            continue
        number += 1
        place = {"response_id": f"resp_{number}", "item_id": f"item_{number}", "output_index": 0}
        response: dict[str, Any] = {"object": "realtime.response", "id": f"resp_{number}", "status": "in_progress", "output": []}
        await send("response.created", response=response)
        if "audio" in session.get("output_modalities", []):
            for word in WORDS:
                await send("response.output_audio.delta", **place, content_index=0, delta=SOUND)
                await send("response.output_audio_transcript.delta", **place, content_index=0, delta=word)
            output = {"type": "message", "role": "assistant", "content": [{"type": "output_audio", "transcript": "".join(WORDS)}]}
        else:
            for word in WORDS:
                await send("response.output_text.delta", **place, content_index=0, delta=word)
            output = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "".join(WORDS)}]}
        usage = {"total_tokens": 30, "input_tokens": 10, "output_tokens": 20, "input_token_details": {"cached_tokens": 2}}
        await send("response.done", response={**response, "status": "completed", "output": [output], "usage": usage})


async def responses(socket: Any) -> None:
    number = 0
    async for message in socket:
        asked = json.loads(message)
        assert asked["type"] == "response.create"
        number += 1
        base = {"id": f"resp_{number}", "object": "response", "created_at": 1, "model": "gpt-5", "status": "in_progress", "output": [],
                "parallel_tool_calls": True, "tool_choice": "auto", "tools": []}  # fmt: skip
        sequence = iter(range(1000))

        async def send(kind: str, sequence: Iterator[int] = sequence, **more: Any) -> None:
            await socket.send(json.dumps({"type": kind, "sequence_number": next(sequence), **more}))

        await send("response.created", response=base)
        for word in WORDS:
            await send("response.output_text.delta", item_id="msg_1", output_index=0, content_index=0, delta=word, logprobs=[])
        content = [{"type": "output_text", "text": "".join(WORDS), "annotations": []}]
        item = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": content}
        await send("response.completed", response={**base, "status": "completed", "output": [item]})


async def live(socket: Any) -> None:
    """Frames are binary, as Google's are."""

    async def send(value: dict[str, Any]) -> None:
        await socket.send(json.dumps(value).encode())

    async for message in socket:
        said = json.loads(message)
        if "setup" in said:
            await send({"setupComplete": {}})
            continue
        for word in WORDS:
            await send({"serverContent": {"modelTurn": {"role": "model", "parts": [{"text": word}]}}})
        await send({"serverContent": {"generationComplete": True}})
        await send({"serverContent": {"turnComplete": True}, "usageMetadata": {"promptTokenCount": 4, "responseTokenCount": 20}})


async def ask_gemini_live(port: int) -> list[str]:
    """google-genai asks `one?` and `two?`; the texts that it read."""
    from google import genai

    vendor = genai.Client(api_key="AIzaTest", http_options={"base_url": f"http://127.0.0.1:{port}", "api_version": "v1beta"})
    vendor._api_client._websocket_base_url = lambda *_options: f"ws://127.0.0.1:{port}"  # else it is TLS in any case
    vendor._api_client._websocket_ssl_ctx = {}
    config = {"response_modalities": ["TEXT"], "system_instruction": "Be kind."}
    read: list[str] = []
    async with vendor.aio.live.connect(model="gemini-live", config=config) as session:
        for question in ("one?", "two?"):
            await session.send_client_content(turns={"role": "user", "parts": [{"text": question}]}, turn_complete=True)
            read.extend([message.text async for message in session.receive() if message.text])
    return read
