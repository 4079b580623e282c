"""Records as spans of OpenTelemetry's GenAI conventions to a collector, by OTLP over HTTP.

The span is the one that an agent makes of the same record. Metrics go beside the spans, unless the configuration says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from llmsec_tap.errors import ConfigError
from llmsec_tap.model import Exchange
from llmsec_trace.destinations.base import DestinationError
from llmsec_trace.destinations.otlp import Endpoint

if TYPE_CHECKING:
    from llmsec_trace.config import TracingConfig
    from llmsec_trace.destinations.metrics import Metrics
    from llmsec_trace.recorder import Stats

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
        self._endpoint = Endpoint(tracing.endpoint_url, "spans", tracing)
        self._metrics: Metrics | None = None
        if tracing.metrics_url is not None:
            from llmsec_trace.destinations.metrics import Metrics  # noqa: PLC0415

            self._metrics = Metrics(Endpoint(tracing.metrics_url, "metrics", tracing), service_name)

    def send(self, batch: Sequence[Exchange]) -> None:
        spans = [self._span_of(exchange, self._service_name, content=self._tracing.content) for exchange in batch]
        try:
            self._endpoint.post(self._encode([span for span in spans if span is not None]).SerializeToString())
        except DestinationError as fault:
            if fault.is_lasting:
                self._observe(batch)
            raise
        self._observe(batch)

    def report(self, stats: Stats) -> None:
        if self._metrics is not None:
            self._metrics.send(stats)

    def _observe(self, batch: Sequence[Exchange]) -> None:
        """Metrics are of all records, once each: when their spans were taken, or never will be."""
        if self._metrics is not None:
            for exchange in batch:
                self._metrics.observe(exchange)

    def forked(self) -> None:
        self._endpoint.forked()
        if self._metrics is not None:
            self._metrics.forked()

    def close(self) -> None:
        self._endpoint.close()
        if self._metrics is not None:
            self._metrics.close()


def _is_installed() -> bool:
    try:
        return find_spec(_LIBRARY) is not None
    except ModuleNotFoundError:
        return False
