"""Exchanges straight into a ClickHouse database: for rows that were read there and have changed."""

from __future__ import annotations

import time
from typing import Self

from llmsec_tap.errors import StorageError
from llmsec_tap.model import Exchange
from llmsec_tap.storage.clickhouse.address import Address
from llmsec_tap.storage.clickhouse.client import DEFAULT_LIMITS, Limits, connect, translated
from llmsec_tap.storage.clickhouse.migrations import check_version
from llmsec_tap.storage.clickhouse.tables import EXCHANGE_TABLE, Layout
from llmsec_tap.storage.rows import encode_row

_SETTINGS = {"max_partitions_per_insert_block": 0}
# As of a part: the lowest eight bits are free.
_CLOCK = ~0xFF


class DatabaseWriter:
    """Use as a context manager; nothing waits: `write` returns when the server has the rows. Of two rows for one exchange the later one counts."""

    def __init__(self, address: Address, limits: Limits = DEFAULT_LIMITS) -> None:
        """Raises StorageError or ConfigError, as `connect`."""
        self._client, self._node = connect(address, limits)
        try:
            check_version(self._client, Layout(address.database))
        except BaseException:
            self._client.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def write(self, exchanges: list[Exchange]) -> None:
        """Raises StorageError where the server did not take them."""
        from llmsec_tap.storage import parquet  # noqa: PLC0415

        if not exchanges:
            return
        table, dropped, _ = parquet.to_table([encode_row(exchange) for exchange in exchanges])
        if dropped:
            raise StorageError(f"{self._node}: {dropped} rows cannot be written", "please report this")
        data = parquet.to_parquet(table, time.time_ns() & _CLOCK).to_pybytes()
        with translated(str(self._node)):
            self._client.raw_insert(EXCHANGE_TABLE, insert_block=data, fmt="Parquet", settings=_SETTINGS)
