"""A folder that is asked often, by many at once: what every question would find out anew is found out once for each new part.

Which rows are older copies is kept in memory (16 bytes an exchange), so a question reads the columns that it names and joins nothing where nothing was
stored twice. Answers are those of `QuerySession`.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import duckdb

from llmsec_analyzer.stored.session import QuerySession
from llmsec_tap.errors import StorageError
from llmsec_tap.journal import WARNINGS, Journal
from llmsec_tap.storage import Store, open_store
from llmsec_tap.storage.compact import MERGED_SUFFIX, REPLACES_KEY
from llmsec_tap.storage.damage import TAP_FILES, is_framed, parts
from llmsec_tap.storage.views import deduplicated_views, narrowed_view, these_parts

_LOOK_S: Final = 0.5
_ATTEMPTS: Final = 4
# Beyond it the copies are looked for by each question again.
MAX_ROWS: Final = 20_000_000
# Rows are counted by so much of time, to know how far back a page reaches.
_SPAN_NS: Final = 900 * 1_000_000_000
_EMPTY: Final = "/schema/"
_BEGIN: Final = """
CREATE TABLE copies (row_key BIGINT, stored_seq BIGINT);
CREATE TABLE older (row_key BIGINT, stored_seq BIGINT);
CREATE TABLE spans (span BIGINT, n BIGINT);
"""


class StandingSession(QuerySession):
    """Lends connections to those who ask. It looks for new parts by itself; `generation` grows when there are some."""

    def __init__(self, store: Store, journal: Journal = WARNINGS) -> None:
        self._guard = threading.RLock()
        self._looked = 0.0
        self.generation = 0
        self._forget()
        super().__init__(store, journal)
        self._survey(self._connection)

    @classmethod
    def open(cls, location: str | Path, journal: Journal = WARNINGS) -> StandingSession:
        return cls(open_store(location, journal), journal)

    def lend(self) -> QuerySession:
        """A connection of one's own to what is there now; close it. Raises StorageError."""
        with self._guard:
            if time.monotonic() - self._looked > _LOOK_S:
                self._look()
            return LentSession(self)

    def whole(self) -> duckdb.DuckDBPyConnection:
        """The connection to what is there, of which cursors are lent."""
        with self._guard:
            return self._connection

    def again(self, failed: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyConnection:
        """`whole`, after a fault of that one."""
        with self._guard:
            if failed is self._connection:
                self._renew()
            else:
                self._look()
            return self._connection

    def _look(self) -> None:
        try:
            self._survey(self._connection)
        except (duckdb.Error, RuntimeError):
            self._renew()

    def _renew(self) -> None:
        for attempt in reversed(range(_ATTEMPTS)):
            # The old one is not closed here, which would close what was lent of it: it ends with the last of those.
            self._connection = self._connect()
            self._forget()
            try:
                self._survey(self._connection)
            except (duckdb.Error, RuntimeError) as fault:  # such as a part that went between two looks
                if not attempt:
                    raise StorageError(f"the store cannot be read: {str(fault).splitlines()[0]}", "ask again") from None
            else:
                return

    def _forget(self) -> None:
        self._seen: frozenset[Path] = frozenset()
        self._taps: frozenset[Path] = frozenset()
        self._is_large = False
        self._replaces: dict[Path, frozenset[str]] = {}
        self._columns: dict[str, str] = {}  # of each part, as a hash
        self._times: dict[str, tuple[int | None, int | None]] = {}  # of its first and its last exchange
        self._parts: tuple[str, ...] = ()
        self._older: str | None = None
        self._alike = False

    def _locked(self) -> duckdb.DuckDBPyConnection:
        connection = super()._locked()
        connection.execute(_BEGIN)
        return connection

    def _survey(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Learn of new parts and of those that are gone."""
        self._looked = time.monotonic()
        if self._is_large:  # its parts are not watched, so there may always be something new
            self.generation += 1
            return
        before = self._seen
        found = frozenset(
            path for path in parts(self.store.exchanges) if path in before or (path not in self._left_out and is_framed(path))
        )
        seen = found - self._replaced(connection, found)
        taps = frozenset(path for path in parts(self.store.exchanges, TAP_FILES) if path not in self._left_out and is_framed(path))
        if seen == before and taps == self._taps:
            return
        connection.execute("BEGIN")
        try:
            if before - seen:
                connection.execute("DELETE FROM copies; DELETE FROM older; DELETE FROM spans")
                self._columns, self._times = {}, {}
            fresh = seen if before - seen else seen - before
            if fresh:
                self._learn(connection, fresh)
            self._is_large = int(connection.execute("SELECT count(*) FROM copies").fetchall()[0][0]) > MAX_ROWS
            if self._is_large:
                connection.execute("ROLLBACK")
                self.generation += 1
                return
            self._view(connection, seen, taps)
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        self._seen, self._taps = seen, taps
        self.generation += 1

    def _replaced(self, connection: duckdb.DuckDBPyConnection, found: frozenset[Path]) -> set[Path]:
        """Parts whose rows a merged one has: they stay for a while, for readers that had listed them."""
        merged = [path for path in found if path.name.endswith(MERGED_SUFFIX)]
        self._replaces = {path: names for path in merged if (names := self._replaces.get(path)) is not None}
        for path in merged:
            if path not in self._replaces:
                rows = connection.execute(
                    f"SELECT value FROM parquet_kv_metadata({self._named(self._reached, [path])}) WHERE key = ?",  # noqa: S608 - quoted
                    [REPLACES_KEY.encode()],
                ).fetchall()
                self._replaces[path] = frozenset(json.loads(rows[0][0])) if rows else frozenset()
        return {path.with_name(name) for path, names in self._replaces.items() for name in names if "/" not in name}

    @property
    def _reached(self) -> str:
        return f"/proc/self/fd/{self._folder}"

    def _name(self, part: Path) -> str:
        """As DuckDB is given it, and names it."""
        return f"{self._reached}/{part.relative_to(self.store.exchanges)}"

    def _learn(self, connection: duckdb.DuckDBPyConnection, fresh: frozenset[Path]) -> None:
        named = self._named(self._reached, sorted(fresh))
        files = f"read_parquet({named}, union_by_name=true, hive_partitioning=false, filename=true)"
        self._columns |= dict(
            connection.execute(
                f"""
                SELECT file_name, md5(string_agg(concat_ws(' ', name, type, num_children, logical_type), ',' ORDER BY i))
                FROM (SELECT *, row_number() OVER (PARTITION BY file_name) AS i FROM parquet_schema({named})) WHERE i > 1 GROUP BY file_name
                """  # noqa: S608 - quoted
            ).fetchall()
        )
        connection.execute(
            f"""
            CREATE OR REPLACE TEMP TABLE fresh AS SELECT row_key, stored_seq, started_ns, started_ns // {_SPAN_NS} AS span, filename FROM {files};
            INSERT INTO copies SELECT row_key, stored_seq FROM fresh;
            INSERT INTO spans SELECT span, count(*) FROM fresh WHERE span IS NOT NULL GROUP BY span;
            INSERT INTO older SELECT c.row_key, c.stored_seq FROM copies c JOIN (
                SELECT row_key, max(stored_seq) AS newest FROM copies WHERE row_key IN (SELECT row_key FROM fresh) GROUP BY row_key HAVING count(*) > 1
            ) n ON c.row_key = n.row_key AND c.stored_seq < n.newest;
            """  # noqa: S608 - quoted paths and a number
        )
        times = connection.execute("SELECT filename, min(started_ns), max(started_ns) FROM fresh GROUP BY filename").fetchall()
        empty = dict.fromkeys(map(self._name, fresh), (None, None))
        self._times |= empty | {name: (first, last) for name, first, last in times}
        connection.execute("DROP TABLE fresh")

    def _view(self, connection: duckdb.DuckDBPyConnection, seen: frozenset[Path], taps: frozenset[Path]) -> None:
        if not seen:
            return
        self._older = "older" if connection.execute("SELECT 1 FROM older LIMIT 1").fetchall() else None
        self._parts = tuple(sorted(map(self._name, seen)))
        self._alike = len({self._columns[part] for part in self._parts}) == 1
        tap_files = self._named(self._reached, sorted(taps)) if taps else None
        for statement in deduplicated_views(_listed(self._parts), tap_files, self._older, alike=self._alike):
            connection.execute(statement)

    def of_time(self, since_ns: int | None, until_ns: int | None) -> str | None:
        """A statement that leaves to a connection the parts with exchanges of that time; None where that are all."""
        if since_ns is None and until_ns is None:  # exchanges of which no start is known count, too
            return None
        with self._guard:
            # The store's empty part has all columns, which those of that time need not have.
            wanted = [part for part in self._parts if _EMPTY in part or _meets(self._times[part], since_ns, until_ns)]
            if self._is_large or len(wanted) == len(self._parts):
                return None
            return narrowed_view(_listed(wanted), self._older, alike=self._alike)

    def written(self) -> frozenset[str] | None:
        """The parts that are there, but those that a merge made: nothing in them is new. None where they are not watched."""
        with self._guard:
            if self._is_large:
                return None
            return frozenset(self._within(part) for part in self._parts if not part.endswith(MERGED_SUFFIX) and _EMPTY not in part)

    def of_parts(self, wanted: Collection[str]) -> str:
        """As `of_time`, of these parts, where they are still there."""
        with self._guard:
            found = [part for part in self._parts if _EMPTY in part or self._within(part) in wanted]
            return narrowed_view(_listed(found), self._older, alike=self._alike)

    def _within(self, part: str) -> str:
        """Its name in the folder, which a session that is opened later gives it, too."""
        return part.removeprefix(f"{self._reached}/")


def _meets(times: tuple[int | None, int | None], since_ns: int | None, until_ns: int | None) -> bool:
    first, last = times
    return first is not None and last is not None and (until_ns is None or first < until_ns) and (since_ns is None or last >= since_ns)


def _listed(found: Sequence[str]) -> str:
    return these_parts([Path(part) for part in found])


class LentSession(QuerySession):
    """One connection of a standing session, for one who asks."""

    def __init__(self, owner: StandingSession) -> None:
        self.store = owner.store
        self._owner = owner
        self._whole = owner.whole()
        self._connection = self._whole.cursor()

    def _connect(self) -> duckdb.DuckDBPyConnection:
        self._whole = self._owner.again(self._whole)
        return self._whole.cursor()

    def _look_for_damage(self) -> bool:
        return self._owner._look_for_damage()  # noqa: SLF001 - the same class

    def damaged(self) -> int:
        return self._owner.damaged()

    def close(self) -> None:
        self._connection.close()

    @contextmanager
    def narrowed(self, since_ns: int | None, until_ns: int | None) -> Iterator[None]:
        statement = self._owner.of_time(since_ns, until_ns)
        if statement is not None:
            # A part may be gone by now: then all of them are looked into, and missing ones are known.
            with suppress(duckdb.Error, RuntimeError):
                self._connection.execute(statement)
        try:
            yield
        finally:
            with suppress(duckdb.ConnectionException):  # a fault has closed it
                self._connection.execute("DROP VIEW IF EXISTS temp.exchanges")

    def written(self) -> frozenset[str] | None:
        """The parts that writers wrote, for `only`; None where that is not known."""
        return self._owner.written()

    @contextmanager
    def only(self, parts: Collection[str]) -> Iterator[None]:
        """What is asked within is asked of these parts. Raises StorageError where one of them went meanwhile."""
        asked = self._connection
        try:
            asked.execute(self._owner.of_parts(parts))
            yield
        except (duckdb.Error, RuntimeError):
            raise StorageError("the store has changed while it was read", "ask again") from None
        finally:
            with suppress(duckdb.ConnectionException):
                self._connection.execute("DROP VIEW IF EXISTS temp.exchanges")
        if self._connection is not asked:  # a fault made it anew, and it has answered for all parts
            raise StorageError("the store has changed while it was read", "ask again")

    def reach(self, before_ns: int | None, rows: int) -> int | None:
        found = self.select(
            """
            SELECT span FROM (SELECT span, sum(sum(n)) OVER (ORDER BY span DESC) AS upto FROM spans WHERE span <= coalesce(?, span) GROUP BY span)
            WHERE upto >= ? ORDER BY span DESC LIMIT 1
            """,
            [None if before_ns is None else before_ns // _SPAN_NS, rows],
        ).first
        return int(found[0][0]) * _SPAN_NS if found else None
