"""The few functions of libbpf.so.1 and the two bpf(2) commands that the tap uses, typed, over ctypes.

The distribution's libbpf (1.0 ABI or later) is loaded at run time: no compiled extension, no compiler and no headers on the node.
"""

from __future__ import annotations

import ctypes as ct
import errno
import os
import re
from typing import Final

from llmsec_tap.errors import KernelError

_SYS_BPF: Final = {"x86_64": 321, "aarch64": 280}.get(os.uname().machine, -1)
_BPF_LINK_CREATE: Final = 28
_UPROBE_MULTI_RETURN: Final = 1
TRACE_UPROBE_MULTI: Final = 48  # enum bpf_attach_type
MAP_TYPE_RINGBUF: Final = 27  # enum bpf_map_type
_STRICT_DIRECT_ERRORS: Final = 0  # libbpf 1.x always returns NULL with errno

# The verifier's words on a program that it refuses come as one message; what matters stands at its end.
_MAX_PRINTED: Final = 1 << 20
_VERDICT: Final = re.compile(r"prog '(\w+)': -- BEGIN PROG LOAD LOG --\n.*?([^\n]+)\nprocessed \d+ insns", re.DOTALL)

_PrintCallback = ct.CFUNCTYPE(ct.c_int, ct.c_int, ct.c_char_p, ct.c_void_p)


class UprobeOptions(ct.Structure):
    """struct bpf_uprobe_opts, as of libbpf 1.0; `sz` tells the library how much of it we know."""

    _fields_ = (
        ("sz", ct.c_size_t),
        ("ref_ctr_offset", ct.c_size_t),
        ("bpf_cookie", ct.c_uint64),
        ("retprobe", ct.c_bool),
        ("func_name", ct.c_char_p),
    )


class _LinkCreateUprobeMulti(ct.Structure):
    """union bpf_attr for BPF_LINK_CREATE with BPF_TRACE_UPROBE_MULTI."""

    _fields_ = (
        ("prog_fd", ct.c_uint32),
        ("target_fd", ct.c_uint32),
        ("attach_type", ct.c_uint32),
        ("flags", ct.c_uint32),
        ("path", ct.c_uint64),
        ("offsets", ct.c_uint64),
        ("ref_ctr_offsets", ct.c_uint64),
        ("cookies", ct.c_uint64),
        ("count", ct.c_uint32),
        ("multi_flags", ct.c_uint32),
        ("pid", ct.c_uint32),
        ("padding", ct.c_uint32),
    )


_FUNCTIONS: Final[dict[str, tuple[object, tuple[object, ...]]]] = {
    "bpf_object__open_mem": (ct.c_void_p, (ct.c_char_p, ct.c_size_t, ct.c_void_p)),
    "bpf_object__load": (ct.c_int, (ct.c_void_p,)),
    "bpf_object__close": (None, (ct.c_void_p,)),
    "bpf_object__find_map_by_name": (ct.c_void_p, (ct.c_void_p, ct.c_char_p)),
    "bpf_object__find_program_by_name": (ct.c_void_p, (ct.c_void_p, ct.c_char_p)),
    "bpf_object__next_map": (ct.c_void_p, (ct.c_void_p, ct.c_void_p)),
    "bpf_map__name": (ct.c_char_p, (ct.c_void_p,)),
    "bpf_map__fd": (ct.c_int, (ct.c_void_p,)),
    "bpf_map__set_max_entries": (ct.c_int, (ct.c_void_p, ct.c_uint32)),
    "bpf_map__set_initial_value": (ct.c_int, (ct.c_void_p, ct.c_char_p, ct.c_size_t)),
    "bpf_program__fd": (ct.c_int, (ct.c_void_p,)),
    "bpf_program__set_autoload": (ct.c_int, (ct.c_void_p, ct.c_bool)),
    "bpf_program__set_expected_attach_type": (ct.c_int, (ct.c_void_p, ct.c_int)),
    "bpf_program__attach": (ct.c_void_p, (ct.c_void_p,)),
    "bpf_program__attach_uprobe_opts": (ct.c_void_p, (ct.c_void_p, ct.c_int, ct.c_char_p, ct.c_size_t, ct.POINTER(UprobeOptions))),
    "bpf_link__destroy": (ct.c_int, (ct.c_void_p,)),
    "bpf_map_create": (ct.c_int, (ct.c_int, ct.c_char_p, ct.c_uint32, ct.c_uint32, ct.c_uint32, ct.c_void_p)),
    "bpf_map_update_elem": (ct.c_int, (ct.c_int, ct.c_void_p, ct.c_void_p, ct.c_uint64)),
    "bpf_map_lookup_elem": (ct.c_int, (ct.c_int, ct.c_void_p, ct.c_void_p)),
    "bpf_map_delete_elem": (ct.c_int, (ct.c_int, ct.c_void_p)),
    "bpf_map_get_next_key": (ct.c_int, (ct.c_int, ct.c_void_p, ct.c_void_p)),
    "libbpf_num_possible_cpus": (ct.c_int, ()),
    "libbpf_set_print": (ct.c_void_p, (_PrintCallback,)),
}


