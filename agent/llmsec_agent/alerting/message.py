"""What of an alert people and machines are told: bounded, without control characters, and without content unless that is allowed."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from llmsec_analyzer.alerts.alert import Alert
from llmsec_tap.visible import visible

_MOST_CHARS: Final = 500
_MOST_ITEMS: Final = 20
_LONGEST_ID: Final = 255
_LAST_NS: Final = 253_402_300_799 * 10**9  # of the year 9999


@dataclass(frozen=True)
class Message:
    """`alert`: with every text cleaned. `title`: one line. `facts`: names and values for people, in their order."""

    alert: Alert
    title: str
    facts: tuple[tuple[str, str], ...]

    @property
    def text(self) -> str:
        """Lines for people."""
        lines = [self.title, "", *(f"{name}: {value}" for name, value in self.facts)]
        return "\n".join(lines)

    @property
    def is_resolved(self) -> bool:
        return self.alert.state == "resolved"

    @property
    def at(self) -> dt.datetime:
        return moment(self.alert.at_ns)

    @property
    def uid(self) -> str:
        """The same however often it is sent, and another one when the alert fires again, grows or resolves."""
        alert = self.alert
        return "alert_" + hashlib.sha256(f"{alert.alert_id}\0{alert.state}\0{alert.count}\0{alert.at_ns}".encode()).hexdigest()[:32]


def message_of(alert: Alert, *, content: bool) -> Message:
    """`content`: previews may go out."""
    alert = _clean(alert)
    if not content:
        alert = msgspec.structs.replace(alert, findings=[msgspec.structs.replace(finding, preview="") for finding in alert.findings])
    head = "Resolved" if alert.state == "resolved" else alert.priority.capitalize()
    return Message(alert, f"{head}: {alert.summary or alert.rule}", tuple(_facts(alert)))


def moment(ns: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(min(max(ns, 0), _LAST_NS) / 1e9, dt.UTC)


def short_id(text: str) -> str:
    """A key within what channels take, the same for the same text."""
    return text if len(text) <= _LONGEST_ID else hashlib.sha256(text.encode()).hexdigest()


def cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def escaped(value: Any, escape: Callable[[str], str]) -> Any:
    """Plain values with every text in them escaped for where they are put."""
    if isinstance(value, str):
        return escape(value)
    if isinstance(value, dict):
        return {name: escaped(item, escape) for name, item in value.items()}
    return [escaped(item, escape) for item in value] if isinstance(value, list | tuple) else value


def _clean(alert: Alert) -> Alert:
    def short(value: Any) -> Any:
        if isinstance(value, str):
            return cut(visible(value), _MOST_CHARS)
        if isinstance(value, list):
            return [short(item) for item in value[:_MOST_ITEMS]]
        if isinstance(value, msgspec.Struct):
            return msgspec.structs.replace(value, **{name: short(getattr(value, name)) for name in value.__struct_fields__})
        return value

    cleaned: Alert = short(alert)
    return cleaned


def _facts(alert: Alert) -> list[tuple[str, str]]:
    given: list[tuple[str, Any]] = [
        ("Rule", f"{alert.rule} ({alert.condition})" if alert.condition else alert.rule),
        ("Priority", alert.priority),
        ("Time", moment(alert.at_ns).strftime("%Y-%m-%d %H:%M:%S UTC")),
        ("Exchanges", alert.count if alert.count != 1 else None),
        ("Tenant", alert.tenant),
        ("Model", " ".join(filter(None, (alert.provider, alert.model)))),
        ("Process", alert.process),
        ("Pod", "/".join(filter(None, (alert.namespace, alert.pod)))),
        ("Node", alert.node),
        ("Connection", f"{alert.client} to {alert.server}" if alert.client and alert.server else alert.server),
        ("Security score", alert.security_score),
        ("Personal data", ", ".join(alert.pii_types)),
        ("Cost over baseline", f"{alert.cost_multiplier:.3g}" if alert.cost_multiplier is not None else None),
        ("Error rate (5 min)", f"{alert.error_rate_5m:.1%}" if alert.error_rate_5m is not None else None),
        *(
            ("Finding", f"{f.severity} {f.rule_id} in {f.part}: {f.explanation}" + (f" [{f.preview}]" if f.preview else ""))
            for f in alert.findings[:5]
        ),
        *(("Deviation", f"{d.severity} {d.kind} of {d.scope} {d.subject}: {d.explanation}") for d in alert.deviations[:5]),
        ("Exchange", alert.exchange_id),
        ("Trace", alert.trace_id),
        ("Alert", alert.alert_id),
    ]
    return [(name, str(value)) for name, value in given if value not in (None, "")]
