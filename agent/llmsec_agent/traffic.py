"""Metrics of the observed traffic: requests, durations, tokens, errors, by labels whose number of values is bounded.

Names are the original design's, and OpenTelemetry's (GenAI metrics) where it has one, written as Prometheus writes them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Final

from llmsec_agent.config.schema import CustomMetric
from llmsec_agent.custom_metrics import Custom
from llmsec_agent.label_values import Values, error_of
from llmsec_agent.telemetry.names import DURATION_S, FIRST_TOKEN_S, PER_TOKEN_S, TOKENS
from llmsec_tap.counters import Histogram, Labels, Sample
from llmsec_tap.model import Exchange

_DURATION_S: Final = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)


class Traffic:
    """`observe` each exchange with a model once it is whole."""

    def __init__(self, custom: Sequence[CustomMetric] = ()) -> None:
        self._tenants, self._providers, self._models, self._errors, self._operations = (Values() for _ in range(5))
        self._requests: Counter[Labels] = Counter()
        self._failures: Counter[Labels] = Counter()
        self._costs: defaultdict[Labels, float] = defaultdict(float)
        self._findings: Counter[Labels] = Counter()
        self._custom = [Custom(metric) for metric in custom]
        self._replaced = {metric.name for metric in custom}
        self._histograms: dict[tuple[str, Labels], Histogram] = {}

    def observe(self, exchange: Exchange) -> None:
        if not exchange.is_request:
            return
        tenant, backend = ("tenant_id", self._tenants(exchange.tenant)), ("backend", self._providers(exchange.provider))
        model = self._models(exchange.response_model or exchange.request_model)
        self._requests[tenant, backend, ("model", model)] += 1
        error = error_of(exchange)
        if error is not None:
            self._failures[tenant, backend, ("error_type", self._errors(error))] += 1
        if exchange.cost_usd:
            self._costs[tenant, backend, ("model", model)] += exchange.cost_usd
        for finding in exchange.findings:
            if finding.suppressed is None:
                self._findings[tenant, ("category", finding.category), ("severity", finding.severity)] += 1
        for metric in self._custom:
            metric.observe(exchange)
        otel: Labels = (("gen_ai_operation_name", self._operations(exchange.operation)), ("gen_ai_provider_name", backend[1]))
        if exchange.started_ns is not None and exchange.ended_ns is not None:
            duration_s = (exchange.ended_ns - exchange.started_ns) / 1e9
            self._observe("llmsec_request_duration_seconds", (tenant, backend), _DURATION_S, duration_s)
            self._observe("gen_ai_server_request_duration_seconds", otel, DURATION_S, duration_s)
        if exchange.ttft_ms is not None:
            self._observe("gen_ai_server_time_to_first_token_seconds", otel, FIRST_TOKEN_S, exchange.ttft_ms / 1000)
        if exchange.output_tokens_per_s:
            self._observe("gen_ai_server_time_per_output_token_seconds", otel, PER_TOKEN_S, 1 / exchange.output_tokens_per_s)
        for kind, tokens in (("input", exchange.usage.input_tokens), ("output", exchange.usage.output_tokens)):
            if tokens is not None:
                self._observe("gen_ai_client_token_usage", (*otel, ("gen_ai_token_type", kind)), TOKENS, tokens)

    def samples(self) -> Iterable[Sample]:
        for labels, count in tuple(self._requests.items()) if "llmsec_requests_total" not in self._replaced else ():
            yield Sample("llmsec_requests_total", count, labels)
        for labels, count in tuple(self._failures.items()):
            yield Sample("llmsec_request_errors_total", count, labels)
        for labels, cost in tuple(self._costs.items()):
            yield Sample("llmsec_cost_usd_total", cost, labels)
        for labels, count in tuple(self._findings.items()):
            yield Sample("llmsec_exchange_findings_total", count, labels)
        for (name, labels), histogram in tuple(self._histograms.items()):
            if name not in self._replaced:
                yield from histogram.samples(name, labels)
        for metric in self._custom:
            yield from metric.samples()

    def _observe(self, name: str, labels: Labels, bounds: tuple[float, ...], value: float) -> None:
        histogram = self._histograms.get((name, labels))
        if histogram is None:
            histogram = self._histograms[name, labels] = Histogram(bounds)
        histogram.observe(value)
