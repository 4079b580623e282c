"""`python -m llmsec_tap.storage.compact_here [NOW_NS]`: merge the parts of the store that is the current folder, as its owner, and delete
what its retention (retention.json) does not keep.

A process of its own, at the lowest priority, so that a capture goes on. It says nothing; exit 4 where the store cannot be written.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import msgspec

from llmsec_tap.errors import StorageError
from llmsec_tap.privileges import become_owner_of
from llmsec_tap.storage import merge, rewrite  # noqa: F401 - imported now, since the owner may not read where it lies
from llmsec_tap.storage.audit import append, trim
from llmsec_tap.storage.compact import compact
from llmsec_tap.storage.retention import Pruned, prune, read_policy
from llmsec_tap.storage.store import open_store


def main() -> int:
    os.nice(19)
    become_owner_of(Path())
    try:
        store = open_store(".")
        now_ns = int(sys.argv[1]) if len(sys.argv) > 1 else time.time_ns()
        retention = read_policy(store)
        compact(store, now_ns, max_bytes=retention.max_bytes)
        pruned = prune(store, now_ns, retention)
        if pruned != Pruned():
            append(store, [("deletion", {"state": "done", "by": "retention", **msgspec.to_builtins(pruned)})])
        trim(store, now_ns, days=retention.audit_days, max_bytes=retention.audit_bytes)
    except StorageError:
        return StorageError.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
