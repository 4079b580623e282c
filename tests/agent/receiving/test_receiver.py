"""The process that listens for records of applications: real clients, good, hostile and slow, at a real socket."""

from __future__ import annotations

import contextlib
import grp
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llmsec_agent.receiving import inbox
from llmsec_agent.receiving.admission import Peer
from llmsec_agent.receiving.inbox import Inbox
from llmsec_agent.receiving.messages import Received
from llmsec_agent.receiving.protocol import HEAD, MAGIC, MAX_FRAME_BYTES, MAX_RECORDS, Answer, frame
from llmsec_agent.receiving.receiver import Place, Receiver, Reception, listen
from llmsec_tap.counters import Snapshot
from llmsec_tap.errors import ConfigError
from llmsec_tap.identity.credentials import fingerprinter
from llmsec_tap.model import Exchange
from support.journal import Said
from support.received import record, sent
from support.replay import KEY


class Decoder:
    """What the receiver tells a decoder; calls that are put are made at once, unless it is `busy`."""

    def __init__(self, sock: socket.socket) -> None:
        self.records: list[Exchange] = []
        self.journal = Said()
        self.free = threading.Event()
        self.free.set()
        self.inbox = Inbox(
            sock, self._put, self.records.append, self.journal, fingerprint=fingerprinter(KEY), node="here", detects=True, pods=None
        )

    def _put(self, call: Callable[[], None]) -> None:
        threading.Thread(target=lambda: self.free.wait(30) and call(), daemon=True).start()

    def count(self, name: str, **labels: str) -> float:
        return Snapshot([self.inbox.samples]).get(name, **labels)


