"""One run of `llmsec-tap capture`: sources, pipeline, store and printer wired together, with signals and the closing summary."""

from __future__ import annotations

import gc
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

import typer

from llmsec_tap import limits
from llmsec_tap.capture.kubernetes import find_pods
from llmsec_tap.capture.live import LiveCapture
from llmsec_tap.capture.process import ProcessTable
from llmsec_tap.capture.queue import BatchQueue
from llmsec_tap.capture.tls_flows import TLSFlows
from llmsec_tap.cli.outlet import Deliver, Detection, Outlet
from llmsec_tap.cli.text import report
from llmsec_tap.errors import SourceError, StorageError
from llmsec_tap.install_key import install_key
from llmsec_tap.model import Exchange
from llmsec_tap.pipeline import Pipeline
from llmsec_tap.providers.credentials import fingerprinter

if TYPE_CHECKING:
    from llmsec_tap.capture.afpacket import PacketSource
    from llmsec_tap.capture.base import Loader
    from llmsec_tap.capture.pcapng import PcapngWriter
    from llmsec_tap.capture.selection import Observed

# Makes the detection of a run: given where exchanges go from there, and the key of the fingerprints.
StartDetection = Callable[[Deliver, bytes], Detection]


class CaptureRun:
    """Faults of the store do not stop the capture; they decide the exit code. `run` returns normally when it was stopped."""

    def __init__(
        self,
        *,
        tls: tuple[Loader, Observed] | None,
        interfaces: tuple[str, ...],
        ports: frozenset[int] | None,
        write: str | None,
        output: str,
        listing: tuple[str, Callable[[Exchange], str]] | None,
        store: str | None,
        content: bool,
        tokenizer: str | None,
        memory_cap_bytes: int,
        start_detection: StartDetection | None = None,
    ) -> None:
        self._tls = tls
        self._interfaces = interfaces
        self._ports = ports
        self._write = write
        self._outlet = Outlet(
            output=output, listing=listing, store=store, content=content, tokenizer=tokenizer, prompt=True, on_reader_gone=self._stop
        )
        key = install_key()
        if start_detection is not None:
            self._outlet.detection = start_detection(self._outlet.deliver, key)
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
        self._pcapng: PcapngWriter | None = None
        self._sources: list[PacketSource] = []
        self._gapped = 0

    def run(self, duration_s: float | None) -> None:
        """Capture until a signal or for so long. Exits as docs/cli.md says: 0, 3 a source failed, 4 the store could not be written."""
        started = time.monotonic()
        fault: SourceError | None = None
        with self._signals():
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
        if self._write is not None:
            from llmsec_tap.capture.pcapng import FlowWriter, PcapngWriter

            self._pcapng = PcapngWriter(self._write)
        if self._interfaces:
            self._open_interfaces()
        if self._tls is not None:
            loader, observed = self._tls
            recorder = FlowWriter(self._pcapng) if self._pcapng is not None else None
            self._flows = TLSFlows(self._pipeline.open_flow, ProcessTable(find_pods()), recorder, self._pipeline.account)
            self._live.add_tls(loader, observed, self._flows)
        report("capturing; Ctrl-C stops")

    def _tick(self) -> None:
        self._outlet.tick()
        if self._pcapng is not None:
            self._pcapng.flush()

    def _open_interfaces(self) -> None:
        from llmsec_tap.capture.afpacket import PacketSource
        from llmsec_tap.reassembly.packet import LINKTYPE_RAW

        handle = self._pipeline.handler(LINKTYPE_RAW)
        if self._pcapng is not None:
            handle = self._pcapng.copying(handle)
        self._sources = [PacketSource(interface, self._ports, self._queue, handle) for interface in self._interfaces]
        self._live.add_packets(self._sources)
        for source in self._sources:
            report(f"reading plain HTTP from {source.interface}")

    def _exchange(self, exchange: Exchange) -> None:
        if exchange.completeness == "gapped":
            self._gapped += 1
        self._outlet.take(exchange)

    def _stop(self) -> None:
        self._live.stop()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM end the capture in order; a second one ends the process, and the kernel takes the probes out."""

        def stop(number: int, frame: FrameType | None) -> None:
            for known in (signal.SIGINT, signal.SIGTERM):
                signal.signal(known, signal.SIG_DFL)
            self._live.stop()

        earlier = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)

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
