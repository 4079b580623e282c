"""Looks at each exchange as it ends, and says what is unusual about it: one pass over facts, a few microseconds, no text kept.

A deviation is told once, and again after an hour of the same (`_AGAIN_NS`). Names of kinds are listed in docs/deviations.md.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from typing import Final, get_args

from llmsec_analyzer.settings import AnomalySettings, RateSettings
from llmsec_analyzer.watch.prices import Prices
from llmsec_analyzer.watch.subjects import (
    Canary,
    Client,
    Everyone,
    Key,
    Model,
    Session,
    Subject,
    Subjects,
    Tenant,
    Upstream,
    is_new,
)
from llmsec_analyzer.watch.windows import Baseline
from llmsec_tap.counters import Sample, by_label
from llmsec_tap.model import Deviation, Exchange, Severity

SECOND_NS: Final = 1_000_000_000
MINUTE_NS: Final = 60 * SECOND_NS
ERRORS_SPAN_NS: Final = 5 * MINUTE_NS
COST_SPAN_NS: Final = 5 * MINUTE_NS
SHARES_SPAN_NS: Final = 15 * MINUTE_NS
CLIENT_SPAN_NS: Final = 10 * MINUTE_NS
_AGAIN_NS: Final = 60 * MINUTE_NS
# A capture file may step back; beyond this, what is known of "now" is no guide.
_STEP_BACK_NS: Final = 10 * MINUTE_NS
# Spans that a baseline needs before anything is measured by it.
_LEAST_SPANS: Final = 10
_LEAST_ERRORS_OF: Final = 20
_LEAST_ERRORS: Final = 5
_ERROR_SHARE: Final = 0.1
_LEAST_SHARE_OF: Final = 30
_LOOK_AT: Final = 24  # latencies
_LEAST_KEY: Final = 50  # exchanges of a key before something new with it is news
_FAILURES: Final = 3  # in a row: an upstream is unhealthy (the original design's retries)
_EXTRACTION_ASKED: Final = 200
_EXTRACTION_SHARE: Final = 0.8
_SCRAPES: Final = 3
_LOOP: Final = 6
_LOOP_GRAVE: Final = 20
_NEAR: Final = 0.05
_GATEWAY: Final = {502: "upstream_unavailable", 503: "upstream_unavailable", 504: "timeout"}
_SEVERITIES: Final = get_args(Severity)
_INJECTIONS: Final = frozenset(("prompt_injection", "jailbreak"))
_GRAVE: Final = frozenset(("medium", "high", "critical"))


@dataclass(frozen=True)
class UpstreamLimit:
    """What an upstream allows a minute, as the configuration says. `hosts`: `host:port` as on records."""

    name: str
    requests_per_minute: int | None
    tokens_per_minute: int | None


@dataclass(frozen=True)
class WatchSettings:
    anomalies: AnomalySettings = field(default_factory=AnomalySettings)
    rates: RateSettings = field(default_factory=RateSettings)
    tenant_requests_per_minute: Mapping[str, int] | None = None
    upstream_limits: Mapping[str, UpstreamLimit] | None = None  # by provider


@dataclass(frozen=True)
class Gauge:
    """What conditions of alerts ask for, as it is after an exchange. None: not known yet."""

    cost_multiplier: float | None = None
    error_rate_5m: float | None = None


class Watcher:
    """`look` adds `cost_usd` and `deviations` to an exchange. One thread."""

    def __init__(self, settings: WatchSettings, prices: Prices, subjects: Subjects | None = None) -> None:
        self.settings = settings
        self.prices = prices
        self.subjects = subjects if subjects is not None else Subjects()
        self._now_ns = 0
        self._told: Counter[str] = Counter()
        self._priced: Counter[bool] = Counter()
        self.gauge = Gauge()

    def look(self, exchange: Exchange) -> None:
        self.gauge = Gauge()
        if not exchange.is_request:
            return
        exchange.cost_usd = self.prices.cost_usd(exchange)
        self._priced[exchange.cost_usd is not None] += 1
        at_ns = exchange.ended_ns or exchange.started_ns
        if not self.settings.anomalies.enabled or at_ns is None:
            return
        if at_ns > self._now_ns or self._now_ns - at_ns > _STEP_BACK_NS:
            self._now_ns = at_ns
        found: list[Deviation] = []
        look = _Look(self, exchange, self._now_ns, found)
        self.gauge = look.tenant()
        look.everyone()
        look.upstream()
        look.latency()
        look.key()
        look.client()
        look.session()
        look.canaries()
        if found:
            exchange.deviations = found
            self._told.update(deviation.kind for deviation in found)

    def samples(self) -> Iterable[Sample]:
        yield from by_label("llmsec_deviations_total", "kind", self._told)
        yield Sample("llmsec_watched_subjects", len(self.subjects))
        yield Sample("llmsec_forgotten_subjects_total", self.subjects.forgotten_total)
        yield Sample("llmsec_unpriced_exchanges_total", self._priced[False])


class _Look:
    """One exchange, looked at from each side."""

    def __init__(self, watcher: Watcher, exchange: Exchange, now_ns: int, found: list[Deviation]) -> None:
        self._settings = watcher.settings
        self._subjects = watcher.subjects
        self._exchange = exchange
        self._now_ns = now_ns
        self._found = found
        self._is_error = is_error(exchange)
        self._tokens = tokens_of(exchange)

    def _tell(
        self,
        subject: Subject,
        kind: str,
        severity: Severity,
        scope: str,
        name: str,
        explanation: str,
        *,
        value: float,
        usual: float | None = None,
        line: float | None = None,
        span_ns: int | None = None,
        observations: int | None = None,
        again_ns: int = _AGAIN_NS,
    ) -> None:
        # The same again, but graver, is news.
        for word in _SEVERITIES[_SEVERITIES.index(severity) :]:
            last = subject.told.get(f"{kind} {word}")
            if last is not None and 0 <= self._now_ns - last < again_ns:
                return
        subject.told = {**subject.told, f"{kind} {severity}": self._now_ns}
        self._found.append(
            Deviation(
                kind=kind,
                severity=severity,
                scope=scope,
                subject=name,
                value=round(value, 6),
                usual=None if usual is None else round(usual, 6),
                line=None if line is None else round(line, 6),
                span_s=None if span_ns is None else span_ns / SECOND_NS,
                observations=observations,
                explanation=explanation,
            )
        )

    # --- a tenant -----------------------------------------------------------------------------------------------------

    def tenant(self) -> Gauge:
        name = self._exchange.tenant or ""
        tenant = self._subjects.of(Tenant, name)
        self._rates(tenant, name)
        errors = self._errors(tenant, name)
        self._answers(tenant, name)
        return Gauge(self._cost(tenant, name), errors)

    def _rates(self, tenant: Tenant, name: str) -> None:
        now_ns, limits = self._now_ns, self._settings.anomalies
        requests, tokens = tenant.rates.add(now_ns, MINUTE_NS, 1, self._tokens)
        own = (self._settings.tenant_requests_per_minute or {}).get(name)
        if requests > limits.request_rate_threshold:
            self._tell(
                tenant, "request_rate", "medium", "tenant", name, f"about {requests:,.0f} requests in a minute",
                value=requests, line=limits.request_rate_threshold, span_ns=MINUTE_NS,
            )  # fmt: skip
        if own is not None and requests > own:
            self._tell(
                tenant, "tenant_limit", "low", "tenant", name, f"about {requests:,.0f} requests in a minute; its own limit is {own:,}",
                value=requests, line=own, span_ns=MINUTE_NS,
            )  # fmt: skip
        if tokens > limits.token_velocity_threshold:
            self._tell(
                tenant, "token_velocity", "medium", "tenant", name, f"about {tokens:,.0f} tokens in a minute",
                value=tokens, line=limits.token_velocity_threshold, span_ns=MINUTE_NS,
            )  # fmt: skip
        rate = self._settings.rates.per_tenant
        if _is_over(tenant, now_ns, rate.default_rps, rate.default_burst):
            self._tell(
                tenant, "rate_limit", "low", "tenant", name,
                f"more than {rate.default_rps:,} requests a second after a burst of {rate.default_burst:,}",
                value=requests, line=rate.default_rps * 60, span_ns=MINUTE_NS,
            )  # fmt: skip

    def _errors(self, tenant: Tenant, name: str) -> float | None:
        count, failed = tenant.errors.add(self._now_ns, ERRORS_SPAN_NS, 1, self._is_error)
        share = failed / count if count >= _LEAST_ERRORS_OF else None
        if share is not None and share > _ERROR_SHARE and failed >= _LEAST_ERRORS:
            # Beyond what chance makes of a share that is just at the line.
            is_sure = failed > _ERROR_SHARE * count + 2 * (count * _ERROR_SHARE * (1 - _ERROR_SHARE)) ** 0.5
            self._tell(
                tenant, "error_rate", "high" if is_sure else "medium", "tenant", name,
                f"{share:.0%} of about {count:.0f} requests of five minutes failed",
                value=share, line=_ERROR_SHARE, span_ns=ERRORS_SPAN_NS,
            )  # fmt: skip
        return share

    def _cost(self, tenant: Tenant, name: str) -> float | None:
        """How many times its usual cost of five minutes this tenant has come to in these."""
        span = self._now_ns // COST_SPAN_NS
        if span > tenant.cost_of or span < tenant.cost_of - 1:
            if tenant.cost > 0:
                tenant.usual_cost.add(tenant.cost, tenant.cost_of * COST_SPAN_NS, tenant.cost_ever / max(1, tenant.priced))
            tenant.cost, tenant.cost_of = 0.0, span
        cost = self._exchange.cost_usd
        if cost is not None:
            tenant.cost += cost
            tenant.cost_ever += cost
            tenant.priced += 1
        if not tenant.priced:
            return None
        each = tenant.cost_ever / tenant.priced
        usual = tenant.usual_cost.usual(self._now_ns, least=_LEAST_SPANS, unit=each)
        if usual is None or usual.value <= 0:
            return None
        times = tenant.cost / usual.value
        if times > self._settings.anomalies.cost_threshold_multiplier and tenant.cost > usual.line:
            is_grave = not usual.is_cold and tenant.cost > usual.grave and times > 2 * self._settings.anomalies.cost_threshold_multiplier
            self._tell(
                tenant, "cost", "high" if is_grave else "medium", "tenant", name,
                f"${tenant.cost:,.4f} in five minutes, {times:.1f} times the usual ${usual.value:,.4f}{_cold(usual.is_cold)}",
                value=tenant.cost, usual=usual.value, line=usual.line, span_ns=COST_SPAN_NS, observations=usual.observations,
            )  # fmt: skip
        return times

    def _answers(self, tenant: Tenant, name: str) -> None:
        """The share of answers that refuse, and of requests that were taken for attacks."""
        now_ns = self._now_ns
        does_refuse, is_attack = refuses(self._exchange), attacks(self._exchange)
        count, refused, attacked = tenant.answers.add(now_ns, SHARES_SPAN_NS, 1, does_refuse, is_attack)
        if count < _LEAST_SHARE_OF:
            return
        span = now_ns // SHARES_SPAN_NS
        if span != tenant.shares_of:
            if len(tenant.shares) == 2:
                tenant.usual_refusals.add(tenant.shares[0], now_ns)
                tenant.usual_injections.add(tenant.shares[1], now_ns)
            tenant.shares_of = span
        tenant.shares = [refused / count, attacked / count]
        if does_refuse:
            self._share(tenant, name, "refusal_rate", "medium", "answers refuse", refused, count, tenant.usual_refusals)
        if is_attack:
            self._share(tenant, name, "injection_rate", "high", "requests were taken for attacks", attacked, count, tenant.usual_injections)

    def _share(
        self, tenant: Tenant, name: str, kind: str, severity: Severity, what: str, had: float, count: float, usual: Baseline
    ) -> None:
        value = had / count
        if value <= _ERROR_SHARE:
            return
        known = usual.usual(self._now_ns, least=4, unit=1 / count)
        base, line = (known.value, known.line) if known is not None else (0.0, 0.5)
        if value > max(line, 3 * base):
            is_cold = known is None or known.is_cold
            self._tell(
                tenant, kind, "medium" if is_cold else severity, "tenant", name,
                f"{value:.0%} of {what} in a quarter of an hour, usually {base:.0%}{_cold(is_cold)}",
                value=value, usual=base, line=line, span_ns=SHARES_SPAN_NS, observations=usual.observations,
            )  # fmt: skip

    # --- all callers ----------------------------------------------------------------------------------------------------

    def everyone(self) -> None:
        rate = self._settings.rates.everyone
        everyone = self._subjects.of(Everyone, "")
        if _is_over(everyone, self._now_ns, rate.requests_per_second, rate.burst_size):
            self._tell(
                everyone, "rate_limit", "low", "global", "",
                f"more than {rate.requests_per_second:,} requests a second after a burst of {rate.burst_size:,}",
                value=rate.requests_per_second, line=rate.requests_per_second, span_ns=SECOND_NS,
            )  # fmt: skip

    # --- an upstream ----------------------------------------------------------------------------------------------------

    def upstream(self) -> None:
        exchange, now_ns = self._exchange, self._now_ns
        name = exchange.server
        upstream = self._subjects.of(Upstream, name)
        failure = failure_of(exchange)
        upstream.failed = upstream.failed + 1 if failure else 0
        is_limited = exchange.status == 429
        count, failures, limited = upstream.answers.add(now_ns, ERRORS_SPAN_NS, 1, bool(failure) or exchange.status == 500, is_limited)
        share = failures / count if count >= _LEAST_ERRORS_OF else None
        was = upstream.state
        figure, line = float(upstream.failed), float(_FAILURES)
        if upstream.failed >= _FAILURES:
            upstream.state, upstream.reason = "unhealthy", f"{upstream.failed} failures in a row, the last: {failure}"
        elif share is not None and share > _ERROR_SHARE:
            upstream.state, upstream.reason = "degraded", f"{share:.0%} of the answers of five minutes were failures"
            figure, line = share, _ERROR_SHARE
        elif exchange.status == 429 and limited >= _FAILURES:
            upstream.state, upstream.reason = "degraded", f"it turned about {limited:.0f} requests away in five minutes (429)"
            figure = limited
        elif not self._is_error and (was != "degraded" or limited < _FAILURES):
            upstream.state, upstream.reason = "healthy", ""
        if upstream.state != was:
            upstream.since_ns = now_ns
            severity: Severity = {"healthy": "info", "degraded": "medium", "unhealthy": "high"}[upstream.state]  # type: ignore[assignment]
            self._tell(
                upstream, f"upstream_{upstream.state}", severity, "upstream", name,
                f"upstream {name} {upstream.state}" + (f" ({upstream.reason})" if upstream.reason else f", after {was}"),
                value=figure, line=line if upstream.reason else None, again_ns=MINUTE_NS,
            )  # fmt: skip
        self._limits(upstream, name)

    def _limits(self, upstream: Upstream, name: str) -> None:
        exchange, now_ns = self._exchange, self._now_ns
        own = (self._settings.upstream_limits or {}).get(exchange.provider or "")
        if own is not None:
            requests, tokens = upstream.rates.add(now_ns, MINUTE_NS, 1, self._tokens)
            rows = (("requests", requests, own.requests_per_minute), ("tokens", tokens, own.tokens_per_minute))
            for what, value, most in rows:
                if most is not None and value > most:
                    self._tell(
                        upstream, f"upstream_{what}_limit", "low", "upstream", own.name,
                        f"about {value:,.0f} {what} in a minute; `backends.{own.name}` allows {most:,}",
                        value=value, line=most, span_ns=MINUTE_NS,
                    )  # fmt: skip
        if exchange.rate_limit is not None:
            limits, left = exchange.rate_limit.limits, exchange.rate_limit.remaining
            for what, most, rest in (("requests", limits.requests, left.requests), ("tokens", limits.tokens, left.tokens)):
                if most and rest is not None and 0 <= rest < _NEAR * most:
                    self._tell(
                        upstream, f"{what}_limit_near", "low", "upstream", name,
                        f"the server leaves {rest:,} of {most:,} {what}",
                        value=rest, line=_NEAR * most,
                    )  # fmt: skip

    # --- how long a model takes -----------------------------------------------------------------------------------------

    def latency(self) -> None:
        exchange = self._exchange
        if self._is_error or exchange.started_ns is None or exchange.ended_ns is None:
            return
        name = f"{exchange.server} {exchange.response_model or exchange.request_model or ''}"
        model = self._subjects.of(Model, name)
        took_ms = (exchange.ended_ns - exchange.started_ns) / 1e6
        # Of a stream, the first token says how busy the server is; how long the rest takes, the answer's length says as well.
        if exchange.ttft_ms is not None:
            self._shift(
                model, name, "first_token_time", "first tokens came after", model.first_tokens, model.usual_first_token, exchange.ttft_ms
            )
        elif not exchange.streaming:
            self._shift(model, name, "latency", "answers took", model.durations, model.usual_duration, took_ms)

    def _shift(self, model: Model, name: str, kind: str, what: str, values: list[float], usual: Baseline, value: float) -> None:
        values.append(value)
        if len(values) < _LOOK_AT:
            return
        middle = sorted(values)[_LOOK_AT // 2]
        values.clear()
        known = usual.usual(self._now_ns, least=_LEAST_SPANS)
        if known is not None and middle > max(2 * known.value, known.line):
            self._tell(
                model, kind, "medium", "model", name,
                f"{what} {middle:,.0f} ms (median of {_LOOK_AT}), usually {known.value:,.0f} ms{_cold(known.is_cold)}",
                value=middle, usual=known.value, line=known.line, observations=known.observations,
            )  # fmt: skip
        usual.add(middle, self._now_ns)

    # --- a key ----------------------------------------------------------------------------------------------------------

    def key(self) -> None:
        exchange = self._exchange
        name = exchange.api_key_fingerprint
        if name is None:
            return
        key = self._subjects.of(Key, name)
        key.exchanges += 1
        is_known = key.exchanges > _LEAST_KEY
        model = exchange.request_model or exchange.response_model
        if model and is_new(key.models, hash_of(model)) and is_known:
            self._new(key, "new_model", name, f"the model {model[:80]!r}", "low")
        for tool in exchange.request.tools[:64]:
            if is_new(key.tools, hash_of(tool.name)) and is_known:
                self._new(key, "new_tool", name, f"the tool {tool.name[:80]!r}", "low")
        network = network_of(exchange.forwarded_client or exchange.client)
        if network is not None and is_new(key.networks, hash_of(network)) and is_known:
            self._new(key, "new_network", name, f"the network {network}", "medium")
        if is_known and any(anomaly.name == "key_new_workload" for anomaly in exchange.anomalies):
            self._new(key, "new_workload", name, "another workload", "medium")

    def _new(self, key: Key, kind: str, name: str, what: str, severity: Severity) -> None:
        self._tell(
            key, kind, severity, "key", name, f"first seen with {what}, after {key.exchanges - 1:,} exchanges without",
            value=1, usual=0, observations=key.exchanges - 1, again_ns=MINUTE_NS,
        )  # fmt: skip

    # --- who asks -------------------------------------------------------------------------------------------------------

    def client(self) -> None:
        exchange, now_ns = self._exchange, self._now_ns
        name = exchange.end_user or exchange.api_key_fingerprint or (exchange.forwarded_client or exchange.client).rpartition(":")[0]
        client = self._subjects.of(Client, name)
        text = exchange.input_text or ""
        is_fresh = bool(text) and is_new(client.lately, hash_of(f"{len(text)} {text[-512:]}"))
        asked, probing, fresh = client.asked.add(now_ns, CLIENT_SPAN_NS, 1, probes(exchange), is_fresh)
        if asked >= _EXTRACTION_ASKED and probing >= _EXTRACTION_SHARE * asked and fresh >= _EXTRACTION_SHARE * asked:
            self._tell(
                client, "model_extraction", "high", "client", name,
                f"about {asked:,.0f} requests in ten minutes, {fresh / asked:.0%} of them new texts and {probing / asked:.0%} asking for"
                " probabilities or single tokens: the shape of copying a model",
                value=asked, line=_EXTRACTION_ASKED, span_ns=CLIENT_SPAN_NS,
            )  # fmt: skip
        if any(
            finding.category == "system_prompt_leak" and finding.severity in _GRAVE and finding.suppressed is None
            for finding in exchange.findings
        ):
            (scrapes,) = client.scrapes.add(now_ns, CLIENT_SPAN_NS, 1)
            if scrapes >= _SCRAPES:
                self._tell(
                    client, "system_prompt_scraping", "high", "client", name,
                    f"about {scrapes:.0f} attempts in ten minutes to have a system prompt told",
                    value=scrapes, line=_SCRAPES, span_ns=CLIENT_SPAN_NS,
                )  # fmt: skip

    # --- a conversation ---------------------------------------------------------------------------------------------------

    def session(self) -> None:
        exchange = self._exchange
        calls = exchange.tool_calls
        if not calls:
            return
        name = exchange.session_id or f"{exchange.api_key_fingerprint or ''} {exchange.client.rpartition(':')[0]}"
        session = self._subjects.of(Session, name)
        call = hash_of("\0".join(f"{each.name}\0{(each.arguments or '')[:2048]}" for each in calls[:16]))
        session.times = session.times + 1 if call == session.call and self._now_ns - session.last_ns < _AGAIN_NS else 1
        session.call, session.last_ns = call, self._now_ns
        if session.times in (_LOOP, _LOOP_GRAVE):
            self._tell(
                session, "agent_loop" if session.times == _LOOP else "agent_loop_lasting", "medium" if session.times == _LOOP else "high",
                "session", name, f"the same call of {(calls[0].name or '?')[:80]!r} came {session.times} times in a row",
                value=session.times, line=_LOOP,
            )  # fmt: skip

    def canaries(self) -> None:
        exchange = self._exchange
        for finding in exchange.findings:
            if finding.rule_id != "output.canary" or finding.suppressed is not None:
                continue
            canary = self._subjects.of(Canary, finding.fingerprint)
            here = hash_of(exchange.exchange_id)
            if not canary.exchange:
                canary.exchange = here
            elif canary.exchange != here:
                self._tell(
                    canary, "canary_again", "critical", "canary", finding.fingerprint,
                    "a canary of the configuration came out a second time", value=2, line=1,
                )  # fmt: skip


def _is_over(subject: Tenant | Everyone, now_ns: int, per_second: int, burst: int) -> bool:
    """A token bucket: whether this request finds it empty."""
    if subject.bucket is None:
        subject.bucket, subject.filled_ns = float(burst), now_ns
    passed_ns = max(0, now_ns - subject.filled_ns)
    subject.bucket = min(float(burst), subject.bucket + passed_ns * per_second / SECOND_NS)
    subject.filled_ns = now_ns
    if subject.bucket < 1:
        return True
    subject.bucket -= 1
    return False


def _cold(is_cold: bool) -> str:
    return "; cold start: no day was seen yet" if is_cold else ""


def hash_of(text: str) -> int:
    """63 bits, the same on each run."""
    return int.from_bytes(blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()) >> 1


def tokens_of(exchange: Exchange) -> int:
    usage, estimated = exchange.usage, exchange.usage_estimated
    read, written = usage.input_tokens, usage.output_tokens
    if estimated is not None:
        read = estimated.input_tokens if read is None else read
        written = estimated.output_tokens if written is None else written
    return max(0, read or 0) + max(0, written or 0)


def failure_of(exchange: Exchange) -> str:
    """Why an upstream did not serve this; nothing where it did, or where the client is to blame."""
    if exchange.status is not None:
        return _GATEWAY.get(exchange.status, "")
    names = {anomaly.name for anomaly in exchange.anomalies}
    if "tcp_reset" in names:
        return "connection reset"
    return "no answer" if "http_no_response" in names and exchange.completeness != "gapped" else ""


def is_error(exchange: Exchange) -> bool:
    return exchange.error_type is not None or (exchange.status is not None and exchange.status >= 400) or bool(failure_of(exchange))


def refuses(exchange: Exchange) -> bool:
    return exchange.refusal_text is not None or any(reason in ("content_filter", "refusal", "SAFETY") for reason in exchange.finish_reasons)


def attacks(exchange: Exchange) -> bool:
    return any(
        finding.category in _INJECTIONS and finding.severity in _GRAVE and not finding.location.is_in_answer and finding.suppressed is None
        for finding in exchange.findings
    )


def probes(exchange: Exchange) -> bool:
    """It asks for what copies a model: probabilities of tokens, a bias on them, or answers of one token."""
    parameters = exchange.request.parameters
    if any(parameters.get(name) for name in ("logprobs", "top_logprobs", "logit_bias", "prompt_logprobs")):
        return True
    most = parameters.get("max_tokens", parameters.get("max_completion_tokens"))
    return isinstance(most, int) and most == 1


def network_of(address: str) -> str | None:
    """The /16 of a public IPv4 address and the /32 of a public IPv6 one: about a provider in a country."""
    host = address.rpartition(":")[0] if address.count(":") == 1 or address.startswith("[") else address
    return _network(host.strip("[]")) if len(host) <= 64 else None


@lru_cache(8192)
def _network(host: str) -> str | None:
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return None
    if not found.is_global:
        return None
    return str(ipaddress.ip_network((found, 16 if found.version == 4 else 32), strict=False))
