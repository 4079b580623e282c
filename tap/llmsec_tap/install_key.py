"""The key of this installation, under which credentials are fingerprinted.

One key per installation: fingerprints agree between runs and stores on one host, and mean nothing elsewhere. It is kept outside
any store, since whoever may query a store must not be able to try credentials against its fingerprints.
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

from llmsec_tap.errors import ConfigError

KEY_VARIABLE = "LLMSEC_FINGERPRINT_KEY_FILE"
_KEY_BYTES = 32


def key_path() -> Path:
    """$LLMSEC_FINGERPRINT_KEY_FILE, or `llmsec-trace/fingerprint.key` in the user's state folder (XDG base directories)."""
    named = os.environ.get(KEY_VARIABLE)
    if named:
        return Path(named)
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "llmsec-trace" / "fingerprint.key"


def install_key() -> bytes:
    """The key, made on first use (mode 0600). Where it cannot be kept, a key of this run alone, with a warning.

    Raises ConfigError for a file that is there but holds no key: going on with another would break every earlier fingerprint.
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
        print(f"warning: cannot keep a fingerprint key in {path} ({fault.strerror}): fingerprints of this run stand alone", file=sys.stderr)  # noqa: T201
        return secrets.token_bytes(_KEY_BYTES)


def _read(path: Path) -> bytes:
    key = path.read_bytes()
    if len(key) < _KEY_BYTES:
        raise ConfigError(f"{path} holds no key ({len(key)} bytes, not {_KEY_BYTES})", "Delete it to make a new one.")
    return key
