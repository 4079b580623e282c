"""With what rights a store is read and shown."""

from __future__ import annotations

import os

from llmsec_tap import privileges
from llmsec_tap.privileges import User
from llmsec_tap.storage.clickhouse.address import is_clickhouse
from llmsec_tap.storage.handover import owner_of


def drop_rights(store: str) -> None:
    """To a browser, in a terminal: root shows it as the owner of the store, where that user may read this program; otherwise with the right to read files and no other."""
    owner = _owner(store)
    if os.geteuid() == 0 and owner is not None and privileges.may_read_programs(owner):
        privileges.become(owner)
        return
    privileges.limit_capabilities(("CAP_DAC_READ_SEARCH",) if owner is not None else ())


def reach(store: str) -> None:
    """Root that may not look into the folder, as in a pod without CAP_DAC_OVERRIDE, goes on as its owner. Anybody else stays who it is."""
    if os.geteuid() != 0 or is_clickhouse(store) or os.access(store, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
        return
    owner = _owner(store)
    if owner is not None and privileges.may_read_programs(owner):
        privileges.become(owner)


def _owner(store: str) -> User | None:
    """Of a folder, unless that is root. One that is not there is said when it is opened."""
    return None if is_clickhouse(store) else owner_of(store)
