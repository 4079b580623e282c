"""Reading a key log file: secrets of TLS sessions, as SSLKEYLOGFILE has clients and servers write them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from llmsec_tap.errors import SourceError
from llmsec_tap.wire.tls.key_log import KeyLog

_CHUNK: Final = 1 << 20
_MAX_LINE: Final = 1024


def read_key_log(path: str) -> KeyLog:
    """What the file holds. Raises SourceError, also where that is no secret at all."""
    keys = KeyLog()
    try:
        with Path(path).open("rb") as file:
            rest = b""
            while chunk := file.read(_CHUNK):
                whole, _, rest = (rest[:_MAX_LINE] + chunk).rpartition(b"\n")
                keys.add(whole)
            keys.add(rest[:_MAX_LINE])
    except (OSError, ValueError) as fault:  # ValueError: a NUL in the name
        reason = fault.strerror if isinstance(fault, OSError) else fault
        raise SourceError(f"cannot read the key log {path}: {reason}", "Name the file that SSLKEYLOGFILE named.") from None
    if not keys.secrets:
        raise SourceError(
            f"{path} holds no secret of a TLS session", "Expected lines such as CLIENT_TRAFFIC_SECRET_0 RANDOM SECRET, in hexadecimal."
        )
    return keys
