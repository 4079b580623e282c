"""The second loader: the distribution's bcc (Debian: python3-bpfcc) compiles the same C bodies on this host.

For kernels where the ready object cannot load, and for those who want to see and change what runs. It takes a compiler, kernel
headers of some version (BCC_KERNEL_SOURCE, or those installed), ten times as long to start and five times the memory.
`bcc` on PyPI is another package: the real one is imported late, and only from the distribution's folder.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import importlib
import itertools
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from llmsec_tap.capture.ebpf.btf import member_offsets
from llmsec_tap.capture.ebpf.core import supports_socket_tracepoints
from llmsec_tap.capture.ebpf.libbpf import LibBPF
from llmsec_tap.capture.ebpf.loader_api import KernelSettings, ProbePlan, Role
from llmsec_tap.capture.ebpf.loader_base import KernelHalf
from llmsec_tap.capture.ebpf.maps import KernelMaps
from llmsec_tap.errors import KernelError

_DISTRIBUTION: Final = "/usr/lib/python3/dist-packages"
# role -> program at the entry, program at the return
_PROGRAMS: Final[dict[Role, tuple[str | None, str | None]]] = {
    Role.READ: ("tls_read", "tls_return"),
    Role.WRITE: ("tls_write", "tls_return"),
    Role.READ_EX: ("tls_read_ex", "tls_return"),
    Role.WRITE_EX: ("tls_write_ex", "tls_return"),
    Role.NEW: (None, "tls_new"),
    Role.FREE: ("tls_free", None),
    Role.GO_READ: ("go_read", None),
    Role.GO_WRITE: ("go_write", None),
    Role.GO_READ_RETURN: ("go_return", None),
    Role.GO_WRITE_RETURN: ("go_return", None),
    Role.GO_CLOSE: ("go_close", None),
    Role.LIBRARIES: ("on_libraries", None),
}
_TRACEPOINTS: Final = {
    "sched_process_fork": "on_fork",
    "sched_process_exec": "on_exec",
    "sched_process_exit": "on_exit",
}
_BY_SOCKETS: Final = {"sock_send_length": "on_send", "sock_recv_length": "on_receive"}
_BY_SYSTEM_CALLS: Final = {"sys_enter": "on_sys_enter"}
_MEMBERS: Final = (
    ("task_struct", "files"),
    ("task_struct", "tgid"),
    ("task_struct", "group_leader"),
    ("task_struct", "signal"),
    ("task_struct", "comm"),
    ("signal_struct", "live"),
    ("files_struct", "fdt"),
    ("fdtable", "fd"),
    ("fdtable", "max_fds"),
    ("file", "f_inode"),
    ("file", "private_data"),
    ("inode", "i_mode"),
    ("inode", "i_ino"),
    ("socket", "sk"),
    ("socket", "file"),
    ("sock", "sk_socket"),
    ("sock_common", "skc_family"),
    ("sock_common", "skc_rcv_saddr"),
    ("sock_common", "skc_daddr"),
    ("sock_common", "skc_v6_rcv_saddr"),
    ("sock_common", "skc_v6_daddr"),
    ("sock_common", "skc_num"),
    ("sock_common", "skc_dport"),
)
_TRACEFS: Final = Path("/sys/kernel/tracing/uprobe_events")


class BCCLoader(KernelHalf):
    """See `Loader`. `links` of its attachments are descriptors of perf events."""

    name = "bcc"
    method = "perf"
    plain = False  # what it would take (bpf_loop, the registers of a system call) bcc does not have

    def __init__(self, settings: KernelSettings) -> None:
        bcc = _import_bcc()
        folder = _source_folder()
        flags = ["-Wno-macro-redefined", "-Wno-unused-function"]
        flags += [f"-DOFFSET_{structure}_{member}={offset}" for (structure, member), offset in member_offsets(_MEMBERS).items()]
        flags += [f"-D{name}={int(value)}" for name, value in _settings(settings).items()]
        self._links: dict[int, bytes] = {}  # perf event descriptor -> its name
        self._numbers = itertools.count()
        self._closed = False
        self._library: Any = importlib.import_module("bcc.libbcc").lib
        with _headers():
            try:
                self._bpf: Any = bcc.BPF(text=_one_text(folder / "tap_bcc.c", set()).encode(), cflags=flags)
                self._functions = {
                    name: self._bpf.load_func(name.encode(), bcc.BPF.KPROBE)
                    for name in {program for pair in _PROGRAMS.values() for program in pair if program is not None}
                }
                sockets = _BY_SOCKETS if supports_socket_tracepoints() else _BY_SYSTEM_CALLS
                for tracepoint, program in (_TRACEPOINTS | sockets).items():
                    self._bpf.attach_raw_tracepoint(tracepoint.encode(), program.encode())
            except Exception as fault:  # noqa: BLE001 - bcc raises bare Exception
                raise KernelError(
                    f"bcc cannot compile or load the programs ({str(fault).splitlines()[0] if str(fault) else fault})",
                    "See what the compiler said above, or use --backend core.",
                ) from None
        self._maps = KernelMaps(LibBPF(), lambda name: int(self._bpf[name.encode()].map_fd), settings.ring_bytes, settings.rings)
        for comm in settings.comms:
            self._maps.select_comm(comm)

    # --- probes -------------------------------------------------------------------------------------------------------

    def _place(self, plan: ProbePlan, pid: int | None, links: list[object], *, is_return: bool) -> None:
        for probe in plan.probes:
            name = _PROGRAMS[probe.role][1 if is_return else 0]
            if name is not None:
                links.append(self._attach(name, plan.path, probe.offset, pid, is_return=is_return))

    def _refused(self, plan: ProbePlan, fault: OSError) -> KernelError:
        return KernelError(f"no probe can be placed in {plan.path} ({fault.strerror})", "bcc needs root (CAP_SYS_ADMIN).")

    def _attach(self, program: str, path: str, offset: int, pid: int | None, *, is_return: bool) -> int:
        """Bcc's own attach_uprobe looks symbols up; its library takes what we have: an offset in the file."""
        name = f"llmsec_{os.getpid()}_{next(self._numbers)}".encode()
        encoded = path.encode(errors="surrogateescape")
        # The last argument is in the library and not in bcc's own Python: where a counter of users is, which the kernel would raise in
        # the observed process. Left out, it is whatever lies on the stack.
        no_counter = ctypes.c_uint32(0)
        handle, owner = self._functions[program].fd, -1 if pid is None else pid
        descriptor = int(self._library.bpf_attach_uprobe(handle, int(is_return), name, encoded, offset, owner, no_counter))
        if descriptor < 0:
            raise OSError(errno.EPERM, "the perf event was refused")
        self._links[descriptor] = name
        return descriptor

    def _detach(self, link: object) -> None:
        if isinstance(link, int) and (name := self._links.pop(link, None)) is not None:
            self._library.bpf_close_perf_event_fd(link)
            if _TRACEFS.exists():  # without it the probe was a perf event alone, and that is closed
                self._library.bpf_detach_uprobe(name)

    def detach_all(self) -> None:
        for link in list(self._links):
            self._detach(link)

    def close(self) -> None:
        self.detach_all()
        self._maps.close()
        if not self._closed:
            self._closed = True
            self._bpf.cleanup()


