"""With what rights a store is read and shown."""

from __future__ import annotations

import os
from pathlib import Path

from llmsec_tap import privileges
from llmsec_tap.storage.clickhouse.address import is_clickhouse


def drop_rights(store: str) -> None:
    """To a browser, in a terminal: root shows it as the owner of the store, where that user may read this program; otherwise with the right to read files and no other."""
    try:
        owner = 0 if is_clickhouse(store) else Path(store).stat().st_uid
    except OSError:
        owner = 0  # there is no such folder, which is said when it is opened
    if os.geteuid() == 0 and owner and privileges.may_read_programs(user := privileges.by_uid(owner)):
        privileges.become(user)
        return
    privileges.limit_capabilities(("CAP_DAC_READ_SEARCH",) if owner else ())


def reach(store: str) -> None:
    """Root that may not look into the folder, as in a pod without CAP_DAC_OVERRIDE, goes on as its owner. Anybody else stays who it is."""
    if os.geteuid() != 0 or is_clickhouse(store) or os.access(store, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
        return
    try:
        owner = Path(store).stat().st_uid
    except OSError:
        return  # likewise
    if owner and privileges.may_read_programs(user := privileges.by_uid(owner)):
        privileges.become(user)
