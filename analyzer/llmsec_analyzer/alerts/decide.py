"""Which exchanges somebody is told of, and how often: rules, then silences, windows and bounds. Pure: time is what the caller says.

The first exchange that meets a rule opens a window for its key and is told at once. Those that follow in the window are counted, and at its
end one more message says how many there were. A rule about state is told once, and again when it is over.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final, Literal

import msgspec

from llmsec_analyzer.alerts.alert import Alert, AlertFinding, Priority
from llmsec_analyzer.alerts.rules import FINDING_FIELDS, Rule, counting, dedup_key, name_of, priority_of, values_of
from llmsec_analyzer.alerts.silences import Silences
from llmsec_analyzer.risk import rank
from llmsec_tap.counters import Sample, by_label
from llmsec_tap.model import AlertMark, Deviation, Exchange, Finding, Severity

# Windows that are open, over all rules; the ones opened first make room.
MAX_OPEN: Final = 10_000
# Exchanges whose request met a rule and whose answer is out; beyond them a rule may be met twice.
MAX_EARLY: Final = 8_192
_MINUTE_NS: Final = 60_000_000_000
# Of one exchange an alert has so many findings and deviations.
_MOST: Final = 10
# An upstream that nobody asks any more is not said to be well again.
_GIVE_UP_NS: Final = 24 * 60 * _MINUTE_NS
_DOWN: Final = frozenset(("upstream_unhealthy", "upstream_degraded"))
_REST: Final = "*"

Threshold = Callable[[Exchange], Severity | None]
Route = Callable[[str | None], tuple[str, ...] | None]


@dataclass(slots=True)
class _Open:
    """A window. `alert`: what was told, without findings. `upstream`: whose failing it is about."""

    alert: Alert
    opened_ns: int
    due_ns: int
    last_ns: int
    count: int = 1
    said: int = 1  # the count that was told last
    is_told: bool = True
    upstream: str | None = None


class _Line:
    """A rule and what it has told. `open` is in the order in which windows are due."""

    def __init__(self, rule: Rule, before: _Line | None = None) -> None:
        self.rule = rule
        self.open: OrderedDict[str, _Open] = before.open if before is not None else OrderedDict()
        self.minute: int = before.minute if before is not None else 0
        self.told: int = before.told if before is not None else 0
        self.left_out: int = before.left_out if before is not None else 0
        self.last_left_out: Alert | None = before.last_left_out if before is not None else None


class Decider:
    """One thread. `threshold`: the least severity that alerts for an exchange's tenant. `route`: channels of a tenant instead of a rule's.

    `previews`: redacted previews of findings go with an alert.
    """

    def __init__(
        self,
        rules: Sequence[Rule],
        *,
        threshold: Threshold = lambda _exchange: None,
        route: Route = lambda _tenant: None,
        previews: bool = False,
    ) -> None:
        self._by_name: dict[str, _Line] = {}
        self._threshold = threshold
        self.reload(rules, route=route, previews=previews)
        self._early: OrderedDict[str, dict[str, AlertMark]] = OrderedDict()
        self.silences = Silences()
        self._told: Counter[tuple[str, str]] = Counter()
        self._resolved: Counter[str] = Counter()
        self._held: Counter[str] = Counter()

    def reload(self, rules: Sequence[Rule], *, route: Route, previews: bool) -> None:
        """Go by these rules. What one of the same name has told stays told; what a rule told that is gone is never said to be over."""
        before = self._by_name
        self._lines = [_Line(rule, before.get(rule.name)) for rule in rules]
        self._by_name = {line.rule.name: line for line in self._lines}
        self._most_open = max(100, MAX_OPEN // max(1, len(self._lines)))
        self._route = route
        self._previews = previews

    def look(
        self,
        exchange: Exchange,
        at_ns: int,
        *,
        cost_multiplier: float | None = None,
        error_rate_5m: float | None = None,
        analysis_ms: float | None = None,
    ) -> list[Alert]:
        """What is told of an exchange that has ended; `alerts` of it says which rules it met. `at_ns`: its time, epoch nanoseconds."""
        told = self.advance(at_ns)
        early = self._early.pop(exchange.exchange_id, {})
        if exchange.provider is None or not (self._lines or early):
            return told
        values = values_of(exchange, cost_multiplier=cost_multiplier, error_rate_5m=error_rate_5m)
        marks = list(early.values())
        marks += [
            self._met(line, exchange, values, at_ns, analysis_ms, told)
            for line in self._lines
            if line.rule.name not in early and self._holds(line.rule, exchange, values)
        ]
        for deviation in exchange.deviations:
            if deviation.kind == "upstream_healthy":
                marks += self._recovered(deviation.subject, exchange, at_ns, told)
        if marks:
            exchange.alerts = marks
        return told

    def early(self, exchange: Exchange, findings: Sequence[Finding], at_ns: int, *, analysis_ms: float | None = None) -> list[Alert]:
        """As `look`, for a request whose answer is out, by what was found so far."""
        told: list[Alert] = []
        if exchange.provider is None:
            return told
        known = self._early.get(exchange.exchange_id, {})
        values = values_of(exchange, findings=findings)
        for line in self._lines:
            if line.rule.is_early and line.rule.name not in known and self._holds(line.rule, exchange, values):
                seen = msgspec.structs.replace(
                    exchange,
                    findings=list(findings),
                    security_score=values["security_score"],
                    risk_score=None,
                    pii_types=values["pii_types"],
                )
                known[line.rule.name] = self._met(line, seen, values, at_ns, analysis_ms, told)
        if known:
            self._early[exchange.exchange_id] = known
            if len(self._early) > MAX_EARLY:
                self._early.popitem(last=False)
        return told

    def advance(self, now_ns: int) -> list[Alert]:
        """What is told because time has passed: how many a window had, that something is over, what was left out of a minute."""
        told: list[Alert] = []
        for line in self._lines:
            self._turn(line, now_ns, told)
            while line.open:
                key, first = next(iter(line.open.items()))
                if first.due_ns > now_ns:
                    break
                if first.upstream is not None and now_ns - first.last_ns < _GIVE_UP_NS:
                    first.due_ns = now_ns + line.rule.window_ns
                    line.open.move_to_end(key)
                    continue
                del line.open[key]
                self._end(line, first, first.due_ns, told)
        return told

    def close(self) -> list[Alert]:
        """What is told because nothing more comes: how many the open windows had so far. States are left as they are."""
        told: list[Alert] = []
        for line in self._lines:
            self._rest(line, told)
            for window in line.open.values():
                if not line.rule.is_of_state and window.upstream is None:
                    self._end(line, window, window.last_ns, told)
        return told

    def adopt(self, alert: Alert, now_ns: int) -> None:
        """Another process, an earlier run, or this one has told this: it is not told again."""
        line = self._by_name.get(alert.rule)
        if line is None or alert.is_test or alert.dedup_key == f"{alert.rule}/{_REST}":
            return
        known = line.open.get(alert.dedup_key)
        if known is not None and known.alert.alert_id == alert.alert_id:
            if alert.state == "resolved":
                del line.open[alert.dedup_key]
            else:
                known.count, known.said = max(known.count, alert.count), max(known.said, alert.count)
            return
        upstream, rule = _failing(alert.deviations), line.rule
        due_ns = (alert.at_ns if rule.is_of_state else alert.opened_ns) + rule.window_ns
        is_over = due_ns <= now_ns and upstream is None and not rule.is_of_state
        if alert.state == "resolved" or is_over or (known is not None and known.opened_ns >= alert.opened_ns):
            return
        self._add(line, _Open(_bare(alert), alert.opened_ns, due_ns, alert.at_ns, alert.count, alert.count, upstream=upstream))

    def samples(self) -> Iterable[Sample]:
        for (rule, priority), count in self._told.items():
            yield Sample("llmsec_alerts_total", count, (("rule", rule), ("priority", priority)))
        yield from by_label("llmsec_alerts_resolved_total", "rule", self._resolved)
        yield from by_label("llmsec_alerts_held_total", "reason", self._held)
        yield Sample("llmsec_alert_windows", sum(len(line.open) for line in self._lines))

    # --- one rule ---------------------------------------------------------------------------------------------------------

    def _holds(self, rule: Rule, exchange: Exchange, values: dict[str, Any]) -> bool:
        if not rule.is_for(exchange.tenant):
            return False
        if rule.condition is not None:
            return rule.condition(values)
        least, grave = self._threshold(exchange), values["severity"]
        return least is not None and grave is not None and rank(grave) >= rank(least)

    def _met(
        self, line: _Line, exchange: Exchange, values: dict[str, Any], at_ns: int, analysis_ms: float | None, told: list[Alert]
    ) -> AlertMark:
        rule, priority = line.rule, priority_of(line.rule, values)
        upstream = _failing(exchange.deviations) if rule.condition is not None and "deviation_kinds" in rule.condition.fields else None
        key = dedup_key(rule, values, of_upstream=upstream is not None)
        window = line.open.get(key)
        if window is not None and not self._is_in(line, window, at_ns):
            del line.open[key]
            self._end(line, window, at_ns, told)
            window = None

        def mark(state: str, alert_id: str, count: int) -> AlertMark:
            return AlertMark(alert_id=alert_id, rule=rule.name, priority=priority, state=state, dedup_key=key, count=count)

        if self.silences.of(rule.name, key, at_ns) is not None:
            self._held["silenced"] += 1
            return mark("silenced", alert_id_of(rule.name, key, at_ns), 1)
        if window is not None:
            window.count += 1
            window.last_ns = max(window.last_ns, at_ns)
            if rule.is_of_state:
                window.due_ns = window.last_ns + rule.window_ns
                line.open.move_to_end(key)
            self._held["grouped" if window.is_told else "limited"] += 1
            return mark("grouped" if window.is_told else "limited", window.alert.alert_id, window.count)
        alert = self._alert(rule, priority, key, exchange, values, at_ns, analysis_ms)
        self._turn(line, at_ns, told)
        is_told = line.told < rule.per_minute
        self._add(line, _Open(_bare(alert), at_ns, at_ns + rule.window_ns, at_ns, is_told=is_told, upstream=upstream))
        if is_told:
            line.told += 1
            self._tell(alert, told)
        else:
            line.left_out += 1
            line.last_left_out = alert
            self._held["limited"] += 1
        return mark("firing" if is_told else "limited", alert.alert_id, 1)

    def _is_in(self, line: _Line, window: _Open, at_ns: int) -> bool:
        """Captures may step back, and several files may be of one time."""
        if window.upstream is not None:
            return abs(at_ns - window.last_ns) < _GIVE_UP_NS
        since = window.last_ns if line.rule.is_of_state else window.opened_ns
        return abs(at_ns - since) < line.rule.window_ns

    def _add(self, line: _Line, window: _Open) -> None:
        line.open[window.alert.dedup_key] = window
        if len(line.open) > self._most_open:
            line.open.popitem(last=False)
            self._held["forgotten"] += 1

    def _end(self, line: _Line, window: _Open, now_ns: int, told: list[Alert]) -> None:
        """The window is over."""
        if not window.is_told or window.upstream is not None:
            return
        if line.rule.is_of_state:
            self._resolve(line, window, now_ns, told)
        elif window.count > window.said and line.told < line.rule.per_minute:
            line.told += 1
            summary = f"{window.alert.summary} (and {window.count - 1:,} more since)"
            told.append(msgspec.structs.replace(window.alert, count=window.count, at_ns=max(now_ns, window.last_ns), summary=summary))

    def _resolve(self, line: _Line, window: _Open, now_ns: int, told: list[Alert]) -> None:
        self._resolved[line.rule.name] += 1
        summary = f"over: {window.alert.summary}"
        told.append(msgspec.structs.replace(window.alert, state="resolved", count=window.count, at_ns=now_ns, summary=summary))

    def _recovered(self, upstream: str, exchange: Exchange, at_ns: int, told: list[Alert]) -> Iterable[AlertMark]:
        for line in self._lines:
            for key, window in [item for item in line.open.items() if item[1].upstream == upstream]:
                del line.open[key]
                if not window.is_told:
                    continue
                self._resolve(line, window, at_ns, told)
                alert = window.alert
                yield AlertMark(
                    alert_id=alert.alert_id, rule=alert.rule, priority=alert.priority, state="resolved", dedup_key=key, count=window.count
                )

    # --- what is told -----------------------------------------------------------------------------------------------------

    def _turn(self, line: _Line, now_ns: int, told: list[Alert]) -> None:
        """Begin another minute of a rule's bound where one is over."""
        minute = now_ns // _MINUTE_NS
        if minute > line.minute or minute < line.minute - 1:
            self._rest(line, told)
            line.minute, line.told = minute, 0

    def _rest(self, line: _Line, told: list[Alert]) -> None:
        """One message for all that a minute's bound left out."""
        if not line.left_out or line.last_left_out is None:
            return
        key = f"{line.rule.name}/{_REST}"
        self._tell(
            msgspec.structs.replace(
                line.last_left_out,
                alert_id=alert_id_of(line.rule.name, key, line.minute),
                dedup_key=key,
                count=line.left_out,
                findings=[],
                deviations=[],
                tenant=None,
                summary=f"{line.rule.name}: {line.left_out:,} more alerts in one minute, over its bound of {line.rule.per_minute:,}",
            ),
            told,
        )
        line.left_out, line.last_left_out = 0, None

    def _tell(self, alert: Alert, told: list[Alert]) -> None:
        self._told[alert.rule, alert.priority] += 1
        told.append(alert)

    def _alert(
        self, rule: Rule, priority: Priority, key: str, exchange: Exchange, values: dict[str, Any], at_ns: int, analysis_ms: float | None
    ) -> Alert:
        process = exchange.process
        grave_first = sorted(counting(exchange), key=lambda finding: -rank(finding.severity))[:_MOST]
        return Alert(
            alert_id=alert_id_of(rule.name, key, at_ns),
            rule=rule.name,
            priority=priority,
            dedup_key=key,
            at_ns=at_ns,
            opened_ns=at_ns,
            condition=rule.written,
            summary=_summary(rule, exchange, values),
            exchange_id=exchange.exchange_id,
            trace_id=exchange.trace_id,
            tenant=name_of(exchange.tenant),
            node=exchange.node,
            process=name_of(process.comm) if process else None,
            pod=name_of(process.pod) if process else None,
            namespace=name_of(process.namespace) if process else None,
            client=exchange.client,
            server=exchange.server,
            provider=exchange.provider,
            model=name_of(values["model"]),
            risk_score=exchange.risk_score,
            security_score=exchange.security_score,
            pii_types=exchange.pii_types,
            cost_multiplier=values.get("cost_multiplier"),
            error_rate_5m=values.get("error_rate_5m"),
            analysis_ms=analysis_ms,
            findings=[
                AlertFinding(
                    finding_id=finding.finding_id,
                    rule_id=finding.rule_id,
                    category=finding.category,
                    type=finding.type,
                    severity=finding.severity,
                    part=finding.location.part,
                    explanation=finding.explanation,
                    preview=finding.preview if self._previews else "",
                )
                for finding in grave_first
            ],
            deviations=[_plain(deviation) for deviation in exchange.deviations[:_MOST]],
            channels=list(self._route(exchange.tenant) or rule.channels),
        )


