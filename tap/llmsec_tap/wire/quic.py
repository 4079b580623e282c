"""QUIC connections by name: who asks whom, from the first packets, which are encrypted under keys that anyone can derive.

Nothing else of QUIC is read. A connection is known by its addresses from its first long header on (RFC 9000 section 17.2), and told as
one line when it has been silent for limits.QUIC_IDLE_NS, or at the end. Initial packets: RFC 9001 section 5, and RFC 9369 for version 2.
"""

from __future__ import annotations

import contextlib
import hmac
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, NamedTuple

from llmsec_tap import limits
from llmsec_tap.account import Account
from llmsec_tap.model import TLS
from llmsec_tap.wire.flow import Flow, endpoints
from llmsec_tap.wire.tls.hello import CLIENT_HELLO, ClientHello, MalformedError, read_client_hello


class _Version(NamedTuple):
    name: str
    salt: bytes
    labels: str
    initial: int  # the type of an Initial packet, in the first byte


_VERSIONS: Final = {
    1: _Version("QUIC 1", bytes.fromhex("38762cf7f55934b34d179ae6a4c80cadccbb7f0a"), "quic", 0x00),
    0x6B3343CF: _Version("QUIC 2", bytes.fromhex("0dede3def700a6db819381be6e269dcbf9bd2ed9"), "quicv2", 0x10),
}
_LONG_HEADER, _TYPE_BITS = 0xC0, 0x30
_PADDING, _PING, _ACK, _ACK_ECN, _CRYPTO = 0, 1, 2, 3, 6
# What a connection takes here, with its pieces of a hello.
_COST_BYTES = 2 * limits.KIB
_MAX_PIECES = 64

OnUnread = Callable[[Flow, str, str, int, TLS], None]


class _Connection:
    __slots__ = ("bytes", "client", "destination", "flow", "hello", "last_ns", "pieces", "version")

    def __init__(self, flow: Flow, version: _Version, destination: bytes) -> None:
        self.flow = flow
        self.version = version
        self.destination = destination  # of the client's first packet: the keys come from it
        self.client: str | None = None
        self.bytes = {flow.first: 0, flow.second: 0}
        self.hello: ClientHello | None = None
        self.pieces: dict[int, bytes] | None = {}  # of the client's hello; None: it is read, or given up
        self.last_ns = flow.opened_ns


class QUICConnections:
    """Datagrams in; `on_unread` is told each connection once, with what is known of it."""

    def __init__(self, on_unread: OnUnread, account: Account) -> None:
        self._on_unread = on_unread
        self._account = account
        self._known: OrderedDict[bytes, _Connection] = OrderedDict()  # by addresses and ports, the longest silent first
        self.opened = 0

    def datagram(self, ts_ns: int, key: bytes, payload: bytes) -> bool:
        """Whether it belongs to a QUIC connection."""
        size = (len(key) - 4) // 2
        turned = key[size : 2 * size] + key[:size] + key[-2:] + key[-4:-2]
        name = min(key, turned)
        if self._known:
            self.sweep(ts_ns)
        connection = self._known.get(name)
        if connection is None:
            opened = self._open(ts_ns, key, payload)
            if opened is None:
                return False
            connection = self._known[name] = opened
            self._account.fix(_COST_BYTES)
            if len(self._known) > limits.MAX_QUIC_CONNECTIONS:
                self._close(next(iter(self._known)))
        else:
            self._known.move_to_end(name)
        connection.last_ns = max(ts_ns, connection.last_ns)
        sender = endpoints(key)[0]
        connection.bytes[sender] += len(payload)
        if connection.pieces is not None:
            self._read(connection, sender, payload)
        return True

    def sweep(self, now_ns: int) -> None:
        """Close what has been silent for long."""
        while self._known:
            name, connection = next(iter(self._known.items()))
            if now_ns - connection.last_ns < limits.QUIC_IDLE_NS:
                return
            self._close(name)

    def close(self) -> None:
        for name in list(self._known):
            self._close(name)

    def _open(self, ts_ns: int, key: bytes, payload: bytes) -> _Connection | None:
        header = _long_header(payload)
        if header is None:
            return None
        self.opened += 1
        source, target = endpoints(key)
        version, destination = header
        return _Connection(Flow(source, target, ts_ns, is_midstream=False), version, destination)

    def _close(self, name: bytes) -> None:
        connection = self._known.pop(name)
        self._account.fix(-_COST_BYTES)
        flow, hello = connection.flow, connection.hello
        client = connection.client or flow.first
        server = flow.second if client == flow.first else flow.first
        flow.is_midstream = hello is None
        facts = TLS(
            transport="quic",
            version=connection.version.name,
            server_name=hello.server_name if hello is not None else None,
            alpn_offered=list(hello.alpn) if hello is not None else [],
            ja4=hello.ja4 if hello is not None else None,
            client_bytes=connection.bytes[client],
            server_bytes=connection.bytes[server],
        )
        self._on_unread(flow, client, server, connection.last_ns, facts)

    def _read(self, connection: _Connection, sender: str, payload: bytes) -> None:
        """Take the client's hello from its Initial packets; it may be in several pieces, in any order."""
        header = _long_header(payload)
        if header is None or connection.pieces is None or connection.client not in (None, sender):
            return
        for destination in dict.fromkeys((connection.destination, header[1])):
            frames = _initial_frames(payload, header[0], destination)
            if frames is None:
                continue
            connection.client, connection.destination = sender, destination
            pieces = connection.pieces
            pieces.update(_crypto(frames))
            data = _together(pieces)
            if len(data) >= 4 and data[0] == CLIENT_HELLO and len(data) >= 4 + (length := int.from_bytes(data[1:4], "big")):
                with contextlib.suppress(MalformedError):
                    connection.hello = read_client_hello(data[4 : 4 + length], "q")
                connection.pieces = None
            elif len(pieces) > _MAX_PIECES or sum(map(len, pieces.values())) > limits.MAX_TLS_HELLO_BYTES:
                connection.pieces = None
            return


