"""The default loader: the CO-RE object that clang built ahead, loaded over libbpf.

Probes are attached by uprobe_multi (Linux 6.6: many offsets in one link, and CAP_BPF with CAP_PERFMON suffice), or one by one as
perf events where the kernel does not have it. Every link is a descriptor of this process: when it ends, however it ends, the
kernel takes all probes out.
"""

from __future__ import annotations

import contextlib
import ctypes as ct
import errno
import os
import struct
import threading
from pathlib import Path
from typing import Final

from llmsec_tap.capture.ebpf.libbpf import TRACE_UPROBE_MULTI, LibBPF, UprobeOptions, explain, kernel_version
from llmsec_tap.capture.ebpf.loader_api import KernelSettings, Probe, ProbePlan, Role
from llmsec_tap.capture.ebpf.loader_base import KernelHalf
from llmsec_tap.capture.ebpf.maps import KernelMaps
from llmsec_tap.errors import KernelError

_COOKIE_WRITE, _COOKIE_SIZE_OUT = 1, 2  # enum tap_cookie in bpf/state.h
# role -> program, cookie; the return of a call needs no cookie, its entry was remembered
_AT_ENTRY: Final[dict[Role, tuple[str, int]]] = {
    Role.READ: ("tls_enter", 0),
    Role.WRITE: ("tls_enter", _COOKIE_WRITE),
    Role.READ_EX: ("tls_enter", _COOKIE_SIZE_OUT),
    Role.WRITE_EX: ("tls_enter", _COOKIE_WRITE | _COOKIE_SIZE_OUT),
    Role.FREE: ("tls_free", 0),
    Role.GO_READ: ("go_enter", 0),
    Role.GO_WRITE: ("go_enter", _COOKIE_WRITE),
    Role.GO_READ_RETURN: ("go_return", 0),
    Role.GO_WRITE_RETURN: ("go_return", 0),
    Role.GO_CLOSE: ("go_close", 0),
    Role.LIBRARIES: ("on_libraries", 0),
}
_AT_RETURN: Final[dict[Role, tuple[str, int]]] = {
    Role.READ: ("tls_return", 0),
    Role.WRITE: ("tls_return", 0),
    Role.READ_EX: ("tls_return", 0),
    Role.WRITE_EX: ("tls_return", 0),
    Role.NEW: ("tls_new", 0),
}
_UPROBES: Final = ("tls_enter", "tls_return", "tls_new", "tls_free", "go_enter", "go_return", "go_close", "on_libraries")
_TRACEPOINTS: Final = ("on_fork", "on_exec", "on_exit")
# How sockets are followed: by the tracepoints of sockets alone, or by system calls, which all processes of the host pay for.
_BY_SOCKETS: Final = ("on_send", "on_receive")
_BY_SYSTEM_CALLS: Final = ("on_sys_enter",)
_PLAIN: Final = ("on_state",)  # beside those of sockets
_PLAIN_MAP: Final = "plain_sockets"
_CLOSE_AT_ONCE: Final = 16
_CONFIG: Final = struct.Struct("=9I")  # struct tap_config


def object_path() -> Path:
    """The built object: beside the package's sources, or in the wheel. Raises KernelError where there is none."""
    package = Path(__file__).resolve().parents[2]
    name = "tap.aarch64.bpf.o" if os.uname().machine == "aarch64" else "tap.bpf.o"
    for candidate in (package.parents[1] / "bpf" / name, package / "bpf" / name):
        if candidate.is_file():
            return candidate
    raise KernelError(f"the eBPF object {name} is not installed", "Install a wheel, or build it: make -C bpf (needs clang and libbpf-dev).")


def supports_uprobe_multi() -> bool:
    """Linux 6.6 has it. Told from the version: asking the kernel costs a program load, and what fails later says why."""
    return kernel_version() >= (6, 6)


def supports_socket_tracepoints() -> bool:
    """Linux 6.3 has sock_send_length and sock_recv_length."""
    return kernel_version() >= (6, 3)


