"""A replay run: reader, pipeline, store and printer wired together, with progress, signals and the closing summary."""

from __future__ import annotations

import gc
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import typer

from llmsec_agent.config import load_config
from llmsec_agent.outlet import Outlet
from llmsec_agent.text import error_line, report
from llmsec_analyzer.show.listing import exchange_row, listing_header
from llmsec_tap import limits
from llmsec_tap.capture.files.pcap import CaptureReader
from llmsec_tap.errors import SourceError, StorageError
from llmsec_tap.identity.credentials import fingerprinter
from llmsec_tap.install_key import install_key
from llmsec_tap.memory import MemoryWatch, limit_address_space, peak_bytes
from llmsec_tap.model import Exchange, Severity
from llmsec_tap.pipeline import Pipeline
from llmsec_tap.storage.handover import give_to_caller, is_callers

if TYPE_CHECKING:
    from rich.progress import Progress

    from llmsec_analyzer.worker.client import DetectionProcess

# Above this share of the memory cap all that is under way is handed on as far as it came.
_SHED_AT = 0.85
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
        detect: bool = True,
        config: str | None = None,
        fail_on: Severity | None = None,
        redact: bool = False,
        follow: bool = False,
        memory_cap_bytes: int = limits.MEMORY_CAP_BYTES,
    ) -> None:
        """`follow`: the source may be a live capture (standard input), so what is known is shown and stored soon."""
        key = install_key()
        self._follow = follow
        self._callers_store = store if store is not None and is_callers(store) else None
        self._outlet = Outlet(
            output=output,
            listing=(listing_header(), exchange_row) if output == "table" else None,
            store=store,
            content=content,
            tokenizer=tokenizer,
            prompt=follow,
            on_reader_gone=self._stop,
        )
        self._detection: DetectionProcess | None = None
        if detect:
            from llmsec_agent.start_detection import start_detection

            self._detection = start_detection(
                self._outlet.deliver, key=key, config=config, may_wait=True, report=report, redact=redact, fail_on=fail_on
            )
            self._outlet.detection = self._detection
        else:
            load_config(config)  # what is wrong there is an error, whether it counts or not
        self._pipeline = Pipeline(
            self._exchange,
            fingerprinter(key),
            ports=ports,
            on_defect=self._outlet.defect,
            listener_factory=self._outlet.listener_factory,
            memory_cap_bytes=memory_cap_bytes,
        )
        self._memory_cap = memory_cap_bytes
        self._reader = CaptureReader(self._pipeline)
        self._watch = MemoryWatch(memory_cap_bytes)
        self._reader.on_chunk = self._look
        self._interrupted = False

    def run(self, files: list[str]) -> None:
        """Read all files, then exit as docs/cli.md says: 0, 3 a source could not be read whole, 4 the store could not be written."""
        started = time.monotonic()
        # Exchanges free themselves (their cycles are cut), so collections of the garbage collector find nothing: make them rare.
        gc.freeze()
        gc.set_threshold(50_000, 50, 100)
        source_fault: SourceError | None = None
        with self._signals():
            try:
                self._outlet.begin()
                limit_address_space(self._memory_cap)
                with _progress(files, self._reader):
                    for name in files:
                        try:
                            self._reader.read(name)
                        except MemoryError:
                            self._pipeline.shed()
                            source_fault = SourceError(
                                f"{name}: out of memory under a cap of {self._memory_cap >> 20} MiB",
                                "What was read until then is kept; try a larger --memory-cap.",
                            )
                            report(error_line(source_fault))
                        except SourceError as fault:
                            source_fault = fault
                            report(error_line(fault))
                        if self._reader.stopped:
                            break
                    self._pipeline.close()
            finally:
                self._outlet.close()
                if self._callers_store is not None:
                    give_to_caller(self._callers_store)
                self._summary(time.monotonic() - started)
        if self._outlet.store_fault is not None:
            raise typer.Exit(StorageError.exit_code)
        if source_fault is not None:
            raise typer.Exit(SourceError.exit_code)
        if self._interrupted:
            raise typer.Exit(_INTERRUPTED)
        if self._detection is not None and self._detection.failed:
            raise typer.Exit(1)

    def _exchange(self, exchange: Exchange) -> None:
        self._outlet.take(exchange)
        if self._follow:
            if self._detection is not None:
                self._detection.drain()
            self._outlet.tick()

    def _look(self) -> None:
        if self._watch.look() > _SHED_AT:
            self._pipeline.shed()

    def _stop(self) -> None:
        self._reader.stop()

    # --- signals ------------------------------------------------------------------------------------------------------

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM end the reading; what was read is still completed, stored and summed up. A second one kills."""

        def stop(number: int, frame: FrameType | None) -> None:
            self._interrupted = True
            for known in (signal.SIGINT, signal.SIGTERM):
                signal.signal(known, signal.SIG_DFL)
            self._reader.stop()
            if self._detection is not None:
                self._detection.hurry()

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
        lines = [
            f"{seen['packets']:,} packets, {seen['connections']:,} connections, {exchanges}, {gaps}, {elapsed:.1f} s, {peak_bytes() / 1e6:.0f} MB at most"
        ]
        if seen["anomalies"]:
            lines.append("anomalies: " + ", ".join(f"{name} {count:,}" for name, count in seen["anomalies"].items()))
        if seen["other_protocols"]:
            lines.append("not decoded: " + ", ".join(f"{name} {count:,}" for name, count in seen["other_protocols"].items()))
        lines += self._outlet.summary()
        if self._interrupted:
            lines.append("interrupted: what was read until then is complete")
        for line in lines:
            report(line)


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
