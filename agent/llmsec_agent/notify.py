"""systemd's notification socket (sd_notify(3)): ready, alive, stopping. Outside a unit of `Type=notify` nothing happens."""

from __future__ import annotations

import contextlib
import os
import socket


class Notify:
    """Reads NOTIFY_SOCKET once and takes it from the environment, so that no child speaks for the unit."""

    def __init__(self) -> None:
        address = os.environ.pop("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._is_ready = False

    def alive(self) -> None:
        """READY the first time, then WATCHDOG."""
        if self._send("WATCHDOG=1" if self._is_ready else "READY=1\nWATCHDOG=1"):
            self._is_ready = True

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def _send(self, text: str) -> bool:
        """Whether it was taken. It never waits: who is asked to stop must not depend on whoever reads here."""
        if self._address:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.setblocking(False)
                sock.sendto(text.encode(), self._address)
                return True
        return False
