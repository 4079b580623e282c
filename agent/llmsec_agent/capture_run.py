"""The decoding process of `llmsec-tap capture`: it gives up every right, then a run reads what the warden has attached to."""

from __future__ import annotations

import importlib
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from llmsec_agent import summary
from llmsec_agent.alerts_lane import Alerts, AlertSettings, AlertsSink, plan_alerts
from llmsec_agent.capture_settings import CaptureSettings
from llmsec_agent.degradation import CPUShare, Degradation, Level
from llmsec_agent.exposer import State, answer_state
from llmsec_agent.journals import StandardError
from llmsec_agent.key_use import KeyUse
from llmsec_agent.lane import Sink
from llmsec_agent.metrics import together
from llmsec_agent.outbox import Outbox
from llmsec_agent.reload import News
from llmsec_agent.run import Deliver, Detection, OnEarly, Run
from llmsec_agent.shares import Shares
from llmsec_agent.sinks.audit import AuditSink
from llmsec_agent.sinks.live import LiveSink
from llmsec_agent.sinks.store import StoreSink
from llmsec_agent.stop import Stop
from llmsec_agent.traffic import Traffic
from llmsec_agent.watching import FILE_NAME, Watch
from llmsec_analyzer.judge.budget import FULL, SECRETS_ONLY, WITHOUT_MODEL
from llmsec_analyzer.settings import DetectionSettings
from llmsec_analyzer.worker.statistics import summary as detected
from llmsec_tap import __version__, limits, privileges
from llmsec_tap.capture.host.kubernetes import RemotePods
from llmsec_tap.capture.host.process import ProcessTable
from llmsec_tap.capture.live.capture import SHED_NEW, LiveCapture
from llmsec_tap.capture.live.flows import TLSFlows
from llmsec_tap.capture.live.queue import BatchQueue
from llmsec_tap.capture.packets.packet_socket import ring_blocks
from llmsec_tap.clock import Clock
from llmsec_tap.counters import Sample, Snapshot, by_label
from llmsec_tap.errors import SourceError, StorageError
from llmsec_tap.exchange.assembly import Origin
from llmsec_tap.install_key import install_key
from llmsec_tap.journal import SILENT, Journal
from llmsec_tap.memory import resident_bytes
from llmsec_tap.storage.audit import whoami
from llmsec_tap.storage.handover import enter, owner_of
from llmsec_tap.storage.live_feed import FeedWriter
from llmsec_tap.storage.retention import Retention
from llmsec_tap.storage.store import create_store
from llmsec_tap.storage.taps import Beat, Probe
from llmsec_tap.storage.writer import StoreWriter
from llmsec_tap.tokens import TokenEstimator

if TYPE_CHECKING:
    import socket

    from llmsec_agent.receiving.inbox import Inbox
    from llmsec_agent.siblings import Sibling
    from llmsec_agent.tenants.directory import RemoteDirectory
    from llmsec_agent.tenants.policy import Policies
    from llmsec_tap.capture.ebpf.loader_api import ProbeState
    from llmsec_tap.capture.files.pcapng import PcapngWriter
    from llmsec_tap.capture.packets.afpacket import PacketSource
    from llmsec_tap.capture.warden.client import WardenClient
    from llmsec_tap.storage.store import Store

# Makes the detection of a run: given where exchanges go from there, and the key of the fingerprints.
StartDetection = Callable[[Deliver, OnEarly, bytes], Detection]
# Makes the sink that prints, given what to call when its reader is gone.
MakePrinter = Callable[[Callable[[], None]], Sink]

