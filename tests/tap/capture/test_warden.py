"""What a decoder that an attacker has taken over can ask of the warden: what the protocol lists, and for its own folder only."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmsec_tap.capture.ebpf.loader_api import ProbeState
from llmsec_tap.capture.warden.client import WardenClient
from llmsec_tap.capture.warden.protocol import MOST_PROBES, Ask, packed, unpacked
from llmsec_tap.capture.warden.warden import Warden
from llmsec_tap.journal import SILENT
from support.agent import environment

STRANGER = 12_345


@pytest.fixture
def warden() -> Iterator[Warden]:
    """One whose decoder is a process of another user."""
    if os.geteuid() != 0:
        pytest.skip("only root can start a process of another user")
    warden = Warden(SILENT, (sys.executable, "-c", ""))
    with subprocess.Popen(["sleep", "60"], user=STRANGER, group=STRANGER, extra_groups=()) as decoder:
        warden.channels[0].pid = decoder.pid
        yield warden
        decoder.kill()
    warden.channels[0].pid = 0
    warden.channels[0].close_clients_ends()
    warden._end()


@pytest.mark.parametrize(("owner", "is_merged"), [(STRANGER, True), (0, False), (STRANGER + 1, False)])
def test_parts_are_merged_in_the_decoders_own_folder_only(warden: Warden, tmp_path: Path, owner: int, is_merged: bool) -> None:
    """The merge reads what the decoder wrote, with the rights of the folder's owner."""
    os.chown(tmp_path, owner, owner)
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        assert warden._answer(warden.channels[0], Ask.COMPACT, 0, [folder]) == (b"", [])
    finally:
        os.close(folder)
    started = warden._compactor
    assert (started is not None) == is_merged
    if started is not None:
        started.wait(30)


@pytest.mark.parametrize("kind", [0, 255, *(kind for kind in Ask if kind not in (Ask.ATTACHED, Ask.DETECTOR))])
def test_any_other_question_has_an_answer(warden: Warden, kind: int) -> None:
    for argument in (0, 1, 0xFFFFFFFF):
        payload, descriptors = warden._answer(warden.channels[0], kind, argument, [])
        assert len(payload) < 65_536
        assert descriptors == []


def test_two_detectors_run_at_once_and_no_third() -> None:
    """While settings change, the one that knows the new ones starts beside the one that works."""
    warden = Warden(SILENT, ("sleep", "60"))
    first, second = (warden._answer(warden.channels[0], Ask.DETECTOR, number, [])[1] for number in (0, 1))
    assert (len(first), len(second)) == (2, 2)
    assert warden._answer(warden.channels[0], Ask.DETECTOR, 2, []) == (b"", [])
    warden._answer(warden.channels[0], Ask.KILL_DETECTOR, 0, [])
    assert os.read(first[1], 1) == b"", "the first has ended"
    os.set_blocking(second[1], False)
    with pytest.raises(BlockingIOError):
        os.read(second[1], 1)
    for descriptor in (*first, *second):
        os.close(descriptor)
    warden.channels[0].close_clients_ends()
    warden._end()


class Probing:
    """A loader and the selection's books, as far as the warden asks them."""

    plain = True

    def __init__(self, states: list[ProbeState]) -> None:
        self._states = states

    def states(self) -> list[ProbeState]:
        return self._states

    def detach_all(self) -> None:
        pass

    def close(self) -> None:
        pass


# A warden whose decoder waits, and that gets a signal where ctypes would throw an exception away: in a callback from a library.
STOPPED_WHILE_IT_ATTACHES = """
import ctypes, os, signal, sys, time
from types import SimpleNamespace
from llmsec_tap.capture.warden.warden import Warden
from llmsec_tap.journal import SILENT

number, times, is_ignored = (int(word) for word in sys.argv[1:])
if is_ignored:
    signal.signal(number, signal.SIG_IGN)
warden = Warden(SILENT, ("true",))
if warden.fork() is not None:
    os.close(1)
    time.sleep(60)
    os._exit(0)

def attach():
    for _ in range(times):
        ctypes.CFUNCTYPE(None)(lambda: os.kill(os.getpid(), number))()
    print("attached", flush=True)
    loader = SimpleNamespace(detach_all=lambda: print("detached", flush=True), close=lambda: None, processes=None)
    return loader, SimpleNamespace(next_due_s=lambda: None)

sys.exit(warden.run(attach, []))
"""


def stopped_while_it_attaches(number: signal.Signals, *, times: int = 1, is_ignored: bool = False) -> tuple[int, str]:
    command = [sys.executable, "-c", STOPPED_WHILE_IT_ATTACHES, *(str(int(word)) for word in (number, times, is_ignored))]
    done = subprocess.run(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False, timeout=50)
    return done.returncode, done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_it_attaches_ends_it_in_order_then(number: signal.Signals) -> None:
    assert stopped_while_it_attaches(number) == (-number, "attached\ndetached\n")


def test_a_second_signal_while_it_attaches_ends_it_at_once() -> None:
    assert stopped_while_it_attaches(signal.SIGINT, times=2) == (-signal.SIGINT, "")


def test_a_signal_that_its_starter_ignores_ends_it_all_the_same() -> None:
    assert stopped_while_it_attaches(signal.SIGINT, is_ignored=True) == (130, "attached\ndetached\n")


@pytest.mark.parametrize("count", [0, 1, 3 * MOST_PROBES])
def test_the_decoder_is_told_what_is_probed(count: int) -> None:
    warden = Warden(SILENT, ("true",))
    books = Probing(
        [ProbeState("OpenSSL", f"/{number:0500d}/libssl.so.3", "SSL_read", number, "" if number % 3 else "no") for number in range(count)]
    )
    warden._loader = warden._observed = books  # type: ignore[assignment]
    channel = warden.channels[0]
    threading.Thread(target=warden._serve, args=(channel,), daemon=True).start()
    client = WardenClient(channel.client_socket, -1)
    found = client.probes()
    assert (found.read, found.unread) == (count - -(-count // 3) + 1, -(-count // 3))
    assert [state.file[:501] for state in found.states[1:]] == [state.file[:501] for state in books.states()[: MOST_PROBES - 1]]
    assert found.states[0] == ProbeState("plain HTTP", "", "sockets of the observed processes", 0)
    channel.client_socket.shutdown(socket.SHUT_RDWR)
    assert client.probes() == found, "the last known ones, once nobody answers"
    channel.close_clients_ends()
    warden._end()


def test_names_of_files_are_told_as_text_and_bounded() -> None:
    name = os.fsdecode(b"/tmp/\xff\n\x1b[2J/") + "x" * 5000
    (state,) = unpacked(packed([ProbeState("Go", name, "", 1, "a\0b")])).states
    assert state == ProbeState("Go", ("/tmp/\\xff\n\x1b[2J/" + "x" * 5000)[: 512 + 3], "", 1, "a b")
    state.file.encode()
