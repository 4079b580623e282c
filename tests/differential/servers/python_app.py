"""A model API of FastAPI under uvicorn: python_app.py PORT httptools|h11. The header `x-seen` says whether the prompt was read."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, File, Form, Request, Response, UploadFile
from pydantic import BaseModel

MARK = "MARKER"
ANSWER = '{"id":"c","object":"chat.completion","model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"ok"},"finish_reason":"stop"}]}'
app = FastAPI()


class Chat(BaseModel):
    model_config = {"extra": "allow"}
    model: str
    messages: list[dict[str, Any]]


class Completion(BaseModel):
    model_config = {"extra": "allow"}
    prompt: str


OLLAMA = '{"model":"m","created_at":"2026-01-01T00:00:00Z","message":{"role":"assistant","content":"ok"},"done":true}'


def answer(*, seen: bool, path: str = "") -> Response:
    text = OLLAMA if path == "/api/chat" else ANSWER
    return Response(text, media_type="application/json", headers={"x-seen": str(int(seen))})


@app.post("/v1/chat/completions")
@app.post("/api/chat")
async def chat(body: Chat, request: Request) -> Response:
    return answer(seen=MARK in str([message.get("content") for message in body.messages]), path=request.url.path)


@app.post("/v1/completions")
async def completions(request: Request) -> Response:
    kind = request.headers.get("content-type", "")
    if kind.startswith(("multipart/", "application/x-www-form-urlencoded")):
        return answer(seen=MARK in str((await request.form()).get("prompt")))
    return answer(seen=MARK in Completion.model_validate(await request.json()).prompt)


@app.post("/v1/images/edits")
async def edits(prompt: Annotated[str, Form()], image: Annotated[UploadFile | None, File()] = None) -> Response:
    return answer(seen=MARK in prompt)


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), http=sys.argv[2], log_level="critical", timeout_keep_alive=2)  # type: ignore[arg-type]