def _settings(settings: KernelSettings) -> dict[str, int]:
    return {
        "ONLY_TARGETS": settings.only_targets,
        "FOLLOW_FORKS": settings.follow_forks,
        "WATCH_ALL": settings.watch_all,
        "OWN_PID": os.getpid(),
        "HELPER_PID": settings.helper_pid,
        "LISTENER_PID": settings.listener_pid,
        "SELECT_COMM": bool(settings.comms),
        "RINGS": settings.rings,
    }


def _import_bcc() -> Any:
    if not Path(_DISTRIBUTION, "bcc").is_dir():
        raise KernelError("bcc is not installed", "apt-get install python3-bpfcc (the package `bcc` of PyPI is another thing).")
    sys.path.append(_DISTRIBUTION)
    try:
        return importlib.import_module("bcc")
    except (ImportError, OSError) as fault:
        raise KernelError(f"the distribution's bcc cannot be loaded ({fault})", "apt-get install --reinstall python3-bpfcc") from None
    finally:
        sys.path.remove(_DISTRIBUTION)


def _source_folder() -> Path:
    package = Path(__file__).resolve().parents[2]
    for candidate in (package.parents[1] / "bpf", package / "bpf"):
        if (candidate / "tap_bcc.c").is_file():
            return candidate
    raise KernelError("the C sources are not installed", "Install a wheel of this release.")


def _one_text(path: Path, seen: set[str]) -> str:
    """A source with its own headers in place: bcc rewrites map accesses in the main text only, not in included files."""
    seen.add(path.name)

    def included(match: re.Match[str]) -> str:
        return "" if match[1] in seen else _one_text(path.with_name(match[1]), seen)

    return re.sub(r'^#include "([a-z_.]+)"$', included, path.read_text(), flags=re.MULTILINE)


@contextlib.contextmanager
def _headers() -> Iterator[None]:
    """Kernel headers where bcc looks for them. Debian keeps them in two trees; they are joined by links in a folder of our own."""
    found = kernel_headers()
    if found is None:
        raise KernelError("bcc needs kernel headers, and there are none", "apt-get install linux-headers-amd64, or set BCC_KERNEL_SOURCE.")
    common = found.with_name(re.sub(r"-[^-]+$", "-common", found.name))
    if "BCC_KERNEL_SOURCE" in os.environ or not found.name.startswith("linux-headers-") or not common.is_dir():
        yield
        return
    with tempfile.TemporaryDirectory(prefix="llmsec-headers-") as folder:
        for part in ("include", "arch/x86/include"):
            _join([tree / part for tree in (found, common)], Path(folder, part))
        os.environ["BCC_KERNEL_SOURCE"] = folder
        try:
            yield
        finally:
            del os.environ["BCC_KERNEL_SOURCE"]


def _join(sources: list[Path], target: Path) -> None:
    """One folder that holds what all of them hold; the first wins. A link for each name that only one has: some dozens in all."""
    target.mkdir(parents=True)
    present = [source for source in sources if source.is_dir()]
    for name in sorted({entry.name for source in present for entry in source.iterdir()}):
        having = [source / name for source in present if (source / name).exists()]
        if len(having) > 1 and all(path.is_dir() for path in having):
            _join(having, target / name)
        else:
            (target / name).symlink_to(having[0])


def kernel_headers() -> Path | None:
    """A tree of kernel headers that bcc can compile against: named, of the running kernel, or any that is installed."""
    named = os.environ.get("BCC_KERNEL_SOURCE")
    candidates = [Path(named)] if named else []
    candidates.append(Path(f"/lib/modules/{os.uname().release}/build"))
    candidates += sorted(Path("/usr/src").glob("linux-headers-*"), reverse=True)
    return next((path for path in candidates if (path / "include/generated/autoconf.h").is_file()), None)