_LATE: Final = ("brotli", "zstandard")
_LATE_OF_STORES: Final = ("llmsec_tap.storage.parquet",)
_LATE_OF_RECORDS: Final = ("llmsec_agent.receiving.inbox",)
_LATE_OF_PACKETS: Final = ("llmsec_tap.wire.tls.protection", "cryptography.hazmat.primitives.ciphers")
# Of the grace at the end, so much is for decoding what was read already.
_DECODING: Final = 0.4
# The decoder makes a round twice a second at least; one that makes none for so long is not healthy.
_STUCK_S: Final = 30.0
# The others are told to end when the first one is, and have the same grace.
_COLLECT_S: Final = 2.0
_ALIVE_S: Final = 2.0
# A disk counts as this large at most: a large one that is nearly full has room for weeks.
_DISK_BYTES: Final = 20 << 30
# What detection leaves out at each level of degradation.
_PRESSURE: Final = {Level.NORMAL: FULL, Level.REDUCED: WITHOUT_MODEL, Level.ESSENTIAL: SECRETS_ONLY, Level.EMERGENCY: SECRETS_ONLY}


def capture(
    settings: CaptureSettings,
    journal: Journal,
    warden: WardenClient,
    sibling: Sibling,
    pods: socket.socket | None,
    *,
    print_to: MakePrinter | None,
    start_detection: StartDetection | None,
    exposer: socket.socket | None = None,
    records: socket.socket | None = None,
    directory: RemoteDirectory | None = None,
    policies: Policies | None = None,
    poke: Callable[[], None] | None = None,
) -> int:
    """Run in a decoder's process until the warden says stop; the exit code, as docs/cli.md has them. Raises SourceError.

    `poke` wakes the process that sends alerts. `settings` are of this decoder alone, where there are several. The first of them looks after the store and says the summary of all.
    """
    begun = time.monotonic()
    stop = Stop()
    if not sibling.is_first and not sibling.await_first():
        return 0
    # With the caller's rights: key, files that options name, the store's folder.
    key = install_key(journal)
    user = privileges.unprivileged_user()
    if user is not None and settings.store is not None and privileges.USER_VARIABLE not in os.environ:
        user = owner_of(settings.store) or user
    recording = _recording(settings, user, journal)
    estimator = TokenEstimator(settings.tokenizer)
    if user is not None and not privileges.may_read_programs(user):
        estimator.keep_open()
        _load_late_parts(stores=settings.store is not None, packets=bool(settings.interfaces), records=records is not None)
    if settings.store is not None:
        enter(settings.store, user)
    privileges.become(user)
    actor = whoami()
    privileges.confine()
    # From here on: another user, no capabilities, no new files but the store's. Threads may begin.
    shares = Shares.of(settings.memory_cap_bytes)
    sinks: list[Sink] = []
    store_sink: StoreSink | None = None
    log: AuditSink | None = None
    opened: Store | None = None
    if settings.store is not None:
        opened = replace(create_store(".", journal, views=False), name=settings.store)
        retention = settings.retention or Retention()
        compact_by = partial(_compact, warden) if sibling.is_first else _leave_to_first
        writer = StoreWriter(
            opened,
            number=sibling.number if sibling.count > 1 else None,
            flush_age_ns=int(settings.flush_s * 1e9),
            max_store_bytes=retention.max_bytes,
            compact_by=compact_by,
        )
        store_sink = StoreSink(writer, retention if sibling.is_first else None, actor)
        sinks += [store_sink, LiveSink(FeedWriter(opened))]
        log = AuditSink(opened, settings.audit, actor)
        if settings.configuration and sibling.is_first:
            log.add("configuration", **settings.configuration)
        if settings.audit is not None and start_detection is not None:
            sinks.append(log)
    if print_to is not None:
        sinks.append(print_to(stop.request))
    if sibling.is_first:
        sibling.let_others_go()
    run = Run(
        journal,
        stop,
        key=key,
        sinks=sinks,
        shares=shares,
        memory_cap_bytes=settings.memory_cap_bytes,
        may_wait=False,
        ports=settings.ports,
        content=settings.content,
        estimator=estimator,
        origin=Origin("packet", settings.node),
        whose=settings.whose,
        key_use=KeyUse() if settings.watch_keys else None,
        watch=_watch(settings, journal, sibling) if settings.watch is not None else None,
        alerts=_alerts(settings, journal, policies, opened, actor, poke),
        directory=directory,
        policies=policies,
        traffic=Traffic(settings.custom_metrics) if exposer is not None else None,
        start_detection=(lambda deliver, on_early: start_detection(deliver, on_early, key)) if start_detection is not None else None,
    )
    source = LiveSource(settings, run, warden, sibling, pods, shares, recording)
    source.log = log if sibling.is_first else None
    if store_sink is not None:
        store_sink.look = source.beat
    if records is not None:
        source.receive(records)
    if exposer is not None:
        answer_state(exposer, lambda: _state(run, source))
    fault: SourceError | None = None
    try:
        run.run(source)
    except SourceError as raised:
        fault = raised
    finally:
        if recording is not None:
            recording.close()
    if not sibling.is_first:
        sibling.hand_in(_samples(run))
    elif fault is None or source.has_read:
        _summarise(run, sibling, settings, recording, time.monotonic() - begun)
    if fault is not None:
        raise fault
    is_cut = recording is not None and recording.fault is not None
    return StorageError.exit_code if run.lost or is_cut else 0


