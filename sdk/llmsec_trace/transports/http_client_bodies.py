"""What requests and botocore have in common: urllib3 over the standard library's http.client.

Their answers are read from a file of http.client's, in many ways (lines, chunks, buffers). That file is the one place through which every byte
of the body passes, with HTTP/1's framing on it, so a reader is put around it and the tap's own parser takes the framing off.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from llmsec_trace.call import Answered, Asked, Call
from llmsec_trace.transports.addresses import host_and_port, socket_address
from llmsec_trace.transports.hooking import trace_of

if TYPE_CHECKING:
    from llmsec_trace.policy import Screening
    from llmsec_trace.transports.hooking import Hook


class Sent:
    """A request's body that is read as a file, or given in pieces."""

    def __init__(self, body: Any, call: Call) -> None:
        self._body = body
        self._call = call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._body, name)

    def __iter__(self) -> Iterator[Any]:
        for part in self._body:
            self._call.request_data(as_bytes(part))
            yield part

    def __len__(self) -> int:
        return len(self._body)


class SentFile(Sent):
    def read(self, *args: Any) -> Any:
        part = self._body.read(*args)
        self._call.request_data(as_bytes(part))
        return part


def as_bytes(part: Any) -> bytes:
    return part if isinstance(part, bytes) else part.encode() if isinstance(part, str) else bytes(part)


def whole_body(body: Any) -> bytes | None:
    """None where it comes in pieces."""
    if body is None:
        return b""
    return as_bytes(body) if isinstance(body, bytes | bytearray | memoryview | str) else None


def begun(hook: Hook, request: Any) -> tuple[Call | None, Screening | None]:
    """Of a prepared request of either library."""
    try:
        url = urlsplit(request.url)
        address = host_and_port(url.hostname or "", url.port or (443 if url.scheme == "https" else 80))
        headers = list(request.headers.items())
        if "host" not in {str(name).lower() for name, _ in headers}:
            headers.append(("Host", url.netloc.rpartition("@")[2]))
        target = (url.path or "/") + (f"?{url.query}" if url.query else "")
        asked = Asked(request.method or "GET", target, headers, whole_body(request.body), address)
        call = hook.recorder.begin(asked, trace_of(headers))
        return call, hook.recorder.screen(asked, call)
    except Exception:  # noqa: BLE001 - never the application's problem
        hook.recorder.fault()
        return None, None


def answered(hook: Hook, call: Call, body: Any, response: Any) -> None:
    """`body`: the request's own; `response.raw` is an answer of urllib3's whose body nobody has read."""
    try:
        if whole_body(body) is None:
            call.request_end()
        received(response.raw, call)
    except Exception:  # noqa: BLE001 - as above
        hook.recorder.fault()
        call.closed()


def sent(body: Any, call: Call) -> Any:
    return (SentFile if hasattr(body, "read") else Sent)(body, call)


class _Reader:
    """Around the file of an http.client.HTTPResponse."""

    def __init__(self, file: Any, call: Call) -> None:
        self._file = file
        self._call = call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def _read(self, data: bytes) -> bytes:
        self._call.data(data)
        return data

    def _try(self, read: Any, *args: Any) -> bytes:
        try:
            data: bytes = read(*args)
        except BaseException as fault:
            self._call.failed(fault)
            raise
        self._call.data(data)
        return data

    def read(self, *args: Any) -> bytes:
        return self._try(self._file.read, *args)

    def read1(self, *args: Any) -> bytes:
        return self._try(self._file.read1, *args)

    def readline(self, *args: Any) -> bytes:
        return self._try(self._file.readline, *args)

    def readinto(self, buffer: Any) -> int:
        try:
            size: int = self._file.readinto(buffer)
        except BaseException as fault:
            self._call.failed(fault)
            raise
        if size:
            self._call.data(bytes(memoryview(buffer)[:size]))
        return size

    def close(self) -> None:
        """http.client closes its file when the body has been read whole, and when nobody wants the rest."""
        try:
            self._file.close()
        finally:
            self._call.end()

    def __del__(self) -> None:
        call = self.__dict__.get("_call")
        if call is not None:
            call.closed()


def received(raw: Any, call: Call) -> None:
    """`raw`: an answer of urllib3's whose body nobody has read."""
    below = raw._fp  # noqa: SLF001 - urllib3 names it so since 1.0, and gives no other way to the bytes as they came
    version = {9: "0.9", 10: "1.0", 11: "1.1", 20: "2"}.get(getattr(raw, "version", 11), "1.1")
    message = getattr(below, "msg", None)
    headers = message.items() if message is not None else list(raw.headers.items())
    file = getattr(below, "fp", None)
    client, server = _addresses(raw)
    call.answered(Answered(raw.status, headers, version, client, server, is_framed=True))
    if file is None:  # no body, or it was read
        call.end()
    else:
        below.fp = _Reader(file, call)


def _addresses(raw: Any) -> tuple[str | None, str | None]:
    connection = getattr(raw, "connection", None) or getattr(raw, "_connection", None)
    socket: Any = getattr(connection, "sock", None)
    try:
        return socket_address(socket.getsockname()), socket_address(socket.getpeername())
    except (AttributeError, OSError):
        return None, None
