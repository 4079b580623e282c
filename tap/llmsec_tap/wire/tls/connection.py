"""One TLS connection: what its hellos say of it, and its plaintext where its secrets are known.

A `ProtocolSink`. Records are opened in their order and given to the connection inside, which is sniffed like any other. What cannot be
opened is counted; a connection of which nothing was opened is told as one line at its end.

TLS 1.3 changes keys without a word on the wire, so a record that the keys in use do not open is tried with the next ones. A record that
opens is right: it is authenticated. After bytes that the capture lost, the same holds for its number, within limits.MAX_TLS_TRIALS.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from llmsec_tap import limits
from llmsec_tap.account import Entry
from llmsec_tap.anomalies import AnomalyName, OnAnomaly
from llmsec_tap.model import TLS
from llmsec_tap.wire.flow import Flow, StreamSink
from llmsec_tap.wire.messages import ignore
from llmsec_tap.wire.protocols import ProtocolSink
from llmsec_tap.wire.tls.hello import (
    CLIENT_HELLO,
    SERVER_HELLO,
    VERSIONS,
    ClientHello,
    MalformedError,
    ServerHello,
    read_client_hello,
    read_encrypted_extensions,
    read_server_hello,
)
from llmsec_tap.wire.tls.key_log import MASTER, KeyLog
from llmsec_tap.wire.tls.suites import SUITES, suite_name

if TYPE_CHECKING:
    from llmsec_tap.wire.tls.protection import Opener

_CHANGE_CIPHER_SPEC, _ALERT, _HANDSHAKE, _APPLICATION = 20, 21, 22, 23
_TLS13 = 0x0304
_NEW_SESSION_TICKET, _END_OF_EARLY_DATA, _ENCRYPTED_EXTENSIONS, _FINISHED, _KEY_UPDATE = 4, 5, 8, 20, 24
_READ: Final = frozenset(
    (CLIENT_HELLO, SERVER_HELLO, _NEW_SESSION_TICKET, _END_OF_EARLY_DATA, _ENCRYPTED_EXTENSIONS, _FINISHED, _KEY_UPDATE)
)
# RFC 8446 section 5.2 and RFC 5246 section 6.2.3: a record of 2^14 bytes, and what protection adds.
_MAX_RECORD = (1 << 14) + 2048
_EARLY, _HANDSHAKE_KEYS, _TRAFFIC = "CLIENT_EARLY_TRAFFIC_SECRET", "{}_HANDSHAKE_TRAFFIC_SECRET", "{}_TRAFFIC_SECRET_0"

OpenInside = Callable[[TLS], ProtocolSink]
OnUnread = Callable[[str, str, int, TLS], None]
"""client, server, the last time that it was heard of, what is known"""


def is_record_start(data: bytes | bytearray) -> bool:
    """A record's header may begin here."""
    return len(data) >= 3 and _CHANGE_CIPHER_SPEC <= data[0] <= _APPLICATION and data[1] == 3 and data[2] <= 4