def _watch(settings: CaptureSettings, journal: Journal, sibling: Sibling) -> Watch | None:
    """In the store's folder, where this process is."""
    assert settings.watch is not None
    name = FILE_NAME if sibling.is_first else f"{sibling.number}-{FILE_NAME}"
    return Watch(settings.watch, journal, Path(name) if settings.store is not None else None, memory_cap_bytes=settings.memory_cap_bytes)


def _alerts(
    settings: CaptureSettings,
    journal: Journal,
    policies: Policies | None,
    store: Store | None,
    actor: dict[str, Any],
    poke: Callable[[], None] | None,
) -> Alerts | None:
    """Without a store they are decided, counted and told as events."""
    if settings.alerts is None:
        return None
    if store is None:
        return Alerts(settings.alerts, journal, policies=policies, clock=time.time_ns)
    outbox = Outbox(store.root, Path(store.name), keep_days=settings.alerts.keep_days)
    return Alerts(
        settings.alerts,
        journal,
        policies=policies,
        sink=AlertsSink(store, journal, actor, outbox, poke),
        root=store.root,
        outbox=outbox,
        clock=time.time_ns,
    )


class LiveSource:
    """TLS records and packets of one warden, decoded by the run's pipeline."""

    def __init__(
        self,
        settings: CaptureSettings,
        run: Run,
        warden: WardenClient,
        sibling: Sibling,
        pods: socket.socket | None,
        shares: Shares,
        recording: PcapngWriter | None,
    ) -> None:
        self._started_ns = time.time_ns()
        self._settings = settings
        self._warden = warden
        self._sibling = sibling
        self._recording = recording
        self._run = run
        self._degradation = Degradation(run.journal)
        self._cpu = CPUShare()
        self._idle_bytes = resident_bytes()
        self._clock = Clock()
        self._pods = RemotePods(pods) if pods is not None else None
        self._queue = BatchQueue(shares.queue, min(limits.QUEUE_SHED_BYTES, shares.queue // 2))
        self._live = LiveCapture(run.pipeline, self._queue, self._clock, memory_cap_bytes=settings.memory_cap_bytes)
        self._packets: list[PacketSource] = []
        self._inbox: Inbox | None = None
        self._round_at = time.monotonic()
        self.is_open = False
        self.log: AuditSink | None = None  # is told of each reload
        self._is_accepted = True
        self._security: DetectionSettings | None = None  # to go over to, with the next tick
        self._alerting: AlertSettings | None = None  # likewise
        self._reloads: Counter[str] = Counter()

    @property
    def silent_s(self) -> float:
        """Since the decoder last finished a round of work."""
        return time.monotonic() - self._round_at

    @property
    def has_read(self) -> bool:
        return self._live.records > 0

    def receive(self, sock: socket.socket) -> None:
        """Take records of applications, too, from the receiver at the other end. Call it before `run`."""
        from llmsec_agent.receiving.inbox import Inbox

        run, node, detects = self._run, self._settings.node, self._run.detection is not None
        self._inbox = Inbox(
            sock, self._queue.put_control, run.add, run.journal, fingerprint=run.fingerprint, node=node, detects=detects, pods=self._pods
        )
        self._live.add_thread(self._inbox)

    def run(self, run: Run) -> None:
        run.stop.on_request(self._live.stop)
        self._warden.on_word(run.stop.request, lambda data: self._news(run, data))
        if self._settings.interfaces:
            self._open_interfaces(run)
        if self._warden.ring is not None:
            self._open_ring(run)
        self._live.on_step = run.step
        self._live.is_awaited = lambda: run.is_awaited
        self._live.on_tick = self._tick
        self._live.left_s = lambda: run.stop.left_s(_DECODING)
        if self._warden.ring is None:
            self._live.on_end = self._warden.detach_all  # there are no probes, but there may be other decoders
        self.is_open = True
        self._warden.capturing()
        threading.Thread(target=self._say_alive, name="llmsec-alive", daemon=True).start()
        self._live.run(self._settings.duration_s)

    def samples(self) -> Iterable[Sample]:
        yield from self._live.samples()
        if self._inbox is not None:
            yield from self._inbox.samples()
        yield from self._degradation.samples()
        yield Sample("llmsec_config_reload_ok", float(self._is_accepted))
        yield from by_label("llmsec_config_reloads_total", "result", self._reloads)

    def beat(self) -> Beat:
        """How this tap is, for its store; alive is who finishes rounds."""
        counts = self._run.snapshot()
        probes = self._warden.probes()
        interfaces = [Probe(reads="interface", target=name) for name in self._settings.interfaces]
        lost = ("llmsec_kernel_lost_records_total", "llmsec_queue_left_out_records_total", "llmsec_packets_dropped_total")
        return Beat(
            node=self._settings.node,
            pid=os.getpid(),
            version=__version__,
            started_ns=self._started_ns,
            heartbeat_ns=time.time_ns() - int(self.silent_s * 1e9),
            exchanges=round(counts.get("llmsec_exchanges_delivered_total")),
            not_stored=round(counts.get("llmsec_store_lost_rows_total") + counts.get("llmsec_sink_dropped_records_total", sink="store")),
            lost_records=round(sum(counts.get(name) for name in lost)),
            degradation=round(counts.get("llmsec_degradation_level")),
            probes=(*interfaces, *map(_as_stored, probes.states)),
            probed=len(interfaces) + probes.read,
            unprobed=probes.unread,
        )

    def _news(self, run: Run, data: bytes) -> None:
        """The warden has read the configuration again."""
        if not data:
            return
        news = msgspec.msgpack.decode(data, type=News)
        self._is_accepted = news.is_accepted
        self._reloads["accepted" if news.is_accepted else "refused"] += 1
        if isinstance(run.journal, StandardError):
            run.journal.style = news.style
        if self.log is not None:
            try:
                self.log.add("configuration", state="reloaded" if news.is_accepted else "refused", changed=news.changed, sha256=news.digest)
            except StorageError as fault:
                run.journal.warning("not_audited", f"not in the audit log: {fault}")
        if news.security is not None:
            self._security = news.security
        if news.alerts is not None:
            self._alerting = news.alerts

    def _degrade(self) -> None:
        run = self._run
        shares = {
            "queue": self._queue.bytes / self._queue.shed_above,
            "memory": self._memory_share(),
            "cpu": self._cpu.look(),
        }
        if self._settings.store is not None:
            disk = os.statvfs(".")  # the store's folder is the current one
            bound = min(disk.f_blocks * disk.f_frsize, _DISK_BYTES)
            shares["disk"] = 1 - min(1.0, disk.f_bavail * disk.f_frsize / bound) if bound else 0.0
        level = self._degradation.look(shares)
        run.keeps_texts = self._degradation.level_of("disk") < Level.ESSENTIAL
        if run.detection is not None:
            run.detection.least_pressure = _PRESSURE[level]

    def _memory_share(self) -> float:
        """Of the room between what an idle decoder takes and where no connection is begun any more."""
        room = self._settings.memory_cap_bytes * SHED_NEW - self._idle_bytes
        return (resident_bytes() - self._idle_bytes) / room if room > 0 else 1.0

    def _say_alive(self) -> None:
        while True:
            if self.silent_s < _STUCK_S:
                self._warden.alive()
            time.sleep(_ALIVE_S)

    def _open_ring(self, run: Run) -> None:
        recorder = None
        if self._recording is not None:
            from llmsec_tap.capture.files.pcapng import FlowWriter

            recorder = FlowWriter(self._recording)
        processes = ProcessTable(self._pods, facts=self._warden.facts)
        self._live.add_tls(self._warden, TLSFlows(run.pipeline.open_flow, processes, self._clock, recorder, run.pipeline.account))

    def _open_interfaces(self, run: Run) -> None:
        from llmsec_tap.capture.packets.afpacket import PacketSource
        from llmsec_tap.wire.packet import LINKTYPE_RAW

        handle = run.pipeline.handler(LINKTYPE_RAW)
        if self._recording is not None:
            handle = self._recording.copying(handle)
        sockets = self._warden.open_sockets()
        if len(sockets) != len(self._settings.interfaces):
            raise SourceError("the interfaces cannot be read any more", "Are they up? `ip link` shows.")
        blocks = ring_blocks(self._sibling.count)
        for number, (interface, sock) in enumerate(zip(self._settings.interfaces, sockets, strict=True)):
            reopen = partial(self._warden.open_socket, number) if self._settings.survive else None
            journal = run.journal if self._sibling.is_first else SILENT  # all of them see the interface go and come
            self._packets.append(
                PacketSource(interface, sock, self._queue, handle, self._clock, reopen=reopen, blocks=blocks, journal=journal)
            )
            journal.info("reading_interface", f"reading plain HTTP from {interface}", interface=interface)
        self._live.add_packets(self._packets)

    def _tick(self) -> None:
        self._round_at = time.monotonic()
        self._degrade()
        security, self._security = self._security, None
        if security is not None and self._run.detection is not None:
            self._run.detection.reload(security)
        alerting, self._alerting = self._alerting, None
        if alerting is not None and self._run.alerts is not None:
            self._run.alerts.reload(plan_alerts(alerting))
        self._run.look_for_losses()
        if self._recording is not None:
            self._recording.flush()


def _state(run: Run, source: LiveSource) -> State:
    """What the exposer answers with: the same snapshot that the closing summary reads."""
    reasons = [f"sink {lane.name}: {lane.fault}" for lane in run.lanes if lane.fault is not None]
    silent_s = source.silent_s
    if silent_s > _STUCK_S:
        reasons.append(f"nothing was decoded for {silent_s:.0f} s, although the decoder looks twice a second")
    ready = source.is_open and not run.stop.is_requested
    samples = _samples(run)
    samples += [Sample("llmsec_ready", float(ready)), Sample("llmsec_heartbeat_timestamp_seconds", time.time() - silent_s)]
    if not ready:
        reasons.append("stopping" if run.stop.is_requested else "not everything is attached yet")
    return State(ready=ready, healthy=silent_s <= _STUCK_S, reasons=reasons, samples=samples)


def _samples(run: Run) -> list[Sample]:
    return [Sample(name, value, labels) for (name, labels), value in run.snapshot().values.items()]


def _recording(settings: CaptureSettings, user: privileges.User | None, journal: Journal) -> PcapngWriter | None:
    if settings.write is None:
        return None
    from llmsec_tap.capture.files.pcapng import PcapngWriter

    recording = PcapngWriter(settings.write, keeps_secrets=settings.write_secrets, journal=journal)
    if user is not None and "SUDO_UID" in os.environ:
        recording.give_to(user.uid, user.gid)
    return recording


def _compact(warden: WardenClient, store: Store, _now_ns: int) -> None:
    """The warden has it done: this process may start no other."""
    folder = os.open(store.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        warden.compact(folder)
    finally:
        os.close(folder)


def _leave_to_first(_store: Store, _now_ns: int) -> None:
    """The first decoder has the parts of all merged."""


def _as_stored(state: ProbeState) -> Probe:
    return Probe(
        reads=state.library,
        target=state.file,
        symbols=state.symbols,
        processes=state.processes if state.file and not state.problem else None,
        problem=state.problem or None,
    )


def _load_late_parts(*, stores: bool, packets: bool, records: bool) -> None:
    """What decoding and storing load at the first use, for a user who may not read where it lies."""
    privileges.load_encodings()
    wanted = ((_LATE, True), (_LATE_OF_STORES, stores), (_LATE_OF_PACKETS, packets), (_LATE_OF_RECORDS, records))
    for name in (name for names, is_wanted in wanted if is_wanted for name in names):
        importlib.import_module(name)


def _summarise(run: Run, sibling: Sibling, settings: CaptureSettings, recording: PcapngWriter | None, elapsed_s: float) -> None:
    handed_in = sibling.collect(_COLLECT_S)
    known = [samples for samples in handed_in if samples is not None]
    counts = Snapshot([lambda: together([_samples(run), *known])])
    lines = summary.kernel(counts) if counts.get("llmsec_kernel_calls_total") or (settings.observes and not settings.interfaces) else []
    if not counts.get("llmsec_exchanges_delivered_total"):
        lines += summary.why_nothing(counts, plain=settings.plain, interfaces=settings.interfaces, observes=settings.observes)
    for interface in settings.interfaces:
        dropped = counts.get("llmsec_packets_dropped_total", interface=interface)
        lines.append(
            f"seen {counts.get('llmsec_packets_total', interface=interface):,} packets on {interface}, "
            + (f"{dropped:,} DROPPED by the kernel" if dropped else "0 dropped")
        )
    if settings.interfaces:
        lines.append(f"seen {counts.get('llmsec_connections_total', source='packets'):,} plain connections")
    peak = counts.get("llmsec_peak_resident_memory_bytes") / 1e6
    lines.append(
        f"{summary.what_was_decoded(counts)}, {counts.get('llmsec_exchanges_delivered_total', completeness='gapped'):,} gapped; "
        f"{summary.gaps(counts)}; {elapsed_s:.1f} s, {peak:.0f} MB at most"
    )
    shed, faults = counts.get("llmsec_shed_connections_total"), counts.get("llmsec_memory_faults_total")
    if shed:
        lines.append(f"gave up {shed:,} quiet connections to stay under the memory cap")
    if faults:
        lines.append(f"out of memory {faults:,} times: what was under way then was cut")
    blocks = counts.get("llmsec_queue_discarded_packet_blocks_total")
    if blocks:
        lines.append(f"{blocks:,} blocks of packets were not decoded: the capture was ended first")
    lines += summary.received(counts)
    lines += summary.oddities(counts)
    if run.detection is not None:
        lines += detected(counts, is_live=True)
    lines += summary.alerts(counts)
    lines += summary.sinks(counts, settings.store)
    if recording is not None:
        lines.append(f"wrote {recording.packets:,} packets to {settings.write}" + (f", then: {recording.fault}" if recording.fault else ""))
    if len(known) < len(handed_in):
        lines.append(f"without the counts of {len(handed_in) - len(known)} of {sibling.count} decoders, which did not end in order")
    for line in lines:
        run.journal.info("summary", line)
