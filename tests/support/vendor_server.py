"""A fixture server for APIs that no server here speaks: answers in the shape of each vendor's API reference.

It proves nothing about the vendors. It gives their own clients something they must accept, so that a fixture of ours which the
vendor's parser would refuse is found; what the client then read is compared with what we decoded from the wire.
"""

from __future__ import annotations

import base64
import contextlib
import json
import threading
import time
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from support.aws import message

WORDS = ["Passive", " taps", " see", " naïve", " 数据", "."]
TEXT = "".join(WORDS)


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _aws(kind: str, value: Any) -> bytes:
    return message({":message-type": "event", ":event-type": kind, ":content-type": "application/json"}, _json(value))


def _sse(value: Any, *, name: str | None = None, space: bool = True) -> bytes:
    head = f"event: {name}\n".encode() if name else b""
    return head + (b"data: " if space else b"data:") + _json(value) + b"\n\n"


def _converse() -> Any:
    return {
        "output": {"message": {"role": "assistant", "content": [{"text": TEXT}]}}, "stopReason": "end_turn",
        "usage": {"inputTokens": 11, "outputTokens": 6, "totalTokens": 17}, "metrics": {"latencyMs": 12},
    }  # fmt: skip


def _converse_stream() -> list[bytes]:
    return [
        _aws("messageStart", {"role": "assistant", "p": "abcd"}),
        *[_aws("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": word}, "p": "xyz"}) for word in WORDS],
        _aws("contentBlockStop", {"contentBlockIndex": 0}),
        _aws("messageStop", {"stopReason": "end_turn"}),
        _aws("metadata", {"usage": {"inputTokens": 11, "outputTokens": 6, "totalTokens": 17}, "metrics": {"latencyMs": 12}}),
    ]


def _claude_events() -> list[dict[str, Any]]:
    return [
        {"type": "message_start", "message": {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x", "content": [], "usage": {"input_tokens": 11, "output_tokens": 1}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *[{"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}} for word in WORDS],
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": {"output_tokens": 6}},
        {"type": "message_stop", "amazon-bedrock-invocationMetrics": {"inputTokenCount": 11, "outputTokenCount": 6, "invocationLatency": 12, "firstByteLatency": 3}},
    ]  # fmt: skip


_COHERE_USAGE = {"billed_units": {"input_tokens": 11, "output_tokens": 6}, "tokens": {"input_tokens": 11, "output_tokens": 6}}


def _cohere_events() -> list[dict[str, Any]]:
    return [
        {"type": "message-start", "id": "c-1", "delta": {"message": {"role": "assistant", "content": [], "tool_plan": "", "tool_calls": [], "citations": []}}},
        {"type": "content-start", "index": 0, "delta": {"message": {"content": {"type": "text", "text": ""}}}},
        *[{"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": word}}}} for word in WORDS],
        {"type": "content-end", "index": 0},
        {"type": "message-end", "delta": {"finish_reason": "COMPLETE", "usage": _COHERE_USAGE}},
    ]  # fmt: skip


def _invoke_stream() -> list[bytes]:
    return [_aws("chunk", {"bytes": base64.b64encode(_json(event)).decode(), "p": "abcdef"}) for event in _claude_events()]


def _ollama(key: str, wrap: Any) -> list[bytes]:
    lines = [{"model": "tiny", "created_at": "2026-11-24T12:00:00.000000Z", key: wrap(word), "done": False} for word in WORDS]
    last = {"model": "tiny", "created_at": "2026-11-24T12:00:01.000000Z", key: wrap(""), "done": True, "done_reason": "stop", "total_duration": 5_000_000_000,
            "load_duration": 1, "prompt_eval_count": 11, "prompt_eval_duration": 2, "eval_count": 6, "eval_duration": 3}  # fmt: skip
    return [_json(line) + b"\n" for line in [*lines, last]]


def _gemini(words: list[str], *, last: bool) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"parts": [{"text": "".join(words)}], "role": "model"}, "index": 0}
    if last:
        candidate["finishReason"] = "STOP"
    usage = {"promptTokenCount": 11, "candidatesTokenCount": 6, "totalTokenCount": 17}
    return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "gemini-x-001", "responseId": "r-1"}


def _tgi_stream() -> list[bytes]:
    events = [
        {"index": n + 1, "token": {"id": n, "text": word, "logprob": -0.1, "special": False}, "generated_text": None, "details": None}
        for n, word in enumerate(WORDS)
    ]
    events[-1] |= {"generated_text": TEXT, "details": {"finish_reason": "length", "generated_tokens": 6, "input_length": 11, "seed": None}}
    return [_sse(event, space=False) for event in events]


