"""The process that answers /health, /ready and /metrics. It is the only one of an agent that listens at an address, and it has no rights at all.

The addresses are bound with the caller's rights, then the process becomes the unprivileged user behind a filter. What it knows it
asks of the decoders over a socket pair each, at most once a second, and adds it up; a decoder that does not answer is itself the answer.
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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import MappingProxyType
from typing import Any, Final

import msgspec

from llmsec_agent.metrics import Metric, exposition, together
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
    """`start` it while there are no threads. Each decoder then serves one of `sockets` (`answer_state`)."""

    def __init__(self, sockets: Sequence[socket.socket], pid: int) -> None:
        self.sockets = sockets
        self.pid = pid

    def keep(self, number: int | None) -> None:
        """Close the sockets that are not of this decoder; all of them in a process that is none: when the decoders end, the listener does."""
        for other, sock in enumerate(self.sockets):
            if other != number:
                sock.close()

    def end(self) -> None:
        """Wait until it has ended, as it does when a decoder has; it holds its addresses until then."""
        deadline = time.monotonic() + _END_S
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(self.pid, os.WNOHANG) == (0, 0) and time.monotonic() < deadline:
                time.sleep(0.005)

    @classmethod
    def start(
        cls,
        paths: Mapping[tuple[str, int], tuple[str, ...]],
        tls: TLSFiles | None,
        *,
        decoders: int = 1,
        custom: Mapping[str, Metric] = MappingProxyType({}),
    ) -> Exposer:
        """`paths`: for each address (host, port) what is served there. `custom`: metrics that the configuration makes.

        Raises ConfigError for an address that cannot be bound and for a certificate that cannot be read.
        """
        context = _context(tls) if tls is not None else None
        listening = [(_listen(host, port), served) for (host, port), served in paths.items()]
        pairs = [socket.socketpair() for _ in range(decoders)]
        ours, theirs = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        pid = os.fork()
        if not pid:
            leave(lambda: cls._run(ours, theirs, listening, context, custom))
        for sock in (*theirs, *(sock for sock, _ in listening)):
            sock.close()
        return cls(ours, pid)

    @staticmethod
    def _run(
        ours: Sequence[socket.socket],
        theirs: Sequence[socket.socket],
        listening: list[tuple[socket.socket, tuple[str, ...]]],
        context: ssl.SSLContext | None,
        custom: Mapping[str, Metric],
    ) -> None:
        for sock in ours:
            sock.close()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        decoders = _Decoders(theirs)
        servers = [_Server(sock, served, decoders, context, custom) for sock, served in listening]
        exposition(())  # imports what it needs while it may
        privileges.become(privileges.unprivileged_user())
        privileges.confine(serving=True)
        _serve(servers, decoders)


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


def state_together(states: Sequence[State]) -> State:
    """What several decoders say of themselves, as that of one tap."""
    if len(states) == 1:
        return states[0]
    return State(
        ready=all(state.ready for state in states),
        healthy=all(state.healthy for state in states),
        reasons=[f"decoder {number}: {reason}" for number, state in enumerate(states) for reason in state.reasons],
        samples=together([state.samples for state in states]),
    )


class _Decoders:
    """Asks the decoders; what they said less than a second ago is still good."""

    def __init__(self, sockets: Sequence[socket.socket]) -> None:
        self._decoders = [_Decoder(sock) for sock in sockets]
        self._lock = threading.Lock()
        self._known: State | None = None
        self._asked = -_FRESH_S

    def state(self) -> State | None:
        """None where one of them does not answer."""
        with self._lock:
            if time.monotonic() - self._asked >= _FRESH_S:
                self._asked = time.monotonic()
                try:
                    for decoder in self._decoders:
                        decoder.ask()
                    self._known = state_together([decoder.answer(self._asked + _ANSWER_S) for decoder in self._decoders])
                except TimeoutError:
                    self._known = None
                except OSError:
                    os._exit(0)  # a decoder has ended, and so does the agent
            return self._known

    def await_end(self) -> None:
        """Until nobody holds the other end of one any more: the address must be free at once for the next agent."""
        poll = select.poll()
        for decoder in self._decoders:
            poll.register(decoder.socket, select.POLLRDHUP)
        poll.poll()


class _Decoder:
    """`answer` raises TimeoutError, and OSError where it has ended."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._is_owed = False  # an answer that came too late is still to be read
        self._came = bytearray()  # of it, so far

    def ask(self) -> None:
        if not self._is_owed:
            self.socket.settimeout(_ANSWER_S)
            self.socket.sendall(b"?")
            self._is_owed = True

    def answer(self, until: float) -> State:
        self._await(4, until)
        size = int.from_bytes(self._came[:4], "big")
        if size > _MAX_STATE_BYTES:
            raise ConnectionAbortedError
        self._await(4 + size, until)
        data, self._came = bytes(self._came[4:]), bytearray()
        self._is_owed = False
        return msgspec.msgpack.decode(data, type=State)

    def _await(self, size: int, until: float) -> None:
        while len(self._came) < size:
            self.socket.settimeout(max(0.001, until - time.monotonic()))
            data = self.socket.recv(size - len(self._came))
            if not data:
                raise ConnectionResetError
            self._came += data


class _Server(HTTPServer):
    """A thread for each connection, a bounded number of them, each with little time."""

    def __init__(
        self,
        listening: socket.socket,
        served: tuple[str, ...],
        decoders: _Decoders,
        context: ssl.SSLContext | None,
        custom: Mapping[str, Metric],
    ) -> None:
        super().__init__(listening.getsockname()[:2], _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self.served = served
        self.decoders = decoders
        self.custom = custom
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
        state = self.server.decoders.state()
        if path == "/health":
            self._judge(state is not None and state.healthy, state)
        elif path == "/ready":
            self._judge(state is not None and state.ready, state)
        elif state is None:
            self._send(503, b"the decoder does not answer\n", "text/plain")
        else:
            page, content_type = exposition([Sample("llmsec_up", 1), *state.samples], self.headers.get("Accept", ""), self.server.custom)
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


def _serve(servers: list[_Server], decoders: _Decoders) -> None:
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    decoders.await_end()


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
