"""OpenTelemetry's metrics of this process: those that an agent sends of the same records, and what the SDK counts of itself.

Sums and histograms grow from the start of the process, so an export that fails costs nothing: the next one has the same.
"""

from __future__ import annotations

import uuid
from dataclasses import asdict, fields
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from llmsec_tap.model import Exchange
from llmsec_trace.destinations.otlp import Endpoint

if TYPE_CHECKING:
    from llmsec_agent.telemetry.meters import Meters
    from llmsec_trace.recorder import Stats

# Of what stats() counts, all but these only grow.
_FALLING: Final = frozenset(("waiting",))


class Metrics:
    """One thread. It is made anew in a forked child, whose counts begin at nothing and which is an instance of its own."""

    def __init__(self, endpoint: Endpoint, service_name: str) -> None:
        from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics  # noqa: PLC0415

        from llmsec_agent.telemetry import meters, names  # noqa: PLC0415 - loaded now, not while the application is busy

        self._encode: Any = encode_metrics
        self._make = meters.Meters
        self._prefix = names.SDK_COUNTS
        self._endpoint = endpoint
        self._service_name = service_name
        self._clear()

    def _clear(self) -> None:
        self._meters: Meters | None = None
        self._counts: dict[str, int] = {}  # as of this export
        self._sent: dict[str, int] = {}  # of the last one that was taken

    def observe(self, exchange: Exchange) -> None:
        self._made().observe(exchange)

    def send(self, stats: Stats) -> None:
        """Nothing, where nothing has changed since. Raises DestinationError."""
        self._counts = asdict(stats)
        if self._counts == self._sent:
            return
        data = self._made().data()
        if data is not None:
            self._endpoint.post(self._encode(data).SerializeToString())
            self._sent = self._counts

    def forked(self) -> None:
        self._endpoint.forked()
        self._clear()

    def close(self) -> None:
        self._endpoint.close()
        if self._meters is not None:
            self._meters.close()

    def _made(self) -> Meters:
        if self._meters is None:
            from llmsec_trace.recorder import Stats  # noqa: PLC0415 - which knows this package

            made = self._meters = self._make(self._service_name, str(uuid.uuid4()))
            for known in fields(Stats):
                made.watch(self._prefix + known.name, "1", "", partial(self._count, known.name), falls=known.name in _FALLING)
        return self._meters

    def _count(self, name: str) -> int:
        return self._counts.get(name, 0)
