"""The filter on system calls of a process that reads hostile bytes: it may read, write, compute and make threads, and no more.

It cannot start programs or processes, open sockets, or reach into other processes, the kernel's configuration or a terminal's
input. What is not allowed is answered with EPERM rather than death, so that a library's optional call does no harm.
Numbers: linux/arch/x86/entry/syscalls/syscall_64.tbl. Filters: seccomp(2), classic BPF over struct seccomp_data.
"""

from __future__ import annotations

import ctypes
import errno
import struct
from typing import Final

# In the order of how often they are made: a filter is a list that is walked.
_ALLOWED: Final = {
    "read": 0,
    "write": 1,
    "futex": 202,
    "recvmsg": 47,
    "sendmsg": 46,
    "epoll_wait": 232,
    "clock_nanosleep": 230,
    "mmap": 9,
    "munmap": 11,
    "mprotect": 10,
    "madvise": 28,
    "brk": 12,
    "mremap": 25,
    "poll": 7,
    "ppoll": 271,
    "lseek": 8,
    "pread64": 17,
    "pwrite64": 18,
    "readv": 19,
    "writev": 20,
    "open": 2,
    "openat": 257,
    "close": 3,
    "stat": 4,
    "fstat": 5,
    "lstat": 6,
    "newfstatat": 262,
    "statx": 332,
    "access": 21,
    "faccessat": 269,
    "faccessat2": 439,
    "getdents64": 217,
    "readlink": 89,
    "readlinkat": 267,
    "getcwd": 79,
    "fcntl": 72,
    "flock": 73,
    "fsync": 74,
    "fdatasync": 75,
    "truncate": 76,
    "ftruncate": 77,
    "rename": 82,
    "renameat": 264,
    "renameat2": 316,
    "mkdir": 83,
    "mkdirat": 258,
    "rmdir": 84,
    "unlink": 87,
    "unlinkat": 263,
    "chmod": 90,
    "fchmod": 91,
    "fchmodat": 268,
    "umask": 95,
    "utimensat": 280,
    "fallocate": 285,
    "statfs": 137,
    "fstatfs": 138,
    "copy_file_range": 326,
    "sendfile": 40,
    "dup": 32,
    "dup2": 33,
    "dup3": 292,
    "pipe": 22,
    "pipe2": 293,
    "chdir": 80,
    "fchdir": 81,
    "select": 23,
    "pselect6": 270,
    "epoll_create1": 291,
    "epoll_ctl": 233,
    "epoll_pwait": 281,
    "epoll_pwait2": 441,
    "eventfd2": 290,
    "sendto": 44,
    "recvfrom": 45,
    "shutdown": 48,
    "getsockname": 51,
    "getpeername": 52,
    "setsockopt": 54,
    "getsockopt": 55,
    "rt_sigaction": 13,
    "rt_sigprocmask": 14,
    "rt_sigreturn": 15,
    "rt_sigtimedwait": 128,
    "sigaltstack": 131,
    "restart_syscall": 219,
    "tgkill": 234,
    "exit": 60,
    "exit_group": 231,
    "set_robust_list": 273,
    "rseq": 334,
    "set_tid_address": 218,
    "membarrier": 324,
    "sched_yield": 24,
    "sched_getaffinity": 204,
    "sched_setaffinity": 203,
    "sched_getparam": 143,
    "sched_getscheduler": 145,
    "getpriority": 140,
    "setpriority": 141,
    "nanosleep": 35,
    "clock_gettime": 228,
    "clock_getres": 229,
    "gettimeofday": 96,
    "time": 201,
    "getpid": 39,
    "gettid": 186,
    "getppid": 110,
    "getuid": 102,
    "geteuid": 107,
    "getgid": 104,
    "getegid": 108,
    "getgroups": 115,
    "uname": 63,
    "sysinfo": 99,
    "times": 100,
    "getrusage": 98,
    "getrlimit": 97,
    "getrandom": 318,
    "getcpu": 309,
    "get_mempolicy": 239,
    "mlock": 149,
    "munlock": 150,
    "mincore": 27,
    "msync": 26,
    "memfd_create": 319,
    "prlimit64": 302,
    "arch_prctl": 158,
    "wait4": 61,
    "capget": 125,
    "sched_setscheduler": 144,
    "timerfd_create": 283,
    "timerfd_settime": 286,
    "getresuid": 118,
    "getresgid": 120,
}
# The same for a process that asks over the network, which may connect but not listen.
_NETWORK: Final = {"socket": 41, "connect": 42, "bind": 49, "sendmmsg": 307, "recvmmsg": 299, "socketpair": 53}
# The same for a process that answers on sockets that it listened on before.
_SERVING: Final = {"accept": 43, "accept4": 288}
_CLONE, _CLONE3, _IOCTL, _PRCTL = 56, 435, 16, 157
_CLONE_THREAD = 0x00010000
# TCGETS, FIONREAD, FIONBIO, FIOCLEX, FIONCLEX, TIOCGWINSZ: questions, and never TIOCSTI, which types into a terminal.
_IOCTLS: Final = (0x5401, 0x541B, 0x5421, 0x5451, 0x5450, 0x5413)
_PRCTLS: Final = (15, 0x53564D41)  # the names of a thread, and of memory

