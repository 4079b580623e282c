"""The agent: a capture that a file describes, with health, metrics, notification and reload around it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from llmsec_agent.alerting.plan import plan_of as alert_plan_of
from llmsec_agent.alerting.process import AlertSender
from llmsec_agent.attach import read_offsets
from llmsec_agent.capture_settings import CaptureSettings, looks_at_plain, node_name
from llmsec_agent.capturing import CapturePlan, capture_with
from llmsec_agent.config import Config, Loaded, load_all
from llmsec_agent.config.channels import CHANNELS
from llmsec_agent.config.retention import retention_of
from llmsec_agent.config.show import digest_of
from llmsec_agent.custom_metrics import families
from llmsec_agent.deliver import Deliverer, plan_of
from llmsec_agent.exposer import Exposer, TLSFiles
from llmsec_agent.journals import StandardError, Style
from llmsec_agent.journals import journal as new_journal
from llmsec_agent.kept import end
from llmsec_agent.notify import Notify
from llmsec_agent.reload import Reload
from llmsec_agent.shares import decoders
from llmsec_agent.telemetry.plan import telemetry_plan
from llmsec_agent.telemetry.process import TelemetrySender
from llmsec_agent.tenants.tiers import tier_plan
from llmsec_agent.text import report
from llmsec_tap import privileges
from llmsec_tap.capture.probes.selection import Selection
from llmsec_tap.errors import ConfigError
from llmsec_tap.journal import Level

if TYPE_CHECKING:
    from llmsec_agent.receiving.receiver import Receiver

_LEVELS: Final = {"debug": Level.DEBUG, "info": Level.INFO, "warn": Level.WARNING, "error": Level.ERROR}
_OFF: Final = "none"


def run_agent(path: str | None) -> int:
    """Until told to stop; the exit code. Raises ConfigError for a wrong file, and what attaching and opening raise."""
    loaded = load_all(path, report)
    config = loaded.config
    if config.capture.user is not None:
        os.environ[privileges.USER_VARIABLE] = config.capture.user
    privileges.unprivileged_user()  # a wrong name ends the command before anything is attached
    journal = new_journal(_style(config))
    notify = Notify()
    deliverer: Deliverer | None = None
    telemetry: TelemetrySender | None = None
    sender: AlertSender | None = None
    plan = _plan(loaded, path, journal, notify, lambda changed: _resend(deliverer, sender, telemetry, changed))
    deliverer = _deliverer(config, journal)
    telemetry = _telemetry(config, journal)
    sender = _alert_sender(config, journal)
    if sender is not None:
        plan = replace(plan, poke=sender.poke)
    receiver = _receiver(config)
    exposer = _exposer(config, plan.decoders)
    try:
        return capture_with(plan, journal, exposer, receiver)
    finally:
        notify.stopping()
        if receiver is not None:
            receiver.keep(None)
        end([kept for kept in (deliverer, telemetry, sender) if kept is not None])
        if exposer is not None:
            exposer.keep(None)
            exposer.end()


def _plan(
    loaded: Loaded, path: str | None, journal: StandardError, notify: Notify, redeliver: Callable[[Config], list[str]]
) -> CapturePlan:
    config = loaded.config
    capture = config.capture
    selection = selection_of(config)
    if selection.is_empty and not capture.interfaces and config.sdk.socket is None:
        raise ConfigError(
            f"{loaded.file or 'the configuration'}: nothing to capture",
            "Set capture.all, pids, comms, containers, labels or interfaces, or sdk.socket.",
        )
    return CapturePlan(
        selection=selection,
        finder=read_offsets(None, capture.offsets_file, fast=capture.fast_probes in (True, "auto")),
        backend=capture.backend,
        ring_bytes=capture.ring_size,
        settings=CaptureSettings(
            interfaces=capture.interfaces,
            ports=frozenset(capture.ports) or None,
            store=None if config.storage.path == _OFF else config.storage.path,
            content=config.storage.content != "none",
            memory_cap_bytes=capture.memory_cap,
            retention=retention_of(config),
            watch_keys=loaded.sets("tenants") and config.tenants.watch_keys,
            configuration={"state": "started", "file": str(loaded.file or ""), "sha256": digest_of(loaded)},
            flush_s=config.storage.flush_interval,
            survive=True,
            plain=looks_at_plain(capture.plain, interfaces=capture.interfaces),
            observes=not selection.is_empty,
            node=node_name(capture.node),
            custom_metrics=config.observability.metrics.custom_metrics,
        ),
        tenants=tier_plan(config.storage.postgres, config.storage.redis),
        decoders=decoders(capture.decoders, capture.memory_cap, len(os.sched_getaffinity(0))),
        plain=capture.plain,
        detect=True,
        redact=config.storage.content == "redacted",
        load=lambda _report: loaded,
        on_alive=notify.alive,
        alerts=True,
        reload=lambda warden: Reload(
            loaded, lambda: load_all(path), _style, journal, lambda config: warden.update(selection_of(config)), warden.tell, redeliver
        ),
    )


def selection_of(config: Config) -> Selection:
    capture = config.capture
    return Selection(
        pids=capture.pids,
        comms=capture.comms,
        containers=capture.containers,
        labels=tuple(sorted(capture.labels.items())),
        everything=capture.all,
        follow_forks=capture.follow_children,
    )


def _deliverer(config: Config, journal: StandardError) -> Deliverer | None:
    """The process that copies the store to ClickHouse, where the file names one."""
    settings, path = config.storage.clickhouse, config.storage.path
    if settings is None:
        return None
    if path == _OFF:
        raise ConfigError("storage.clickhouse needs a folder to deliver from", "Set storage.path, and storage.retention to bound it.")
    return Deliverer.begin(plan_of(path, settings), journal)


def _alert_sender(config: Config, journal: StandardError) -> AlertSender | None:
    """The process that sends alerts, where the file names a channel."""
    if all(getattr(config.alerting.channels, name) is None for name in CHANNELS):
        return None
    if config.storage.path == _OFF:
        raise ConfigError("alerting.channels needs a folder that alerts are sent from", "Set storage.path.")
    return AlertSender.begin(alert_plan_of(config.storage.path, config.alerting), journal)


def _redeliver(deliverer: Deliverer | None, sender: AlertSender | None, config: Config) -> list[str]:
    """Go over to what the file says now of the database and of channels; what needs more than that.

    Raises ConfigError, with nothing changed.
    """
    settings = config.storage.clickhouse
    has_channels = any(getattr(config.alerting.channels, name) is not None for name in CHANNELS)
    sentences = []
    delivery = plan_of(config.storage.path, settings) if deliverer is not None and settings is not None else None
    if (deliverer is None) != (settings is None):
        sentences.append("needs a restart: storage.clickhouse")
    alerts = alert_plan_of(config.storage.path, config.alerting) if sender is not None else None
    if sender is None and has_channels:
        sentences.append("needs a restart: alerting.channels")
    if deliverer is not None and delivery is not None:
        sentences += deliverer.change(delivery)
    if sender is not None and alerts is not None:
        sender.change(alerts)
    return sentences


def _telemetry(config: Config, journal: StandardError) -> TelemetrySender | None:
    """The process that sends spans and metrics to a collector, where the file names one."""
    path = config.storage.path
    plan = telemetry_plan(path, config.observability)
    if plan is None:
        return None
    if path == _OFF:
        raise ConfigError(
            "observability.tracing and metrics.otlp need a folder to read from", "Set storage.path, and storage.retention to bound it."
        )
    return TelemetrySender.begin(plan, journal)


def _resend(deliverer: Deliverer | None, sender: AlertSender | None, telemetry: TelemetrySender | None, config: Config) -> list[str]:
    """Go over to what the file says now of the database, channels and collectors; what needs more than that.

    Raises ConfigError, with nothing changed.
    """
    plan = telemetry_plan(config.storage.path, config.observability)
    sentences = _redeliver(deliverer, sender, config)
    if telemetry is None or plan is None:
        is_same = telemetry is None and plan is None
        return sentences if is_same else [*sentences, "needs a restart: observability.tracing, observability.metrics.otlp"]
    telemetry.change(plan)
    return sentences


def _style(config: Config) -> Style:
    logging = config.observability.logging
    return Style(_LEVELS[logging.level], logging.format == "json", logging.include_fields)


def _receiver(config: Config) -> Receiver | None:
    sdk = config.sdk
    if sdk.socket is None:
        return None
    from llmsec_agent.receiving.receiver import Place, Receiver  # the warden needs none of it

    return Receiver.start(Place(sdk.socket, int(sdk.mode, 8), sdk.group))


def _exposer(config: Config, decoders: int) -> Exposer | None:
    """None where both listeners are switched off."""
    server, metrics = config.server, config.observability.metrics
    paths: dict[tuple[str, int], tuple[str, ...]] = {}
    if server.bind_address != _OFF:
        paths[_address(server.bind_address)] = ("/health", "/ready")
    if metrics.enabled:
        address = metrics.address, metrics.port
        paths[address] = (*paths.get(address, ()), metrics.path)
    if not paths:
        return None
    tls = server.tls
    files = None
    if tls.enabled:
        if tls.cert_file is None or tls.key_file is None:
            raise ConfigError("server.tls: cert_file and key_file are needed", "Name both, or neither and set enabled: false.")
        files = TLSFiles(tls.cert_file, tls.key_file, tls.client_auth, tls.client_ca_file)
    return Exposer.start(paths, files, decoders=decoders, custom=families(metrics.custom_metrics))


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or not 0 < int(port) < 65_536:
        raise ConfigError(f"server.bind_address: {text!r} is not `host:port`", "For example 127.0.0.1:8080, or none.")
    return host.strip("[]") or socket.gethostbyname("localhost"), int(port)
