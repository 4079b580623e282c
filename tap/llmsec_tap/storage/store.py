"""A store is a folder; this module makes, opens and repairs it.

llmsec-data/
  store.json                        schema version, migrations applied
  llmsec.duckdb                     views only; any DuckDB client may open it while captures write
  exchanges/schema/{part,tap}-schema.parquet    no rows: every column exists even in an empty or an old store
  exchanges/day=2026-11-24/part-….parquet
  exchanges/taps/tap-….parquet      who wrote, and when it was last alive (taps.py)
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from llmsec_tap.errors import ConfigError, StorageError
from llmsec_tap.journal import WARNINGS, Journal
from llmsec_tap.storage.damage import parts, set_aside_damaged
from llmsec_tap.storage.faults import storage_error
from llmsec_tap.storage.migrations import MIGRATIONS, pending
from llmsec_tap.storage.publish import TMP_SUFFIX, publishing, remove_stale, write_all
from llmsec_tap.storage.schema import SCHEMA_VERSION, TAP_COLUMNS
from llmsec_tap.storage.views import DATABASE_NAME, layout, write_database_apart

DEFAULT_STORE = "llmsec-data"
INFO_NAME = "store.json"
NO_DAY = "day=none"  # rows of exchanges whose start the capture did not see


class StoreInfo(msgspec.Struct, kw_only=True):
    """The content of store.json. `views_root` is the folder that the views of llmsec.duckdb point at, `layout` their text."""

    schema_version: int
    created: str
    migrations: list[str]
    layout: str = ""
    views_root: str = ""


@dataclass(frozen=True)
class Store:
    """`name`: how the user calls it, where that is not the path by which this process reaches it."""

    root: Path
    info: StoreInfo
    name: str = ""

    @property
    def shown(self) -> Path:
        return Path(self.name) if self.name else self.root

    @property
    def exchanges(self) -> Path:
        return self.root / "exchanges"


def open_store(location: str | Path, journal: Journal = WARNINGS) -> Store:
    """Open for reading. Repairs the views of a moved folder where it may write; needs no write permission otherwise."""
    root = folder_of(location)
    info = _read_info(root)
    if info is None:
        raise StorageError(f"{root} is not a store", "give the folder that a capture or replay wrote, with --store")
    if _is_behind(root, info):
        try:
            info = _bring_up_to_date(root, info, journal)
        except StorageError:
            # Our own queries make the views in memory; only other clients of llmsec.duckdb would need the repair.
            return Store(root, info)
    return Store(root, info)


def create_store(location: str | Path, journal: Journal = WARNINGS, *, views: bool = True) -> Store:
    """Open for writing, making the folder if it does not exist. Removes what dead writers left half-written.

    Without `views`, llmsec.duckdb is left as it is: its path is not open to a writer that was handed the folder (handover.py).
    """
    root = folder_of(location)
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = _read_info(root)
        if info is None:
            strangers = [
                entry.name
                for entry in root.iterdir()
                if entry.name not in ("exchanges", DATABASE_NAME) and not entry.name.endswith(TMP_SUFFIX)
            ]
            if strangers:
                raise StorageError(f"{root} is neither empty nor a store", "give a new or an empty folder with --store")
            info = StoreInfo(schema_version=SCHEMA_VERSION, created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), migrations=[])
        if _is_behind(root, info):
            info = _bring_up_to_date(root, info, journal, views=views)
        remove_stale(root)
    except OSError as fault:
        raise storage_error("cannot write", root, fault) from None
    return Store(root, info)


def folder_of(location: str | Path) -> Path:
    text = str(location)
    if "://" in text:
        raise ConfigError(f"no support for a store at {text.split('://', 1)[0]}://", "give a folder with --store")
    return Path(text)


def _read_info(root: Path) -> StoreInfo | None:
    path = root / INFO_NAME
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as fault:
        raise storage_error("cannot read", path, fault) from None
    try:
        info = msgspec.json.decode(data, type=StoreInfo)
    except msgspec.DecodeError:
        raise StorageError(f"{path} is damaged", "delete that one file: the next capture or replay writes it anew") from None
    if info.schema_version > SCHEMA_VERSION:
        raise StorageError(
            f"{root} was written by a newer version (store schema {info.schema_version}, this version knows {SCHEMA_VERSION})",
            "upgrade llmsec-trace",
        )
    return info


def _is_behind(root: Path, info: StoreInfo) -> bool:
    return bool(pending(info.migrations)) or info.views_root != str(root.resolve()) or info.layout != layout()


def _bring_up_to_date(root: Path, info: StoreInfo, journal: Journal, *, views: bool = True) -> StoreInfo:
    """Apply what is missing. Every step may be repeated, and two processes doing it at once end with the same files."""
    try:
        for step in pending(info.migrations):
            step.apply(root)
        _write_schema_part(root)
        if not views:
            return info
        _write_views(root, journal)
        info = StoreInfo(
            schema_version=SCHEMA_VERSION,
            created=info.created,
            migrations=[step.name for step in MIGRATIONS],
            layout=layout(),
            views_root=str(root.resolve()),
        )
        with publishing(root / INFO_NAME) as file:
            write_all(file, msgspec.json.format(msgspec.json.encode(info)) + b"\n")
    except OSError as fault:
        raise storage_error("cannot write", root, fault) from None
    return info


def _write_views(root: Path, journal: Journal) -> None:
    if "\\" in str(root.resolve()):
        journal.warning(
            "no_database_file",
            f"DuckDB cannot read a path with a backslash, so {root} has no llmsec.duckdb; llmsec-analyze reads it all the same",
        )
        return
    set_aside_damaged(root / "exchanges", journal)
    try:
        write_database_apart(root)
    except StorageError:
        before = sum(1 for _ in parts(root / "exchanges"))
        set_aside_damaged(root / "exchanges", journal, thoroughly=True)
        if sum(1 for _ in parts(root / "exchanges")) == before:
            raise
        write_database_apart(root)


def _write_schema_part(root: Path) -> None:
    from llmsec_tap.storage import parquet  # noqa: PLC0415

    folder = root / "exchanges" / "schema"
    folder.mkdir(mode=0o700, exist_ok=True)
    with publishing(folder / "part-schema.parquet") as file:
        write_all(file, parquet.empty_part())
    with publishing(folder / "tap-schema.parquet") as file:
        write_all(file, parquet.small_table(TAP_COLUMNS, []))