_LOAD, _JUMP_EQUAL, _JUMP_SET, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_KILL_PROCESS = 0x80000000
_AT_NUMBER, _AT_ARCH, _AT_FIRST, _AT_SECOND = 0, 4, 16, 24  # struct seccomp_data, the lower half of an argument
_ARCH_X86_64 = 0xC000003E
_SYS_SECCOMP, _SET_MODE_FILTER, _FLAG_TSYNC = 317, 1, 1

_Instruction = tuple[int, int, int, int]


def program(*, network: bool = False, serving: bool = False) -> list[_Instruction]:
    """The filter as classic BPF: (code, jump if true, jump if false, constant)."""
    refuse = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    allow = (_RETURN, 0, 0, _ALLOW)
    out: list[_Instruction] = [(_LOAD, 0, 0, _AT_ARCH), (_JUMP_EQUAL, 1, 0, _ARCH_X86_64), (_RETURN, 0, 0, _KILL_PROCESS)]
    out.append((_LOAD, 0, 0, _AT_NUMBER))
    numbers = [*_ALLOWED.values(), *(_NETWORK.values() if network else ()), *(_SERVING.values() if serving else ())]
    for number in numbers:
        out += [(_JUMP_EQUAL, 0, 1, number), allow]
    # glibc asks for clone3 first, whose flags a filter cannot see, and falls back to clone where there is none.
    out += [(_JUMP_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    out += [(_JUMP_EQUAL, 0, 4, _CLONE), (_LOAD, 0, 0, _AT_FIRST), (_JUMP_SET, 0, 1, _CLONE_THREAD), allow, refuse]
    for number, place, values in ((_IOCTL, _AT_SECOND, _IOCTLS), (_PRCTL, _AT_FIRST, _PRCTLS)):
        out += [(_JUMP_EQUAL, 0, 2 + 2 * len(values), number), (_LOAD, 0, 0, place)]
        for value in values:
            out += [(_JUMP_EQUAL, 0, 1, value), allow]
        out.append(refuse)
    out.append(refuse)
    return out


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("count", ctypes.c_uint16), ("instructions", ctypes.c_void_p))


def confine(*, network: bool = False, serving: bool = False) -> bool:
    """Put the filter over all threads of this process, for good. Needs no_new_privs. False where the kernel refuses."""
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program(network=network, serving=serving))
    buffer = ctypes.create_string_buffer(code, len(code))
    wanted = _Program(len(code) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.syscall(ctypes.c_long(_SYS_SECCOMP), _SET_MODE_FILTER, _FLAG_TSYNC, ctypes.byref(wanted)) == 0)
