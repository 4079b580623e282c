"""Metrics that the configuration makes: a count or a histogram of exchanges, by labels of one's choice.

Label values come from traffic, so their number is bounded, and so is that of the series: what comes beyond is one series, all of whose labels
say `other`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from llmsec_agent.config.schema import CustomMetric
from llmsec_agent.label_values import OTHER, Values, error_of
from llmsec_agent.metrics import Metric
from llmsec_tap.counters import Histogram, Labels, Sample
from llmsec_tap.model import Exchange

MAX_SERIES: Final = 2000
_BUCKETS: Final = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)

_LABELS: Final[Mapping[str, Callable[[Exchange], str | None]]] = {
    "tenant_id": lambda exchange: exchange.tenant,
    "backend": lambda exchange: exchange.provider,
    "model": lambda exchange: exchange.response_model or exchange.request_model,
    "operation": lambda exchange: exchange.operation,
    "api": lambda exchange: exchange.api,
    "status": lambda exchange: str(exchange.status) if exchange.status is not None else None,
    "error_type": error_of,
    "streaming": lambda exchange: str(exchange.streaming).lower(),
    "node": lambda exchange: exchange.node,
    "namespace": lambda exchange: exchange.process.namespace if exchange.process is not None else None,
    "process": lambda exchange: exchange.process.comm if exchange.process is not None else None,
    "capture_kind": lambda exchange: exchange.capture_kind,
}
COUNTED: Final[Mapping[str, Callable[[Exchange], float | None]]] = {
    "requests": lambda _: 1,
    "errors": lambda exchange: 1 if error_of(exchange) is not None else None,
    "findings": lambda exchange: sum(finding.suppressed is None for finding in exchange.findings) or None,
    "deviations": lambda exchange: len(exchange.deviations) or None,
    "cost_usd": lambda exchange: exchange.cost_usd,
    "input_tokens": lambda exchange: exchange.usage.input_tokens,
    "output_tokens": lambda exchange: exchange.usage.output_tokens,
}
OBSERVED: Final[Mapping[str, Callable[[Exchange], float | None]]] = {
    "duration": lambda exchange: (
        (exchange.ended_ns - exchange.started_ns) / 1e9 if exchange.started_ns is not None and exchange.ended_ns is not None else None
    ),
    "ttft": lambda exchange: exchange.ttft_ms / 1000 if exchange.ttft_ms is not None else None,
    "input_tokens": lambda exchange: exchange.usage.input_tokens,
    "output_tokens": lambda exchange: exchange.usage.output_tokens,
    "cost_usd": lambda exchange: exchange.cost_usd,
    "risk_score": lambda exchange: exchange.risk_score,
}


def families(metrics: Sequence[CustomMetric]) -> dict[str, Metric]:
    """For the catalogue of /metrics."""
    return {metric.name: Metric(metric.type, f"As configured: {_measured(metric)}.", labels=metric.labels) for metric in metrics}


class Custom:
    """Observes each exchange for one metric."""

    def __init__(self, metric: CustomMetric) -> None:
        self._metric = metric
        self._labels = [(name, _LABELS[name], Values()) for name in metric.labels]
        self._measure = (COUNTED if metric.type == "counter" else OBSERVED)[_measured(metric)]
        self._counts: dict[Labels, float] = {}
        self._histograms: dict[Labels, Histogram] = {}

    def observe(self, exchange: Exchange) -> None:
        value = self._measure(exchange)
        if value is None or value < 0:
            return
        labels: Labels = tuple((name, values(read(exchange))) for name, read, values in self._labels)
        known: Mapping[Labels, object] = self._counts if self._metric.type == "counter" else self._histograms
        if labels not in known and len(known) >= MAX_SERIES:
            labels = tuple((name, OTHER) for name in self._metric.labels)
        if self._metric.type == "counter":
            self._counts[labels] = self._counts.get(labels, 0) + value
            return
        histogram = self._histograms.get(labels)
        if histogram is None:
            histogram = self._histograms[labels] = Histogram(self._metric.buckets or _BUCKETS)
        histogram.observe(value)

    def samples(self) -> Iterable[Sample]:
        for labels, count in tuple(self._counts.items()):
            yield Sample(self._metric.name, count, labels)
        for labels, histogram in tuple(self._histograms.items()):
            yield from histogram.samples(self._metric.name, labels)


def _measured(metric: CustomMetric) -> str:
    return metric.measures or ("requests" if metric.type == "counter" else "duration")
