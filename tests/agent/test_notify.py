from __future__ import annotations

import socket
from pathlib import Path

import pytest

from llmsec_agent.notify import Notify


def test_nobody_reads_and_it_still_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        manager.bind(address)
        manager.setblocking(False)
        other.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        notify = Notify()
        filled = 0
        try:
            while True:
                filled += other.sendto(b"x", address)
        except BlockingIOError:
            pass
        notify.alive()
        notify.stopping()
        for _ in range(filled):
            assert manager.recv(100) == b"x"
        notify.alive()
        assert manager.recv(100) == b"READY=1\nWATCHDOG=1"  # the first one was not taken, so it is said again
        notify.alive()
        assert manager.recv(100) == b"WATCHDOG=1"
