"""httpx and httpx2: the transports of a client, which take a request as it is sent and give the answer's bytes as they come.

Vendors' clients (OpenAI, Anthropic, Gemini, Mistral, Cohere, Ollama, Hugging Face) are built on these. HTTP/1 and HTTP/2 look alike here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from llmsec_trace.call import Answered, Asked, Call
from llmsec_trace.suppressing import is_carried
from llmsec_trace.transports.addresses import host_and_port, socket_address
from llmsec_trace.transports.hooking import Hook, refused, trace_of, verdict, verdict_async

if TYPE_CHECKING:
    from llmsec_trace.policy import Screening

PACKAGES = ("httpx", "httpx2")


class SyncHook(Hook):
    name = "handle_request"

    def __call__(self, request: Any) -> Any:
        call, screening = _begin(self, request)
        if (blocked := verdict(screening, call)) is not None:
            _restore(request)
            raise refused(call, blocked, request.headers.raw)
        if call is None:
            return self.original(request)
        try:
            response = self.original(request)
        except BaseException as fault:
            _restore(request)
            call.failed(fault)
            raise
        _answered(self, call, request, response)
        return response


class AsyncHook(Hook):
    name = "handle_async_request"

    async def __call__(self, request: Any) -> Any:
        call, screening = _begin(self, request)
        if (blocked := await verdict_async(screening, call)) is not None:
            _restore(request)
            raise refused(call, blocked, request.headers.raw)
        if call is None:
            return await self._carried(request)
        try:
            response = await self._carried(request)
        except BaseException as fault:
            _restore(request)
            call.failed(fault)
            raise
        _answered(self, call, request, response)
        return response

    async def _carried(self, request: Any) -> Any:
        before = is_carried.get()
        is_carried.set(True)
        try:
            return await self.original(request)
        finally:
            is_carried.set(before)


class InnerClientsHook(Hook):
    """Gemini's async client sends through inner clients, of which it makes one for each event loop, by this attribute."""

    name = "_inner_client_cls"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        client = self.original(*args, **kwargs)
        try:
            for hook, owner in hooks_of(client):
                hook.put(owner, self.recorder, again=False)
        except Exception:  # noqa: BLE001 - never the application's problem
            self.recorder.fault()
        return client


def hooks_of(client: Any) -> list[tuple[type[Hook], Any]]:
    """The transports of a client, with the hook of each."""
    own = vars(client)
    transports = [own.get("_transport"), *(own.get("_mounts") or {}).values()]
    kind: type[Hook] = AsyncHook if hasattr(client, "aclose") else SyncHook  # a transport may be of both kinds
    hooks: list[tuple[type[Hook], Any]] = [(kind, one) for one in transports if one is not None]
    if isinstance(inner := own.get("_loop_clients"), dict) and hasattr(client, InnerClientsHook.name):
        hooks.append((InnerClientsHook, client))
        for made in list(inner.values()):
            hooks += hooks_of(made)
    return hooks


def _begin(hook: Hook, request: Any) -> tuple[Call | None, Screening | None]:
    try:
        url = request.url
        headers = request.headers.raw
        body = getattr(request, "_content", None)  # there, where it was given whole: then the stream is this and nothing else
        default = 443 if url.scheme == "https" else 80
        asked = Asked(request.method, url.raw_path.decode("latin-1"), headers, body, host_and_port(url.host, url.port or default))
        call = hook.recorder.begin(asked, trace_of(headers))
        screening = hook.recorder.screen(asked, call)
        if call is not None and body is None:
            kind: Any = type(request.stream)
            request.stream = _sent(kind)(request.stream, call)
    except Exception:  # noqa: BLE001 - never the application's problem
        hook.recorder.fault()
        return None, None
    return call, screening


def _answered(hook: Hook, call: Call, request: Any, response: Any) -> None:
    try:
        facts = response.extensions
        version = facts.get("http_version", b"HTTP/1.1").decode("ascii", "replace").removeprefix("HTTP/")
        network = facts.get("network_stream")
        info = getattr(network, "get_extra_info", lambda _name: None)
        addresses = socket_address(info("client_addr")), socket_address(info("server_addr"))
        call.answered(Answered(response.status_code, response.headers.raw, version, *addresses))
        _restore(request)
        if hasattr(response, "_content"):  # it was made whole, in memory (a mock, a cache): nobody will read its stream
            call.data(b"".join(response.stream))
            call.end()
            return
        kind: Any = type(response.stream)
        response.stream = _received(kind)(response.stream, call)
    except Exception:  # noqa: BLE001 - as above
        hook.recorder.fault()
        call.closed()


def _restore(request: Any) -> None:
    if isinstance(request.stream, _Sent):
        request.stream = request.stream.stream


# --- streams ----------------------------------------------------------------------------------------------------------------


class _Sent:
    """A body that is given in pieces, sync or async. It is of the original's class, too: the transport asks for that."""

    def __init__(self, stream: Any, call: Call) -> None:
        self.stream = stream
        self.call = call

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def __iter__(self) -> Iterator[bytes]:
        for part in self.stream:
            self.call.request_data(part)
            yield part
        self.call.request_end()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self.stream:
            self.call.request_data(part)
            yield part
        self.call.request_end()


class _Received:
    """The answer's body on its way to the application."""

    def __init__(self, stream: Any, call: Call) -> None:
        self.stream = stream
        self.call = call

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def __iter__(self) -> Iterator[bytes]:
        return _Parts(iter(self.stream), self.call)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return _AsyncParts(aiter(self.stream), self.call)

    def close(self) -> None:
        try:
            self.stream.close()
        finally:
            self.call.closed()

    async def aclose(self) -> None:
        try:
            await self.stream.aclose()
        finally:
            self.call.closed()

    def __del__(self) -> None:
        """Nobody read it, or closed it."""
        call = self.__dict__.get("call")
        if call is not None:
            call.closed()


class _Parts:
    def __init__(self, parts: Iterator[bytes], call: Call) -> None:
        self._parts = parts
        self._call = call

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            part = next(self._parts)
        except StopIteration:
            self._call.end()
            raise
        except BaseException as fault:
            self._call.failed(fault)
            raise
        self._call.data(part)
        return part

    def close(self) -> None:
        close = getattr(self._parts, "close", None)
        if close is not None:
            close()


class _AsyncParts:
    def __init__(self, parts: AsyncIterator[bytes], call: Call) -> None:
        self._parts = parts
        self._call = call

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            part = await anext(self._parts)
        except StopAsyncIteration:
            self._call.end()
            raise
        except BaseException as fault:
            self._call.failed(fault)
            raise
        self._call.data(part)
        return part

    async def aclose(self) -> None:
        close = getattr(self._parts, "aclose", None)
        if close is not None:
            await close()


@lru_cache(64)
def _sent(kind: Any) -> Any:
    return type(kind.__name__, (_Sent, *_bases(kind)), {"__slots__": ()})


@lru_cache(64)
def _received(kind: Any) -> Any:
    return type(kind.__name__, (_Received, *_bases(kind)), {"__slots__": ()})


def _bases(kind: type) -> tuple[type, ...]:
    """What a client asks its streams to be."""
    return tuple(base for base in kind.__mro__ if base.__name__ in ("SyncByteStream", "AsyncByteStream"))
