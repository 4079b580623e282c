"""One decoder as the warden holds it: its process, the socket it asks by, the pipe that tells it things, its detection processes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmsec_tap.capture.warden import protocol
from llmsec_tap.journal import Journal

if TYPE_CHECKING:
    from llmsec_tap.capture.ebpf.loader_api import ConnectionLoss


class Channel:
    """Made before the fork; then each process closes the ends that are not its own."""

    def __init__(self, number: int, detector: Sequence[str], journal: Journal) -> None:
        self.number = number
        self.asked, self.client_socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.stop_pipe, self._words = os.pipe()
        self.pid = 0
        self.losses: list[ConnectionLoss] = []
        self.probes = b""
        self.is_capturing = False
        self.has_made_progress = False
        self._detector_command = detector
        self._detectors: dict[int, subprocess.Popen[bytes]] = {}
        self._journal = journal

    def close_clients_ends(self) -> None:
        self.client_socket.close()
        if self.stop_pipe >= 0:
            os.close(self.stop_pipe)
        self.stop_pipe = -1

    def close_wardens_ends(self) -> None:
        self.asked.close()
        if self._words >= 0:
            os.close(self._words)
        self._words = -1

    def say(self, word: bytes) -> None:
        with contextlib.suppress(OSError):
            os.write(self._words, word)

    def kill(self) -> None:
        if self.pid:
            with contextlib.suppress(OSError):
                os.kill(self.pid, signal.SIGKILL)

    def start_detector(self, number: int) -> list[int]:
        """Its input and output; an earlier one of this number is ended. None of them where it cannot be started."""
        if number >= protocol.MAX_DETECTORS:
            return []
        self.end_detector(number)
        try:
            process = subprocess.Popen(self._detector_command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: S603 - our own module
        except OSError as fault:
            self._journal.warning("detection_not_started", f"the detection process cannot be started ({fault.strerror})")
            return []
        assert process.stdin is not None
        assert process.stdout is not None
        self._detectors[number] = process
        with process.stdin, process.stdout:
            return [os.dup(process.stdin.fileno()), os.dup(process.stdout.fileno())]

    def end_detector(self, number: int) -> None:
        process = self._detectors.pop(number, None)
        if process is not None:
            process.kill()
            process.wait()

    def close(self) -> None:
        """The decoder's process first, then what it had started."""
        self.kill()
        if self.pid:
            with contextlib.suppress(OSError):
                os.waitpid(self.pid, 0)
        for number in range(protocol.MAX_DETECTORS):
            self.end_detector(number)
        self.close_wardens_ends()