def _long_header(data: bytes) -> tuple[_Version, bytes] | None:
    """Its version, where that is known, and the connection id that it is sent to."""
    if len(data) < 7 or data[0] & _LONG_HEADER != _LONG_HEADER:
        return None
    version = _VERSIONS.get(int.from_bytes(data[1:5], "big"))
    size = data[5]
    return (version, data[6 : 6 + size]) if version is not None and size <= 20 and 6 + size < len(data) else None


def _initial_frames(packet: bytes, version: _Version, destination: bytes) -> bytes | None:
    """The frames of a client's Initial packet whose keys come from this connection id; None where it is none, or does not open."""
    from cryptography.exceptions import InvalidTag  # noqa: PLC0415 - 9 MB that a tap without QUIC never needs
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes  # noqa: PLC0415
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415

    from llmsec_tap.wire.tls.protection import expand_label  # noqa: PLC0415

    if packet[0] & _TYPE_BITS != version.initial:
        return None
    try:
        at = 6 + packet[5]
        at += 1 + packet[at]  # source connection id
        token, at = _number(packet, at)
        length, number_at = _number(packet, at + token)
    except IndexError:
        return None
    end = number_at + length
    sample = packet[number_at + 4 : number_at + 20]
    if end > len(packet) or len(sample) < 16:
        return None
    secret = expand_label(hmac.digest(version.salt, destination, "sha256"), "client in", 32, "sha256")
    key, iv, protection = (
        expand_label(secret, f"{version.labels} {name}", size, "sha256") for name, size in (("key", 16), ("iv", 12), ("hp", 16))
    )
    mask = Cipher(algorithms.AES(protection), modes.ECB()).encryptor().update(sample)  # noqa: S305 - as RFC 9001 section 5.4.3 has it
    first = packet[0] ^ mask[0] & 0x0F
    size = (first & 3) + 1
    number = bytes(byte ^ cover for byte, cover in zip(packet[number_at : number_at + size], mask[1:], strict=False))
    header = bytes((first,)) + packet[1:number_at] + number
    nonce = int.from_bytes(iv, "big") ^ int.from_bytes(number, "big")
    try:
        return AESGCM(key).decrypt(nonce.to_bytes(12, "big"), packet[number_at + size : end], header)
    except InvalidTag:
        return None


def _number(data: bytes, at: int) -> tuple[int, int]:
    """A variable-length integer (RFC 9000 section 16), and where it ends. Raises IndexError."""
    size = 1 << (data[at] >> 6)
    if at + size > len(data):
        raise IndexError
    return int.from_bytes(data[at : at + size], "big") & (1 << 8 * size - 2) - 1, at + size


def _crypto(frames: bytes) -> dict[int, bytes]:
    """What CRYPTO frames hold, by offset (RFC 9000 section 19). An Initial packet has few other kinds of frames."""
    found: dict[int, bytes] = {}
    at = 0
    try:
        while at < len(frames):
            kind = frames[at]
            at += 1
            if kind in (_PADDING, _PING):
                continue
            if kind in (_ACK, _ACK_ECN):
                _, at = _number(frames, at)
                _, at = _number(frames, at)
                ranges, at = _number(frames, at)
                for _ in range(min(1 + 2 * ranges + (3 if kind == _ACK_ECN else 0), len(frames))):
                    _, at = _number(frames, at)
            elif kind == _CRYPTO:
                offset, at = _number(frames, at)
                length, at = _number(frames, at)
                found[offset] = frames[at : at + length]
                at += length
            else:
                break
    except IndexError:
        pass
    return found


def _together(pieces: dict[int, bytes]) -> bytes:
    """What is there without a hole, from the beginning on."""
    data = bytearray()
    for offset, piece in sorted(pieces.items()):
        if offset > len(data):
            break
        data += piece[len(data) - offset :]
    return bytes(data)
