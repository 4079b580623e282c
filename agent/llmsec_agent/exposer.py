"""The process that answers /health, /ready and /metrics. It is the only one of an agent that listens, and it has no rights at all.

The addresses are bound with the caller's rights, then the process becomes the unprivileged user behind a filter. What it knows it
asks of the decoder over a socket pair, at most once a second; a decoder that does not answer is itself the answer.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, Final

import msgspec

from llmsec_agent.metrics import exposition
from llmsec_agent.text import leave
from llmsec_tap import privileges
from llmsec_tap.counters import Sample
from llmsec_tap.errors import ConfigError

_FRESH_S: Final = 1.0
_ANSWER_S: Final = 2.0
_REQUEST_S: Final = 5.0
_END_S: Final = 1.0
_MAX_REQUESTS: Final = 32  # at once; further clients wait in the backlog
_BACKLOG: Final = 64
_MAX_STATE_BYTES: Final = 64 << 20


class State(msgspec.Struct):
    """What the decoder says of itself. `reasons`: why it is not healthy or not ready, for people."""

    ready: bool
    healthy: bool
    reasons: list[str]
    samples: list[Sample]


@dataclass(frozen=True)
class TLSFiles:
    """PEM files. `client_auth`: none, optional or required; `client_ca` says who signs clients' certificates, else the system does."""

    certificate: str
    key: str
    client_auth: str = "none"
    client_ca: str | None = None


class Exposer:
    """`start` it while there are no threads. The decoder then serves `socket` (`answer_state`)."""

    def __init__(self, sock: socket.socket, pid: int) -> None:
        self.socket = sock
        self.pid = pid

    def end(self) -> None:
        """Wait until it has ended, as it does when the decoder has; it holds its addresses until then."""
        deadline = time.monotonic() + _END_S
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(self.pid, os.WNOHANG) == (0, 0) and time.monotonic() < deadline:
                time.sleep(0.005)

    @classmethod
    def start(cls, paths: Mapping[tuple[str, int], tuple[str, ...]], tls: TLSFiles | None) -> Exposer:
        """`paths`: for each address (host, port) what is served there.

        Raises ConfigError for an address that cannot be bound and for a certificate that cannot be read.
        """
        context = _context(tls) if tls is not None else None
        listening = [(_listen(host, port), served) for (host, port), served in paths.items()]
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if not pid:
            leave(lambda: cls._run(ours, theirs, listening, context))
        theirs.close()
        for sock, _ in listening:
            sock.close()
        return cls(ours, pid)

    @staticmethod
    def _run(
        ours: socket.socket,
        theirs: socket.socket,
        listening: list[tuple[socket.socket, tuple[str, ...]]],
        context: ssl.SSLContext | None,
    ) -> None:
        ours.close()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        decoder = _Decoder(theirs)
        servers = [_Server(sock, served, decoder, context) for sock, served in listening]
        exposition(())  # imports what it needs while it may
        privileges.become(privileges.unprivileged_user())
        privileges.confine(serving=True)
        _serve(servers, decoder)


def answer_state(sock: socket.socket, state: Callable[[], State]) -> None:
    """The decoder's side: a thread that says the state whenever it is asked, until the exposer is gone."""

    def answer() -> None:
        encode = msgspec.msgpack.Encoder().encode
        try:
            while sock.recv(1):
                data = encode(state())
                sock.sendall(len(data).to_bytes(4, "big") + data)
        except OSError:
            return  # the run goes on without it

    threading.Thread(target=answer, name="llmsec-state", daemon=True).start()


