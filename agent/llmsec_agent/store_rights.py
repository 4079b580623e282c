"""With what rights a store is shown: to a browser, in a terminal."""

from __future__ import annotations

import os
from pathlib import Path

from llmsec_tap import privileges
from llmsec_tap.storage.clickhouse.address import is_clickhouse


def drop_rights(store: str) -> None:
    """Root shows it as the owner of the store, where that user may read this program; otherwise with the right to read files and no other."""
    try:
        owner = 0 if is_clickhouse(store) else Path(store).stat().st_uid
    except OSError:
        owner = 0  # there is no such folder, which is said when it is opened
    if os.geteuid() == 0 and owner and privileges.may_read_programs(user := privileges.by_uid(owner)):
        privileges.become(user)
        return
    privileges.limit_capabilities(("CAP_DAC_READ_SEARCH",) if owner else ())
