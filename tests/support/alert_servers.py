"""Servers that take alerts: HTTP with scripted answers, and a strict reader of RFC 5424 over TLS, TCP and UDP."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple


class Post(NamedTuple):
    path: str
    headers: dict[str, str]  # names in lower case
    body: bytes
    at: float  # time.monotonic()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Answer(NamedTuple):
    status: int = 200
    body: bytes = b"ok"
    headers: tuple[tuple[str, str], ...] = ()
    wait_s: float = 0.0


class Receiver:
    """`answers` are given in turn, the last one for ever."""

    def __init__(self, server: ThreadingHTTPServer, scheme: str) -> None:
        self._server = server
        self.posts: list[Post] = []
        self.answers: list[Answer] = [Answer()]
        self.url = f"{scheme}://localhost:{server.server_address[1]}"

    def until(self, count: int, seconds: float = 10) -> list[Post]:
        deadline = time.monotonic() + seconds
        while len(self.posts) < count and time.monotonic() < deadline:
            time.sleep(0.005)
        assert len(self.posts) >= count, f"{len(self.posts)} of {count} came"
        return self.posts


@contextlib.contextmanager
def receiver(cert: Path | None = None, key: Path | None = None, seen: Callable[[Post], None] | None = None) -> Iterator[Receiver]:
    """HTTP, or HTTPS with a certificate."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            body = self.rfile.read(length)
            if len(body) < length:  # its sender was killed
                self.close_connection = True
                return
            post = Post(self.path, {name.lower(): value for name, value in self.headers.items()}, body, time.monotonic())
            found.posts.append(post)
            if seen is not None:
                seen(post)
            answer = found.answers.pop(0) if len(found.answers) > 1 else found.answers[0]
            time.sleep(answer.wait_s)
            with contextlib.suppress(OSError):
                self.send_response(answer.status)
                for name, value in answer.headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                self.wfile.write(answer.body)

        do_GET = do_PUT = do_POST

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            pass  # a client that gave up

    server = Server(("127.0.0.1", 0), Handler)
    if cert is not None and key is not None:
        server.socket = _context(cert, key).wrap_socket(server.socket, server_side=True)
    found = Receiver(server, "http" if cert is None else "https")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class SyslogMessage(NamedTuple):
    facility: int
    severity: int
    timestamp: str
    host: str
    app: str
    msgid: str
    data: dict[str, str]
    text: str


_HEADER = re.compile(
    rb"<(0|[1-9]\d{0,2})>1 (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,6})?(?:Z|[+-]\d\d:\d\d)) ([!-~]{1,255}) ([!-~]{1,48}) ([!-~]{1,128}) ([!-~]{1,32}) "
)
_NAME = re.compile(rb"[!#-<>-\\^-~]{1,32}")


def read_5424(line: bytes) -> SyslogMessage:
    """As the ABNF of RFC 5424, section 6, has it; AssertionError for what it does not allow."""
    found = _HEADER.match(line)
    assert found is not None, line
    priority = int(found[1])
    assert priority <= 191
    at = found.end()
    assert line[at : at + 1] == b"[", line
    at += 1
    name = _NAME.match(line, at)
    assert name is not None
    assert re.fullmatch(rb"[^@]+@\d+(\.\d+)*", name[0]), "a name of one's own needs an enterprise number"
    at = name.end()
    data: dict[str, str] = {}
    while line[at : at + 1] == b" ":
        name = _NAME.match(line, at + 1)
        assert name is not None
        at = name.end()
        assert line[at : at + 2] == b'="'
        at += 2
        value = bytearray()
        while line[at] != ord('"'):
            assert line[at] != ord("]"), "an unescaped ]"
            if line[at] == ord("\\") and line[at + 1] in b'"\\]':
                at += 1
            value.append(line[at])
            at += 1
        at += 1
        data[name[0].decode()] = value.decode()
    assert line[at : at + 2] == b"] ", line[at:]
    text = line[at + 2 :]
    assert text.startswith(b"\xef\xbb\xbf")
    return SyslogMessage(
        priority // 8, priority % 8, found[2].decode(), found[3].decode(), found[4].decode(), found[6].decode(), data, text[3:].decode()
    )


@contextlib.contextmanager
def syslog_server(transport: str, cert: Path | None = None, key: Path | None = None) -> Iterator[tuple[int, list[SyslogMessage]]]:
    """Its port, and what has come."""
    messages: list[SyslogMessage] = []
    kind = socket.SOCK_DGRAM if transport == "udp" else socket.SOCK_STREAM
    listener = socket.socket(socket.AF_INET, kind)
    listener.bind(("127.0.0.1", 0))
    context = _context(cert, key) if transport == "tls" and cert is not None and key is not None else None

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                if transport == "udp":
                    if not (datagram := listener.recv(65_536)):
                        return
                    messages.append(read_5424(datagram))
                    continue
                plain, _ = listener.accept()
                with contextlib.suppress(ssl.SSLError):
                    with context.wrap_socket(plain, server_side=True) if context is not None else plain as sock:
                        data = b""
                        while piece := sock.recv(65_536):
                            data += piece
                        while data:  # RFC 5425, 4.3: MSG-LEN SP SYSLOG-MSG
                            length, _, rest = data.partition(b" ")
                            assert re.fullmatch(rb"[1-9]\d*", length)
                            messages.append(read_5424(rest[: int(length)]))
                            assert len(rest) >= int(length)
                            data = rest[int(length) :]

    if kind == socket.SOCK_STREAM:
        listener.listen()
    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1], messages
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(2)


def _context(cert: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return context