class _Decoder:
    """Asks the decoder; what it said less than a second ago is still good."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._socket.settimeout(_ANSWER_S)
        self._lock = threading.Lock()
        self._known: State | None = None
        self._asked = -_FRESH_S
        self._is_owed = False  # an answer that came too late is still to be read

    def state(self) -> State | None:
        """None where it does not answer."""
        with self._lock:
            if time.monotonic() - self._asked >= _FRESH_S:
                self._asked = time.monotonic()
                try:
                    self._known = self._ask()
                except TimeoutError:
                    self._known = None
                except OSError:
                    os._exit(0)  # the decoder has ended, and so does the agent
            return self._known

    def await_end(self) -> None:
        """Until nobody holds the other end any more: the address must be free at once for the next agent."""
        poll = select.poll()
        poll.register(self._socket, select.POLLRDHUP)
        poll.poll()

    def _ask(self) -> State:
        if not self._is_owed:
            self._socket.sendall(b"?")
            self._is_owed = True
        size = int.from_bytes(self._read(4), "big")
        if size > _MAX_STATE_BYTES:
            raise ConnectionAbortedError
        data = self._read(size)
        self._is_owed = False
        return msgspec.msgpack.decode(data, type=State)

    def _read(self, size: int) -> bytes:
        data = self._socket.recv(size, socket.MSG_WAITALL)
        if not data:
            raise ConnectionResetError
        return data


class _Server(HTTPServer):
    """A thread for each connection, a bounded number of them, each with little time."""

    def __init__(self, listening: socket.socket, served: tuple[str, ...], decoder: _Decoder, context: ssl.SSLContext | None) -> None:
        super().__init__(listening.getsockname()[:2], _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self.served = served
        self.decoder = decoder
        self._context = context
        self._slots = threading.BoundedSemaphore(_MAX_REQUESTS)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._slots.acquire()
        threading.Thread(target=self._handle, args=(request, client_address), daemon=True).start()

    def _handle(self, request: socket.socket, client_address: Any) -> None:
        try:
            request.settimeout(_REQUEST_S)
            if self._context is not None:
                request = self._context.wrap_socket(request, server_side=True)
            self.finish_request(request, client_address)
        except OSError:
            pass  # whoever asked is gone, too slow, or does not speak TLS
        finally:
            self.shutdown_request(request)
            self._slots.release()


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "llmsec-tap"
    sys_version = ""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it
        """Strangers may ask: what they asked is not logged."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path not in self.server.served:
            self._send(404, b"not found\n", "text/plain")
            return
        state = self.server.decoder.state()
        if path == "/health":
            self._judge(state is not None and state.healthy, state)
        elif path == "/ready":
            self._judge(state is not None and state.ready, state)
        elif state is None:
            self._send(503, b"the decoder does not answer\n", "text/plain")
        else:
            page, content_type = exposition([Sample("llmsec_up", 1), *state.samples], self.headers.get("Accept", ""))
            self._send(200, page, content_type)

    do_HEAD = do_GET  # noqa: N815 - the base class looks for this name

    def _judge(self, is_good: bool, state: State | None) -> None:
        reasons = state.reasons if state is not None else ["the decoder does not answer"]
        body = {"status": "ok" if is_good else "failing", "reasons": [] if is_good else reasons}
        self._send(200 if is_good else 503, json.dumps(body).encode() + b"\n", "application/json")

    def _send(self, status: int, body: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _serve(servers: list[_Server], decoder: _Decoder) -> None:
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    decoder.await_end()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with contextlib.ExitStack() as undo:
            sock = undo.enter_context(socket.socket(family, kind, protocol))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            sock.listen(_BACKLOG)
            undo.pop_all()
            return sock
    except OSError as fault:
        raise ConfigError(f"cannot listen on {host}:{port}: {fault.strerror}", "Choose another address, or switch it off.") from None


def _context(tls: TLSFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(tls.certificate, tls.key)
        if tls.client_auth != "none":
            context.verify_mode = ssl.CERT_REQUIRED if tls.client_auth == "required" else ssl.CERT_OPTIONAL
            if tls.client_ca is not None:
                context.load_verify_locations(tls.client_ca)
            else:
                context.load_default_certs(ssl.Purpose.CLIENT_AUTH)
    except (OSError, ssl.SSLError) as fault:
        raise ConfigError(f"server.tls: cannot use {tls.certificate} with {tls.key}: {fault}", "Give a chain and its key in PEM.") from None
    return context
