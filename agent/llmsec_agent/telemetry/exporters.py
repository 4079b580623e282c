"""The official exporters, made for a collector, and what became of what they were given: they say why in a log only, so that is listened to."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from llmsec_agent.telemetry.plan import Collector

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricExporter, MetricsData
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter

# Until a request counts as failed, its own retries included.
TIMEOUT_S: Final = 5.0
# What no later try mends: the collector cannot take this very request.
_REFUSED: Final = frozenset(("400", "413", "415", "422", "INVALID_ARGUMENT", "OUT_OF_RANGE"))
_TOO_LARGE: Final = ("exceeds max_request_size", "larger than max")
_ROOT: Final = "opentelemetry"
_MAX_WHY: Final = 200


class Outcome(NamedTuple):
    kind: Literal["sent", "later", "refused"]
    why: str = ""


class _Listener(logging.Handler):
    """Keeps the last thing that the exporters had to say; nothing of it is printed."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.last: logging.LogRecord | None = None

    def emit(self, record: logging.LogRecord) -> None:
        self.last = record

    def outcome(self) -> Outcome:
        record, self.last = self.last, None
        if record is None:
            return Outcome("later", "the exporter does not say why")
        said = [str(getattr(item, "name", item)) for item in record.args] if isinstance(record.args, tuple) else []
        text = " ".join(record.getMessage().split())[:_MAX_WHY]
        return Outcome("refused" if any(words in text for words in _TOO_LARGE) or not _REFUSED.isdisjoint(said) else "later", text)


class Exporters:
    """To one collector of spans, to one of metrics, or to both. One thread."""

    def __init__(self, spans: Collector | None, metrics: Collector | None, timeout_s: float | None = None) -> None:
        timeout_s = TIMEOUT_S if timeout_s is None else timeout_s
        self._listener = _Listener()
        log = logging.getLogger(_ROOT)
        log.addHandler(self._listener)
        log.propagate = False
        self._spans = _span_exporter(spans, timeout_s) if spans is not None else None
        self._metrics = _metric_exporter(metrics, timeout_s) if metrics is not None else None
        for name in [name for name in logging.root.manager.loggerDict if name.startswith(f"{_ROOT}.")]:
            logging.getLogger(name).filters.clear()  # they swallow what was said within a minute before, and with it the reason

    def send_spans(self, spans: Sequence[ReadableSpan]) -> Outcome:
        exporter = self._spans
        return self._sent(lambda: exporter.export(spans)) if exporter is not None else Outcome("sent")

    def send_metrics(self, data: MetricsData) -> Outcome:
        exporter = self._metrics
        return self._sent(lambda: exporter.export(data)) if exporter is not None else Outcome("sent")

    def close(self) -> None:
        for exporter in (self._spans, self._metrics):
            if exporter is not None:
                exporter.shutdown()
        logging.getLogger(_ROOT).removeHandler(self._listener)

    def _sent(self, export: Callable[[], Any]) -> Outcome:
        self._listener.last = None
        try:
            result = export()
        except Exception as fault:  # noqa: BLE001 - a library's own fault must cost no more than this request
            return Outcome("later", f"the exporter failed: {type(fault).__name__}")
        return Outcome("sent") if result.name == "SUCCESS" else self._listener.outcome()


def _span_exporter(to: Collector, timeout_s: float) -> SpanExporter:
    if to.protocol == "http":
        from opentelemetry.exporter.otlp.proto.http import Compression
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        return OTLPSpanExporter(to.url, _trusted(to), headers=dict(to.headers), timeout=timeout_s, compression=Compression.Gzip)
    import grpc  # type: ignore[import-untyped]
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as OverGRPC

    return OverGRPC(to.url, _is_plain(to), _credentials(to), list(to.headers), timeout=timeout_s, compression=grpc.Compression.Gzip)


def _metric_exporter(to: Collector, timeout_s: float) -> MetricExporter:
    if to.protocol == "http":
        from opentelemetry.exporter.otlp.proto.http import Compression
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

        return OTLPMetricExporter(to.url, _trusted(to), headers=dict(to.headers), timeout=timeout_s, compression=Compression.Gzip)
    import grpc
    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as OverGRPC

    return OverGRPC(to.url, _is_plain(to), _credentials(to), list(to.headers), timeout=timeout_s, compression=grpc.Compression.Gzip)


def _is_plain(to: Collector) -> bool:
    return to.url.startswith("http:")


def _credentials(to: Collector) -> Any:
    if _is_plain(to):
        return None
    import grpc

    ca_file = _trusted(to)
    return grpc.ssl_channel_credentials(Path(ca_file).read_bytes() if ca_file is not None else None)


def _trusted(to: Collector) -> str | None:
    """As configured, or the system's: the libraries have lists of their own, which may lie where this user cannot read."""
    return to.ca_file or ssl.get_default_verify_paths().cafile
