"""ClientHello and ServerHello: who is asked for, what was agreed, and the client's fingerprint.

Messages: RFC 8446 section 4.1 and RFC 5246 section 7.4.1. JA4 is FoxIO's TLS client fingerprint (BSD-3-Clause),
https://github.com/FoxIO-LLC/ja4: what a client offers, without the values that it draws by chance (GREASE, RFC 8701).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator
from typing import Final, Literal, NamedTuple

CLIENT_HELLO, SERVER_HELLO = 1, 2
_SERVER_NAME, _SIGNATURE_ALGORITHMS, _ALPN, _SESSION_TICKET, _EARLY_DATA, _SUPPORTED_VERSIONS = 0, 13, 16, 35, 42, 43
# A ServerHello with this random is a HelloRetryRequest (RFC 8446 section 4.1.3): the SHA-256 of its name.
RETRY_RANDOM: Final = hashlib.sha256(b"HelloRetryRequest").digest()
VERSIONS: Final = {0x0300: "SSL 3.0", 0x0301: "TLS 1.0", 0x0302: "TLS 1.1", 0x0303: "TLS 1.2", 0x0304: "TLS 1.3"}
_JA4_VERSIONS: Final = {0x0002: "s2", 0x0300: "s3", 0x0301: "10", 0x0302: "11", 0x0303: "12", 0x0304: "13"}
_NONE: Final = "0" * 12
_MAX_NAME = 255  # of a host (RFC 1035 section 2.3.4)


class ClientHello(NamedTuple):
    random: bytes
    server_name: str | None
    alpn: tuple[str, ...]
    ticket: bytes  # of a session of TLS 1.2 that is to be resumed (RFC 5077)
    offers_early_data: bool
    ja4: str


class ServerHello(NamedTuple):
    random: bytes
    session_id: bytes
    version: int
    suite: int
    alpn: str | None  # in TLS 1.3 it comes later, encrypted

    @property
    def is_retry(self) -> bool:
        return self.random == RETRY_RANDOM


class MalformedError(ValueError):
    """The message contradicts itself."""


def read_client_hello(body: bytes, transport: Literal["t", "q"] = "t") -> ClientHello:
    """`body` without the message's own header; `transport` as JA4 names it: TCP or QUIC. Raises MalformedError."""
    try:
        version = int.from_bytes(body[:2], "big")
        random = body[2:34]
        _, at = _vector(body, 34, 1)  # session id
        suites, at = _vector(body, at, 2)
        _, at = _vector(body, at, 1)  # compression
        extensions = list(_extensions(body, at))
    except (IndexError, struct.error) as fault:
        raise MalformedError("a ClientHello that ends early") from fault
    if len(random) < 32:
        raise MalformedError("a ClientHello that ends early")
    known = dict(extensions)
    versions = tuple(_not_grease(_numbers(known[_SUPPORTED_VERSIONS][1:]))) if _SUPPORTED_VERSIONS in known else (version,)
    alpn = tuple(_names(known.get(_ALPN, b"")[2:]))
    return ClientHello(
        random,
        _server_name(known.get(_SERVER_NAME, b"")),
        tuple(name.decode("ascii", "backslashreplace") for name in alpn),
        known.get(_SESSION_TICKET, b""),
        _EARLY_DATA in known,
        _ja4(
            transport,
            max(versions, default=version),
            has_name=_SERVER_NAME in known,
            suites=list(_not_grease(_numbers(suites))),
            extensions=list(_not_grease(kind for kind, _ in extensions)),
            algorithms=list(_not_grease(_numbers(known.get(_SIGNATURE_ALGORITHMS, b"")[2:]))),
            alpn=alpn[0] if alpn else b"",
        ),
    )


def read_server_hello(body: bytes) -> ServerHello:
    """`body` without the message's own header. Raises MalformedError."""
    try:
        version = int.from_bytes(body[:2], "big")
        random = body[2:34]
        session_id, at = _vector(body, 34, 1)
        (suite,) = struct.unpack_from(">H", body, at)
        known = dict(_extensions(body, at + 3))
    except (IndexError, struct.error) as fault:
        raise MalformedError("a ServerHello that ends early") from fault
    if len(random) < 32:
        raise MalformedError("a ServerHello that ends early")
    if len(chosen := known.get(_SUPPORTED_VERSIONS, b"")) == 2:
        version = int.from_bytes(chosen, "big")
    return ServerHello(random, session_id, version, suite, chosen_alpn(known.get(_ALPN, b"")))


def read_encrypted_extensions(body: bytes) -> tuple[str | None, bool]:
    """The protocol that the server chose, and whether it takes early data (RFC 8446 section 4.3.1). Raises MalformedError."""
    try:
        known = dict(_extensions(body, 0))
    except (IndexError, struct.error) as fault:
        raise MalformedError("EncryptedExtensions that end early") from fault
    return chosen_alpn(known.get(_ALPN, b"")), _EARLY_DATA in known


def chosen_alpn(extension: bytes) -> str | None:
    return next((name.decode("ascii", "backslashreplace") for name in _names(extension[2:])), None)


def _vector(data: bytes, at: int, length_bytes: int) -> tuple[bytes, int]:
    """What stands there behind its own length, and where it ends."""
    if at + length_bytes > len(data):
        raise IndexError
    end = at + length_bytes + int.from_bytes(data[at : at + length_bytes], "big")
    if end > len(data):
        raise IndexError
    return data[at + length_bytes : end], end


def _extensions(data: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    if at >= len(data):
        return  # before TLS 1.2 there may be none
    block, _ = _vector(data, at, 2)
    at = 0
    while at < len(block):
        (kind,) = struct.unpack_from(">H", block, at)
        value, at = _vector(block, at + 2, 2)
        yield kind, value


def _numbers(data: bytes) -> Iterable[int]:
    return struct.unpack(f">{len(data) // 2}H", data[: len(data) & ~1])


def _names(data: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        end = at + 1 + data[at]
        yield data[at + 1 : end]
        at = end


def _server_name(extension: bytes) -> str | None:
    """RFC 6066 section 3: a list of names, of which kind 0 is a host's, in ASCII."""
    if len(extension) < 5 or extension[2]:
        return None
    name = extension[5 : 5 + int.from_bytes(extension[3:5], "big")][:_MAX_NAME]
    return name.decode("ascii", "backslashreplace").lower().rstrip(".") or None


def _not_grease(numbers: Iterable[int]) -> Iterator[int]:
    return (number for number in numbers if number & 0x0F0F != 0x0A0A or number >> 8 != number & 0xFF)


def _ja4(
    transport: str, version: int, *, has_name: bool, suites: list[int], extensions: list[int], algorithms: list[int], alpn: bytes
) -> str:
    ends = "00"
    if alpn:
        ends = alpn[:1].decode("latin-1") + alpn[-1:].decode("latin-1")
        if not (ends.isascii() and ends.isalnum()):
            ends = alpn.hex()[0] + alpn.hex()[-1]
    offered = sorted(kind for kind in extensions if kind not in (_SERVER_NAME, _ALPN))
    listed = _hexed(offered) + ("_" + _hexed(algorithms) if algorithms else "")
    counts = f"{min(len(suites), 99):02}{min(len(extensions), 99):02}"
    first = f"{transport}{_JA4_VERSIONS.get(version, '00')}{'d' if has_name else 'i'}{counts}{ends}"
    return f"{first}_{_digest(_hexed(sorted(suites)))}_{_digest(listed) if extensions else _NONE}"


def _hexed(numbers: Iterable[int]) -> str:
    return ",".join(f"{number:04x}" for number in numbers)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12] if text else _NONE
