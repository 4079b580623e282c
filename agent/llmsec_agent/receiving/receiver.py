"""The process that listens on the Unix socket for records of applications. It has no rights at all, and reads what strangers write.

The socket is bound with the caller's rights, then the process becomes the unprivileged user behind a filter. What it admits goes to the
first decoder over a socket pair, which it may fill and no more: then it waits, its clients wait, and what they cannot hold they drop and count.
"""

from __future__ import annotations

import contextlib
import grp
import os
import select
import selectors
import signal
import socket
import stat
import struct
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from llmsec_agent.receiving.admission import Peer, RefusedError, admitted
from llmsec_agent.receiving.messages import LENGTH, Counts, Received, encode
from llmsec_agent.receiving.protocol import HEAD, MAGIC, MAX_FRAME_BYTES, MAX_RECORDS, Answer, count_of, frame
from llmsec_agent.text import leave
from llmsec_tap import privileges
from llmsec_tap.capture.host.process import facts_of
from llmsec_tap.errors import ConfigError
from llmsec_tap.memory import limit_address_space

_BACKLOG: Final = 64
_MAX_CLIENTS: Final = 256
_MAX_CLIENTS_OF_A_USER: Final = 64
# Frames that are being read, all together; one user may take half of it. Small ones need no room of their own.
_ROOM_BYTES: Final = 2 * MAX_FRAME_BYTES
_SMALL_BYTES: Final = 64 << 10
_READ_BYTES: Final = 256 << 10
# For the objects that a record becomes, of which a few bytes make many. One that takes more is refused.
_OBJECTS_BYTES: Final = 128 << 20
# From a frame's first byte to its last.
_FRAME_S: Final = 10.0
_LOOK_S: Final = 1.0
# Others may keep it busy, and it may not keep anything else from its work.
_NICE: Final = 10
_REST_S: Final = 0.02
# So fast records are taken of one user; of all together, so many times that. The decoder's time is for what it captures. Of the
# receiver's own time, one user has a part likewise.
_RECORDS_A_SECOND: Final = 500
_BYTES_A_SECOND: Final = 16 << 20
_USERS_AT_ONCE: Final = 4
# So much of a pause is made up for at once.
_BURST_S: Final = 1.0


@dataclass(frozen=True)
class Place:
    """Where the socket is, who may write to it (as chmod has it), and its group."""

    path: str
    mode: int = 0o660
    group: str | None = None


class Receiver:
    """`start` it while there are no threads. The first decoder reads from `socket` (inbox.py)."""

    def __init__(self, sock: socket.socket, pid: int) -> None:
        self.socket = sock
        self.pid = pid

    def keep(self, number: int | None) -> None:
        """Close the socket in a process that is not the first decoder: when that one ends, the receiver does."""
        if number != 0:
            self.socket.close()

    @classmethod
    def start(cls, place: Place) -> Receiver:
        """Raises ConfigError where the socket cannot be made."""
        listening = listen(place)
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if not pid:
            ours.close()
            leave(lambda: _run(listening, theirs))
        theirs.close()
        listening.close()
        return cls(ours, pid)


def listen(place: Place) -> socket.socket:
    """The socket, bound where nobody but the folder's owner can have put another in its place. Raises ConfigError."""
    path = Path(place.path)
    with _faults_told(path):
        if path.parent.parent.is_dir() and not path.parent.exists():
            path.parent.mkdir()
            path.parent.chmod(0o755)  # whatever the umask is
        folder = path.parent.stat()
        if folder.st_mode & (stat.S_IWGRP | stat.S_IWOTH) or folder.st_uid not in (0, os.geteuid()):
            raise ConfigError(
                f"sdk.socket: {path.parent} may be written to by others, who could put a socket of theirs in its place",
                "Name a folder that is root's or yours alone, such as /run/llmsec.",
            )
        group = grp.getgrnam(place.group).gr_gid if place.group is not None else -1
        _remove_old(path)
        with contextlib.ExitStack() as undo:
            sock = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            umask = os.umask(0o177)  # nobody may connect before its group is set
            try:
                sock.bind(str(path))
            finally:
                os.umask(umask)
            os.chown(path, -1, group, follow_symlinks=False)
            os.chmod(path, place.mode)  # noqa: PTH101 - beside chown; nobody else may write to the folder
            sock.listen(_BACKLOG)
            undo.pop_all()
            return sock