class CoreLoader(KernelHalf):
    """See `Loader`. `by_sockets` overrides the choice that the kernel's version makes. `links` of its attachments are descriptors (uprobe_multi) or libbpf's link pointers (perf)."""

    name = "core"

    def __init__(self, settings: KernelSettings, *, multi: bool = True, by_sockets: bool | None = None) -> None:
        self._library = LibBPF()
        self._links: list[int] = []  # libbpf's, of tracepoints and perf probes
        self._descriptors: set[int] = set()
        self._object: int | None = None
        if by_sockets is None:
            by_sockets = supports_socket_tracepoints()
        self.plain = settings.plain and by_sockets
        used = (*(_BY_SOCKETS if by_sockets else _BY_SYSTEM_CALLS), *(_PLAIN if self.plain else ()))
        self._tracepoints: tuple[str, ...] = (*used, *_TRACEPOINTS)
        self._unused: tuple[str, ...] = tuple({*_BY_SOCKETS, *_BY_SYSTEM_CALLS, *_PLAIN}.difference(used))
        self.method = "uprobe_multi" if multi else "perf"
        if not Path("/sys/kernel/btf/vmlinux").exists():
            raise KernelError(
                "the kernel has no BTF (/sys/kernel/btf/vmlinux)", "Use --backend bcc, or a kernel with CONFIG_DEBUG_INFO_BTF."
            )
        try:
            self._load(settings)
        except BaseException:
            self.close()
            raise

    def _load(self, settings: KernelSettings) -> None:
        library = self._library
        data = object_path().read_bytes()
        self._object = library.bpf_object__open_mem(data, len(data), None)
        if not self._object:
            raise KernelError("the eBPF object cannot be read", "Reinstall, or rebuild it: make -C bpf.")
        self._programs = {
            name: library.bpf_object__find_program_by_name(self._object, name.encode()) for name in (*_UPROBES, *self._tracepoints)
        }
        for name in self._unused:
            library.bpf_program__set_autoload(library.bpf_object__find_program_by_name(self._object, name.encode()), False)
        if self.method == "uprobe_multi":
            for name in _UPROBES:
                library.bpf_program__set_expected_attach_type(self._programs[name], TRACE_UPROBE_MULTI)
        self._configure(settings)
        if not self.plain:
            sockets = library.bpf_object__find_map_by_name(self._object, _PLAIN_MAP.encode())
            library.bpf_map__set_max_entries(sockets, 1)  # its memory is taken as it is made
        fault = library.bpf_object__load(self._object)
        if fault:
            raise explain(-fault, library.log)
        self._maps = KernelMaps(library, self._fd, settings.ring_bytes, settings.rings)
        for comm in settings.comms:
            self._maps.select_comm(comm)
        for name in self._tracepoints:
            link = library.bpf_program__attach(self._programs[name])
            if not link:
                raise explain(errno.EPERM, library.log)
            self._links.append(link)

    def _configure(self, settings: KernelSettings) -> None:
        library = self._library
        assert self._object is not None
        values = _CONFIG.pack(
            settings.only_targets,
            settings.follow_forks,
            settings.watch_all,
            os.getpid(),
            settings.helper_pid,
            settings.listener_pid,
            bool(settings.comms),
            settings.rings,
            self.plain,
        )
        found = None
        while (found := library.bpf_object__next_map(self._object, found)) is not None:
            if library.bpf_map__name(found).endswith(b".rodata"):
                library.bpf_map__set_initial_value(found, values, len(values))

    def _fd(self, name: str) -> int:
        return int(self._library.bpf_map__fd(self._library.bpf_object__find_map_by_name(self._object, name.encode())))

    # --- probes -------------------------------------------------------------------------------------------------------

    def _place(self, plan: ProbePlan, pid: int | None, links: list[object], *, is_return: bool) -> None:
        programs: dict[str, list[tuple[Probe, int]]] = {}
        for probe in plan.probes:
            known = (_AT_RETURN if is_return else _AT_ENTRY).get(probe.role)
            if known is not None:
                program, cookie = known
                programs.setdefault(program, []).append((probe, cookie))
        path = plan.path.encode(errors="surrogateescape")
        for program, probes in programs.items():
            if self.method == "uprobe_multi":
                links.append(self._multi(program, path, probes, is_return=is_return, pid=pid))
            else:
                for probe, cookie in probes:
                    links.append(self._perf(program, path, probe.offset, cookie, is_return=is_return, pid=pid))

    def _multi(self, program: str, path: bytes, probes: list[tuple[Probe, int]], *, is_return: bool, pid: int | None) -> int:
        library = self._library
        offsets, cookies = [probe.offset for probe, _ in probes], [cookie for _, cookie in probes]
        handle = library.bpf_program__fd(self._programs[program])
        descriptor = library.uprobe_multi(handle, path, offsets, cookies, is_return=is_return, pid=pid or 0)
        self._descriptors.add(descriptor)
        return descriptor

    def _perf(self, program: str, path: bytes, offset: int, cookie: int, *, is_return: bool, pid: int | None) -> _PerfLink:
        options = UprobeOptions(sz=ct.sizeof(UprobeOptions), bpf_cookie=cookie, retprobe=is_return)
        link = self._library.bpf_program__attach_uprobe_opts(
            self._programs[program], -1 if pid is None else pid, path, offset, ct.byref(options)
        )
        if not link:
            raise OSError(errno.EPERM, "the perf event was refused")
        self._links.append(link)
        return _PerfLink(link)

    def _refused(self, plan: ProbePlan, fault: OSError) -> KernelError:
        if fault.errno in (errno.EPERM, errno.EACCES):
            return explain(fault.errno, self._library.log)
        return KernelError(f"no probe can be placed in {plan.path} ({fault.strerror})", "See `llmsec-tap targets`.")

    def _detach(self, link: object) -> None:
        # Whoever removes it from the books closes it: processes end, and the capture with them, in several threads.
        with contextlib.suppress(KeyError, ValueError):
            if isinstance(link, _PerfLink):
                self._links.remove(link.pointer)
                self._library.bpf_link__destroy(link.pointer)
            elif isinstance(link, int):
                self._descriptors.remove(link)
                os.close(link)

    def _close_descriptors(self) -> None:
        with contextlib.suppress(KeyError):
            while True:
                os.close(self._descriptors.pop())

    def detach_all(self) -> None:
        # Together: for each the kernel waits until no CPU runs the probe any more.
        closing = [threading.Thread(target=self._close_descriptors) for _ in range(min(_CLOSE_AT_ONCE, len(self._descriptors)))]
        for thread in closing:
            thread.start()
        for thread in closing:
            thread.join()
        while self._links:
            self._library.bpf_link__destroy(self._links.pop())

    def close(self) -> None:
        self.detach_all()
        maps: KernelMaps | None = getattr(self, "_maps", None)
        if maps is not None:
            maps.close()
        if self._object is not None:
            self._library.bpf_object__close(self._object)
            self._object = None


class _PerfLink:
    """libbpf's link pointer, told apart from a descriptor."""

    def __init__(self, pointer: int) -> None:
        self.pointer = pointer
