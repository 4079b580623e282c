"""Calls made from the test's own process over the standard library."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import threading
from pathlib import Path


class Asking:
    """Asks over `connection`, which is set up by whoever inherits."""

    connection: http.client.HTTPConnection

    def ask(self, prompt: str, *, stream: bool = False) -> str:
        body = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": prompt}], "max_tokens": 12, "stream": stream}).encode()
        self.connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
        answer = self.connection.getresponse().read().decode()
        if not stream:
            return str(json.loads(answer)["choices"][0]["message"]["content"])
        pieces = [json.loads(line[6:]) for line in answer.splitlines() if line.startswith("data: {")]
        return "".join(choice["delta"].get("content") or "" for piece in pieces for choice in piece["choices"])

    def close(self) -> None:
        self.connection.close()


class Caller(Asking):
    """One TLS connection; `port` is its own end."""

    def __init__(self, port: int, cafile: Path) -> None:
        context = ssl.create_default_context(cafile=str(cafile))
        self.connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=60)
        self.connection.connect()
        assert isinstance(self.connection.sock, socket.socket)
        self.port = self.connection.sock.getsockname()[1]


def ask_once(port: int, cafile: Path, prompt: str, *, stream: bool = False) -> tuple[str, int]:
    """The answer's text and the client's port."""
    caller = Caller(port, cafile)
    try:
        return caller.ask(prompt, stream=stream), caller.port
    finally:
        caller.close()


def ask_together(port: int, cafile: Path, prompts: list[str], *, stream: bool = True) -> dict[str, tuple[str, int]]:
    """All at once, a connection and thread each; what each received and its port."""
    received: dict[str, tuple[str, int]] = {}

    def one(prompt: str) -> None:
        received[prompt] = ask_once(port, cafile, prompt, stream=stream)

    threads = [threading.Thread(target=one, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return received