def _mistral(*, stream: bool) -> Any:
    base = {"id": "cmpl-1", "created": 1, "model": "mistral-x"}
    usage = {"prompt_tokens": 11, "completion_tokens": 6, "total_tokens": 17}
    if not stream:
        return base | {
            "object": "chat.completion",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": TEXT, "tool_calls": None}, "finish_reason": "stop"}],
            "usage": usage,
        }
    chunks = [
        base
        | {
            "object": "chat.completion.chunk",
            "choices": [{"index": 0, "delta": {"role": "assistant", "content": word}, "finish_reason": None}],
        }
        for word in WORDS
    ]
    chunks[-1]["choices"][0]["finish_reason"] = "stop"
    chunks[-1]["usage"] = usage
    return [*map(_sse, chunks), b"data: [DONE]\n\n"]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it
        pass

    def _body(self) -> Any:
        """Its JSON; nothing of forms and of what is coded."""
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        try:
            return json.loads(data or b"{}")
        except ValueError:
            return {}

    def do_POST(self) -> None:
        body = self._body()
        path = self.path.partition("?")[0]
        if path.startswith("/moved/"):
            self.send_response(307)
            self.send_header("Location", path.removeprefix("/moved"))
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif path.endswith("/converse"):
            self._whole(_converse())
        elif path.endswith("/converse-stream"):
            self._parts("application/vnd.amazon.eventstream", _converse_stream())
        elif (path == "/v1/messages" and body.get("stream")) or path.endswith(":streamRawPredict"):
            self._parts("text/event-stream", [_sse(event, name=event["type"]) for event in _claude_events()])
        elif path == "/v2/chat" and body.get("stream"):
            self._parts("text/event-stream", [_sse(event, name=event["type"]) for event in _cohere_events()])
        elif path == "/v2/chat":
            self._whole(
                {
                    "id": "c-1",
                    "message": {"role": "assistant", "content": [{"type": "text", "text": TEXT}]},
                    "finish_reason": "COMPLETE",
                    "usage": _COHERE_USAGE,
                }
            )
        elif path.endswith(("/invoke", ":rawPredict")) or path == "/v1/messages":
            self._whole(
                {
                    "id": "msg_1",
                    "type": "message",
                    "role": "assistant",
                    "model": "claude-x",
                    "content": [{"type": "text", "text": TEXT}],
                    "stop_reason": "end_turn",
                    "usage": {"input_tokens": 11, "output_tokens": 6},
                }
            )
        elif path.endswith("/invoke-with-response-stream"):
            self._parts("application/vnd.amazon.eventstream", _invoke_stream())
        elif path == "/api/chat":
            lines = _ollama("message", lambda word: {"role": "assistant", "content": word})
            self._parts("application/x-ndjson", lines)
        elif path == "/api/generate":
            self._parts("application/x-ndjson", _ollama("response", lambda word: word))
        elif path == "/api/embed":
            self._whole({"model": "tiny", "embeddings": [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]], "prompt_eval_count": 11})
        elif path.endswith(":streamGenerateContent"):
            self._parts("text/event-stream", [_sse(_gemini([word], last=n == len(WORDS) - 1)) for n, word in enumerate(WORDS)])
        elif path.endswith(":generateContent"):
            self._whole(_gemini(WORDS, last=True))
        elif path == "/v1/chat/completions":
            answer = _mistral(stream=bool(body.get("stream")))
            self._parts("text/event-stream", answer) if body.get("stream") else self._whole(answer)
        elif path in ("/", "/generate"):
            if body.get("stream"):
                self._parts("text/event-stream", _tgi_stream())
            else:
                self._whole(
                    [
                        {
                            "generated_text": TEXT,
                            "details": {"finish_reason": "length", "generated_tokens": 6, "seed": None, "prefill": [], "tokens": []},
                        }
                    ]
                )
        else:
            self._whole({"error": {"message": "no such route"}}, status=404)

    def _whole(self, value: Any, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        code = self._coder()
        data = code.compress(_json(value)) + code.flush() if code else _json(value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _coder(self) -> Any:
        """Of gzip, where the test asks for it; most clients say of themselves that they accept it."""
        if self.headers.get("X-Coded") is None:
            return None
        self.send_header("Content-Encoding", "gzip")
        return zlib.compressobj(wbits=31)

    def _parts(self, kind: str, parts: list[bytes]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        code = self._coder()
        self.end_headers()
        for part in parts:
            if code:
                part = code.compress(part) + code.flush(zlib.Z_FINISH if part is parts[-1] else zlib.Z_SYNC_FLUSH)
            self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
            self.wfile.flush()
            time.sleep(0.002)
        self.wfile.write(b"0\r\n\r\n")


@contextlib.contextmanager
def vendor_server(port: int) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", port), _Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
