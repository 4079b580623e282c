"""A replay run: reader, pipeline, store and printer wired together, with progress, signals and the closing summary."""

from __future__ import annotations

import gc
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import typer

from llmsec_analyzer.cli.streams import results
from llmsec_analyzer.listing import exchange_row, listing_header
from llmsec_analyzer.terminal import visible
from llmsec_tap.capture.pcap import CaptureReader
from llmsec_tap.errors import SourceError, StorageError
from llmsec_tap.install_key import install_key
from llmsec_tap.model import Exchange, Severity, to_json
from llmsec_tap.pipeline import Pipeline
from llmsec_tap.providers.credentials import fingerprinter
from llmsec_tap.storage.writer import StoreWriter
from llmsec_tap.tokens import TokenEstimator

if TYPE_CHECKING:
    from rich.progress import Progress

    from llmsec_analyzer.detectors.exchanges import ExchangeDetector

_INTERRUPTED = 130  # 128 + SIGINT, as shells count


class Replay:
    """One run of `llmsec-analyze replay`. Faults of one file or of the store do not stop the rest; they decide the exit code."""

    def __init__(
        self,
        *,
        ports: frozenset[int] | None,
        store: str | None,
        output: str,
        content: bool,
        tokenizer: str | None,
        detector: ExchangeDetector | None = None,
        fail_on: Severity | None = None,
        redact: bool = False,
    ) -> None:
        self._output = output
        self._content = content
        self._estimator = TokenEstimator(tokenizer)
        self._store = store
        self._writer = StoreWriter.open(store) if store is not None else None
        self._store_fault: StorageError | None = None
        self._defects: dict[str, int] = {}
        self._detector = detector
        self._fail_on = fail_on
        self._failed = False
        self._redact = redact
        self._findings: Counter[str] = Counter()
        self._pipeline = Pipeline(
            self._exchange,
            fingerprinter(install_key()),
            ports=ports,
            on_defect=self._defect,
            listener_factory=detector.listener if detector is not None else None,
        )
        self._reader = CaptureReader(self._pipeline)
        self._interrupted = False
        self._is_following = False  # standard input may be a live capture: what is known is shown and stored soon

    def run(self, files: list[str]) -> None:
        """Read all files, then exit as docs/cli.md says: 0, 3 a source could not be read whole, 4 the store could not be written."""
        started = time.monotonic()
        # Exchanges free themselves (their cycles are cut), so collections of the garbage collector find nothing: make them rare.
        gc.freeze()
        gc.set_threshold(50_000, 50, 100)
        source_fault: SourceError | None = None
        self._is_following = "-" in files
        try:
            with results():
                if self._output == "table":
                    print(listing_header())
                with self._signals(), _progress(files, self._reader):
                    for name in files:
                        try:
                            self._reader.read(name)
                        except SourceError as fault:
                            source_fault = fault
                            _report(fault)
                        if self._reader.stopped:
                            break
                    self._pipeline.close()
        finally:
            self._close_store()
            self._summary(time.monotonic() - started)
        if self._store_fault is not None:
            raise typer.Exit(StorageError.exit_code)
        if source_fault is not None:
            raise typer.Exit(SourceError.exit_code)
        if self._interrupted:
            raise typer.Exit(_INTERRUPTED)
        if self._failed:
            raise typer.Exit(1)

    def _exchange(self, exchange: Exchange) -> None:
        self._estimator.estimate(exchange)
        if self._detector is not None:
            exchange = self._detected(self._detector, exchange)
        if not self._content:
            exchange = exchange.without_content()
        if self._output == "jsonl":
            sys.stdout.buffer.write(to_json(exchange) + b"\n")
        elif self._output == "table":
            print(exchange_row(exchange))
        if self._is_following:
            sys.stdout.flush()
        if self._writer is not None:
            try:
                self._writer.add(exchange)
                if self._is_following:
                    self._writer.tick(time.monotonic_ns())
            except StorageError as fault:
                self._store_failed(fault)

    def _detected(self, detector: ExchangeDetector, exchange: Exchange) -> Exchange:
        from llmsec_analyzer.detectors.redact import redacted
        from llmsec_analyzer.detectors.risk import rank

        exchange = detector.detect(exchange)
        for finding in exchange.findings:
            self._findings[finding.severity] += 1
            self._failed = self._failed or (self._fail_on is not None and rank(finding.severity) >= rank(self._fail_on))
        if self._redact and exchange.findings:
            exchange = redacted(exchange)
        return exchange

    def _store_failed(self, fault: StorageError) -> None:
        """Say it once; what is not stored is counted by the writer, and reading goes on for those who look at the output."""
        if self._store_fault is None:
            _report(fault)
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
            print(f"warning: the {decoder} decoder failed ({type(fault).__name__} at {where}); please report this", file=sys.stderr)
        self._defects[decoder] = self._defects.get(decoder, 0) + 1

    # --- signals ------------------------------------------------------------------------------------------------------

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM end the reading; what was read is still completed, stored and summed up. A second one kills."""

        def stop(number: int, frame: FrameType | None) -> None:
            self._interrupted = True
            for known in (signal.SIGINT, signal.SIGTERM):
                signal.signal(known, signal.SIG_DFL)
            self._reader.stop()

        earlier = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)

    # --- the end ------------------------------------------------------------------------------------------------------

    def _summary(self, elapsed: float) -> None:
        seen = self._pipeline.summary(self._reader.packets)
        exchanges = f"{seen['exchanges']:,} exchanges ({seen['llm_exchanges']:,} with a language model)"
        gaps = f"{seen['gaps']:,} gaps ({seen['gap_bytes']:,} bytes)"
        lines = [f"{seen['packets']:,} packets, {seen['connections']:,} connections, {exchanges}, {gaps}, {elapsed:.1f} s"]
        if seen["anomalies"]:
            lines.append("anomalies: " + ", ".join(f"{name} {count:,}" for name, count in seen["anomalies"].items()))
        if seen["other_protocols"]:
            lines.append("not decoded: " + ", ".join(f"{name} {count:,}" for name, count in seen["other_protocols"].items()))
        if self._detector is not None:
            lines += detection_summary(self._detector, self._findings)
        if self._writer is not None:
            stats = self._writer.stats
            lost = f", {stats.not_stored:,} NOT STORED" if stats.not_stored else ""
            lines.append(f"stored {stats.stored:,} in {visible(str(self._store))}{lost}")
        if self._interrupted:
            lines.append("interrupted: what was read until then is complete")
        print("\n".join(lines), file=sys.stderr)


def detection_summary(detector: ExchangeDetector, findings: Counter[str]) -> list[str]:
    """Lines for the closing summary: findings by severity, faults by name, what the budget left out."""
    from llmsec_analyzer.detectors.patterns import timeouts
    from llmsec_analyzer.detectors.risk import SEVERITIES

    counted = [f"{severity} {findings[severity]:,}" for severity in reversed(SEVERITIES) if findings[severity]]
    lines = ["findings: " + (", ".join(counted) or "none")]
    faults = detector.scanner.faults + timeouts
    if faults:
        lines.append(
            "detectors that failed or ran out of time: " + ", ".join(f"{name} {count:,}" for name, count in sorted(faults.items()))
        )
    if detector.budget.steps_taken:
        lines.append(f"over the scanning budget {detector.budget.steps_taken} times: marked on the exchanges as detection_…")
    return lines


def _report(fault: SourceError | StorageError) -> None:
    line = f"error: {fault}" + (f" ({fault.hint})" if fault.hint else "")
    print(visible(line), file=sys.stderr)


@contextmanager
def _progress(files: list[str], reader: CaptureReader) -> Iterator[None]:
    """A bar on a terminal, nothing elsewhere. Standard output keeps its lines: the bar is on standard error."""
    if not sys.stderr.isatty() or sys.stdout.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    total = sum(Path(name).stat().st_size for name in files if name != "-" and Path(name).is_file())
    bar = Progress(
        BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(), console=Console(stderr=True), transient=True
    )
    with bar:
        reader.on_progress = _advancing(bar, total if "-" not in files else None)
        yield


def _advancing(bar: Progress, total: int | None) -> Callable[[int], None]:
    task = bar.add_task("replay", total=total)

    def advance(read: int) -> None:
        bar.update(task, advance=read)

    return advance