def alert_id_of(rule: str, key: str, opened_ns: int) -> str:
    return blake2b(f"{rule}\0{key}\0{opened_ns}".encode(errors="surrogatepass"), digest_size=12).hexdigest()


def _bare(alert: Alert) -> Alert:
    return msgspec.structs.replace(alert, findings=[], deviations=[])


def _failing(deviations: Iterable[Deviation]) -> str | None:
    return next((deviation.subject for deviation in deviations if deviation.kind in _DOWN), None)


def _plain(deviation: Deviation) -> Deviation:
    return msgspec.structs.replace(
        deviation, subject=name_of(deviation.subject) or "", explanation=name_of(deviation.explanation, 500) or ""
    )


def _summary(rule: Rule, exchange: Exchange, values: dict[str, Any]) -> str:
    """One line: the rule, what was seen, whose."""
    asked = rule.condition.fields if rule.condition is not None else frozenset(FINDING_FIELDS)
    seen: list[str] = []
    if values.get("cost_multiplier") is not None and "cost_multiplier" in asked:
        seen.append(f"cost is {values['cost_multiplier']:.1f} times the usual")
    if values.get("error_rate_5m") is not None and "error_rate_5m" in asked:
        seen.append(f"{values['error_rate_5m']:.0%} of the requests of five minutes failed")
    if not asked.isdisjoint(("deviation_kinds", "deviation_severity")):
        seen += [name_of(deviation.explanation or deviation.kind, 200) or "" for deviation in exchange.deviations[:3]]
    if values["types"] and not asked.isdisjoint(FINDING_FIELDS):
        more = len(values["types"]) - 5
        seen.append(", ".join(values["types"][:5]) + (f" and {more} more" if more > 0 else "") + f" ({values['severity']})")
    whose: list[tuple[Literal["tenant", "model", "provider", "node"], str | None]] = [
        ("tenant", exchange.tenant),
        ("model", values["model"]),
        ("provider", exchange.provider),
        ("node", exchange.node),
    ]
    of = ", ".join(f"{name} {name_of(value, 80)}" for name, value in whose if value)
    return f"{rule.name}: {'; '.join(seen) or rule.written}" + (f" ({of})" if of else "")
