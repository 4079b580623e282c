"""The console's connections: who sends nothing, reads nothing or watches too much keeps nobody else out."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from operator import attrgetter
from types import FrameType
from typing import Any, Final

import uvicorn
from anyio.to_thread import current_default_thread_limiter
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

# For a whole head, and for a handshake of TLS before it.
HEAD_S: Final = 10.0
# For somebody to read on of what was sent; what is sent meanwhile is held.
READ_S: Final = 30.0
MOST: Final = 256
# Live pages hold their connections, and browsers open six at most to one address.
MOST_LIVE: Final = 40
MOST_LIVE_OF_ONE: Final = 8
_OTHER_THREADS: Final = 40
_MAX_HEAD: Final = 64 << 10
_FULL: Final = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-length: 0\r\nretry-after: 5\r\n\r\n"


class _Deadline:
    """`then` is called so long after the first start that no stop followed."""

    def __init__(self, seconds: float, then: Callable[[], None]) -> None:
        self._seconds = seconds
        self._then = then
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._seconds, self._then)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None


class Connection(H11Protocol):
    """One connection. Where there are too many, the one that has waited longest without asking anything makes room."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.waits_since = self.loop.time()
        self._head, self._reading = _Deadline(HEAD_S, transport.abort), _Deadline(READ_S, transport.abort)
        self._head.start()
        if len(self.connections) > MOST:
            oldest = min((one for one in self.connections if isinstance(one, Connection) and one.waits), key=attrgetter("waits_since"))
            if oldest is self:
                transport.write(_FULL)
            self.connections.discard(oldest)
            oldest.transport.close()

    @property
    def waits(self) -> bool:
        """No request of it is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        self.waits_since = self.loop.time()
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reading.start()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._reading.stop()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._head.stop()
        self._reading.stop()

    def _watch(self) -> None:
        if self.waits:  # also while it is closed: what was sent last may not be read
            self._head.start()
        else:
            self._head.stop()


class Server(uvicorn.Server):
    """Of one application. At its end, `app.state.is_ending` is set, by which live pages end too. `context`: of TLS; read before rights are dropped."""

    def __init__(self, app: Starlette, context: ssl.SSLContext | None) -> None:
        config = uvicorn.Config(
            app, http=Connection, log_config=None, access_log=False, server_header=False, proxy_headers=False, timeout_keep_alive=5,
            timeout_graceful_shutdown=3, h11_max_incomplete_event_size=_MAX_HEAD, lifespan="off", ws="none",
        )  # fmt: skip
        config.load()
        config.ssl = context
        super().__init__(config)
        self._app = app

    def serve_on(self, listener: socket.socket) -> None:
        """Until a signal ends it, SIGINT quietly."""

        async def served() -> None:
            # Live pages take a thread each while they ask; there are enough for the other pages besides.
            current_default_thread_limiter().total_tokens = MOST_LIVE + _OTHER_THREADS
            await self.serve(sockets=[listener])

        try:
            with asyncio.Runner(loop_factory=_Loop) as runner:
                runner.run(served())
        except KeyboardInterrupt:
            pass

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        self._app.state.is_ending = self.should_exit


class _Loop(asyncio.SelectorEventLoop):
    async def create_server(self, *arguments: Any, **options: Any) -> asyncio.Server:
        if options.get("ssl") is not None:
            options["ssl_handshake_timeout"] = HEAD_S
        return await super().create_server(*arguments, **options)


class Watching:
    """Who has how many live pages open."""

    def __init__(self) -> None:
        self.open: Counter[str] = Counter()

    def is_full(self, name: str) -> bool:
        return self.open[name] >= MOST_LIVE_OF_ONE or self.open.total() >= MOST_LIVE


class LiveResponse(StreamingResponse):
    """A stream that counts among its user's for as long as it lasts. It is refused where they are too many."""

    def __init__(self, watching: Watching, name: str, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._watching, self._name = watching, name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watching, name = self._watching, self._name
        if watching.is_full(name):
            text = f"{MOST_LIVE_OF_ONE} live pages of one user and {MOST_LIVE} of all are served at once; close one.\n"
            await PlainTextResponse(text, 503, {"retry-after": "30"})(scope, receive, send)
            return
        watching.open[name] += 1
        try:
            await super().__call__(scope, receive, send)
        finally:
            watching.open[name] -= 1
            watching.open += Counter()  # names of nobody are forgotten
