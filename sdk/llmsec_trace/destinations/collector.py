"""Records as spans of OpenTelemetry's GenAI conventions to a collector, by OTLP over HTTP.

The span is the one that an agent makes of the same record. It is sent by the standard library's own HTTP, on a connection of this
destination: the official exporter would use a client that the application may have instrumented, and set up logging that is the application's.
"""

from __future__ import annotations

import gzip
import http.client
import ssl
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from llmsec_tap.errors import ConfigError
from llmsec_tap.model import Exchange
from llmsec_trace.destinations.base import DestinationError

if TYPE_CHECKING:
    from llmsec_trace.config import TracingConfig

# Answers after which the same request may be taken later (OTLP 1.0, "Retryable Response Codes").
_RETRYABLE: Final = frozenset((429, 502, 503, 504))
_LIBRARY: Final = "opentelemetry.exporter.otlp.proto.common"


class Collector:
    """Raises ConfigError where the library of the extra `sdk` is missing."""

    def __init__(self, tracing: TracingConfig, service_name: str) -> None:
        if not _is_installed():
            raise ConfigError(
                "sending to a collector needs a library that is not installed",
                "pip install 'llmsec-trace[sdk]', or name a store or destinations in the configuration.",
            )
        from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans  # noqa: PLC0415

        from llmsec_agent.telemetry.spans import span_of  # noqa: PLC0415 - loaded now, not while the application is busy

        self._span_of = span_of
        self._encode: Any = encode_spans
        self._tracing = tracing
        self._service_name = service_name
        self._url = urlsplit(tracing.endpoint_url)
        self._connection: http.client.HTTPConnection | None = None

    def send(self, batch: Sequence[Exchange]) -> None:
        spans = [self._span_of(exchange, self._service_name, content=self._tracing.content) for exchange in batch]
        body = gzip.compress(self._encode([span for span in spans if span is not None]).SerializeToString(), 3)
        where = f"{self._url.scheme}://{self._url.netloc.rpartition('@')[2]}{self._url.path}"
        try:
            status = self._post(body)
        except (OSError, http.client.HTTPException) as fault:
            self._drop_connection()
            raise DestinationError(f"{where} does not take spans: {type(fault).__name__}") from None
        if status >= 300:
            raise DestinationError(f"{where} does not take spans: it answers {status}", is_lasting=status not in _RETRYABLE)

    def _post(self, body: bytes) -> int:
        is_old = self._connection is not None
        try:
            return self._once(body)
        except (http.client.RemoteDisconnected, ConnectionError):
            if not is_old:
                raise
            self._drop_connection()  # the collector had closed it while it was idle
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
            self._drop_connection()
        return answer.status

    def _drop_connection(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def forked(self) -> None:
        """The connection is the parent's: closing it here would not end it there, but sending on it would mix both."""
        self._connection = None

    def close(self) -> None:
        self._drop_connection()


def _is_installed() -> bool:
    try:
        return find_spec(_LIBRARY) is not None
    except ModuleNotFoundError:
        return False
