"""Where the exchanges of a run go, of a replay as of a capture: detection, standard output, the store. Faults there end neither."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from llmsec_agent.text import error_line, report
from llmsec_tap.dialects.draft import DeltaListener
from llmsec_tap.errors import StorageError
from llmsec_tap.exchange.assembly import ExchangeAssembly, ListenerFactory
from llmsec_tap.model import Exchange, to_json
from llmsec_tap.storage.writer import StoreWriter
from llmsec_tap.tokens import TokenEstimator
from llmsec_tap.visible import json_visible

Deliver = Callable[[Exchange], None]


class Detection(Protocol):
    """What looks at the exchanges on their way. It delivers each one it was given, in their order, now or later."""

    def listener(self, assembly: ExchangeAssembly) -> DeltaListener | None: ...

    def add(self, exchange: Exchange) -> None: ...

    def tick(self) -> None: ...

    def drain(self) -> None: ...

    def close(self) -> None: ...

    def summary(self) -> list[str]: ...


class Outlet:
    """`take` exchanges, `step` and `tick`, `close`; `store_fault` is then what went wrong with the store, if something did.

    `listing`: of the table, its header and a row for each exchange. `prompt`: every line is flushed, for somebody who watches. `writer`: that of `store`, where it is open already.
    """

    def __init__(
        self,
        *,
        output: str,
        listing: tuple[str, Callable[[Exchange], str]] | None,
        store: str | None,
        content: bool,
        tokenizer: TokenEstimator | str | None,
        prompt: bool,
        on_reader_gone: Callable[[], None],
        writer: StoreWriter | None = None,
    ) -> None:
        self._output = output
        self._on_terminal = sys.stdout.isatty()
        self._listing = listing
        self._content = content
        self._prompt = prompt
        self._on_reader_gone = on_reader_gone
        self._estimator = tokenizer if isinstance(tokenizer, TokenEstimator) else TokenEstimator(tokenizer)
        self._location = store
        self._writer = StoreWriter.open(store) if store is not None and writer is None else writer
        self._reader_gone = False
        self._defects: Counter[str] = Counter()
        self.store_fault: StorageError | None = None
        self.detection: Detection | None = None

    @property
    def listener_factory(self) -> ListenerFactory | None:
        return self.detection.listener if self.detection is not None else None

    def begin(self) -> None:
        if self._listing is not None:
            self._emit(self._listing[0].encode("utf-8", "replace"))

    def take(self, exchange: Exchange) -> None:
        self._estimator.estimate(exchange)
        if self.detection is not None:
            self.detection.add(exchange)
        else:
            self.deliver(exchange)

    def deliver(self, exchange: Exchange) -> None:
        """The exchange as it is to be seen; detection calls this, too."""
        if not self._content:
            exchange = exchange.without_content()
        if self._output == "jsonl":
            line = to_json(exchange)
            self._emit(json_visible(line.decode()).encode() if self._on_terminal else line)
        elif self._listing is not None:
            self._emit(self._listing[1](exchange).encode("utf-8", "replace"))
        if self._writer is not None:
            try:
                self._writer.add(exchange)
            except StorageError as fault:
                self._store_failed(fault)

    def step(self) -> None:
        """Called often: what was just decoded goes to detection, what that knows comes back."""
        if self.detection is not None:
            self.detection.tick()

    def tick(self) -> None:
        """Called now and then: rows that have waited long enough are stored."""
        if self._writer is not None:
            try:
                self._writer.tick(time.monotonic_ns())
            except StorageError as fault:
                self._store_failed(fault)

    def close(self) -> None:
        if self.detection is not None:
            self.detection.close()
        if not self._reader_gone:
            try:
                sys.stdout.flush()
            except BrokenPipeError:
                self._lose_reader()
        if self._writer is not None:
            try:
                self._writer.close()
            except StorageError as fault:
                self._store_failed(fault)

    def defect(self, decoder: str) -> None:
        """A decoder of ours failed: name it once, with where; never with what it read."""
        fault = sys.exc_info()[1]
        if decoder not in self._defects and fault is not None:
            frame = fault.__traceback__
            while frame is not None and frame.tb_next is not None:
                frame = frame.tb_next
            where = f"{Path(frame.tb_frame.f_code.co_filename).name}:{frame.tb_lineno}" if frame is not None else "?"
            report(f"warning: the {decoder} decoder failed ({type(fault).__name__} at {where}); please report this")
        self._defects[decoder] += 1

    def summary(self) -> list[str]:
        lines = self.detection.summary() if self.detection is not None else []
        if self._writer is not None:
            stats = self._writer.stats
            lost = f", {stats.not_stored:,} NOT STORED" if stats.not_stored else ""
            lines.append(f"stored {stats.stored:,} in {self._location}{lost}")
        return lines

    def _emit(self, line: bytes) -> None:
        """One line. A reader that is gone (`| head`) ends the run quietly."""
        if self._reader_gone:
            return
        try:
            sys.stdout.buffer.write(line + b"\n")
            if self._prompt:
                sys.stdout.buffer.flush()
        except BrokenPipeError:
            self._lose_reader()

    def _lose_reader(self) -> None:
        self._reader_gone = True
        # The interpreter flushes standard output once more at its exit; give it somewhere to go.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        self._on_reader_gone()

    def _store_failed(self, fault: StorageError) -> None:
        """Say it once; what is not stored is counted by the writer, and the run goes on for those who look at the output."""
        if self.store_fault is None:
            report(error_line(fault))
        self.store_fault = fault