class _Side:
    """What one endpoint sends."""

    __slots__ = (
        "_buffer",
        "_connection",
        "_entry",
        "_handshake",
        "_searches",
        "_skip",
        "address",
        "bytes",
        "data",
        "finished",
        "name",
        "opener",
        "pending",
        "stage",
        "trials",
    )

    def __init__(self, connection: TLSConnection, address: str) -> None:
        self._connection = connection
        self.address = address
        self.name = ""  # CLIENT or SERVER, once known
        self.bytes = 0
        self.data: Callable[[int, bytes], None] = self._data
        self._buffer = bytearray()
        self._entry = Entry(connection.flow.reserve)
        self._handshake = bytearray()
        self._skip = 0  # of a handshake message that is not read
        self._searches = False  # for the next record, after a loss
        self.trials = 0  # numbers beyond the next one that a record may have, after a loss
        self.opener: Opener | None = None
        self.pending: Opener | None = None  # TLS 1.2: from the change of ciphers on
        self.stage = 0  # TLS 1.3: which of its secrets is in use
        self.finished = False

    def _data(self, ts_ns: int, data: bytes) -> None:
        self.bytes += len(data)
        buffer = self._buffer
        buffer += data
        at, size = 0, len(buffer)
        while not self._searches:
            if size - at < 5:
                break
            length = buffer[at + 3] << 8 | buffer[at + 4]
            if not is_record_start(buffer[at : at + 3]) or length > _MAX_RECORD:
                self._connection.anomaly("tls_malformed")
                self._searches = True
                self.trials = limits.MAX_TLS_TRIALS
                break
            end = at + 5 + length
            if end > size:
                break
            self._connection.record(self, ts_ns, bytes(buffer[at : at + 5]), bytes(buffer[at + 5 : end]))
            at = end
        del buffer[:at]
        if self._searches:
            self._search(ts_ns)
        if not self._entry.set(len(self._buffer)):
            self.drop()

    def _search(self, ts_ns: int) -> None:
        """After a loss: the next bytes that read as a record and open."""
        buffer = self._buffer
        if self.opener is None:
            buffer.clear()  # without keys only the count goes on
            return
        at = 0
        while (at := buffer.find(b"\x17\x03\x03", at)) >= 0:
            if at + 5 > len(buffer):
                break
            length = buffer[at + 3] << 8 | buffer[at + 4]
            end = at + 5 + length
            if not 0 < length <= _MAX_RECORD:
                at += 1
                continue
            if end > len(buffer):
                break
            if self._connection.found(self, ts_ns, bytes(buffer[at : at + 5]), bytes(buffer[at + 5 : end])):
                del buffer[:end]
                self._searches = False
                self._data(ts_ns, b"")
                return
            if not self.trials:
                self.opener = None
                buffer.clear()
                return
            at += 1
        del buffer[: at if at >= 0 else max(0, len(buffer) - 2)]

    def lose(self, length: int | None) -> None:
        """Bytes are missing: where the next record begins is unknown, and what its number is."""
        self._buffer.clear()
        self._handshake.clear()
        self._skip = 0
        self._entry.set(0)
        self._searches = True
        self.trials = min(limits.MAX_TLS_TRIALS, self.trials + (limits.MAX_TLS_TRIALS if length is None else 2 + length // 22))

    def gap(self, ts_ns: int, length: int | None) -> None:
        self.bytes += length or 0
        self.lose(length)
        self._connection.lost(self, ts_ns)

    def drop(self) -> None:
        """There is no room for what is held."""
        if self._buffer:
            self._connection.anomaly("http_memory_limit")
            self.lose(None)

    def other(self, ts_ns: int, data: bytes) -> None:
        """Of two copies the receiver took the one that opens; if that was this one, the first did not open and is counted."""

    def again(self) -> None:
        self._connection.again(self)

    def end(self, ts_ns: int, reason: str) -> None:
        self._connection.ended(self, ts_ns, reason)

    def messages(self, data: bytes) -> list[tuple[int, bytes]]:
        """The handshake messages that are whole now, of those that matter. Raises MalformedError."""
        found = []
        if self._skip:
            cut = min(self._skip, len(data))
            self._skip -= cut
            data = data[cut:]
        waiting = self._handshake
        waiting += data
        at = 0
        while len(waiting) - at >= 4:
            kind, length = waiting[at], int.from_bytes(waiting[at + 1 : at + 4], "big")
            if kind not in _READ:  # certificates and the like
                have = len(waiting) - at - 4
                self._skip = max(0, length - have)
                at += 4 + min(length, have)
                continue
            if length > limits.MAX_TLS_HELLO_BYTES:
                raise MalformedError("a handshake message that is too long")
            if len(waiting) - at - 4 < length:
                break
            found.append((kind, bytes(waiting[at + 4 : at + 4 + length])))
            at += 4 + length
        del waiting[:at]
        return found

    def release(self) -> None:
        self.data = ignore
        self._buffer.clear()
        del self._connection, self._entry


class TLSConnection:
    """`open_inside` makes the connection that the plaintext is given to; `on_unread` is told a connection of which nothing was opened."""

    __slots__ = (
        "_before",
        "_client_hello",
        "_early",
        "_early_bytes",
        "_early_entry",
        "_generation",
        "_held",
        "_held_bytes",
        "_held_entry",
        "_inside",
        "_keys",
        "_last_ns",
        "_on_anomaly",
        "_on_unread",
        "_open_inside",
        "_sees_anomaly",
        "_selected",
        "_server_hello",
        "_takes_early",
        "first",
        "flow",
        "second",
    )

    def __init__(self, flow: Flow, keys: KeyLog, open_inside: OpenInside, on_unread: OnUnread, on_anomaly: OnAnomaly) -> None:
        self.flow = flow
        self._keys = keys
        self._open_inside = open_inside
        self._on_unread = on_unread
        self._on_anomaly = on_anomaly
        self._inside: ProtocolSink | None = None
        self._client_hello: ClientHello | None = None
        self._server_hello: ServerHello | None = None
        self._selected: str | None = None  # the application's protocol
        self._last_ns = flow.opened_ns
        # Records that wait for secrets, which a capture file may hold behind the packets that need them.
        self._held: list[tuple[_Side, int, bytes, bytes]] = []
        self._held_bytes = 0
        self._held_entry = Entry(flow.reserve)
        self._generation = keys.generation
        # What the client sends before the server agreed to it (RFC 8446 section 4.2.10) counts once the server takes it: else it is sent again.
        self._early: list[tuple[int, bytes]] | None = []
        self._early_bytes = 0
        self._early_entry = Entry(flow.reserve)
        self._before: list[tuple[_Side, int, bytes, bytes]] = []  # records of it before the answer told their suite
        self._takes_early = False
        self.first: StreamSink = _Side(self, flow.first)
        self.second: StreamSink = _Side(self, flow.second)

    @property
    def _sides(self) -> tuple[_Side, _Side]:
        first, second = self.first, self.second
        assert isinstance(first, _Side)
        assert isinstance(second, _Side)
        return first, second

    @property
    def _is_13(self) -> bool:
        return self._server_hello is not None and self._server_hello.version == _TLS13

    def _peer(self, side: _Side) -> _Side:
        first, second = self._sides
        return second if side is first else first

    # --- called by the sides ------------------------------------------------------------------------------------------

    def record(self, side: _Side, ts_ns: int, header: bytes, record: bytes) -> None:
        self._last_ns = ts_ns
        hello = self._client_hello
        if self._server_hello is None and header[0] == _APPLICATION and hello is not None and hello.offers_early_data:
            self._before.append((side, ts_ns, header, record))
            if not self._has_room_for_early(record):
                self._before.clear()
                self.anomaly("http_memory_limit")
            return
        if self._held and not self._released():
            self._hold(side, ts_ns, header, record)
        elif not self._handled(side, ts_ns, header, record) and not (self._keys.generation and self._hold(side, ts_ns, header, record)):
            side.lose(None)

    def found(self, side: _Side, ts_ns: int, header: bytes, record: bytes) -> bool:
        """Whether what reads as a record after a loss is one: it opens under one of the numbers that it may have."""
        opener = side.opener
        assert opener is not None
        began = opener.sequence
        while side.trials:
            side.trials -= 1
            opened = opener.open(header, record)
            if opened is not None:
                side.trials = 0
                self._content(side, ts_ns, *opened)
                return True
            opener.sequence += 1
            if opener.sequence - began >= limits.MAX_TLS_TRIALS_A_RECORD:
                break
        opener.sequence = began
        return False

    def lost(self, side: _Side, ts_ns: int) -> None:
        inside = self._inner(side)
        if inside is not None:
            inside.gap(ts_ns, None)

    def again(self, side: _Side) -> None:
        inside = self._inner(side)
        if inside is not None:
            inside.again()

    def ended(self, side: _Side, ts_ns: int, reason: str) -> None:
        self._last_ns = max(self._last_ns, ts_ns)
        self._released()
        inside = self._inner(side)
        if inside is not None:
            inside.end(ts_ns, reason)

    # --- called by the owner of the connection ------------------------------------------------------------------------

    def anomaly(self, name: AnomalyName) -> None:
        if self._inside is not None:
            self._inside.anomaly(name)
        else:
            self._on_anomaly(name)

    def shed(self) -> None:
        """Memory is short: what waits is given up, inside too."""
        self._give_up()
        for side in self._sides:
            side.drop()
        if self._inside is not None:
            self._inside.shed()

    def close(self, ts_ns: int, reason: str) -> None:
        self._released()
        self._give_up()
        if self._inside is not None:
            self._inside.close(ts_ns, reason)
        else:
            client = next((side for side in self._sides if side.name == "CLIENT"), self._sides[0])
            server = self._peer(client)
            self._on_unread(client.address, server.address, self._last_ns, self._facts(client.bytes, server.bytes))
        self._inside = None
        for side in self._sides:
            side.release()

    # --- records ------------------------------------------------------------------------------------------------------

    def _hold(self, side: _Side, ts_ns: int, header: bytes, record: bytes) -> bool:
        self._held.append((side, ts_ns, header, record))
        self._held_bytes += len(record) + limits.PIECE_COST_BYTES
        if self._held_bytes <= limits.MAX_TLS_HELD_BYTES and self._held_entry.set(self._held_bytes):
            return True
        self._give_up()
        return True

    def _give_up(self) -> None:
        """What waits for secrets waits no longer; what comes after it has an unknown number."""
        self._before.clear()
        if self._early:
            self._early.clear()
        self._early_entry.set(0)
        held, self._held, self._held_bytes = self._held, [], 0
        self._held_entry.set(0)
        for side, ts_ns, _, _ in held:
            if not side.trials:
                side.lose(None)
                self.lost(side, ts_ns)

    def _released(self) -> bool:
        """Whether nothing waits any more: secrets have come."""
        if self._generation != self._keys.generation and self._held:
            self._generation = self._keys.generation
            held, self._held, self._held_bytes = self._held, [], 0
            for number, (side, ts_ns, header, record) in enumerate(held):
                if not self._handled(side, ts_ns, header, record):
                    self._held = held[number:]
                    self._held_bytes = sum(len(waiting[3]) + limits.PIECE_COST_BYTES for waiting in self._held)
                    break
            self._held_entry.set(self._held_bytes)
        return not self._held

    def _handled(self, side: _Side, ts_ns: int, header: bytes, record: bytes) -> bool:
        """False where its secrets are not known."""
        kind = header[0]
        is_13 = self._is_13
        if kind == _CHANGE_CIPHER_SPEC:
            return is_13 or self._change(side)
        if side.opener is None and not is_13:
            if kind == _HANDSHAKE:
                self._handshake(side, record)
            return kind != _APPLICATION
        if is_13:
            if kind != _APPLICATION:
                return True  # a second hello or an alert in the clear, of no use here
            return self._open_13(side, ts_ns, header, record)
        assert side.opener is not None
        opened = side.opener.open(header, record)
        if opened is None:
            self._unopened(side, ts_ns)
        else:
            self._content(side, ts_ns, *opened)
        return True

    def _unopened(self, side: _Side, ts_ns: int) -> None:
        self.anomaly("tls_unopened")
        inside = self._inner(side)
        if inside is not None:
            inside.gap(ts_ns, None)

    def _change(self, side: _Side) -> bool:
        """TLS 1.2: from here on the side uses the keys of the handshake that has just been seen."""
        hello, answer = self._client_hello, self._server_hello
        if hello is None or answer is None or side.name == "":
            return True
        if side.pending is None:
            suite, master = SUITES.get(answer.suite), self._master(hello, answer)
            if suite is None or master is None:
                return suite is None and self._closed(side)
            self._keys.remember(answer.session_id, master)
            from llmsec_tap.wire.tls.protection import openers_12  # noqa: PLC0415 - 9 MB that a tap without secrets never needs

            client, server = openers_12(suite, master, hello.random, answer.random)
            peer = self._peer(side)
            side.pending, peer.pending = (client, server) if side.name == "CLIENT" else (server, client)
        side.opener, side.pending = side.pending, None
        return True

    def _closed(self, side: _Side) -> bool:
        """The suite cannot be read here."""
        side.lose(None)
        return True

    def _master(self, hello: ClientHello, answer: ServerHello) -> bytes | None:
        keys = self._keys
        return (
            keys.secret(hello.random, MASTER)
            or keys.master_of(answer.session_id)
            or (keys.master_of(hello.ticket) if hello.ticket else None)
        )

    def _open_13(self, side: _Side, ts_ns: int, header: bytes, record: bytes) -> bool:
        """Opened with the keys in use, or the next ones. False where the keys that must come next are not known."""
        opener = side.opener
        if opener is not None and not side.finished:
            opened = opener.open(header, record)
            if opened is not None:
                self._content(side, ts_ns, *opened)
                return True
        hello, answer = self._client_hello, self._server_hello
        suite = SUITES.get(answer.suite) if answer is not None else None
        if hello is None or suite is None:
            return True
        from llmsec_tap.wire.tls.protection import Opener13  # noqa: PLC0415 - as above

        labels = [_HANDSHAKE_KEYS.format(side.name), _TRAFFIC.format(side.name)]
        if side.name == "CLIENT":
            labels.insert(0, _EARLY)
        knows_any = False
        for stage in range(side.stage, len(labels)):
            secret = self._keys.secret(hello.random, labels[stage])
            if secret is None:
                continue
            knows_any = True
            opener = Opener13(suite, secret)
            opened = opener.open(header, record)
            if opened is not None:
                side.opener, side.stage, side.finished = opener, stage + 1, False
                if labels[stage] != _EARLY:
                    self._early_settled(side, ts_ns)
                self._content(side, ts_ns, *opened)
                return True
        if side.opener is not None and side.stage == len(labels):
            self._unopened(side, ts_ns)
            return True
        return knows_any

    # --- what records hold --------------------------------------------------------------------------------------------

    def _content(self, side: _Side, ts_ns: int, kind: int, content: bytes) -> None:
        if kind == _APPLICATION:
            if content:
                self._plaintext(side, ts_ns, content)
        elif kind == _HANDSHAKE:
            self._handshake(side, content, ts_ns)

    def _plaintext(self, side: _Side, ts_ns: int, content: bytes) -> None:
        if self._early is not None and side.name == "CLIENT" and side.stage == 1 and not self._takes_early:
            self._early.append((ts_ns, content))
            if not self._has_room_for_early(content):
                self._early.clear()
                self.anomaly("http_memory_limit")
            return
        if self._inside is None:
            self._inside = self._open_inside(self._facts())
        inside = self._inner(side)
        assert inside is not None
        inside.data(ts_ns, content)

    def _has_room_for_early(self, data: bytes) -> bool:
        self._early_bytes += len(data) + limits.PIECE_COST_BYTES
        return self._early_entry.set(self._early_bytes)

    def _inner(self, side: _Side) -> StreamSink | None:
        if self._inside is None:
            return None
        return self._inside.first if side is self.first else self._inside.second

    def _take_early(self) -> None:
        """The server takes what the client sent early."""
        self._takes_early = True
        early, self._early = self._early or [], None
        client = next(side for side in self._sides if side.name == "CLIENT")
        for ts_ns, content in early:
            self._plaintext(client, ts_ns, content)
        self._early_entry.set(0)

    def _early_settled(self, side: _Side, ts_ns: int) -> None:
        """The client uses other keys than those for early data: what still waits was refused, and is sent again."""
        if side.name == "CLIENT" and self._early:
            self.anomaly("tls_early_data_refused")
        if side.name == "CLIENT":
            self._early = None
            self._early_entry.set(0)

    def _handshake(self, side: _Side, data: bytes, ts_ns: int = 0) -> None:
        try:
            for kind, body in side.messages(data):
                self._message(side, kind, body)
        except MalformedError:
            self.anomaly("tls_malformed")

    def _message(self, side: _Side, kind: int, body: bytes) -> None:
        if kind == CLIENT_HELLO:
            if self._server_hello is not None and not self._server_hello.is_retry and side.opener is None:
                return
            self._client_hello = read_client_hello(body)
            side.name, self._peer(side).name = "CLIENT", "SERVER"
        elif kind == SERVER_HELLO and side.name != "CLIENT":
            self._server_hello = read_server_hello(body)
            self._selected = self._server_hello.alpn
            side.name, self._peer(side).name = "SERVER", "CLIENT"
            before, self._before = self._before, []
            if self._server_hello.is_retry:  # which refuses early data, too (RFC 8446 section 4.2.10)
                self._server_hello = None
                if before:
                    self.anomaly("tls_early_data_refused")
                before = []
            for early in before:
                self.record(*early)
        elif side.opener is not None and self._is_13:
            self._message_13(side, kind, body)
        elif kind == _NEW_SESSION_TICKET and self._client_hello is not None and self._server_hello is not None:
            master = self._master(self._client_hello, self._server_hello)
            if master is not None:
                self._keys.remember(body[6:], master)  # RFC 5077 section 3.3: lifetime, length, ticket

    def _message_13(self, side: _Side, kind: int, body: bytes) -> None:
        if kind == _ENCRYPTED_EXTENSIONS:
            self._selected, takes_early = read_encrypted_extensions(body)
            if takes_early:
                self._take_early()
        elif kind == _END_OF_EARLY_DATA:
            self._take_early()
        elif kind == _FINISHED:
            side.finished = True
        elif kind == _KEY_UPDATE and side.opener is not None:
            side.opener = side.opener.updated()

    def _facts(self, client_bytes: int | None = None, server_bytes: int | None = None) -> TLS:
        hello, answer = self._client_hello, self._server_hello
        return TLS(
            transport="tcp",
            version=VERSIONS.get(answer.version, f"0x{answer.version:04X}") if answer is not None else None,
            cipher_suite=suite_name(answer.suite) if answer is not None else None,
            server_name=hello.server_name if hello is not None else None,
            alpn_offered=list(hello.alpn) if hello is not None else [],
            alpn=self._selected,
            ja4=hello.ja4 if hello is not None else None,
            client_bytes=client_bytes,
            server_bytes=server_bytes,
        )