@contextlib.contextmanager
def _faults_told(path: Path) -> Iterator[None]:
    try:
        yield
    except KeyError:
        raise ConfigError("sdk.group: there is no such group", "`getent group` lists them.") from None
    except OSError as fault:
        raise ConfigError(f"sdk.socket: cannot make {path}: {fault.strerror or fault}", "Name another path.") from None


def _remove_old(path: Path) -> None:
    """What an agent left that has ended: it had no right to remove it. Raises ConfigError and OSError."""
    try:
        known = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(known.st_mode):
        raise ConfigError(f"sdk.socket: {path} is there, and is no socket", "Name another path.")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(1.0)
        try:
            sock.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
    raise ConfigError(f"sdk.socket: somebody listens on {path} already", "Is another agent running? Name another path, or end it.")


def _run(listening: socket.socket, decoder: socket.socket) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    privileges.load_encodings()
    os.nice(_NICE)
    privileges.become(privileges.unprivileged_user())
    privileges.confine(serving=True)
    limit_address_space(_ROOM_BYTES, slack_bytes=_OBJECTS_BYTES)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the decoder is gone
        Reception(listening, decoder).run()


class _Client:
    """One connection, and the frame that is being read from it."""

    def __init__(self, sock: socket.socket, peer: Peer) -> None:
        self.sock = sock
        self.peer = peer
        self.head = bytearray()
        self.body: bytearray | None = None
        self.left = 0  # bytes of the body that are still to come
        self.room = 0  # bytes of _ROOM_BYTES that it has
        self.began = time.monotonic()  # of the last frame


