"""The warden: the one process of a capture that keeps capabilities. It selects, examines and attaches, and opens packet sockets.

It holds no parser of traffic: what processes say goes from the kernel's ring to the decoder, a process of another user without
capabilities, which holds the ring's descriptor (client.py). The warden's own ring carries starts and ends of processes only.

Whichever of the two dies, by whatever signal, the probes go: the links are the warden's descriptors, and it ends with its decoder.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final

from llmsec_tap import privileges
from llmsec_tap.capture.ebpf import events
from llmsec_tap.capture.host.proc import uid_of
from llmsec_tap.capture.host.process import facts_of
from llmsec_tap.capture.packets.packet_socket import interface_of
from llmsec_tap.capture.warden import protocol
from llmsec_tap.capture.warden.protocol import Ask
from llmsec_tap.errors import LLMSecError
from llmsec_tap.journal import Journal

if TYPE_CHECKING:
    from llmsec_tap.capture.ebpf.loader_api import ConnectionLoss, Loader
    from llmsec_tap.capture.probes.selection import Observed, Selection

# What the warden keeps: to load and attach, to look into other users' processes and files, to open packet sockets, and to start
# helpers as other users.
_KEPT: Final = tuple(privileges.CAPABILITIES)
_LOOK_S = 0.5
_MOST_BYTES_OF_NAME = 4096
_COMPACTOR: Final = (sys.executable, "-P", "-m", "llmsec_tap.storage.compact_here")


class Warden:
    """`decoder`: one end of the socket that the decoder asks by, and its process. `run` returns the exit code of the capture."""

    def __init__(
        self,
        journal: Journal,
        detector: Sequence[str],
        *,
        on_alive: Callable[[], None] = lambda: None,
    ) -> None:
        """`detector`: the command of a detection process. `on_alive` is called, on another thread, each time the decoder makes progress."""
        self.on_hangup: Callable[[], None] | None = None  # what SIGHUP asks for; it ends the capture where there is none
        self._on_alive = on_alive
        self._journal = journal
        self._detector_command = detector
        self._asked, self.client_socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.stop_pipe, self._stop = os.pipe()
        self._child = 0
        self._loader: Loader | None = None
        self._observed: Observed | None = None
        self._sockets: list[socket.socket] = []
        self._interfaces: list[str] = []  # that they were opened for
        self._openers: Sequence[Callable[[], socket.socket]] = ()
        self._attached = threading.Event()
        self._detached = False
        self._lock = threading.Lock()
        self._losses: list[ConnectionLoss] = []
        self._detectors: dict[int, subprocess.Popen[bytes]] = {}
        self._compactor: subprocess.Popen[bytes] | None = None
        self._signals = 0
        self._news = b""

    def fork(self) -> bool:
        """Make the decoder's process; True in it. Call it before there are threads and before anything is loaded or attached."""
        sys.stdout.flush()
        sys.stderr.flush()
        self._child = os.fork()
        if self._child == 0:
            # The terminal sends Ctrl-C to the whole group; the warden tells when to stop.
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            self._asked.close()
            os.close(self._stop)
            return True
        self.client_socket.close()
        os.close(self.stop_pipe)
        return False

    def run(self, attach: Callable[[], tuple[Loader, Observed] | None], openers: Sequence[Callable[[], socket.socket]]) -> int:
        """Attach, and serve until the decoder ends. `openers`: each opens the packet socket of one interface.

        Raises what they and `attach` raise, the decoder ended before.
        """
        threading.Thread(target=self._serve, name="llmsec-serve", daemon=True).start()
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each library that is probed holds half a dozen
        try:
            for opener in openers:
                opener().close()  # it can be opened; the decoder has it opened when it is ready to read
            self._openers = openers
            tls = attach()
            if tls is not None:
                self._loader, self._observed = tls
            privileges.limit_capabilities(_KEPT)
            ctypes.CDLL(None).malloc_trim(0)  # the kernel's types, which loading has read, are 30 MB
            self._attached.set()
            with self._stopping() as wake:
                return self._watch(wake)
        finally:
            self._end()

    def tell(self, news: bytes) -> None:
        """Have the decoder read this message, which replaces one that it has not read yet."""
        self._news = news
        with contextlib.suppress(OSError):
            os.write(self._stop, protocol.NEWS)

    def update(self, selection: Selection) -> list[str]:
        """Change which processes are observed, as `Observed.update` does; for `on_hangup`. What needs a restart, a sentence each."""
        with self._lock:
            if self._observed is None or self._detached:
                return [] if selection.is_empty else ["observing processes at all needs a restart"]
            return self._observed.update(selection)

    def _watch(self, wake: int) -> int:
        """Until the decoder has ended; its exit code."""
        child = os.pidfd_open(self._child)
        poll = select.poll()
        poll.register(child, select.POLLIN)
        poll.register(wake, select.POLLIN)
        ring = self._loader.processes if self._loader is not None else None
        if ring is not None:
            poll.register(ring.fileno(), select.POLLIN)
        while True:
            due = self._observed.next_due_s() if self._observed is not None else None
            ready = dict(poll.poll(max(0.0, min(_LOOK_S, _LOOK_S if due is None else due)) * 1000))
            if wake in ready:
                signals = set(os.read(wake, 64))
                if self.on_hangup is not None and signal.SIGHUP in signals:
                    self.on_hangup()
                if self._signals:
                    self._stop_decoder()
            if ring is not None:
                if ring.fileno() in ready:
                    ring.wait(0.0)  # take the edge, before the records that it announces
                self._look()
            if child in ready:
                os.close(child)
                return self._reap()

    def _look(self) -> None:
        assert self._observed is not None
        assert self._loader is not None
        with self._lock:
            if self._detached:
                return
            while records := self._loader.processes.consume():
                for record in records:
                    self._observed.on_event(events.decode(record))
            self._observed.look_at_due()

    # --- the decoder's questions --------------------------------------------------------------------------------------

    def _serve(self) -> None:
        privileges.limit_capabilities(_KEPT)  # they are a thread's own
        while True:
            try:
                data, descriptors, _, _ = socket.recv_fds(self._asked, protocol.MAX_MESSAGE, 1)
            except OSError:
                return
            try:
                if len(data) < protocol.HEAD.size:
                    return
                kind, number, argument = protocol.HEAD.unpack_from(data)
                payload, out = self._answer(kind, argument, descriptors)
                with contextlib.suppress(OSError):
                    socket.send_fds(self._asked, [protocol.HEAD.pack(kind, number, 0) + payload], out)
                if kind == Ask.DETECTOR:
                    for descriptor in out:
                        os.close(descriptor)
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)

    def _answer(self, kind: int, argument: int, descriptors: list[int]) -> tuple[bytes, list[int]]:
        loader = self._loader
        if kind == Ask.ATTACHED:
            self._attached.wait()
            loader = self._loader
            if loader is None:
                return protocol.ATTACHED.pack(0), []
            return protocol.ATTACHED.pack(loader.ring_bytes), [loader.ring_descriptor(0)]
        if kind == Ask.SOCKETS and not self._sockets:
            try:
                self._sockets += [opener() for opener in self._openers]
                self._interfaces = [interface_of(sock) for sock in self._sockets]
            except LLMSecError as fault:
                self._journal.error("interface_failed", str(fault))
            return b"", [sock.fileno() for sock in self._sockets]
        if kind == Ask.SOCKET and argument < len(self._sockets):
            return b"", self._open_again(argument)
        if kind == Ask.FACTS:
            late_ms = self._observed.late_ms(argument) if self._observed is not None else None
            facts = facts_of(argument)._replace(late_ms=late_ms)
            texts = ("" if fact is None else str(fact) for fact in facts)
            return b"\0".join(text.encode(errors="surrogateescape")[:_MOST_BYTES_OF_NAME] for text in texts), []
        if kind == Ask.TOTALS and loader is not None:
            return protocol.TOTALS.pack(*loader.totals()), []
        if kind == Ask.LOSSES and loader is not None:
            if argument == 0:
                self._losses = loader.losses()
            some = self._losses[argument : argument + protocol.LOSSES_A_MESSAGE]
            return b"".join(protocol.LOSS.pack(*loss) for loss in some), []
        if kind == Ask.DETACH:
            self._detach()
        elif kind == Ask.NEWS:
            return self._news[argument : argument + protocol.NEWS_A_MESSAGE], []
        elif kind == Ask.ALIVE:
            self._on_alive()
        elif kind == Ask.DETECTOR:
            return b"", self._start_detector(argument)
        elif kind == Ask.KILL_DETECTOR:
            self._end_detector(argument)
        elif kind == Ask.COMPACT and descriptors and os.fstat(descriptors[0]).st_uid == uid_of(self._child):
            self._compact(descriptors[0])  # of the decoder's own folder only: what it holds is read with its owner's rights
        return b"", []

    def _open_again(self, number: int) -> list[int]:
        """Only where the interface of the socket is gone for good: a socket's ring is 32 MiB, and a decoder may not have any number."""
        if not self._interfaces[number] or interface_of(self._sockets[number]):
            return []
        try:
            opened = self._openers[number]()
        except LLMSecError:
            return []  # it is not there yet
        self._sockets[number].close()
        self._sockets[number] = opened
        return [opened.fileno()]

    def _detach(self) -> None:
        with self._lock:
            if self._loader is not None and not self._detached:
                self._detached = True
                self._loader.detach_all()

    def _start_detector(self, number: int) -> list[int]:
        if number >= protocol.MAX_DETECTORS:
            return []
        self._end_detector(number)
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

    def _end_detector(self, number: int) -> None:
        process = self._detectors.pop(number, None)
        if process is not None:
            process.kill()
            process.wait()

    def _compact(self, folder: int) -> None:
        if self._compactor is None or self._compactor.poll() is not None:
            if self._compactor is not None and self._compactor.returncode:
                self._journal.warning(
                    "compaction_failed", "the small files of the store could not be merged", exit_code=self._compactor.returncode
                )
            with contextlib.suppress(OSError):
                self._compactor = subprocess.Popen(  # noqa: S603 - our own module
                    _COMPACTOR,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                    cwd=f"/proc/{os.getpid()}/fd/{folder}",
                    env={**os.environ, "POLARS_MAX_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[3])},
                )

    # --- the end ------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _stopping(self) -> Iterator[int]:
        """SIGINT, SIGTERM and SIGHUP stop the capture in order; a second one ends both processes at once."""
        read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

        def stop(number: int, frame: FrameType | None) -> None:
            if number == signal.SIGHUP and self.on_hangup is not None:
                return
            self._signals += 1
            if self._signals > 1:
                os.kill(self._child, signal.SIGKILL)

        earlier = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        try:
            yield read
        finally:
            signal.set_wakeup_fd(-1)
            for number, handler in earlier.items():
                signal.signal(number, handler)
            os.close(read)
            os.close(write)

    def _stop_decoder(self) -> None:
        """The probes first, whatever the decoder does then."""
        self._detach()
        with contextlib.suppress(OSError):
            os.write(self._stop, protocol.STOP)

    def _reap(self) -> int:
        _, status = os.waitpid(self._child, 0)
        self._child = 0
        code = os.waitstatus_to_exitcode(status)
        if code < 0 and not self._signals:
            self._journal.error(
                "decoder_lost",
                f"the decoding process was ended by signal {-code}: what it had in hand is lost (please report this)",
                signal=-code,
            )
        return 128 - code if code < 0 else code

    def _end(self) -> None:
        if self._child:
            with contextlib.suppress(OSError):
                os.kill(self._child, signal.SIGKILL)
                os.waitpid(self._child, 0)
        if self._loader is not None:
            self._detach()
            self._loader.close()
        for number in range(protocol.MAX_DETECTORS):
            self._end_detector(number)
        for sock in (*self._sockets, self._asked):
            sock.close()
        os.close(self._stop)
