"""The id of an exchange: the same capture gives the same id on one installation."""

from __future__ import annotations

import hashlib

from llmsec_tap.identity.credentials import Fingerprinter
from llmsec_tap.wire.messages import Head


class RequestDigest:
    """Takes the request as it comes. Nothing of the answer goes into the id, so it can be told as soon as the request is whole."""

    __slots__ = ("_hash", "data")

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)
        self.data = self._hash.update  # decoded bytes of the body

    def head(self, head: Head) -> None:
        self._hash.update(f"{head.method} {head.target.partition('?')[0]}".encode())  # a query may hold a credential

    def exchange_id(self, client: str, server: str, started_ns: int | None, ordinal: int, fingerprint: Fingerprinter) -> str:
        """48 bits of time, so that ids sort by it, then 80 bits of request and place.

        Under the key of this installation: who has a record cannot try guesses of its request against its id.
        """
        whole = self._hash.copy()
        whole.update(f"{client} {server} {started_ns} {ordinal}".encode())
        milliseconds = max(0, (started_ns or 0) // 1_000_000) & 0xFFFFFFFFFFFF
        return f"{milliseconds:012x}{fingerprint('exchange ' + whole.hexdigest())[:20]}"
