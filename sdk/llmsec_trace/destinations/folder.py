"""Records to a store, the folder that a tap writes and `llmsec-analyze` reads. Several processes may write to one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llmsec_tap.errors import LLMSecError, StorageError
from llmsec_tap.journal import SILENT
from llmsec_tap.model import Exchange
from llmsec_trace.destinations.base import DestinationError

if TYPE_CHECKING:
    from llmsec_tap.storage.writer import StoreWriter


class Folder:
    """Made when the first record comes. No process is started beside the application: who tidies the store up is an agent, or a command."""

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self._writer: StoreWriter | None = None

    def send(self, batch: Sequence[Exchange]) -> None:
        try:
            writer = self._writer or self._open()
            for exchange in batch:
                writer.add(exchange)
            writer.flush()
        except StorageError as fault:
            # What waits is in the writer, which tries it again with the next batch, within its own bound.
            raise DestinationError(str(fault), fault.hint) from None
        except LLMSecError as fault:
            raise DestinationError(str(fault), fault.hint, is_lasting=True) from None

    def _open(self) -> StoreWriter:
        from llmsec_tap.storage.store import create_store  # noqa: PLC0415 - DuckDB and Arrow, where they are needed
        from llmsec_tap.storage.writer import StoreWriter  # noqa: PLC0415

        self._writer = StoreWriter(create_store(self.path, SILENT), compact_by=lambda _store, _now_ns: None)
        return self._writer

    def forked(self) -> None:
        """What the parent's writer holds is the parent's to write."""
        self._writer = None

    def close(self) -> None:
        if self._writer is not None:
            try:
                self._writer.close()
            except StorageError as fault:
                raise DestinationError(str(fault), fault.hint, is_lasting=True) from None
