"""A server over TLS that answers when a test says so, piece by piece, and its client."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from support.tls_front import Certificate

# Answers when it is told to: each line of its standard input is the bytes of one piece, as JSON text; an empty one ends it.
SERVER = """
import json, socket, ssl, sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
while True:
    try:
        connection = context.wrap_socket(listener.accept()[0], server_side=True)
        break
    except (ssl.SSLError, OSError):
        pass
data = b""
while b"\\r\\n\\r\\n" not in data:
    data += connection.recv(1 << 16)
head, _, body = data.partition(b"\\r\\n\\r\\n")
length = int(head.lower().split(b"content-length:")[1].split(b"\\r")[0])
while len(body) < length:
    body += connection.recv(1 << 16)
for line in sys.stdin:
    connection.sendall(json.loads(line).encode())
"""


class Waiting:
    """A server in a process of its own that answers as the test says, and a client here."""

    def __init__(self, certificate: Certificate) -> None:
        command = [sys.executable, "-c", SERVER, str(certificate.cert), str(certificate.key)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._port = int(self._process.stdout.readline())
        self._context = ssl.create_default_context(cafile=str(certificate.cert))
        self._client: ssl.SSLSocket | None = None

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, prompt: str) -> int:
        """When its last byte was written, epoch nanoseconds."""
        raw = socket.create_connection(("127.0.0.1", self._port))
        self._client = self._context.wrap_socket(raw, server_hostname="127.0.0.1")
        body = json.dumps({"model": "gpt-4o", "stream": True, "messages": [{"role": "user", "content": prompt}]}).encode()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        self._client.sendall(head % len(body) + body)
        return time.time_ns()

    def say(self, text: str, *, is_first: bool = False) -> None:
        head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n" if is_first else ""
        chunk = {"id": "x", "object": "chat.completion.chunk", "model": "gpt-4o", "choices": [{"index": 0, "delta": {"content": text}}]}
        event = f"data: {json.dumps(chunk)}\n\n"
        self._put(f"{head}{len(event):x}\r\n{event}\r\n")

    def end(self) -> None:
        event = "data: [DONE]\n\n"
        self._put(f"{len(event):x}\r\n{event}\r\n0\r\n\r\n")

    def _put(self, text: str) -> None:
        assert self._process.stdin is not None
        assert self._client is not None
        self._process.stdin.write(json.dumps(text) + "\n")
        self._process.stdin.flush()
        self._client.recv(1 << 16)

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
        self._process.kill()
        self._process.communicate()


@contextmanager
def waiting(certificate: Certificate) -> Iterator[Waiting]:
    talk = Waiting(certificate)
    try:
        yield talk
    finally:
        talk.close()
