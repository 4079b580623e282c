"""An interface that goes down and comes back, or is removed and made anew under its name, is read on."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from llmsec_tap.capture.live.queue import BatchQueue
from llmsec_tap.capture.packets.afpacket import PacketSource
from llmsec_tap.capture.packets.packet_socket import open_packet_sockets
from llmsec_tap.capture.warden.interfaces import Interface
from llmsec_tap.capture.warden.protocol import Ask
from llmsec_tap.capture.warden.warden import Warden
from llmsec_tap.clock import Clock
from llmsec_tap.journal import SILENT, Event, Journal
from support.needs import program

NAME, PEER = "llmsec-t0", "llmsec-t1"
# An Ethernet frame to all, with an IPv4 header and nothing behind it.
FRAME = b"\xff" * 6 + b"\2\0\0\0\0\1" + b"\x08\0" + bytes.fromhex("4500001400000000401100000a0000010a000002") + bytes(30)


def ip(*words: str) -> None:
    subprocess.run(["ip", "link", *words], check=True, capture_output=True)


def make() -> None:
    ip("add", NAME, "type", "veth", "peer", "name", PEER)
    for name in (NAME, PEER):
        ip("set", name, "up")


@pytest.fixture
def interface() -> Iterator[str]:
    program("ip", "iproute2")
    try:
        make()
    except subprocess.CalledProcessError as fault:
        pytest.skip(f"no pair of interfaces can be made here: {fault.stderr.decode().strip()}")
    yield NAME
    subprocess.run(["ip", "link", "del", NAME], check=False, capture_output=True)


@pytest.fixture
def warden() -> Iterator[Warden]:
    warden = Warden(SILENT, (sys.executable, "-c", ""))
    warden._interfaces = [Interface(partial(open_packet_sockets, NAME, None))]
    yield warden
    warden.channels[0].close_clients_ends()
    warden._end()


def asked(warden: Warden, kind: Ask) -> socket.socket | None:
    """As it comes to the decoder: a descriptor of its own."""
    _, descriptors = warden._answer(warden.channels[0], kind, 0, [])
    return socket.socket(fileno=os.dup(descriptors[0])) if descriptors else None


class Reading:
    def __init__(self, warden: Warden, *, survives: bool) -> None:
        self.queue = BatchQueue(1 << 20, 1 << 20)
        self.said: list[Event] = []
        sock = asked(warden, Ask.SOCKETS)
        assert sock is not None
        reopen = partial(asked, warden, Ask.SOCKET) if survives else None
        self.source = PacketSource(NAME, sock, self.queue, lambda *_: None, Clock(), reopen=reopen, journal=Journal(self.said.append))
        self.source.start()

    def until(self, condition: Callable[[], bool], otherwise: str) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, otherwise
            item = self.queue.get(0.02)
            if callable(item):
                item()

    def reads(self) -> None:
        """What is sent now is read."""
        before = self.source.packets
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
            sock.bind((PEER, 0))

            def sent() -> bool:
                sock.send(FRAME)  # a link that came up this moment may lose the first
                return self.source.packets > before

            self.until(sent, "nothing is read")

    @property
    def is_up(self) -> float:
        return next(sample.value for sample in self.source.samples() if sample.name == "llmsec_interface_up")


@pytest.mark.parametrize("how", ["down and up", "removed and made anew"])
def test_an_interface_that_comes_back_is_read_on(interface: str, warden: Warden, how: str) -> None:
    reading = Reading(warden, survives=True)
    for _ in range(3):
        reading.reads()
        assert reading.is_up == 1
        if how == "down and up":
            ip("set", NAME, "down")
        else:
            ip("del", NAME)
        reading.until(lambda: reading.is_up == 0, "its loss is not told")
        if how == "down and up":
            ip("set", NAME, "up")
        else:
            make()
        reading.until(lambda: reading.is_up == 1, "it is not found again")
    reading.reads()
    assert [event.name for event in reading.said] == 3 * ["interface_down", "interface_up"]
    reading.source.stop()
    reading.source.join(5)
    assert reading.source.fault is None


def test_waiting_for_it_holds_up_no_end(interface: str, warden: Warden) -> None:
    reading = Reading(warden, survives=True)
    reading.reads()
    ip("del", NAME)
    reading.until(lambda: reading.is_up == 0, "its loss is not told")
    reading.source.stop()
    reading.source.join(2)
    assert not reading.source.is_alive()


def test_where_it_is_not_to_be_outlived_its_loss_is_a_fault(interface: str, warden: Warden) -> None:
    reading = Reading(warden, survives=False)
    reading.reads()
    ip("set", NAME, "down")
    reading.until(lambda: reading.source.fault is not None, "its loss is not told")
    assert f"interface {NAME} went down" in str(reading.source.fault)


def test_a_decoder_gets_no_second_socket_of_an_interface_that_is_there(interface: str, warden: Warden) -> None:
    """Each has a ring of 32 MiB."""
    asked(warden, Ask.SOCKETS).close()  # type: ignore[union-attr]
    assert asked(warden, Ask.SOCKET) is None
    ip("set", NAME, "down")
    assert asked(warden, Ask.SOCKET) is None
    ip("del", NAME)
    assert asked(warden, Ask.SOCKET) is None
    assert warden._answer(warden.channels[0], Ask.SOCKET, 1, []) == (b"", [])
    make()
    again = asked(warden, Ask.SOCKET)
    assert again is not None
    again.close()
    assert asked(warden, Ask.SOCKET) is None


def test_an_interface_made_anew_is_opened_once_for_all_decoders(interface: str) -> None:
    """In another fan-out group: that of the old one is bound to an interface that is gone."""
    warden = Warden(SILENT, (sys.executable, "-c", ""), decoders=2)
    warden._interfaces = [Interface(partial(open_packet_sockets, NAME, None, 2))]
    try:
        given = [warden._answer(channel, Ask.SOCKETS, 0, [])[1] for channel in warden.channels]
        assert given[0] != given[1]
        for channel in warden.channels:
            assert warden._answer(channel, Ask.SOCKET, 0, []) == (b"", [])
        ip("del", NAME)
        make()
        again = [warden._answer(channel, Ask.SOCKET, 0, [])[1] for channel in warden.channels]
        assert [len(descriptors) for descriptors in again] == [1, 1]
        assert again[0] != again[1]
        for channel in warden.channels:
            assert warden._answer(channel, Ask.SOCKET, 0, []) == (b"", []), "no third"
    finally:
        for channel in warden.channels:
            channel.close_clients_ends()
        warden._end()


def test_nor_of_all_interfaces_together(warden: Warden) -> None:
    warden._interfaces = [Interface(partial(open_packet_sockets, "any", None))]
    asked(warden, Ask.SOCKETS).close()  # type: ignore[union-attr]
    assert asked(warden, Ask.SOCKET) is None
