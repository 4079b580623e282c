"""Alerts for people: one a line, one in full, silences."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from typing import Any

from llmsec_analyzer.alerts.alert import Alert
from llmsec_analyzer.alerts.silences import Silence
from llmsec_analyzer.show.terminal import cut, pad
from llmsec_tap.visible import visible


def alert_line(row: dict[str, Any]) -> str:
    """One alert: time, id, priority, state, exchanges, key, channels with what became of it."""
    started = row["started"]
    when = f"{started:%Y-%m-%d %H:%M:%S}" if started is not None else ""
    sent = ", ".join(f"{channel} {outcome}" for channel, outcome in row["sent"].items())
    cells = (
        (when, 19),
        (row["alert_id"], 12),
        (row["priority"].upper(), 8),
        (row["state"], 8),
        (f"{row['count']:,}", 7),
        (row["dedup_key"], 48),
    )
    line = "  ".join(pad(cut(visible(str(cell)), width), width) for cell, width in cells)
    return f"{line}  {visible(sent)}".rstrip()


def alert_lines(row: dict[str, Any], alert: Alert | None, exchanges: Sequence[tuple[str, str]], attempts: Sequence[Any]) -> Iterator[str]:
    """`attempts` have channel, at_ns, attempt, outcome and error."""
    yield f"alert {row['alert_id']}  {row['priority']}  {row['state']}"
    if alert is not None:
        yield visible(alert.summary)
        yield f"rule: {visible(alert.rule)}  condition: {visible(alert.condition)}"
    yield f"key: {visible(row['dedup_key'])}  exchanges: {row['count']:,}"
    if row["started"] is not None:
        yield f"exchanges began {row['started']:%Y-%m-%d %H:%M:%S} to {row['ended']:%Y-%m-%d %H:%M:%S} UTC"
    if alert is not None:
        of = ("tenant", "model", "provider", "node", "namespace", "pod", "process", "client", "server", "trace_id")
        yield "of: " + ", ".join(f"{name} {visible(str(value))}" for name in of if (value := getattr(alert, name)))
        if alert.analysis_ms is not None:
            yield f"decided {alert.analysis_ms:,.1f} ms after the last byte it rests on"
        for finding in alert.findings:
            yield f"  finding {finding.finding_id}  {finding.severity}  {finding.type}  {visible(finding.part)}: {visible(finding.explanation)}"
        for deviation in alert.deviations:
            yield f"  deviation {deviation.kind}  {deviation.severity}: {visible(deviation.explanation)}"
    for exchange, state in exchanges:
        yield f"  exchange {exchange}  {state}"
    if alert is not None and not attempts:
        yield f"channels: {', '.join(alert.channels)}; no attempt to send it is known"
    for attempt in attempts:
        at = dt.datetime.fromtimestamp(attempt.at_ns / 1e9, dt.UTC)
        error = f": {visible(attempt.error)}" if attempt.error else ""
        yield f"  {at:%Y-%m-%d %H:%M:%S}  {visible(attempt.channel)}  attempt {attempt.attempt}  {attempt.outcome}{error}"


def silence_line(entry: Silence, *, is_over: bool) -> str:
    note = "over since" if is_over else "until"
    by = f" ({visible(entry.by)})" if entry.by else ""
    return f"{pad(cut(visible(entry.match), 48), 48)}  {note} {visible(entry.until)}  {visible(entry.reason)}{by}"
