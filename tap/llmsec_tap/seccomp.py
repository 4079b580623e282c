"""The filter on system calls of a process that reads hostile bytes: it may read, write, compute and make threads, and no more.

It cannot start programs or processes, open sockets, or reach into other processes, the kernel's configuration or a terminal's
input. What is not allowed is answered with EPERM rather than death, so that a library's optional call does no harm.
Numbers: linux/arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h. Filters: seccomp(2), classic BPF over struct seccomp_data.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import Final, NamedTuple

# Of x86-64, of aarch64; None where that machine has a newer call in its place only.
_Numbers = tuple[int, int | None]
# In the order of how often they are made: a filter is a list that is walked.
_ALLOWED: Final[dict[str, _Numbers]] = {
    "read": (0, 63),
    "write": (1, 64),
    "futex": (202, 98),
    "recvmsg": (47, 212),
    "sendmsg": (46, 211),
    "epoll_wait": (232, None),
    "clock_nanosleep": (230, 115),
    "mmap": (9, 222),
    "munmap": (11, 215),
    "mprotect": (10, 226),
    "madvise": (28, 233),
    "brk": (12, 214),
    "mremap": (25, 216),
    "poll": (7, None),
    "ppoll": (271, 73),
    "lseek": (8, 62),
    "pread64": (17, 67),
    "pwrite64": (18, 68),
    "readv": (19, 65),
    "writev": (20, 66),
    "open": (2, None),
    "openat": (257, 56),
    "close": (3, 57),
    "stat": (4, None),
    "fstat": (5, 80),
    "lstat": (6, None),
    "newfstatat": (262, 79),
    "statx": (332, 291),
    "access": (21, None),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "getdents64": (217, 61),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "getcwd": (79, 17),
    "fcntl": (72, 25),
    "flock": (73, 32),
    "fsync": (74, 82),
    "fdatasync": (75, 83),
    "truncate": (76, 45),
    "ftruncate": (77, 46),
    "rename": (82, None),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "mkdir": (83, None),
    "mkdirat": (258, 34),
    "rmdir": (84, None),
    "unlink": (87, None),
    "unlinkat": (263, 35),
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "umask": (95, 166),
    "utimensat": (280, 88),
    "fallocate": (285, 47),
    "statfs": (137, 43),
    "fstatfs": (138, 44),
    "copy_file_range": (326, 285),
    "sendfile": (40, 71),
    "dup": (32, 23),
    "dup2": (33, None),
    "dup3": (292, 24),
    "pipe": (22, None),
    "pipe2": (293, 59),
    "chdir": (80, 49),
    "fchdir": (81, 50),
    "select": (23, None),
    "pselect6": (270, 72),
    "epoll_create1": (291, 20),
    "epoll_ctl": (233, 21),
    "epoll_pwait": (281, 22),
    "epoll_pwait2": (441, 441),
    "eventfd2": (290, 19),
    "sendto": (44, 206),
    "recvfrom": (45, 207),
    "shutdown": (48, 210),
    "getsockname": (51, 204),
    "getpeername": (52, 205),
    "setsockopt": (54, 208),
    "getsockopt": (55, 209),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "rt_sigtimedwait": (128, 137),
    "sigaltstack": (131, 132),
    "restart_syscall": (219, 128),
    "tgkill": (234, 131),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "set_robust_list": (273, 99),
    "rseq": (334, 293),
    "set_tid_address": (218, 96),
    "membarrier": (324, 283),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    "sched_setaffinity": (203, 122),
    "sched_getparam": (143, 121),
    "sched_getscheduler": (145, 120),
    "getpriority": (140, 141),
    "setpriority": (141, 140),
    "nanosleep": (35, 101),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "gettimeofday": (96, 169),
    "time": (201, None),
    "getpid": (39, 172),
    "gettid": (186, 178),
    "getppid": (110, 173),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "getgroups": (115, 158),
    "uname": (63, 160),
    "sysinfo": (99, 179),
    "times": (100, 153),
    "getrusage": (98, 165),
    "getrlimit": (97, 163),
    "getrandom": (318, 278),
    "getcpu": (309, 168),
    "get_mempolicy": (239, 236),
    "mlock": (149, 228),
    "munlock": (150, 229),
    "mincore": (27, 232),
    "msync": (26, 227),
    "memfd_create": (319, 279),
    "prlimit64": (302, 261),
    "arch_prctl": (158, None),
    "wait4": (61, 260),
    "capget": (125, 90),
    "sched_setscheduler": (144, 119),
    "timerfd_create": (283, 85),
    "timerfd_settime": (286, 86),
    "getresuid": (118, 148),
    "getresgid": (120, 150),
}
# The same for a process that asks over the network, which may connect but not listen.
_NETWORK: Final[dict[str, _Numbers]] = {
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "sendmmsg": (307, 269),
    "recvmmsg": (299, 243),
    "socketpair": (53, 199),
}
# The same for a process that answers on sockets that it listened on before.
_SERVING: Final[dict[str, _Numbers]] = {"accept": (43, 202), "accept4": (288, 242)}
_CLONE_THREAD = 0x00010000
# TCGETS, FIONREAD, FIONBIO, FIOCLEX, FIONCLEX, TIOCGWINSZ: questions, and never TIOCSTI, which types into a terminal.
_IOCTLS: Final = (0x5401, 0x541B, 0x5421, 0x5451, 0x5450, 0x5413)
_PRCTLS: Final = (15, 0x53564D41)  # the names of a thread, and of memory

_LOAD, _JUMP_EQUAL, _JUMP_SET, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_KILL_PROCESS = 0x80000000
_AT_NUMBER, _AT_ARCH, _AT_FIRST, _AT_SECOND = 0, 4, 16, 24  # struct seccomp_data, the lower half of an argument
_SET_MODE_FILTER, _FLAG_TSYNC = 1, 1

_Instruction = tuple[int, int, int, int]


class _Machine(NamedTuple):
    """`place`: of its number in the tables above. The numbers are of the calls that the filter looks into, and of seccomp(2)."""

    place: int
    arch: int  # AUDIT_ARCH_*
    clone: int
    ioctl: int
    prctl: int
    seccomp: int


_CLONE3: Final = 435
_MACHINES: Final = {
    "x86_64": _Machine(0, 0xC000003E, clone=56, ioctl=16, prctl=157, seccomp=317),
    "aarch64": _Machine(1, 0xC00000B7, clone=220, ioctl=29, prctl=167, seccomp=277),
}


def program(*, network: bool = False, serving: bool = False, machine: str = "") -> list[_Instruction]:
    """The filter as classic BPF: (code, jump if true, jump if false, constant). `machine`: as uname says it; this one, where it is empty."""
    of = _machine(machine)
    refuse = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    allow = (_RETURN, 0, 0, _ALLOW)
    out: list[_Instruction] = [(_LOAD, 0, 0, _AT_ARCH), (_JUMP_EQUAL, 1, 0, of.arch), (_RETURN, 0, 0, _KILL_PROCESS)]
    out.append((_LOAD, 0, 0, _AT_NUMBER))
    for numbers in (*_ALLOWED.values(), *(_NETWORK.values() if network else ()), *(_SERVING.values() if serving else ())):
        if (number := numbers[of.place]) is not None:
            out += [(_JUMP_EQUAL, 0, 1, number), allow]
    # glibc asks for clone3 first, whose flags a filter cannot see, and falls back to clone where there is none.
    out += [(_JUMP_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    out += [(_JUMP_EQUAL, 0, 4, of.clone), (_LOAD, 0, 0, _AT_FIRST), (_JUMP_SET, 0, 1, _CLONE_THREAD), allow, refuse]
    for number, place, values in ((of.ioctl, _AT_SECOND, _IOCTLS), (of.prctl, _AT_FIRST, _PRCTLS)):
        out += [(_JUMP_EQUAL, 0, 2 + 2 * len(values), number), (_LOAD, 0, 0, place)]
        for value in values:
            out += [(_JUMP_EQUAL, 0, 1, value), allow]
        out.append(refuse)
    out.append(refuse)
    return out


def _machine(name: str = "") -> _Machine:
    return _MACHINES.get(name or os.uname().machine, _MACHINES["x86_64"])


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("count", ctypes.c_uint16), ("instructions", ctypes.c_void_p))


def confine(*, network: bool = False, serving: bool = False) -> bool:
    """Put the filter over all threads of this process, for good. Needs no_new_privs. False where the kernel refuses."""
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program(network=network, serving=serving))
    buffer = ctypes.create_string_buffer(code, len(code))
    wanted = _Program(len(code) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.syscall(ctypes.c_long(_machine().seccomp), _SET_MODE_FILTER, _FLAG_TSYNC, ctypes.byref(wanted)) == 0)