class LibBPF:
    """The library with typed functions as attributes. `log` holds what it last had to say: the reason of a refused load."""

    def __init__(self) -> None:
        try:
            # PyDLL keeps the interpreter's lock: taking it anew costs up to a switch interval while another thread works, and nothing
            # here blocks for long.
            library = ct.PyDLL("libbpf.so.1")
        except OSError:
            raise KernelError("libbpf.so.1 is not installed", "Install it (Debian and Ubuntu: apt-get install libbpf1).") from None
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(library, name)
            function.restype = result
            function.argtypes = arguments
        self._library = library
        self.log: list[str] = []
        self._print = _PrintCallback(self._printed)
        library.libbpf_set_print(self._print)

    def _printed(self, level: int, template: bytes | None, arguments: int | None) -> int:
        # The arguments are a va_list: format them by the C library.
        if level > 0 or template is None or arguments is None:
            return 0
        buffer = ct.create_string_buffer(_MAX_PRINTED)
        ct.CDLL(None).vsnprintf(buffer, ct.c_size_t(_MAX_PRINTED), template, ct.c_void_p(arguments))
        self.log = [*self.log[-7:], buffer.value.decode(errors="replace").strip()]
        return 0

    def __getattr__(self, name: str) -> ct._NamedFuncPointer:
        return getattr(self._library, name)  # type: ignore[no-any-return]

    def uprobe_multi(self, program: int, path: bytes, offsets: list[int], cookies: list[int], *, is_return: bool, pid: int) -> int:
        """BPF_LINK_CREATE: many offsets of one file as one link; its descriptor. Raises OSError."""
        count = len(offsets)
        offset_array, cookie_array = (ct.c_uint64 * count)(*offsets), (ct.c_uint64 * count)(*cookies)
        path_buffer = ct.create_string_buffer(path)
        attributes = _LinkCreateUprobeMulti(
            prog_fd=program,
            attach_type=TRACE_UPROBE_MULTI,
            path=ct.addressof(path_buffer),
            offsets=ct.addressof(offset_array),
            cookies=ct.addressof(cookie_array),
            count=count,
            multi_flags=_UPROBE_MULTI_RETURN if is_return else 0,
            pid=pid,
        )
        libc = ct.CDLL(None, use_errno=True)
        descriptor: int = libc.syscall(
            ct.c_long(_SYS_BPF), ct.c_int(_BPF_LINK_CREATE), ct.byref(attributes), ct.c_uint(ct.sizeof(attributes))
        )
        if descriptor < 0:
            fault = ct.get_errno()
            raise OSError(fault, os.strerror(fault))
        return descriptor


def kernel_version() -> tuple[int, int]:
    """Of the running kernel; (0, 0) where its release cannot be read as a version."""
    major, minor, *_ = [*os.uname().release.split("."), "", ""]
    return (int(major), int(minor)) if major.isdecimal() and minor.isdecimal() else (0, 0)


def explain(fault: int, log: list[str]) -> KernelError:
    """What a refused load or attach means and what to do."""
    verdict = next((found for line in log if (found := _VERDICT.search(line))), None)
    if verdict is not None:  # with the same error as for missing rights
        return KernelError(
            f"this kernel ({os.uname().release}) refuses the eBPF program {verdict[1]}: {verdict[2][:200]}",
            "Name capture.interfaces (--iface) to read plain HTTP there; docs/capture.md says which kernels take it.",
            is_refusal=True,
        )
    detail = next((line for line in log if line), "")
    if fault in (errno.EPERM, errno.EACCES):
        return KernelError(
            f"the kernel refused the eBPF programs ({os.strerror(fault)})",
            "Run as root, or with CAP_BPF, CAP_PERFMON, CAP_SYS_PTRACE and CAP_NET_RAW; `llmsec-tap check` tells which is missing.",
            is_refusal=True,
        )
    return KernelError(
        f"the eBPF programs cannot be loaded ({os.strerror(fault)}{': ' + detail if detail else ''})", "See `llmsec-tap check`."
    )
