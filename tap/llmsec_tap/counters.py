"""What components count, in the form that a closing summary and a scrape both read.

Each component keeps plain integers and says them when asked (`samples`). Names follow Prometheus: `llmsec_`, the unit, and
`_total` for what only grows; docs/metrics.md lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
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
