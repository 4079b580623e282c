"""One run of `llmsec-tap capture`: sources, pipeline, store and printer wired together, with signals and the closing summary."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import typer

from llmsec_tap import limits
from llmsec_tap.capture.kubernetes import find_pods
from llmsec_tap.capture.live import LiveCapture
from llmsec_tap.capture.process import ProcessTable
from llmsec_tap.capture.queue import BatchQueue
from llmsec_tap.capture.tls_flows import TLSFlows
from llmsec_tap.cli.text import error_line, report
from llmsec_tap.errors import SourceError, StorageError
from llmsec_tap.install_key import install_key
from llmsec_tap.model import Exchange, to_json
from llmsec_tap.pipeline import Pipeline
from llmsec_tap.providers.credentials import fingerprinter
from llmsec_tap.storage.writer import StoreWriter
from llmsec_tap.tokens import TokenEstimator

if TYPE_CHECKING:
    from llmsec_tap.capture.afpacket import PacketSource
    from llmsec_tap.capture.base import Loader
    from llmsec_tap.capture.pcapng import PcapngWriter
    from llmsec_tap.capture.selection import Observed


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
    ) -> None:
        self._tls = tls
        self._interfaces = interfaces
        self._ports = ports
        self._write = write
        self._output = output
        self._listing = listing  # of the table: its header, and a row for each exchange
        self._store = store
        self._content = content
        self._estimator = TokenEstimator(tokenizer)
        # A share of the cap: it holds bodies and text as well.
        queued = min(limits.MAX_QUEUE_BYTES, memory_cap_bytes // 8)
        self._queue = BatchQueue(queued, min(limits.QUEUE_SHED_BYTES, queued // 2))
        self._pipeline = Pipeline(self._exchange, fingerprinter(install_key()), ports=ports, on_defect=self._defect)
        self._live = LiveCapture(self._pipeline, self._queue, memory_cap_bytes=memory_cap_bytes)
        self._writer: StoreWriter | None = None
        self._store_fault: StorageError | None = None
        self._flows: TLSFlows | None = None
        self._pcapng: PcapngWriter | None = None
        self._sources: list[PacketSource] = []
        self._defects: dict[str, int] = {}
        self._gapped = 0
        self._output_closed = False

    def run(self, duration_s: float | None) -> None:
        """Capture until a signal or for so long. Exits as docs/cli.md says: 0, 3 a source failed, 4 the store could not be written."""
        started = time.monotonic()
        self._writer = StoreWriter.open(self._store) if self._store is not None else None
        fault: SourceError | None = None
        try:
            with self._signals():
                self._open_sources()
                if self._listing is not None:
                    self._print(self._listing[0])
                gc.freeze()
                gc.set_threshold(50_000, 50, 100)
                self._live.on_tick = self._tick
                self._live.run(duration_s)
        except SourceError as raised:
            fault = raised
        finally:
            self._close_store()
            if self._pcapng is not None:
                self._pcapng.close()
        if fault is None or self._live.records:
            self._summary(time.monotonic() - started)
        if fault is not None:
            raise fault
        if self._store_fault is not None:
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
            self._flows = TLSFlows(self._pipeline.open_flow, ProcessTable(find_pods()), recorder)
            self._live.add_tls(loader, observed, self._flows)
        self._report("capturing; Ctrl-C stops")

    def _tick(self) -> None:
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
            self._report(f"reading plain HTTP from {source.interface}")

    # --- output -------------------------------------------------------------------------------------------------------

    def _exchange(self, exchange: Exchange) -> None:
        self._estimator.estimate(exchange)
        if exchange.completeness == "gapped":
            self._gapped += 1
        if not self._content:
            exchange = exchange.without_content()
        if self._output == "jsonl":
            self._emit(to_json(exchange))
        elif self._listing is not None:
            self._print(self._listing[1](exchange))
        if self._writer is not None:
            try:
                self._writer.add(exchange)
            except StorageError as fault:
                self._store_failed(fault)

    def _print(self, line: str) -> None:
        self._emit(line.encode("utf-8", "replace"))

    def _emit(self, line: bytes) -> None:
        """A reader of our output that is gone ends the capture; one that is slow must not: lines are flushed as they come."""
        if self._output_closed:
            return
        try:
            sys.stdout.buffer.write(line + b"\n")
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            self._output_closed = True
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)
            self._live.stop()

    def _report(self, line: str) -> None:
        report(line)

    def _store_failed(self, fault: StorageError) -> None:
        if self._store_fault is None:
            self._report(error_line(fault))
        self._store_fault = fault

    def _close_store(self) -> None:
        if self._writer is not None:
            try:
                self._writer.close()
            except StorageError as fault:
                self._store_failed(fault)

    def _defect(self, decoder: str) -> None:
        """A decoder of ours failed: name it once, with where; never with what it read."""
        fault = sys.exc_info()[1]
        if decoder not in self._defects and fault is not None:
            frame = fault.__traceback__
            while frame is not None and frame.tb_next is not None:
                frame = frame.tb_next
            where = f"{Path(frame.tb_frame.f_code.co_filename).name}:{frame.tb_lineno}" if frame is not None else "?"
            self._report(f"warning: the {decoder} decoder failed ({type(fault).__name__} at {where}); please report this")
        self._defects[decoder] = self._defects.get(decoder, 0) + 1

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
        if seen["anomalies"]:
            lines.append("anomalies: " + ", ".join(f"{name} {count:,}" for name, count in seen["anomalies"].items()))
        if seen["other_protocols"]:
            lines.append("not decoded: " + ", ".join(f"{name} {count:,}" for name, count in seen["other_protocols"].items()))
        if self._writer is not None:
            stats = self._writer.stats
            lost = f", {stats.not_stored:,} NOT STORED" if stats.not_stored else ""
            lines.append(f"stored {stats.stored:,} in {self._store}{lost}")
        if self._pcapng is not None:
            lines.append(
                f"wrote {self._pcapng.packets:,} packets to {self._write}" + (f", then: {self._pcapng.fault}" if self._pcapng.fault else "")
            )
        for line in lines:
            self._report(line)