class Reception:
    """Reads frames from many clients in turn, and answers each. One thread.

    What a user sends is paid for in time: until it is, nothing more is read of that user. Where all together owe, nothing is read at all.
    """

    def __init__(
        self,
        listening: socket.socket,
        decoder: socket.socket,
        *,
        frame_s: float = _FRAME_S,
        records_a_second: float = _RECORDS_A_SECOND,
        peer_of: Callable[[socket.socket], Peer] | None = None,
    ) -> None:
        self._peer_of = peer_of or _peer_of
        self._since = time.time_ns()
        self._frame_s = frame_s
        self._records_a_second = records_a_second
        self._listening = listening
        self._decoder = decoder
        self._selector = selectors.DefaultSelector()
        self._clients: set[_Client] = set()
        self._waiting: deque[_Client] = deque()  # for room
        self._room: Counter[int] = Counter()  # by user
        self._refused: Counter[str] = Counter()
        self._paid_until: dict[int, float] = {}  # by user
        self._all_paid_until = 0.0
        self._resting: set[_Client] = set()  # whose user owes
        self._is_told = True
        self._told_at = 0.0
        self._connections = 0
        listening.setblocking(False)
        self._selector.register(listening, selectors.EVENT_READ)
        self._selector.register(decoder, selectors.EVENT_READ)  # which says nothing, but ends

    def run(self) -> None:
        """Until the decoder wants no more. Raises OSError where it has ended."""
        while not self._is_over():
            for chosen, _ in self._selector.select(_REST_S if self._resting else _LOOK_S):
                if chosen.fileobj is self._listening:
                    self._accept()
                elif chosen.fileobj is not self._decoder:
                    self._read_on(chosen.data)
                if self._all_paid_until > time.monotonic():
                    break  # whoever is ready now is so in the next round
            self._look_for_slow_ones()
            self._wake()
            now = time.monotonic()
            if not self._is_told and now >= self._told_at + _LOOK_S:
                self._is_told, self._told_at = True, now
                self._tell(Counts(clients=len(self._clients), refused=dict(self._refused)))
        self._tell(Counts(clients=0, refused=dict(self._refused)))
        self._listening.close()
        for client in list(self._clients):
            self._end(client)
        self._decoder.close()

    def _is_over(self) -> bool:
        """Whether the decoder wants no more, which is heard also while nothing is read."""
        poll = select.poll()
        poll.register(self._decoder, select.POLLIN | select.POLLRDHUP)
        begun = time.monotonic()
        is_over = bool(poll.poll(max(0.0, self._all_paid_until - begun) * 1000))
        paused_s = time.monotonic() - begun
        for client in self._clients:
            client.began += paused_s  # it is not the client that is slow
        return is_over

    def _accept(self) -> None:
        try:
            sock, _ = self._listening.accept()
        except OSError:
            return  # it is gone again, or there are no descriptors
        sock.setblocking(False)
        self._connections += 1
        peer = self._peer_of(sock)
        if not peer.pid:  # one that is not in our sight is known by its connection
            peer = msgspec.structs.replace(peer, started=f"connection {self._connections} of {self._since}")
        if not (self._has_seat(_MAX_CLIENTS_OF_A_USER, peer.uid) and self._has_seat(_MAX_CLIENTS)):
            self._refuse("connections")
            sock.close()
            return
        client = _Client(sock, peer)
        self._clients.add(client)
        self._selector.register(sock, selectors.EVENT_READ, client)
        self._is_told = False

    def _has_seat(self, most: int, uid: int | None = None) -> bool:
        """Where there is none left, of a user or of all, whoever was silent longest makes room: it may come again at any time."""
        seated = [client for client in self._clients if uid is None or client.peer.uid == uid]
        if len(seated) < most:
            return True
        silent = [client for client in seated if not client.head]
        if silent:
            self._end(min(silent, key=lambda client: client.began))
        return bool(silent)

    def _read_on(self, client: _Client) -> None:
        if client not in self._clients:  # it made room for another in this round
            return
        if self._paid_until.get(client.peer.uid, 0.0) > time.monotonic():
            self._selector.unregister(client.sock)
            self._resting.add(client)
            return
        try:
            self._read(client)
        except MemoryError:
            self._refuse("too_large")
            self._charge(client.peer, MAX_RECORDS, MAX_FRAME_BYTES, 0.0)
            self._end(client)

    def _read(self, client: _Client) -> None:
        try:
            data = client.sock.recv(HEAD.size - len(client.head) if client.body is None else min(client.left, _READ_BYTES))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._end(client)
            return
        if client.body is not None:
            client.body += data
            client.left -= len(data)
            if not client.left:
                self._whole(client)
            return
        if not client.head:
            client.began = time.monotonic()
        client.head += data
        if len(client.head) == HEAD.size:
            self._begin(client)

    def _begin(self, client: _Client) -> None:
        """The head is there: read on, once there is room."""
        magic, size = HEAD.unpack(client.head)
        if magic != MAGIC or not size or size > MAX_FRAME_BYTES:
            self._refuse("frame")
            too_long = f"frames are of 1 to {MAX_FRAME_BYTES:,} bytes"
            self._answer(client, Answer(error=too_long if magic == MAGIC else "this is not the SDK's protocol, or another version of it"))
            self._end(client)
            return
        if size > _SMALL_BYTES:
            of_user = self._room[client.peer.uid]
            if self._room.total() + size > _ROOM_BYTES or (of_user and of_user + size > _ROOM_BYTES // 2):
                self._selector.unregister(client.sock)
                self._waiting.append(client)
                return
            client.room = size
            self._room[client.peer.uid] += size
        client.body, client.left, client.began = bytearray(), size, time.monotonic()

    def _whole(self, client: _Client) -> None:
        assert client.body is not None
        body = bytes(client.body)
        client.head, client.body = bytearray(), None
        self._give_back(client)
        begun = time.monotonic()
        answer = self._take(body, client.peer)
        records = max(1, answer.taken + len(answer.refused))
        self._charge(client.peer, records, len(body), time.monotonic() - begun)
        if not self._answer(client, answer) or answer.error:
            self._end(client)

    def _take(self, body: bytes, peer: Peer) -> Answer:
        count = count_of(body)
        records: list[msgspec.Raw] | None = None
        if count is not None and count <= MAX_RECORDS:
            with contextlib.suppress(msgspec.DecodeError, RecursionError, UnicodeDecodeError):
                records = msgspec.msgpack.decode(body, type=list[msgspec.Raw])
        if records is None:
            self._refuse("frame")
            return Answer(error=f"a frame is a list of {MAX_RECORDS:,} records at most, in MessagePack")
        refused: dict[int, str] = {}
        now_ns = time.time_ns()
        for place, record in enumerate(records):
            try:
                self._tell(Received(peer, admitted(record, now_ns)))
            except RefusedError as fault:
                refused[place] = fault.reason
                self._refuse(fault.reason)
        return Answer(taken=len(records) - len(refused), refused=refused)

    def _charge(self, peer: Peer, records: int, size: int, took_s: float) -> None:
        now = time.monotonic()
        cost_s = max(records / self._records_a_second, size / _BYTES_A_SECOND, took_s * _USERS_AT_ONCE)
        self._paid_until[peer.uid] = max(now - _BURST_S, self._paid_until.get(peer.uid, 0.0)) + cost_s
        self._all_paid_until = max(now - _BURST_S, self._all_paid_until) + cost_s / _USERS_AT_ONCE

    def _wake(self) -> None:
        now = time.monotonic()
        for client in [client for client in self._resting if self._paid_until.get(client.peer.uid, 0.0) <= now]:
            self._resting.discard(client)
            client.began = now
            if _has_hung_up(client.sock):  # what it sent it will send again
                self._end(client)
            else:
                self._selector.register(client.sock, selectors.EVENT_READ, client)
        if len(self._paid_until) > _MAX_CLIENTS:
            self._paid_until = {uid: until for uid, until in self._paid_until.items() if until > now - _BURST_S}

    def _tell(self, message: Received | Counts) -> None:
        data = encode(message)
        self._decoder.sendall(LENGTH.pack(len(data)) + data)

    def _answer(self, client: _Client, answer: Answer) -> bool:
        """False where it is not taken at once: whoever does not read its answers is let go."""
        data = frame(msgspec.msgpack.encode(answer))
        try:
            return client.sock.send(data) == len(data)
        except OSError:
            return False

    def _refuse(self, reason: str) -> None:
        self._refused[reason] += 1
        self._is_told = False

    def _look_for_slow_ones(self) -> None:
        oldest = time.monotonic() - self._frame_s
        for client in [client for client in self._clients if client.head and client.began < oldest]:
            if client not in self._resting and client not in self._waiting:
                self._refuse("slow")
                self._end(client)

    def _give_back(self, client: _Client) -> None:
        if client.room:
            self._room[client.peer.uid] -= client.room
            self._room += Counter()  # without the users that have none
            client.room = 0
        for waiting in [self._waiting.popleft() for _ in range(len(self._waiting))]:
            self._selector.register(waiting.sock, selectors.EVENT_READ, waiting)
            self._begin(waiting)

    def _end(self, client: _Client) -> None:
        self._clients.discard(client)
        self._resting.discard(client)
        with contextlib.suppress(KeyError):  # it waits, or rests
            self._selector.unregister(client.sock)
        with contextlib.suppress(ValueError):
            self._waiting.remove(client)
        client.sock.close()
        self._is_told = False
        self._give_back(client)


def _has_hung_up(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, 0)
    return bool(poll.poll(0))


def _peer_of(sock: socket.socket) -> Peer:
    pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if not pid:
        return Peer(uid, 0)
    facts = facts_of(pid)
    try:
        started = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        started = ""
    return Peer(uid, pid, started, facts.comm, facts.container)
