"""The warden: the one process of a capture that keeps capabilities. It selects, examines and attaches, and opens packet sockets.

It holds no parser of traffic: what processes say goes from the kernel's rings to the decoders, processes of another user without
capabilities, each of which holds the descriptor of one ring (client.py). The warden's own ring carries starts and ends of processes only.

Whichever of them dies, by whatever signal, the probes go: the links are the warden's descriptors, and it ends with its decoders. Where one of
several ends, the others are told to, and keep what they have.
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
from llmsec_tap.capture.ebpf.loader_api import ProbeState
from llmsec_tap.capture.host.proc import uid_of
from llmsec_tap.capture.host.process import facts_of
from llmsec_tap.capture.warden import protocol
from llmsec_tap.capture.warden.channel import Channel
from llmsec_tap.capture.warden.interfaces import Interface, Opener
from llmsec_tap.capture.warden.protocol import Ask
from llmsec_tap.errors import LLMSecError
from llmsec_tap.journal import Journal

if TYPE_CHECKING:
    from llmsec_tap.capture.ebpf.loader_api import Loader
    from llmsec_tap.capture.host.kubernetes import ChosenContainers
    from llmsec_tap.capture.probes.selection import Observed, Selection

# What the warden keeps: to load and attach, to look into other users' processes and files, to open packet sockets, and to start
# helpers as other users.
_KEPT: Final = tuple(privileges.CAPABILITIES)
_LOOK_S = 0.5
_MOST_BYTES_OF_NAME = 4096
_COMPACTOR: Final = (sys.executable, "-P", "-m", "llmsec_tap.storage.compact_here")


class Warden:
    """`fork` the decoders, then `run`, which returns the exit code of the capture."""

    def __init__(
        self,
        journal: Journal,
        detector: Sequence[str],
        *,
        decoders: int = 1,
        on_alive: Callable[[], None] = lambda: None,
        chosen: ChosenContainers | None = None,
    ) -> None:
        """`detector`: the command of a detection process. `on_alive` is called, on another thread, each time all decoders have made progress.

        `chosen`: where processes are chosen by the labels of their pod.
        """
        self._chosen = chosen
        self.on_hangup: Callable[[], None] | None = None  # what SIGHUP asks for; it ends the capture where there is none
        self._on_alive = on_alive
        self._journal = journal
        self.channels = [Channel(number, detector, journal) for number in range(decoders)]
        self._loader: Loader | None = None
        self._observed: Observed | None = None
        self._interfaces: list[Interface] = []
        self._attached = threading.Event()
        self._detached = False
        self._lock = threading.Lock()
        self._compactor: subprocess.Popen[bytes] | None = None
        self._signals: list[int] = []  # that ask it to stop
        self._news = b""

    def fork(self) -> Channel | None:
        """Make the decoders' processes; in each its channel. Call it before there are threads and before anything is loaded or attached."""
        sys.stdout.flush()
        sys.stderr.flush()
        for channel in self.channels:
            channel.pid = os.fork()
            if channel.pid == 0:
                # The terminal sends Ctrl-C to the whole group; the warden tells when to stop.
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                    signal.signal(number, signal.SIG_IGN)
                for other in self.channels:
                    other.close_wardens_ends()
                    if other is not channel:
                        other.close_clients_ends()
                if self._chosen is not None:
                    self._chosen.close()
                return channel
        for channel in self.channels:
            channel.close_clients_ends()
        return None

    def run(self, attach: Callable[[], tuple[Loader, Observed] | None], openers: Sequence[Opener]) -> int:
        """Attach, and serve until the decoders end. `openers`: each opens the packet sockets of one interface.

        Raises what they and `attach` raise, the decoders ended before. A signal that comes before everything is attached ends this process
        then, as it ends any other.
        """
        for channel in self.channels:
            threading.Thread(target=self._serve, args=(channel,), name=f"llmsec-serve-{channel.number}", daemon=True).start()
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each library that is probed holds half a dozen
        # Before anything is loaded: libbpf calls back into Python, where ctypes throws a KeyboardInterrupt away.
        with self._stopping() as wake:
            try:
                self._attach(attach, openers)
                if not self._signals:
                    self._attached.set()
                    return self._watch(wake)
            finally:
                self._end()
        signal.raise_signal(self._signals[0])
        return 128 + self._signals[0]  # whoever started it had it ignore that signal

    def _attach(self, attach: Callable[[], tuple[Loader, Observed] | None], openers: Sequence[Opener]) -> None:
        for opener in openers:
            for sock in opener():
                sock.close()  # it can be opened; the decoders have it opened when they are ready to read
        self._interfaces = [Interface(opener) for opener in openers]
        tls = attach()
        if tls is not None:
            self._loader, self._observed = tls
        privileges.limit_capabilities(_KEPT)
        ctypes.CDLL(None).malloc_trim(0)  # the kernel's types, which loading has read, are 30 MB

    def tell(self, news: bytes) -> None:
        """Have the decoders read this message, which replaces one that they have not read yet."""
        self._news = news
        for channel in self.channels:
            channel.say(protocol.NEWS)

    def update(self, selection: Selection) -> list[str]:
        """Change which processes are observed, as `Observed.update` does; for `on_hangup`. What needs a restart, a sentence each."""
        with self._lock:
            if self._observed is None or self._detached:
                return [] if selection.is_empty else ["observing processes at all needs a restart"]
            return self._observed.update(selection)

    def _watch(self, wake: int) -> int:
        """Until the decoders have ended; the exit code of the first that had another than 0."""
        children = {os.pidfd_open(channel.pid): channel for channel in self.channels}
        poll = select.poll()
        for child in children:
            poll.register(child, select.POLLIN)
        code = 0
        poll.register(wake, select.POLLIN)
        if self._chosen is not None:
            poll.register(self._chosen.fileno(), select.POLLIN)
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
                    self._stop_decoders()
            if ring is not None:
                if ring.fileno() in ready:
                    ring.wait(0.0)  # take the edge, before the records that it announces
                self._look()
            if self._chosen is not None and self._chosen.fileno() in ready:
                self._choose(poll)
            for child in children.keys() & ready:
                poll.unregister(child)
                os.close(child)
                its_code = self._reap(children.pop(child))
                code = code or its_code
                if not children:
                    return code
                self._stop_decoders()

    def _choose(self, poll: select.poll) -> None:
        """The pods with the chosen labels are others now."""
        assert self._chosen is not None
        try:
            containers = self._chosen.read()
        except (EOFError, OSError):
            poll.unregister(self._chosen.fileno())
            self._journal.warning("pods_unfollowed", "the process that looks pods up has ended: no further pods are chosen by their labels")
            return
        if containers is not None and self._observed is not None:
            with self._lock:
                if not self._detached:
                    self._observed.choose_labelled(containers)

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

    # --- the decoders' questions --------------------------------------------------------------------------------------

    def _serve(self, channel: Channel) -> None:
        privileges.limit_capabilities(_KEPT)  # they are a thread's own
        while True:
            try:
                data, descriptors, _, _ = socket.recv_fds(channel.asked, protocol.MAX_MESSAGE, 1)
            except OSError:
                return
            try:
                if len(data) < protocol.HEAD.size:
                    return
                kind, number, argument = protocol.HEAD.unpack_from(data)
                payload, out = self._answer(channel, kind, argument, descriptors)
                with contextlib.suppress(OSError):
                    socket.send_fds(channel.asked, [protocol.HEAD.pack(kind, number, 0) + payload], out)
                if kind == Ask.DETECTOR:
                    for descriptor in out:
                        os.close(descriptor)
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)

    def _answer(self, channel: Channel, kind: int, argument: int, descriptors: list[int]) -> tuple[bytes, list[int]]:
        loader = self._loader
        if kind == Ask.ATTACHED:
            self._attached.wait()
            loader = self._loader
            if loader is None:
                return protocol.ATTACHED.pack(0), []
            return protocol.ATTACHED.pack(loader.ring_bytes), [loader.ring_descriptor(channel.number)]
        if kind == Ask.SOCKETS:
            try:
                return b"", [interface.socket_of(channel.number).fileno() for interface in self._interfaces]
            except LLMSecError as fault:
                self._journal.error("interface_failed", str(fault))
                return b"", []
        if kind == Ask.SOCKET and argument < len(self._interfaces):
            opened = self._interfaces[argument].socket_anew(channel.number)
            return b"", [] if opened is None else [opened.fileno()]
        if kind == Ask.FACTS:
            late_ms = self._observed.late_ms(argument) if self._observed is not None else None
            facts = facts_of(argument)._replace(late_ms=late_ms)
            texts = ("" if fact is None else str(fact) for fact in facts)
            return b"\0".join(text.encode(errors="surrogateescape")[:_MOST_BYTES_OF_NAME] for text in texts), []
        if kind == Ask.TOTALS and loader is not None:
            return protocol.TOTALS.pack(*loader.totals()), []
        if kind == Ask.LOSSES and loader is not None:
            if argument == 0:
                channel.losses = loader.losses()
            some = channel.losses[argument : argument + protocol.LOSSES_A_MESSAGE]
            return b"".join(protocol.LOSS.pack(*loss) for loss in some), []
        if kind == Ask.DETACH:
            self._detach()
            self._tell_to_stop(besides=channel)
        elif kind == Ask.CAPTURING:
            self._capturing(channel)
        elif kind == Ask.NEWS:
            return self._news[argument : argument + protocol.PIECE], []
        elif kind == Ask.PROBES:
            if argument == 0:
                channel.probes = protocol.packed(self._probes())
            return channel.probes[argument : argument + protocol.PIECE], []
        elif kind == Ask.ALIVE:
            self._alive(channel)
        elif kind == Ask.DETECTOR:
            return b"", channel.start_detector(argument)
        elif kind == Ask.KILL_DETECTOR:
            channel.end_detector(argument)
        elif kind == Ask.COMPACT and descriptors and os.fstat(descriptors[0]).st_uid == uid_of(channel.pid):
            self._compact(descriptors[0])  # of the decoder's own folder only: what it holds is read with its owner's rights
        return b"", []

    def _probes(self) -> list[ProbeState]:
        with self._lock:
            if self._loader is None or self._observed is None:
                return []
            plain = [ProbeState("plain HTTP", "", "sockets of the observed processes", 0)] if self._loader.plain else []
            return plain + self._observed.states()

    def _capturing(self, channel: Channel) -> None:
        with self._lock:
            if channel.is_capturing:
                return
            channel.is_capturing = True
            if all(each.is_capturing for each in self.channels):
                self._journal.info("capturing", "capturing; Ctrl-C stops")

    def _alive(self, channel: Channel) -> None:
        with self._lock:
            channel.has_made_progress = True
            if not all(each.has_made_progress for each in self.channels):
                return
            for each in self.channels:
                each.has_made_progress = False
        self._on_alive()

    def _detach(self) -> None:
        with self._lock:
            if self._loader is not None and not self._detached:
                self._detached = True
                self._loader.detach_all()

    def _compact(self, folder: int) -> None:
        with self._lock:
            self._compact_unless_it_runs(folder)

    def _compact_unless_it_runs(self, folder: int) -> None:
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
        """SIGINT, SIGTERM and SIGHUP stop the capture in order, as soon as all is attached; a second one ends all processes at once."""
        read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

        def stop(number: int, frame: FrameType | None) -> None:
            if number == signal.SIGHUP and self.on_hangup is not None:
                return
            self._signals.append(number)
            if len(self._signals) > 1:
                for channel in self.channels:
                    channel.kill()
                if not self._attached.is_set():
                    signal.signal(number, signal.SIG_DFL)
                    signal.raise_signal(number)

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

    def _stop_decoders(self) -> None:
        """The probes first, whatever the decoders do then."""
        self._detach()
        self._tell_to_stop()

    def _tell_to_stop(self, besides: Channel | None = None) -> None:
        for channel in self.channels:
            if channel is not besides:
                channel.say(protocol.STOP)

    def _reap(self, channel: Channel) -> int:
        _, status = os.waitpid(channel.pid, 0)
        channel.pid = 0
        code = os.waitstatus_to_exitcode(status)
        if code < 0 and not self._signals:
            self._journal.error(
                "decoder_lost",
                f"the decoding process was ended by signal {-code}: the exchanges it was decoding are lost (please report this)",
                signal=-code,
            )
        return 128 - code if code < 0 else code

    def _end(self) -> None:
        for channel in self.channels:
            channel.close()
        if self._loader is not None:
            self._detach()
            self._loader.close()
        for interface in self._interfaces:
            interface.close()
