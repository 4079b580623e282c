"""Record protection: keys from secrets, and records opened with them (RFC 8446 sections 5.2 and 7, RFC 5246 sections 5 and 6.2.3.3)."""

from __future__ import annotations

import hmac
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESCCM, AESGCM, ChaCha20Poly1305

from llmsec_tap.wire.tls.suites import Suite


class _Aead(Protocol):
    def decrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes: ...


class Opener(Protocol):
    """Opens the records of one direction, in order."""

    sequence: int

    def open(self, header: bytes, record: bytes) -> tuple[int, bytes] | None:
        """The type and the content of a record that comes next, or None: it is another's, or damaged. Only what opens is counted."""

    def updated(self) -> Opener:
        """With the keys that follow a KeyUpdate."""


def expand_label(secret: bytes, label: str, length: int, digest: str, context: bytes = b"") -> bytes:
    """HKDF-Expand-Label (RFC 8446 section 7.1). `length` is at most the digest's own."""
    name = b"tls13 " + label.encode()
    info = length.to_bytes(2, "big") + bytes((len(name),)) + name + bytes((len(context),)) + context
    return hmac.digest(secret, info + b"\x01", digest)[:length]


def prf(secret: bytes, label: str, seed: bytes, length: int, digest: str) -> bytes:
    """The pseudorandom function of TLS 1.2 (RFC 5246 section 5)."""
    seed = label.encode() + seed
    block, out = seed, b""
    while len(out) < length:
        block = hmac.digest(secret, block, digest)
        out += hmac.digest(secret, block + seed, digest)
    return out[:length]


def _aead(suite: Suite, key: bytes) -> _Aead:
    if suite.cipher == "gcm":
        return AESGCM(key)
    if suite.cipher == "chacha20":
        return ChaCha20Poly1305(key)
    return AESCCM(key, tag_length=suite.tag_bytes)


class Opener13:
    """TLS 1.3: one traffic secret at a time."""

    __slots__ = ("_aead", "_iv", "_suite", "secret", "sequence")

    def __init__(self, suite: Suite, secret: bytes) -> None:
        self._suite = suite
        self.secret = secret
        self._aead = _aead(suite, expand_label(secret, "key", suite.key_bytes, suite.digest))
        self._iv = int.from_bytes(expand_label(secret, "iv", 12, suite.digest), "big")
        self.sequence = 0

    def open(self, header: bytes, record: bytes) -> tuple[int, bytes] | None:
        try:
            inner = self._aead.decrypt((self._iv ^ self.sequence).to_bytes(12, "big"), record, header).rstrip(b"\0")
        except (InvalidTag, ValueError):  # ValueError: shorter than a tag
            return None
        self.sequence += 1
        return (inner[-1], inner[:-1]) if inner else (0, b"")

    def updated(self) -> Opener13:
        """After a KeyUpdate (RFC 8446 section 7.2)."""
        return Opener13(self._suite, expand_label(self.secret, "traffic upd", len(self.secret), self._suite.digest))


class Opener12:
    """TLS 1.2 with an AEAD suite: RFC 5288, RFC 6655 (the record carries a part of the nonce), RFC 7905 (it does not)."""

    __slots__ = ("_aead", "_salt", "_suite", "sequence")

    def __init__(self, suite: Suite, key: bytes, salt: bytes) -> None:
        self._suite = suite
        self._aead = _aead(suite, key)
        self._salt = salt
        self.sequence = 0

    def open(self, header: bytes, record: bytes) -> tuple[int, bytes] | None:
        suite = self._suite
        if suite.cipher == "chacha20":
            nonce = (int.from_bytes(self._salt, "big") ^ self.sequence).to_bytes(12, "big")
        else:
            nonce, record = self._salt + record[:8], record[8:]
        length = len(record) - suite.tag_bytes
        if length < 0 or len(nonce) != 12:
            return None
        associated = self.sequence.to_bytes(8, "big") + header[:3] + length.to_bytes(2, "big")
        try:
            content = self._aead.decrypt(nonce, record, associated)
        except (InvalidTag, ValueError):
            return None
        self.sequence += 1
        return header[0], content

    def updated(self) -> Opener12:
        """TLS 1.2 has no such message."""
        return self


def openers_12(suite: Suite, master: bytes, client_random: bytes, server_random: bytes) -> tuple[Opener12, Opener12]:
    """Of what the client sends, and of what the server does (RFC 5246 section 6.3)."""
    key, salt = suite.key_bytes, suite.salt_bytes
    block = prf(master, "key expansion", server_random + client_random, 2 * (key + salt), suite.digest)
    client_salt, server_salt = block[2 * key : 2 * key + salt], block[2 * key + salt :]
    return Opener12(suite, block[:key], client_salt), Opener12(suite, block[key : 2 * key], server_salt)
