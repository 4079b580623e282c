"""One run of `llmsec-tap capture`: sources, pipeline, store and printer wired together, with signals and the closing summary."""

from __future__ import annotations

import gc
import importlib
import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import typer

from llmsec_agent.outlet import Deliver, Detection, Outlet
from llmsec_agent.text import report
from llmsec_tap import limits, privileges
from llmsec_tap.capture.host.kubernetes import RemotePods
from llmsec_tap.capture.host.process import ProcessTable
from llmsec_tap.capture.live.capture import LiveCapture
from llmsec_tap.capture.live.flows import TLSFlows
from llmsec_tap.capture.live.queue import BatchQueue
from llmsec_tap.errors import SourceError, StorageError
from llmsec_tap.identity.credentials import fingerprinter
from llmsec_tap.install_key import install_key
from llmsec_tap.model import Exchange
from llmsec_tap.pipeline import Pipeline
from llmsec_tap.storage.handover import enter, owner_of
from llmsec_tap.storage.store import create_store
from llmsec_tap.storage.writer import StoreWriter
from llmsec_tap.tokens import TokenEstimator

if TYPE_CHECKING:
    import socket

    from llmsec_tap.capture.files.pcapng import PcapngWriter
    from llmsec_tap.capture.packets.afpacket import PacketSource
    from llmsec_tap.capture.warden.client import WardenClient
    from llmsec_tap.storage.store import Store

# Makes the detection of a run: given where exchanges go from there, and the key of the fingerprints.
StartDetection = Callable[[Deliver, bytes], Detection]

_LATE: Final = ("brotli", "zstandard")


