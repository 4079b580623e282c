"""What components count, in the form that a closing summary and a scrape both read.

Each component keeps plain integers and says them when asked (`samples`). Names follow Prometheus: `llmsec_`, the unit, and
`_total` for what only grows; docs/metrics.md lists them.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

Labels = tuple[tuple[str, str], ...]


class Sample(NamedTuple):
    """One number at one moment. Labels have few values: never an id, an address or a text of the wire."""

    name: str
    value: float
    labels: Labels = ()


Samples = Callable[[], Iterable[Sample]]


def by_label(name: str, label: str, counts: Mapping[str, int]) -> Iterable[Sample]:
    """A sample for each key of `counts`."""
    for value, count in sorted(counts.items()):
        yield Sample(name, count, ((label, value),))


class Snapshot:
    """All samples of one moment. The same name and labels from several components add up."""

    def __init__(self, sources: Iterable[Samples]) -> None:
        self.values: dict[tuple[str, Labels], float] = {}
        for source in sources:
            for name, value, labels in source():
                key = name, labels
                self.values[key] = self.values.get(key, 0) + value

    def get(self, name: str, **labels: str) -> int:
        """0 where nothing was counted under this name; the sum over labels that are not given."""
        wanted = set(labels.items())
        return int(sum(value for (known, has), value in self.values.items() if known == name and wanted <= set(has)))

    def by(self, name: str, label: str) -> dict[str, int]:
        """The counts of one name by the value of one label, those of 0 left out."""
        found: dict[str, int] = {}
        for (known, labels), value in self.values.items():
            if known == name and value:
                key = dict(labels).get(label, "")
                found[key] = found.get(key, 0) + int(value)
        return dict(sorted(found.items()))


class Histogram:
    """Observations by upper bound, as Prometheus has them: `NAME_bucket{le}`, `NAME_sum`, `NAME_count`."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def samples(self, name: str, labels: Labels = ()) -> Iterable[Sample]:
        total = 0
        for bound, count in zip((*self._bounds, math.inf), self._counts, strict=True):
            total += count
            yield Sample(f"{name}_bucket", total, (*labels, ("le", "+Inf" if bound == math.inf else f"{bound:g}")))
        yield Sample(f"{name}_sum", self._sum, labels)
        yield Sample(f"{name}_count", total, labels)
