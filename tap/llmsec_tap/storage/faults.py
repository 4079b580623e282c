"""Operating system errors as one line that says what to do."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from llmsec_tap.errors import StorageError

_HINTS = {
    errno.ENOSPC: (
        "no space left on the device",
        "free space or choose another folder with --store; nothing already stored is harmed",
        True,
    ),
    errno.EDQUOT: ("disk quota exceeded", "raise the quota or choose another folder with --store; nothing already stored is harmed", True),
    errno.EFBIG: ("file size limit reached", "raise the limit (ulimit -f); nothing already stored is harmed", True),
    errno.EROFS: ("the file system is read-only", "choose a writable folder with --store", False),
    errno.EACCES: ("permission denied", "run as the folder's owner or choose another folder with --store", False),
    errno.EPERM: ("permission denied", "run as the folder's owner or choose another folder with --store", False),
    errno.ENOTDIR: ("a part of the path is not a folder", "choose another folder with --store", False),
    errno.EMFILE: ("too many open files", "raise the limit (ulimit -n)", True),
    errno.EIO: ("input/output error", "check the disk; nothing already stored is harmed", True),
}


def storage_error(what: str, path: Path | str, fault: OSError) -> StorageError:
    """`what` reads "cannot write" or "cannot read"; the path is shown, never content."""
    reason, hint, retryable = _HINTS.get(
        fault.errno or 0, (os.strerror(fault.errno) if fault.errno else type(fault).__name__, "choose another folder with --store", False)
    )
    return StorageError(f"{what} {path}: {reason}", hint, retryable=retryable)
