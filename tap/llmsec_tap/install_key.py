"""The key of this installation, under which credentials are fingerprinted.

One key per installation: fingerprints agree between runs and stores on one host, and mean nothing elsewhere. It is kept outside
any store, since whoever may query a store must not be able to try credentials against its fingerprints.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from llmsec_tap.errors import ConfigError
from llmsec_tap.journal import Journal

KEY_VARIABLE = "LLMSEC_FINGERPRINT_KEY_FILE"
_KEY_BYTES = 32
_MAX_KEY_BYTES = 1024
# 32 random bytes hold 30 different ones on average; 12 or fewer never happen.
_MIN_DIFFERENT_BYTES = 12


def key_path() -> Path:
    """$LLMSEC_FINGERPRINT_KEY_FILE, or `llmsec-trace/fingerprint.key` in the user's state folder (XDG base directories)."""
    named = os.environ.get(KEY_VARIABLE)
    if named:
        return Path(named)
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "llmsec-trace" / "fingerprint.key"


def install_key(journal: Journal) -> bytes:
    """The key, made on first use (mode 0600). Where it cannot be kept, a key of this run alone, with a warning.

    Raises ConfigError for a file that exists but is not a valid key: another key would break every earlier fingerprint.
    """
    path = key_path()
    try:
        return _read(path)
    except FileNotFoundError:
        pass
    except OSError as fault:
        raise ConfigError(f"cannot read the fingerprint key {path}: {fault.strerror}", "Run as its owner, or name another file.") from None
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(_KEY_BYTES))
        try:
            os.link(draft, path)  # unlike a rename, it fails where another process was first: then that key is the one
        except FileExistsError:
            pass
        finally:
            draft.unlink()
        return _read(path)
    except OSError as fault:
        journal.warning(
            "key_not_kept",
            f"cannot keep a fingerprint key in {path} ({fault.strerror}): fingerprints from this run will not match those of other runs",
            path=str(path),
        )
        return secrets.token_bytes(_KEY_BYTES)


def _read(path: Path) -> bytes:
    """The key in a file that can hold one: regular, of the right size, for its owner alone, and not one byte over and over."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO must not make us wait
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise ConfigError(f"{path} is not a regular file, so it is not a fingerprint key", "Name a file of 32 random bytes.")
        if facts.st_mode & 0o077:
            raise ConfigError(
                f"the fingerprint key {path} is open to other users (mode {facts.st_mode & 0o777:04o})",
                "chmod 600 it; if others may have read it, delete it to make a new one.",
            )
        if not _KEY_BYTES <= facts.st_size <= _MAX_KEY_BYTES:
            raise ConfigError(
                f"{path} is not a valid key file ({facts.st_size} bytes, expected {_KEY_BYTES})", "Delete it to make a new one."
            )
        key = os.read(descriptor, _MAX_KEY_BYTES)
    finally:
        os.close(descriptor)
    if len(set(key)) < _MIN_DIFFERENT_BYTES:
        raise ConfigError(f"{path} is not a random key (only {len(set(key))} different bytes)", "Delete it to make a new one.")
    return key