@contextlib.contextmanager
def receiving(path: Path, **place: object) -> Iterator[Decoder]:
    running = Receiver.start(Place(str(path), **place))  # type: ignore[arg-type]
    decoder = Decoder(running.socket)
    decoder.inbox.start()
    try:
        yield decoder
    finally:
        decoder.free.set()
        decoder.inbox.stop()
        decoder.inbox.join(10)
        running.socket.close()
        os.waitpid(running.pid, 0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Others may go through the folders above: the receiver is another user."""
    return tmp_path / "run" / "sdk.sock"


@contextlib.contextmanager
def client(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(20)
        until(lambda: sock.connect_ex(str(path)) == 0)  # it is refused while too many wait to be accepted
        yield sock


def answer(sock: socket.socket) -> Answer:
    with sock.makefile("rb") as file:
        magic, size = HEAD.unpack(file.read(HEAD.size))
        assert magic == MAGIC
        return msgspec.msgpack.decode(file.read(size), type=Answer)


def ask(sock: socket.socket, *records: Exchange) -> Answer:
    sock.sendall(frame(msgspec.msgpack.encode(records)))
    return answer(sock)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_closed(sock: socket.socket) -> bool:
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def test_records_come_out_as_the_agent_s_own(path: Path) -> None:
    with receiving(path) as decoder, client(path) as sock:
        assert ask(sock, record(), record(provider=None), record(request_model="other")) == Answer(2, {1: "not_a_model"})
        assert ask(sock, record(request_model="third")).taken == 1
        until(lambda: len(decoder.records) == 3)
        assert {one.request_model for one in decoder.records} >= {"other", "third"}
        mine = decoder.records[0]
        assert mine.process is not None
        assert mine.process.pid == os.getpid()
        assert mine.process.comm == Path("/proc/self/comm").read_text().strip()
        assert (mine.capture_kind, mine.node) == ("sdk", "here")
        until(lambda: decoder.count("llmsec_sdk_refused_total", reason="not_a_model") == 1)
        assert decoder.count("llmsec_sdk_connections") == 1
        assert decoder.count("llmsec_sdk_records_total") == 3
    assert decoder.journal.texts == []
    assert decoder.count("llmsec_sdk_receiver_up") == 0


def test_who_may_write_to_it(path: Path) -> None:
    group = grp.getgrgid(os.getgid()).gr_name
    with receiving(path, mode=0o620, group=group):
        known = path.lstat()
        assert stat.S_IMODE(known.st_mode) == 0o620
        assert known.st_gid == os.getgid()
    with receiving(path):  # what an agent left behind is no hindrance
        with pytest.raises(ConfigError, match="somebody listens"):
            listen(Place(str(path)))
        assert stat.S_IMODE(path.lstat().st_mode) == 0o660


def test_places_that_are_refused_with_a_reason(tmp_path: Path) -> None:
    open_folder = tmp_path / "open"
    open_folder.mkdir()
    open_folder.chmod(0o1777)
    plain_file = tmp_path / "closed" / "file"
    plain_file.parent.mkdir()
    plain_file.write_text("not ours")
    for place, words in (
        (Place(str(open_folder / "s")), "may be written to by others"),
        (Place(str(plain_file)), "is no socket"),
        (Place(str(tmp_path / "no" / "such" / "s")), "cannot make"),
        (Place(str(tmp_path / "closed" / "s"), group="no-such-group"), "no such group"),
    ):
        with pytest.raises(ConfigError, match=words):
            listen(place)
    assert plain_file.read_text() == "not ours"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"GET / HTTP/1.1\r\n", "not the SDK's protocol"),
        (HEAD.pack(MAGIC, MAX_FRAME_BYTES + 1), "bytes"),
        (HEAD.pack(MAGIC, 0), "bytes"),
        (frame(b"\xc1"), "list of"),
        (frame(sent({"a": 1})), "list of"),
        (frame(b"\x91" * 1_000_000), "list of"),
        (frame(sent([0] * (MAX_RECORDS + 1))), "records at most"),
        (frame(b"\xdd\xff\xff\xff\xff"), "records at most"),
        (frame(b"\xdd"), "list of"),
    ],
    ids=["http", "too long", "empty", "no MessagePack", "no list", "deep", "too many", "a list without end", "cut"],
)
def test_what_is_no_frame_is_answered_and_closed(path: Path, data: bytes, words: str) -> None:
    with receiving(path) as decoder:
        with client(path) as sock:
            sock.sendall(data)
            assert words in answer(sock).error
            assert is_closed(sock)
        with client(path) as sock:  # the next one is served
            assert ask(sock, record()).taken == 1
        until(lambda: decoder.count("llmsec_sdk_refused_total", reason="frame") == 1)


def test_a_large_record_goes_through_while_others_stall(path: Path) -> None:
    large = record(input_text="x" * (MAX_FRAME_BYTES - 100_000))
    with receiving(path) as decoder, contextlib.ExitStack() as stack:
        for _ in range(40):  # frames that are begun and not ended
            stack.enter_context(client(path)).sendall(HEAD.pack(MAGIC, 1_000_000) + b"x")
        stalled = [stack.enter_context(client(path)) for _ in range(8)]
        for sock in stalled:
            sock.sendall(HEAD.pack(MAGIC, MAX_FRAME_BYTES) + b"x")
        with client(path) as sock:
            assert ask(sock, record()).taken == 1  # a small one needs no room
        stack.close()
        with client(path) as sock:
            assert ask(sock, large).taken == 1
        until(lambda: len(decoder.records) == 2)
        assert max(len(one.input_text or "") for one in decoder.records) == MAX_FRAME_BYTES - 100_000


@contextlib.contextmanager
def reception(path: Path, **settings: Any) -> Iterator[None]:
    """In a thread of this process; nobody decodes."""
    ours, theirs = socket.socketpair()
    drain = threading.Thread(target=_drain, args=(ours,))
    drain.start()
    running = Reception(listen(Place(str(path))), theirs, **settings)
    thread = threading.Thread(target=running.run)
    thread.start()
    try:
        yield
    finally:
        ours.shutdown(socket.SHUT_WR)
        thread.join(20)
        drain.join(20)
        ours.close()
    assert not thread.is_alive()


def _drain(sock: socket.socket) -> None:
    while sock.recv(1 << 20):
        pass


def test_a_record_of_very_many_objects_takes_no_memory_and_nobody_down(path: Path) -> None:
    """Ten bytes on their way are a hundred and more in memory; two thousand of them would still be a record."""
    many = msgspec.to_builtins(record()) | {"other_texts": [{"path": "", "text": ""}] * 900_000}
    with receiving(path) as decoder, client(path) as sock:
        sock.sendall(frame(sent([many])))
        assert answer(sock) == Answer(0, {0: "too_large"})
        assert ask(sock, record()).taken == 1
        until(lambda: len(decoder.records) == 1)
        until(lambda: decoder.count("llmsec_sdk_refused_total", reason="too_large") == 1)


def test_frames_that_take_for_ever_are_ended_and_silent_clients_are_not(path: Path) -> None:
    with reception(path, frame_s=0.2), client(path) as silent, client(path) as slow:
        slow.sendall(HEAD.pack(MAGIC, 1000) + b"x")
        assert is_closed(slow)
        assert ask(silent, record()).taken == 1


class Users:
    """Says whose a connection is: of the user of each number, in their order."""

    def __init__(self, *numbers: int) -> None:
        self._numbers = iter(numbers)

    def __call__(self, _sock: socket.socket) -> Peer:
        return Peer(next(self._numbers), os.getpid())


@pytest.mark.parametrize("how", ["goes on", "comes again", "reads no answer", "sends nothing of use"])
def test_who_sends_too_much_rests_and_the_others_go_on(path: Path, how: str) -> None:
    """Whatever it does then: the user owes, not the connection."""
    with (
        reception(path, records_a_second=0.5, peer_of=Users(1, 1, 2)),
        client(path) as eager,
        client(path) as again,
        client(path) as other,
    ):
        if how == "sends nothing of use":
            for sock in (eager, again):
                with contextlib.suppress(OSError):
                    sock.sendall(frame(b"\xc1") if sock is eager else frame(sent([])))
        elif how == "reads no answer":
            eager.sendall(frame(msgspec.msgpack.encode([record()] * 8)))
            eager.shutdown(socket.SHUT_RD)
        else:
            assert ask(eager, *[record()] * 8).taken == 8
        owing = eager if how == "goes on" else again
        if how != "sends nothing of use":
            owing.sendall(frame(sent([])))  # it is not read for many seconds
        assert ask(other, record()).taken == 1
        owing.settimeout(0)
        with pytest.raises(BlockingIOError):
            owing.recv(1)


def test_who_made_room_for_another_is_not_read_any_more(path: Path) -> None:
    """Both may come in one round, and the user may owe."""
    ours, theirs = socket.socketpair()
    running = Reception(listen(Place(str(path))), theirs, peer_of=Users(1))
    with ours, client(path) as sock:
        running._accept()
        (seated,) = running._clients
        running._paid_until[1] = time.monotonic() + 100
        running._end(seated)
        running._read_on(seated)
        assert is_closed(sock)
        assert not running._resting
        ours.shutdown(socket.SHUT_WR)
        running.run()


def test_one_user_cannot_hold_all_room(path: Path) -> None:
    half_read = HEAD.pack(MAGIC, MAX_FRAME_BYTES) + b"x"
    with reception(path, peer_of=Users(1, 1, 1, 2)), contextlib.ExitStack() as stack:
        for sock in [stack.enter_context(client(path)) for _ in range(3)]:
            sock.sendall(half_read)
        other = stack.enter_context(client(path))
        assert ask(other, record(input_text="x" * 5_000_000)).taken == 1


def test_the_end_is_heard_while_everybody_waits(path: Path) -> None:
    with reception(path, records_a_second=0.01), client(path) as sock:
        assert ask(sock, *[record()] * 10).taken == 10  # which is paid for in a quarter of an hour


def test_of_many_connections_the_silent_ones_make_room(path: Path) -> None:
    with receiving(path) as decoder, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(client(path)) for _ in range(80)]
        assert ask(clients[-1], record()).taken == 1
        assert is_closed(clients[0])
        until(lambda: decoder.count("llmsec_sdk_connections") == 64)


def test_who_reads_no_answers_holds_nobody_up(path: Path) -> None:
    with receiving(path) as decoder, client(path) as deaf:
        deaf.settimeout(0.5)
        few = frame(sent([]))
        with contextlib.suppress(OSError):  # until it is let go
            while True:
                deaf.sendall(few * 1000)
        with client(path) as sock:
            assert ask(sock, record()).taken == 1
        until(lambda: len(decoder.records) == 1)


def test_a_busy_decoder_is_waited_for_and_then_has_everything(path: Path) -> None:
    with receiving(path) as decoder:
        decoder.free.clear()
        with client(path) as sock:
            sock.settimeout(0.5)
            big = [record(input_text=f"{number}" + "x" * 1_000_000) for number in range(12)]
            taken = 0
            with contextlib.suppress(TimeoutError):
                for one in big:
                    taken += ask(sock, one).taken
            assert 4 <= taken < 12  # the inbox's bound, and what the socket pair holds
            assert not decoder.records
            decoder.free.set()
            until(lambda: len(decoder.records) >= taken)


def test_at_the_end_what_was_taken_is_delivered(path: Path) -> None:
    running = Receiver.start(Place(str(path)))
    decoder = Decoder(running.socket)
    with client(path) as sock:
        assert sum(ask(sock, record(request_model=f"m{number}")).taken for number in range(20)) == 20
        decoder.inbox.start()
        decoder.inbox.stop()
        decoder.inbox.join(10)
        assert is_closed(sock)
    until(lambda: len(decoder.records) == 20)
    assert os.waitpid(running.pid, 0)[1] == 0
    assert decoder.journal.texts == []


def test_a_receiver_that_dies_is_told_and_costs_nothing_else(path: Path) -> None:
    running = Receiver.start(Place(str(path)))
    decoder = Decoder(running.socket)
    decoder.inbox.start()
    os.kill(running.pid, 9)
    os.waitpid(running.pid, 0)
    decoder.inbox.join(10)
    assert decoder.inbox.fault is None
    assert decoder.count("llmsec_sdk_receiver_up") == 0
    assert "restart the agent" in decoder.journal.texts[0]


@pytest.mark.parametrize("fault", [MemoryError, RuntimeError])
def test_a_record_that_finds_no_memory_is_counted_and_any_other_fault_told(
    path: Path, monkeypatch: pytest.MonkeyPatch, fault: type[Exception]
) -> None:
    real, failed = inbox.decode, []

    def failing(data: bytes) -> Any:
        message = real(data)
        if isinstance(message, Received) and not failed:
            failed.append(message)
            raise fault
        return message

    monkeypatch.setattr(inbox, "decode", failing)
    with receiving(path) as decoder, client(path) as sock:
        sock.sendall(frame(msgspec.msgpack.encode([record(), record()])))
        if fault is MemoryError:
            assert answer(sock).taken == 2
            until(lambda: len(decoder.records) == 1)
            assert decoder.count("llmsec_sdk_refused_total", reason="memory") == 1
        else:
            until(lambda: decoder.count("llmsec_sdk_receiver_up") == 0)
            assert "RuntimeError" in decoder.journal.texts[0]


def test_it_has_no_rights(path: Path) -> None:
    running = Receiver.start(Place(str(path)))
    try:
        with client(path) as sock:
            sock.sendall(frame(sent([])))
            answer(sock)  # it has given up its rights by now
            status = dict(line.split(":\t", 1) for line in Path(f"/proc/{running.pid}/status").read_text().splitlines() if ":\t" in line)
            assert int(status["CapPrm"], 16) == 0
            assert (status["NoNewPrivs"].strip(), status["Seccomp"].strip()) == ("1", "2")
            assert os.geteuid() or int(status["Uid"].split()[1]) != 0
    finally:
        running.socket.close()
        os.waitpid(running.pid, 0)
