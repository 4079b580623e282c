"""The memory of this process as the kernel counts it, and the net behind the account of what is held for traffic (account.py)."""

from __future__ import annotations

import ctypes
import os
import resource
from pathlib import Path

from llmsec_tap import limits

_PAGE = os.sysconf("SC_PAGE_SIZE")


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_bytes().split()[1]) * _PAGE


def peak_bytes() -> int:
    """The most that was ever resident (VmHWM), also between two looks."""
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * limits.KIB
    return resident_bytes()


def limit_address_space(memory_cap_bytes: int, slack_bytes: int = limits.ADDRESS_SPACE_SLACK_BYTES) -> None:
    """Let allocations fail (MemoryError) far above the cap, before they take the host's memory. Only ever lowers the limit.

    Address space is not memory: libraries reserve much that they never touch, so what is mapped now and a gigabyte, or `slack_bytes`, are left free.
    """
    mapped = int(Path("/proc/self/statm").read_bytes().split()[0]) * _PAGE
    wanted = mapped + 2 * memory_cap_bytes + slack_bytes
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if soft == resource.RLIM_INFINITY or soft > wanted:
        resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))


class MemoryWatch:
    """Looks at resident memory now and then, against the cap.

    Buffers of all sizes that come and go leave holes in malloc's heap; those are given back to the kernel above half of the cap.
    """

    def __init__(self, memory_cap_bytes: int) -> None:
        self._cap = memory_cap_bytes
        self._trim_at = memory_cap_bytes // 2

    def look(self) -> float:
        """The share of the cap that is resident, after giving back what is free."""
        used = resident_bytes()
        if used > self._trim_at:
            ctypes.CDLL(None).malloc_trim(0)
            used = resident_bytes()
            self._trim_at = max(self._cap // 2, used + self._cap // 16)
        return used / self._cap
