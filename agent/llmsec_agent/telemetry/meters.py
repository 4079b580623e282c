"""OpenTelemetry's GenAI metrics of exchanges: histograms that grow from the start of the process, by the official SDK."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from opentelemetry.metrics import Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricsData
from opentelemetry.sdk.resources import Resource

from llmsec_agent.label_values import Values, error_of
from llmsec_agent.telemetry import names
from llmsec_agent.telemetry.spans import resource_of, split_address
from llmsec_tap import __version__
from llmsec_tap.model import Exchange

Attributes = dict[str, str | int | bool]

# Sets of attributes; further ones share one, as OpenTelemetry's limit on cardinality has it.
MAX_SERIES: Final = 2000
OVERFLOW: Final[Attributes] = {"otel.metric.overflow": True}


class Meters:
    """`observe` each exchange once. One thread."""

    def __init__(self, service: str, instance: str = "") -> None:
        """`instance` tells processes of one service apart, whose sums would be mixed up else."""
        self._reader = InMemoryMetricReader()
        resource = resource_of(service).merge(Resource({"service.instance.id": instance})) if instance else resource_of(service)
        self._provider = MeterProvider([self._reader], resource, shutdown_on_exit=False)
        meter = self._meter = self._provider.get_meter(names.SCOPE, __version__)
        self._histograms = {
            name: meter.create_histogram(name, unit, description, explicit_bucket_boundaries_advisory=list(bounds))
            for name, unit, bounds, description in names.HISTOGRAMS
        }
        self._series: set[frozenset[tuple[str, str | int | bool]]] = set()
        self._models, self._servers, self._errors, self._providers = Values(), Values(), Values(), Values()

    def observe(self, exchange: Exchange) -> None:
        if not exchange.is_request:
            return
        bare = exchange.without_content()  # a client may have put a sentence where a model's name belongs
        failed = attributes = self._attributes(bare)
        if error_of(exchange) is not None:
            failed = attributes | {"error.type": self._errors(error_of(bare) or "_OTHER")}
        if exchange.started_ns is not None and exchange.ended_ns is not None:
            duration_s = max(0.0, (exchange.ended_ns - exchange.started_ns) / 1e9)
            self._record(names.OPERATION_DURATION, duration_s, failed)
            self._record(names.REQUEST_DURATION, duration_s, failed)
        if exchange.ttft_ms is not None:
            self._record(names.TIME_TO_FIRST_TOKEN, exchange.ttft_ms / 1000, attributes)
        if exchange.output_tokens_per_s:
            self._record(names.TIME_PER_OUTPUT_TOKEN, 1 / exchange.output_tokens_per_s, attributes)
        for kind, tokens in (("input", exchange.usage.input_tokens), ("output", exchange.usage.output_tokens)):
            if tokens is not None and 0 <= tokens < 2**53:
                self._record(names.TOKEN_USAGE, tokens, attributes | {"gen_ai.token.type": kind})

    def watch(self, name: str, unit: str, description: str, read: Callable[[], int], *, falls: bool = False) -> None:
        """A number that is read whenever `data` is; `falls`: it does not only grow."""
        make = self._meter.create_observable_up_down_counter if falls else self._meter.create_observable_counter
        make(name, [lambda _options: [Observation(read())]], unit, description)

    def data(self) -> MetricsData | None:
        """Everything since the start; None before the first exchange, where nothing is watched."""
        return self._reader.get_metrics_data()

    def close(self) -> None:
        self._provider.shutdown()

    def _attributes(self, exchange: Exchange) -> Attributes:
        host, port = split_address(exchange.server)
        found: Attributes = {
            "gen_ai.operation.name": exchange.operation or "chat",
            "gen_ai.provider.name": self._providers(exchange.provider),
            "server.address": self._servers(host),
        }
        if exchange.request_model:
            found["gen_ai.request.model"] = self._models(exchange.request_model)
        if exchange.response_model:
            found["gen_ai.response.model"] = self._models(exchange.response_model)
        if port is not None:
            found["server.port"] = port
        return found

    def _record(self, name: str, value: float, attributes: Attributes) -> None:
        series = frozenset(attributes.items())
        if series not in self._series:
            if len(self._series) >= MAX_SERIES:
                attributes = OVERFLOW
            else:
                self._series.add(series)
        self._histograms[name].record(value, attributes)
