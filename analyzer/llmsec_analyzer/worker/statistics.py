"""What is counted of detection over the life of a run, whichever process did it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from typing import Final

from llmsec_analyzer.judge.exchange_parts import Report
from llmsec_analyzer.risk import SEVERITIES
from llmsec_analyzer.worker.protocol import Totals
from llmsec_analyzer.worker.running import Running
from llmsec_tap.counters import Histogram, Sample, Snapshot, by_label
from llmsec_tap.model import Exchange

_DURATIONS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Statistics:
    def __init__(self) -> None:
        self.durations = Histogram(_DURATIONS_S)
        self.reloads: Counter[str] = Counter()
        self.requests_left_out = 0
        self._requests = Histogram(_DURATIONS_S)  # from the request's last byte to its report
        self._timeouts = 0
        self._earlier = Totals({}, 0)  # of processes that are gone

    def asked(self, exchange: Exchange, report: Report) -> None:
        """A request was looked at while its answer was out."""
        self._timeouts += report.risk_score is None
        if exchange.ended_ns is not None:
            self._requests.observe(max(0.0, (time.time_ns() - exchange.ended_ns) / 1e9))

    def keep(self, worker: Running) -> None:
        """It has ended, or is ended."""
        self._earlier = self._total_of(worker)
        worker.totals = Totals({}, 0)

    def _total_of(self, worker: Running | None) -> Totals:
        """Of the processes that are gone, and of this one; delays are the last that were said."""
        if worker is None:
            return self._earlier
        last, said = worker.totals, worker.totals if worker.totals.delay_ms_p99 is not None else self._earlier
        faults = dict(Counter(self._earlier.faults) + Counter(last.faults))
        return Totals(faults, self._earlier.increments + last.increments, said.delay_ms_p50, said.delay_ms_p99)

    def samples(self, worker: Running | None) -> Iterable[Sample]:
        totals = self._total_of(worker)
        yield from by_label("llmsec_detector_faults_total", "detector", totals.faults)
        yield from by_label("llmsec_detection_reloads_total", "result", self.reloads)
        yield Sample("llmsec_detection_increments_total", totals.increments)
        yield Sample("llmsec_request_analysis_timeouts_total", self._timeouts)
        yield Sample("llmsec_request_analysis_left_out_total", self.requests_left_out)
        for name, value in (("0.5", totals.delay_ms_p50), ("0.99", totals.delay_ms_p99)):
            if value is not None:
                yield Sample("llmsec_detection_delay_seconds", value / 1000, (("quantile", name),))
        yield from self.durations.samples("security_analysis_duration_seconds")
        yield from self._requests.samples("llmsec_request_analysis_duration_seconds")


def summary(counts: Snapshot, *, is_live: bool) -> list[str]:
    """Findings by severity, faults by name, what was left out, how soon streams were scanned: a line each, of one process or of several together."""
    findings = counts.by("llmsec_findings_total", "severity")
    counted = [f"{severity} {findings[severity]:,}" for severity in reversed(SEVERITIES) if severity in findings]
    suppressed = counts.get("llmsec_suppressed_findings_total")
    lines = ["findings: " + (", ".join(counted) or "none") + (f"; suppressed {suppressed:,}" if suppressed else "")]
    half, most = (counts.values.get(("llmsec_detection_delay_seconds", (("quantile", quantile),))) for quantile in ("0.5", "0.99"))
    if half is not None and most is not None and is_live:
        lines.append(
            f"scanned {counts.get('llmsec_detection_increments_total'):,} increments of answers as they came,"
            f" half of them within {half * 1000:.1f} ms, 99 % within {most * 1000:.1f} ms"
        )
    for title, name, label in (
        ("detectors that failed or ran out of time", "llmsec_detector_faults_total", "detector"),
        ("exchanges with reduced detection", "llmsec_detection_reduced_exchanges_total", "mark"),
    ):
        found = counts.by(name, label)
        if found:
            lines.append(f"{title}: " + ", ".join(f"{key} {count:,}" for key, count in found.items()))
    return lines
