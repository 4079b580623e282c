"""OTLP over HTTP by the standard library, on a connection of ours.

The official exporters would use a client that the application may have instrumented, and set up logging that is the application's.
"""

from __future__ import annotations

import gzip
import http.client
import ssl
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from llmsec_trace.destinations.base import DestinationError

if TYPE_CHECKING:
    from llmsec_trace.config import TracingConfig

# Answers after which the same request may be taken later (OTLP 1.0, "Retryable Response Codes").
_RETRYABLE: Final = frozenset((429, 502, 503, 504))


class Endpoint:
    """One address, with the headers and the timeout of `tracing`. One thread. `what` goes there, as a message has it."""

    def __init__(self, url: str, what: str, tracing: TracingConfig) -> None:
        self._url = urlsplit(url)
        self._what = what
        self._tracing = tracing
        self._connection: http.client.HTTPConnection | None = None

    def post(self, message: bytes) -> None:
        """Raises DestinationError where it is not taken."""
        where = f"{self._url.scheme}://{self._url.netloc.rpartition('@')[2]}{self._url.path}"
        try:
            status = self._post(gzip.compress(message, 3))
        except (OSError, http.client.HTTPException) as fault:
            self.close()
            raise DestinationError(f"{where} does not take {self._what}: {type(fault).__name__}") from None
        if status >= 300:
            raise DestinationError(f"{where} does not take {self._what}: it answers {status}", is_lasting=status not in _RETRYABLE)

    def _post(self, body: bytes) -> int:
        is_old = self._connection is not None
        try:
            return self._once(body)
        except (http.client.RemoteDisconnected, ConnectionError):
            if not is_old:
                raise
            self.close()  # the collector had closed it while it was idle
            return self._once(body)

    def _once(self, body: bytes) -> int:
        connection = self._connection
        if connection is None:
            host, timeout_s = self._url.hostname or "", self._tracing.timeout_seconds
            if self._url.scheme == "https":
                connection = http.client.HTTPSConnection(host, self._url.port, timeout=timeout_s, context=ssl.create_default_context())
            else:
                connection = http.client.HTTPConnection(host, self._url.port, timeout=timeout_s)
            self._connection = connection
        target = (self._url.path or "/") + (f"?{self._url.query}" if self._url.query else "")
        headers = {"Content-Type": "application/x-protobuf", "Content-Encoding": "gzip", **self._tracing.headers}
        connection.request("POST", target, body, headers)
        answer = connection.getresponse()
        answer.read(1 << 20)
        if not answer.isclosed():  # longer than any collector's answer
            self.close()
        return answer.status

    def forked(self) -> None:
        """The connection is the parent's: closing it here would not end it there, but sending on it would mix both."""
        self._connection = None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
