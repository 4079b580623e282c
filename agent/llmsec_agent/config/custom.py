"""What is wrong with metrics that a file makes (custom_metrics.py)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from llmsec_agent.config.schema import CustomMetric
from llmsec_agent.metrics import CATALOGUE

# Those of /metrics that may be made anew: the original design names them, with labels and buckets.
REPLACED: Final = frozenset(("llmsec_requests_total", "llmsec_request_duration_seconds"))
_NAME: Final = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]{0,127}")
COUNTED: Final = ("requests", "errors", "findings", "deviations", "cost_usd", "input_tokens", "output_tokens")
OBSERVED: Final = ("duration", "ttft", "input_tokens", "output_tokens", "cost_usd", "risk_score")


def problems(metrics: Sequence[CustomMetric]) -> Iterator[tuple[int, str, str, str]]:
    """What is wrong: number of the metric, its key, a sentence, and what may be done."""
    names = [metric.name for metric in metrics]
    for number, metric in enumerate(metrics):
        ends = metric.name.endswith(("_total", "_bucket", "_sum", "_count", "_created"))
        if not _NAME.fullmatch(metric.name):
            yield number, "name", "is no name of a Prometheus metric", "letters, digits, _ and :, and no digit first"
        elif metric.name in names[:number]:
            yield number, "name", "another metric has this name", ""
        elif metric.name in CATALOGUE and (metric.name not in REPLACED or CATALOGUE[metric.name].kind != metric.type):
            yield number, "name", f"/metrics has this name already, as a {CATALOGUE[metric.name].kind}", "see docs/metrics.md"
        elif metric.type == "counter" and not metric.name.endswith("_total"):
            yield number, "name", "a counter's name ends with _total", f"for example {metric.name}_total"
        elif metric.type == "histogram" and ends:
            yield (
                number,
                "name",
                "a histogram's name has no such end: its samples get theirs",
                "for example llmsec_request_duration_seconds",
            )
        known = COUNTED if metric.type == "counter" else OBSERVED
        if metric.measures is not None and metric.measures not in known:
            yield number, "measures", f"a {metric.type} cannot be of it", f"one of {', '.join(known)}"
        if len(set(metric.labels)) < len(metric.labels):
            yield number, "labels", "a label is named twice", ""
        if metric.type == "counter" and metric.buckets:
            yield number, "buckets", "a counter has none", "leave it out, or take type: histogram"
        if any(later <= earlier for earlier, later in zip(metric.buckets, metric.buckets[1:], strict=False)):
            yield number, "buckets", "must grow from one to the next", ""
