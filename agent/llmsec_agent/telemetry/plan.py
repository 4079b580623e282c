"""What the configuration says of collectors, as the process that sends to them takes it."""

from __future__ import annotations

import time
from base64 import b64encode
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit, urlunsplit

from llmsec_agent.config.endpoints import Protocol, Signal, endpoint_url
from llmsec_agent.config.schema import Observability, OTLPMetrics, Tracing
from llmsec_agent.config.secret import Secret
from llmsec_tap.errors import ConfigError

_LIBRARIES: Final = {"http": "opentelemetry.exporter.otlp.proto.http", "grpc": "opentelemetry.exporter.otlp.proto.grpc"}


@dataclass(frozen=True)
class Collector:
    """`url` has no credentials where it is shown; those are in `headers`. `ca`: PEM, empty for whom the system trusts."""

    url: str
    protocol: Protocol
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    ca_file: str | None = None

    def __str__(self) -> str:
        return self.url


@dataclass(frozen=True)
class TelemetryPlan:
    """Headers are read already, with the rights of whoever started the process. `since_ns`: in a folder that was never sent, parts before it are
    not sent; 0 sends all.
    """

    store: str
    tracing: Tracing
    spans: Collector | None = None
    metrics: Collector | None = None
    interval_s: float = 15.0
    since_ns: int = 0
    name: str = ""  # how the folder is called, where `store` is how this process reaches it

    @property
    def target(self) -> str:
        """What the folder's cursor is of."""
        return f"otlp {self.spans or self.metrics}"


def telemetry_plan(store: str, observability: Observability, *, since_ns: int | None = None) -> TelemetryPlan | None:
    """None where no collector is configured. Raises ConfigError where an address is wrong, a header cannot be read, or a library is missing."""
    tracing, metrics = observability.tracing, observability.metrics.otlp
    if not tracing.enabled and metrics is None:
        return None
    return TelemetryPlan(
        store,
        replace_headers(tracing),
        spans=_collector("observability.tracing", tracing, "traces") if tracing.enabled else None,
        metrics=_collector("observability.metrics.otlp", metrics, "metrics") if metrics is not None else None,
        interval_s=metrics.interval if metrics is not None else 15.0,
        since_ns=time.time_ns() if since_ns is None else since_ns,
    )


def replace_headers(tracing: Tracing) -> Tracing:
    """Without its secrets: a plan holds them read, and is sent from process to process."""
    import msgspec

    return msgspec.structs.replace(tracing, headers={})


def elsewhere(plan: TelemetryPlan, folder: str) -> TelemetryPlan:
    """The plan for a process that is in the folder."""
    return replace(plan, store=".", name=folder)


def _collector(where: str, settings: Tracing | OTLPMetrics, signal: Signal) -> Collector:
    if not _is_installed(_LIBRARIES[settings.protocol]):
        raise ConfigError(f"{where} needs the libraries of OpenTelemetry", "pip install 'llmsec-trace[otlp]'")
    try:
        url = endpoint_url(settings.endpoint, settings.protocol, signal)
    except ValueError as fault:
        raise ConfigError(f"{where}.endpoint: {fault}") from None
    if settings.ca_file is not None:
        try:
            Path(settings.ca_file).read_bytes()
        except OSError as fault:
            raise ConfigError(
                f"{where}.ca_file: cannot read {settings.ca_file}: {fault.strerror}", "give the authority's certificate in PEM"
            ) from None
    url, credentials = _without_credentials(url)
    return Collector(url, settings.protocol, (*credentials, *_read(settings.headers)), settings.ca_file)


def _without_credentials(url: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The address as it may be shown, and the header that says who asks."""
    parts = urlsplit(url)
    if parts.username is None and parts.password is None:
        return url, ()
    both = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    shown = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    return shown, (("authorization", f"Basic {b64encode(both.encode()).decode()}"),)


def _read(headers: dict[str, Secret]) -> tuple[tuple[str, str], ...]:
    return tuple((name.lower(), secret.read()) for name, secret in headers.items())  # gRPC wants lower case, HTTP does not mind


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