class CaptureRun:
    """Made in the decoder's process, it gives up every right before the first byte of traffic.

    Faults of the store do not stop the capture; they decide the exit code. `run` returns normally when it was stopped.
    """

    def __init__(
        self,
        *,
        warden: WardenClient,
        pods: socket.socket | None,
        interfaces: tuple[str, ...],
        ports: frozenset[int] | None,
        write: str | None,
        write_secrets: bool,
        output: str,
        listing: tuple[str, Callable[[Exchange], str]] | None,
        store: str | None,
        content: bool,
        tokenizer: str | None,
        memory_cap_bytes: int,
        start_detection: StartDetection | None = None,
    ) -> None:
        self._warden = warden
        self._interfaces = interfaces
        self._write = write
        self._gapped = 0
        # With the caller's rights: key, files that options name, the store's folder.
        key = install_key()
        user = privileges.unprivileged_user()
        if user is not None and store is not None and privileges.USER_VARIABLE not in os.environ:
            user = owner_of(store) or user
        self._pcapng: PcapngWriter | None = None
        if write is not None:
            from llmsec_tap.capture.files.pcapng import PcapngWriter

            self._pcapng = PcapngWriter(write, keeps_secrets=write_secrets)
            if user is not None and "SUDO_UID" in os.environ:
                self._pcapng.give_to(user.uid, user.gid)
        estimator = TokenEstimator(tokenizer)
        detection = None
        if start_detection is not None:
            detection = start_detection(lambda exchange: self._outlet.deliver(exchange), key)  # noqa: PLW0108 - the outlet is made below
        if user is not None and not privileges.may_read_programs(user):
            estimator.keep_open()
            _load_late_parts(stores=store is not None)
        if store is not None:
            enter(store, user)
        privileges.become(user)
        privileges.confine()
        # From here on: another user, no capabilities, no new files but the store's.
        writer = None
        if store is not None:
            opened = create_store(".", views=False)
            writer = StoreWriter(replace(opened, name=store), compact_by=self._compact)
        self._outlet = Outlet(
            output=output,
            listing=listing,
            store=store,
            content=content,
            tokenizer=estimator,
            prompt=True,
            on_reader_gone=self._stop,
            writer=writer,
        )
        self._outlet.detection = detection
        # A share of the cap: it holds bodies and text as well.
        queued = min(limits.MAX_QUEUE_BYTES, memory_cap_bytes // 8)
        self._queue = BatchQueue(queued, min(limits.QUEUE_SHED_BYTES, queued // 2))
        self._pipeline = Pipeline(
            self._exchange,
            fingerprinter(key),
            ports=ports,
            on_defect=self._outlet.defect,
            listener_factory=self._outlet.listener_factory,
            memory_cap_bytes=memory_cap_bytes,
        )
        self._live = LiveCapture(self._pipeline, self._queue, memory_cap_bytes=memory_cap_bytes)
        self._flows: TLSFlows | None = None
        self._sources: list[PacketSource] = []
        self._pods = RemotePods(pods) if pods is not None else None

    def run(self, duration_s: float | None) -> None:
        """Capture until a signal or for so long. Exits as docs/cli.md says: 0, 3 a source failed, 4 the store could not be written."""
        started = time.monotonic()
        fault: SourceError | None = None
        self._warden.on_stop(self._live.stop)
        try:
            self._open_sources()
            self._outlet.begin()
            gc.freeze()
            gc.set_threshold(50_000, 50, 100)
            self._live.on_tick = self._tick
            self._live.on_step = self._outlet.step
            self._live.run(duration_s)
        except SourceError as raised:
            fault = raised
        finally:
            self._outlet.close()
            if self._pcapng is not None:
                self._pcapng.close()
        if fault is None or self._live.records:
            self._summary(time.monotonic() - started)
        if fault is not None:
            raise fault
        if self._outlet.store_fault is not None:
            raise typer.Exit(StorageError.exit_code)

    def _open_sources(self) -> None:
        if self._interfaces:
            self._open_interfaces()
        if self._warden.ring is not None:
            recorder = None
            if self._pcapng is not None:
                from llmsec_tap.capture.files.pcapng import FlowWriter

                recorder = FlowWriter(self._pcapng)
            self._flows = TLSFlows(
                self._pipeline.open_flow, ProcessTable(self._pods, facts=self._warden.facts), recorder, self._pipeline.account
            )
            self._live.add_tls(self._warden, self._flows)
        report("capturing; Ctrl-C stops")

    def _tick(self) -> None:
        self._outlet.tick()
        if self._pcapng is not None:
            self._pcapng.flush()

    def _open_interfaces(self) -> None:
        from llmsec_tap.capture.packets.afpacket import PacketSource
        from llmsec_tap.wire.packet import LINKTYPE_RAW

        handle = self._pipeline.handler(LINKTYPE_RAW)
        if self._pcapng is not None:
            handle = self._pcapng.copying(handle)
        sockets = self._warden.open_sockets()
        if len(sockets) != len(self._interfaces):
            raise SourceError("the interfaces cannot be read any more", "Are they up? `ip link` shows.")
        self._sources = [
            PacketSource(interface, sock, self._queue, handle) for interface, sock in zip(self._interfaces, sockets, strict=True)
        ]
        self._live.add_packets(self._sources)
        for source in self._sources:
            report(f"reading plain HTTP from {source.interface}")

    def _exchange(self, exchange: Exchange) -> None:
        if exchange.completeness == "gapped":
            self._gapped += 1
        self._outlet.take(exchange)

    def _stop(self) -> None:
        self._live.stop()

    def _compact(self, store: Store, now_ns: int) -> None:
        """The warden has it done: this process may start no other."""
        folder = os.open(store.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._warden.compact(folder)
        finally:
            os.close(folder)

    # --- the end ------------------------------------------------------------------------------------------------------

    def _summary(self, elapsed: float) -> None:
        seen, live, queue, flows = self._pipeline.summary(0), self._live, self._queue, self._flows
        totals = live.totals
        gaps = seen["gaps"] + (flows.gaps if flows else 0)
        gap_bytes = seen["gap_bytes"] + (flows.gap_bytes if flows else 0)
        lines = []
        if flows is not None:
            lines.append(
                f"seen {totals.calls:,} TLS calls ({totals.bytes:,} bytes), {flows.opened:,} connections; "
                f"decoded {flows.bytes:,} bytes; dropped {totals.lost_calls:,} calls ({totals.lost_bytes:,} bytes) in the kernel, "
                f"{queue.left_out_records:,} records ({queue.left_out_bytes:,} bytes) of {queue.left_out_connections:,} connections here"
            )
        for source in self._sources:
            dropped = f", {source.dropped:,} DROPPED by the kernel" if source.dropped else ", 0 dropped"
            lines.append(f"seen {source.packets:,} packets on {source.interface}{dropped}")
        if self._sources:
            lines.append(f"seen {seen['connections']:,} plain connections")
        lines.append(
            f"{seen['exchanges']:,} exchanges ({seen['llm_exchanges']:,} with a language model), {self._gapped:,} gapped; "
            f"{gaps:,} gaps ({gap_bytes:,} bytes); {elapsed:.1f} s, {live.peak_rss_bytes / 1e6:.0f} MB at most"
        )
        if live.shed_connections:
            lines.append(f"gave up {live.shed_connections:,} quiet connections to stay under the memory cap")
        if live.memory_faults:
            lines.append(f"out of memory {live.memory_faults:,} times: what was under way then was cut")
        if seen["anomalies"]:
            lines.append("anomalies: " + ", ".join(f"{name} {count:,}" for name, count in seen["anomalies"].items()))
        if seen["other_protocols"]:
            lines.append("not decoded: " + ", ".join(f"{name} {count:,}" for name, count in seen["other_protocols"].items()))
        lines += self._outlet.summary()
        if self._pcapng is not None:
            lines.append(
                f"wrote {self._pcapng.packets:,} packets to {self._write}" + (f", then: {self._pcapng.fault}" if self._pcapng.fault else "")
            )
        for line in lines:
            report(line)


def _load_late_parts(*, stores: bool) -> None:
    """What decoding and storing load at the first use, for a user who may not read where it lies."""
    privileges.load_encodings()
    for name in (*_LATE, "llmsec_tap.storage.parquet") if stores else _LATE:
        importlib.import_module(name)
