"""The processes of a live capture, of a command as of the agent: the warden, the decoders that it forks, and their helpers.

It imports little before the probes are attached: what the processes say meanwhile waits in the ring.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

from llmsec_agent.attach import attach
from llmsec_agent.capture_settings import CaptureSettings
from llmsec_agent.shares import Shares, ring_of_each
from llmsec_agent.siblings import Sibling, Siblings
from llmsec_agent.text import leave, report
from llmsec_tap.capture.host.kubernetes import PodHelper
from llmsec_tap.capture.packets.packet_socket import open_packet_sockets
from llmsec_tap.capture.probes.selection import Selection
from llmsec_tap.capture.probes.targets import TargetFinder
from llmsec_tap.capture.warden.client import WardenClient
from llmsec_tap.capture.warden.warden import Warden
from llmsec_tap.errors import ConfigError

if TYPE_CHECKING:
    import socket

    from llmsec_agent.config import Loaded
    from llmsec_agent.exposer import Exposer
    from llmsec_agent.receiving.receiver import Receiver
    from llmsec_agent.tenants.tiers import TierPlan
    from llmsec_tap.journal import Journal

_DETECTOR = (sys.executable, "-P", "-m", "llmsec_analyzer.worker")


@dataclass(frozen=True, kw_only=True)
class CapturePlan:
    """`load` reads the configuration, in a decoder and with the caller's rights; its `security` part is what detection goes by.

    `ring_bytes` and the memory cap in `settings` are of all decoders together. Only the first decoder has what is wrong in the file reported.
    """

    selection: Selection
    finder: TargetFinder
    backend: str
    ring_bytes: int
    settings: CaptureSettings
    detect: bool
    redact: bool
    load: Callable[[Callable[[str], None]], Loaded]
    decoders: int = 1
    tenants: TierPlan | None = None  # a database that knows whose keys are
    plain: bool | Literal["auto"] = "auto"  # plain HTTP of the processes
    reload: Callable[[Warden], Callable[[], None]] | None = None  # what SIGHUP asks for
    on_alive: Callable[[], None] = lambda: None
    alerts: bool = False  # the configuration's rules are tried
    poke: Callable[[], None] | None = None  # wakes who sends alerts


def capture_with(plan: CapturePlan, journal: Journal, exposer: Exposer | None = None, receiver: Receiver | None = None) -> int:
    """Until stopped; the exit code, as docs/cli.md has them. Raises what attaching and opening raise, with nothing left behind."""
    selection, interfaces = plan.selection, plan.settings.interfaces
    pods = None if selection.is_empty else PodHelper.start(journal, decoders=plan.decoders, labels=selection.labels)
    if selection.labels and pods is None:
        raise ConfigError(
            "capture.labels: this is not a pod with a service account, so nothing tells which processes belong to which pod",
            "Run it as docs/capture.md says for Kubernetes, or choose by containers, comms or all.",
        )
    resolver = None
    if plan.tenants is not None:
        from llmsec_agent.tenants.resolver import TenantHelper

        resolver = TenantHelper.start(plan.tenants, journal, decoders=plan.decoders)
    siblings = Siblings(plan.decoders)
    chosen = pods.chosen if pods is not None else None
    warden = Warden(journal, _DETECTOR, decoders=plan.decoders, on_alive=plan.on_alive, chosen=chosen)
    if plan.reload is not None:
        warden.on_hangup = plan.reload(warden)
    channel = warden.fork()
    for helper in (pods, exposer, resolver, receiver):
        if helper is not None:
            helper.keep(None if channel is None else channel.number)
    if channel is not None:
        number = channel.number
        pods_socket = pods.sockets[number] if pods is not None else None
        exposer_socket = exposer.sockets[number] if exposer is not None else None
        client = WardenClient(channel.client_socket, channel.stop_pipe)
        tenants_socket = resolver.sockets[number] if resolver is not None else None
        records_socket = receiver.socket if receiver is not None and number == 0 else None
        leave(lambda: _decode(plan, journal, client, siblings.sibling(number), pods_socket, exposer_socket, tenants_socket, records_socket))
    siblings.close()
    helper_pid = pods.pid if pods is not None else 0
    listener_pid = exposer.pid if exposer is not None else 0
    return warden.run(
        lambda: (
            None
            if selection.is_empty
            else attach(
                selection,
                plan.finder,
                plan.backend,
                journal,
                rings=plan.decoders,
                ring_bytes=ring_of_each(plan.ring_bytes, plan.decoders),
                helper_pid=helper_pid,
                listener_pid=listener_pid,
                plain=plan.plain if plan.settings.plain else False,
            )
        ),
        [partial(open_packet_sockets, name, plan.settings.ports, plan.decoders) for name in interfaces],
    )


def _decode(
    plan: CapturePlan,
    journal: Journal,
    warden: WardenClient,
    sibling: Sibling,
    pods: socket.socket | None,
    exposer: socket.socket | None,
    tenants: socket.socket | None,
    records: socket.socket | None,
) -> int:
    from llmsec_agent.alerts_lane import alert_settings, plan_alerts
    from llmsec_agent.capture_run import capture
    from llmsec_agent.config import whose_of
    from llmsec_agent.config.retention import audited_severity
    from llmsec_agent.output import printer
    from llmsec_agent.start_detection import detection_starter
    from llmsec_agent.tenants.directory import RemoteDirectory
    from llmsec_agent.tenants.policy import Policies, file_policies
    from llmsec_agent.watching import plan_watch
    from llmsec_analyzer.worker.child import RemoteDetectors
    from llmsec_tap.capture.warden.protocol import MAX_DETECTORS
    from llmsec_tap.journal import SILENT

    loaded = plan.load(report if sibling.is_first else lambda _line: None)
    settings = replace(
        plan.settings,
        memory_cap_bytes=plan.settings.memory_cap_bytes // sibling.count,
        whose=whose_of(loaded),
        audit=audited_severity(loaded.config),
        watch=plan_watch(loaded.config),
        alerts=plan_alerts(alert_settings(loaded.config)) if plan.alerts else None,
    )
    print_to = printer(settings.output, sibling.output_turn, with_header=sibling.is_first)
    if not warden.await_attached():
        return 0  # the warden says why
    directory = RemoteDirectory([tenants], journal=journal if sibling.is_first else SILENT) if tenants is not None else None
    policies = Policies(file_policies(loaded.config), directory)
    detection = detection_starter(
        loaded.config.security,
        journal,
        may_wait=False,
        queue_bytes=Shares.of(settings.memory_cap_bytes).detection,
        is_built_in=not loaded.sets("security"),
        redact=plan.redact,
        early_from="info" if settings.output == "events" else "high",
        handling=policies.handling,
        remote=RemoteDetectors(warden.start_detector, warden.kill_detector, MAX_DETECTORS),
    )
    return capture(
        settings,
        journal,
        warden,
        sibling,
        pods,
        print_to=print_to,
        start_detection=detection if plan.detect and loaded.config.security.enabled else None,
        exposer=exposer,
        records=records,
        directory=directory,
        policies=policies,
        poke=plan.poke,
    )
