"""aiohttp: the connector of a session, which every request passes: redirects and second tries are requests of their own, as on the wire.

Bytes of an answer are taken where the connection gives them to its parser: they are those of the wire, head, chunk sizes and codings
included, for the parser also decompresses. So the tap's own parser reads them. A connection has a new parser for each request.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from llmsec_trace.call import WIRE, Asked, Call
from llmsec_trace.suppressing import is_carried
from llmsec_trace.transports.addresses import host_and_port, socket_address
from llmsec_trace.transports.hooking import Hook, refused, trace_of, verdict_async
from llmsec_trace.transports.http_client_bodies import as_bytes, whole_body

if TYPE_CHECKING:
    from llmsec_trace.policy import Screening


class ConnectorHook(Hook):
    name = "connect"

    async def __call__(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        call, screening = _begin(self, request)
        if (blocked := await verdict_async(screening, call)) is not None:
            raise refused(call, blocked, request.headers.items())
        if call is None:
            return await self.original(request, *args, **kwargs)
        try:
            connection = await self.original(request, *args, **kwargs)
        except BaseException as fault:
            call.failed(fault)
            raise
        try:
            request.send = _Sending(self, request, call)
        except Exception:  # noqa: BLE001 - never the application's problem
            self.recorder.fault()
            call.closed()
        return connection


class LaterSessionsHook(Hook):
    """Gemini's async client makes a session for each event loop, and gets it by this method."""

    name = "_get_aiohttp_session"

    async def __call__(self) -> Any:
        session = await self.original()
        try:
            for hook, owner in hooks_of(session):
                hook.put(owner, self.recorder, again=False)
        except Exception:  # noqa: BLE001 - as above
            self.recorder.fault()
        return session


def hooks_of(session: Any) -> list[tuple[type[Hook], Any]]:
    connector = getattr(session, "connector", None)  # None: it is closed
    return [(ConnectorHook, connector)] if connector is not None else []


def _begin(hook: Hook, request: Any) -> tuple[Call | None, Screening | None]:
    try:
        headers = list(request.headers.items())
        if is_carried.get() or "Upgrade" in request.headers:  # recorded above us; a WebSocket
            return None, None
        url = request.url
        body = _whole_body(request)
        asked = Asked(request.method, url.raw_path_qs, headers, body, host_and_port(url.host, url.port))
        # A body that aiohttp compresses is recorded in pieces, as it leaves; what policies look at is the text.
        sent = asked._replace(body=None) if body and request.compress else asked
        call = hook.recorder.begin(sent, trace_of(headers))
        return call, hook.recorder.screen(asked, call)
    except Exception:  # noqa: BLE001 - never the application's problem
        hook.recorder.fault()
        return None, None


def _whole_body(request: Any) -> bytes | None:
    """None where it comes in pieces: files, multipart, iterables."""
    body = request.body
    return whole_body(body._value if isinstance(body, sys.modules["aiohttp"].BytesPayload) else body)  # noqa: SLF001 - it has no other name in all versions


class _Sending:
    """Stands in a request's `send`, once: a middleware that sends it again connects again."""

    def __init__(self, hook: Hook, request: Any, call: Call) -> None:
        self._hook = hook
        self._request = request
        self._call = call
        self._original = request.send

    async def __call__(self, connection: Any) -> Any:
        call, request = self._call, self._request
        try:
            del request.send
            connection.protocol._parser = _Parser(connection.protocol._parser, call, connection.transport)  # noqa: SLF001 - see above
            if call.asked is not None and call.asked.body is None:
                request.write_bytes = partial(_write, request.write_bytes, call)
        except Exception:  # noqa: BLE001 - as above
            self._failed()
        try:
            response = await self._original(connection)
        except BaseException as fault:
            call.failed(fault)
            raise
        finally:
            vars(request).pop("write_bytes", None)
        try:
            connection.add_callback(_Release(call, response))
            response.start = partial(_start, response, response.start, call)
        except Exception:  # noqa: BLE001 - as above
            self._failed()
        return response

    def _failed(self) -> None:
        self._hook.recorder.fault()
        self._call.closed()


# --- the request's body -----------------------------------------------------------------------------------------------------


async def _write(original: Any, call: Call, writer: Any, *args: Any) -> None:
    """In place of a request's `write_bytes`, which writes its body, where that is not known whole."""
    if getattr(writer, "_compress", None) is not None:
        writer._compress = _Compressor(writer._compress, call)  # noqa: SLF001 - it is made by no call that could be watched
    else:
        writer.write = partial(_piece, writer.write, call)
    await original(writer, *args)
    call.request_end()


async def _piece(original: Any, call: Call, chunk: Any, **kwargs: Any) -> None:
    call.request_data(as_bytes(chunk))
    await original(chunk, **kwargs)


class _Compressor:
    def __init__(self, compressor: Any, call: Call) -> None:
        self._compressor = compressor
        self._call = call

    async def compress(self, data: Any) -> bytes:
        return self._given(await self._compressor.compress(data))

    def flush(self, *args: Any) -> bytes:
        return self._given(self._compressor.flush(*args))

    def _given(self, data: bytes) -> bytes:
        self._call.request_data(data)
        return data


# --- the answer -------------------------------------------------------------------------------------------------------------


class _Parser:
    """Around the parser of one answer. Raises AttributeError for what is none."""

    def __init__(self, parser: Any, call: Call, transport: Any) -> None:
        self._parser = parser
        self._feed = parser.feed_data
        self._call = call
        client, server = (socket_address(transport.get_extra_info(name)) for name in ("sockname", "peername"))
        self._answer: Any = WIRE._replace(client=client, server=server)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parser, name)

    def feed_data(self, data: bytes) -> Any:
        if self._answer is not None:
            self._call.answered(self._answer)
            self._answer = None
        self._call.data(data)
        return self._feed(data)


async def _start(response: Any, original: Any, call: Call, *args: Any) -> Any:
    """In place of a response's `start`, once: it waits for the head."""
    vars(response).pop("start", None)
    try:
        return await original(*args)
    except BaseException as fault:
        call.failed(fault)
        raise


class _Release:
    """Called when the answer's connection is free, or closed."""

    def __init__(self, call: Call, response: Any) -> None:
        self._call = call
        self._response = response

    def __call__(self) -> None:
        content = self._response.content
        fault = content.exception() if content is not None else None
        if content is not None and content.is_eof():
            self._call.end()
        elif fault is not None and type(fault).__name__ != "ClientConnectionError":  # that one says that the application closed it
            self._call.failed(fault)
        else:
            self._call.closed()

    def __del__(self) -> None:
        """Nobody released it."""
        self._call.closed()
