"""Opens the files that processes map, for a reader with more rights than their owners.

The path of a mapping belongs to whoever may rename there, and the file to whoever may write it. So a file is opened once, by
the mapping itself where the kernel allows that (map_files needs CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE), else by its path inside the
process's own root without following any link; it is compared with the mapping's device and inode; and everything after that,
probes included, goes through the descriptor. Opening by O_PATH has no side effect on devices, FIFOs or leases.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import stat
import struct
from pathlib import Path
from typing import Final, NamedTuple, Self

_MAP_LINE: Final = re.compile(r"^([0-9a-f]+-[0-9a-f]+) (\S{4}) \S+ (\S+) (\d+)\s+(/.*)$", re.MULTILINE)
# id, parent, device, root, mount point, options, optional fields, separator, type
_MOUNT_LINE: Final = re.compile(r"^\d+ \d+ (\d+):(\d+) .* - (\S+) ", re.MULTILINE)
# Libraries that every process maps and that hold no TLS: not worth a look.
NEVER_TLS: Final = re.compile(r"/(?:libc|libm|libdl|libpthread|librt|libz|libgcc_s|libstdc\+\+|libcrypto|libresolv|libutil)[.-][^/]*$")
# A process may have 65,530 mappings (vm.max_map_count); each line holds a path of up to 4 KiB. Ordinary ones have some hundreds.
_MAX_MAPS_BYTES: Final = 16 << 20
_SYS_OPENAT2: Final = 437
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
# An entry of /proc/self/pagemap: whether the page is present, and its frame (0 without CAP_SYS_ADMIN).
_PRESENT: Final = 1 << 63
_FRAME: Final = (1 << 55) - 1
_MAP_FAILED: Final = (1 << 64) - 1
_RESOLVE_NO_XDEV, _RESOLVE_NO_MAGICLINKS, _RESOLVE_NO_SYMLINKS, _RESOLVE_IN_ROOT = 0x01, 0x02, 0x04, 0x10

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p  # Python's own mmap does not tell the address of what may not be written
_LIBC.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_LIBC.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)

Identity = tuple[str, int]
"""Device (as /proc/PID/maps writes it) and inode."""


class MappedFile(NamedTuple):
    """An executable mapping. `opened`: where it can be opened, in the process's own root."""

    path: str  # as the process sees it
    identity: Identity
    opened: str
    is_exe: bool
    addresses: str = ""  # of the mapping, as in map_files; empty for a file that no process was asked for
    pid: int = 0


class CannotOpen(Exception):  # noqa: N818 - a verdict for the user, not a fault
    """The file is not opened, and why."""


class OpenFile:
    """An open file and what it was when it was opened. Whoever has it closes it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.status = os.fstat(descriptor)
        self.path = f"/proc/self/fd/{descriptor}"  # the kernel takes it for a probe, and it cannot be exchanged

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def identity(self) -> Identity:
        return device_of(self.status), self.status.st_ino

    @property
    def key(self) -> tuple[int, int, int, int, int]:
        """Two files of the same key are the same file with the same content, as far as the file system tells."""
        status = self.status
        return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    @property
    def is_unchanged(self) -> bool:
        then = self.status
        now = os.fstat(self.descriptor)
        return (now.st_size, now.st_mtime_ns, now.st_ctime_ns) == (then.st_size, then.st_mtime_ns, then.st_ctime_ns)

    @property
    def is_deleted(self) -> bool:
        """Whether no name leads to it any more: an upgraded package leaves such files to those who map them."""
        return os.fstat(self.descriptor).st_nlink == 0

    def again(self) -> Self:
        """The same file by a descriptor of its own."""
        return type(self)(os.dup(self.descriptor))

    def is_same_as(self, other: OpenFile) -> bool:
        """Whether both are one file to the kernel, whatever mounts they are seen through. No is also what cannot be told.

        Every overlay gives a file of its lower layer a device of its own, and a probe stands in the file below. What a file has in
        memory is once there, however it is opened, so the frame of its first page tells. It is asked for only where all else is
        equal: the frame of a mapped page may change meanwhile, and then the answer is no.
        """
        return self.key[1:] == other.key[1:] and (self.key == other.key or _share_memory(self.path, other.path))

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def mapped_files(pid: int) -> list[MappedFile]:
    """The files that a process maps executable, each once."""
    try:
        with Path(f"/proc/{pid}/maps").open(encoding="utf-8", errors="surrogateescape") as file:
            maps = file.read(_MAX_MAPS_BYTES)
        exe = str(Path(f"/proc/{pid}/exe").readlink())
    except OSError:
        return []
    found: dict[Identity, MappedFile] = {}
    for addresses, mode, device, inode, path in _MAP_LINE.findall(maps):
        identity = (device, int(inode))
        if "x" in mode and identity not in found and not NEVER_TLS.search(path):
            # maps pads addresses to eight digits, map_files does not.
            name = "-".join(f"{int(end, 16):x}" for end in addresses.split("-"))
            found[identity] = MappedFile(path, identity, f"/proc/{pid}/root{path}", path == exe, name, pid)
    return list(found.values())


def open_mapped(mapped: MappedFile) -> OpenFile | None:
    """The very file that is mapped; None where it is gone by now. Raises CannotOpen for one that is there and is not opened."""
    is_exact = True
    try:
        if not mapped.addresses:
            descriptor = os.open(mapped.opened, os.O_PATH | os.O_CLOEXEC)
        elif _is_fuse(mapped):
            raise CannotOpen("it lies on a FUSE file system, whose owner could hold up every look at it")
        else:
            try:
                descriptor = os.open(f"/proc/{mapped.pid}/map_files/{mapped.addresses}", os.O_PATH | os.O_CLOEXEC)
            except PermissionError:
                is_exact = False
                descriptor = _open_in_root(mapped)
    except (FileNotFoundError, ProcessLookupError):
        return None
    except OSError as fault:
        raise CannotOpen(f"it cannot be opened ({fault.strerror})") from None
    file = OpenFile(descriptor)
    device, inode = mapped.identity
    if (mapped.addresses and file.status.st_ino != inode) or not stat.S_ISREG(file.status.st_mode):
        file.close()
        return None  # something else is mapped, or stands at the path, by now; the process is looked at again
    if not is_exact and device_of(file.status) != device:
        file.close()
        raise CannotOpen(
            "what stands at its path is on another device than what is mapped; with CAP_SYS_ADMIN the mapping itself is opened"
        )
    return file


def _share_memory(*paths: str) -> bool:
    """Whether the first pages of these files are one page. Nothing is read through the mappings: a truncated file would be a signal."""
    places: list[int] = []
    frames: set[int] = set()
    try:
        with Path("/proc/self/pagemap").open("rb", buffering=0) as pages:
            for path in paths:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
                try:
                    place = _LIBC.mmap(None, _PAGE, mmap.PROT_READ, mmap.MAP_SHARED | mmap.MAP_POPULATE, descriptor, 0)
                finally:
                    os.close(descriptor)
                if place in (None, _MAP_FAILED):
                    return False
                places.append(place)
                pages.seek(place // _PAGE * 8)
                (entry,) = struct.unpack("=Q", pages.read(8))
                frames.add(entry & _FRAME if entry & _PRESENT else 0)
    except (OSError, struct.error):
        return False
    finally:
        for place in places:
            _LIBC.munmap(place, _PAGE)
    return len(frames) == 1 and 0 not in frames


def device_of(status: os.stat_result) -> str:
    """The device as /proc/PID/maps writes it."""
    return f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"


class _OpenHow(ctypes.Structure):
    """struct open_how of openat2(2)."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def _open_in_root(mapped: MappedFile) -> int:
    """By its path in the process's own root. The kernel writes resolved paths into maps, so a link on the way is somebody's trick."""
    root = os.open(f"/proc/{mapped.pid}/root", os.O_PATH | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        how = _OpenHow(os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS)
        return _openat2(root, mapped.path, how)
    finally:
        os.close(root)


def open_below(root: int, path: str) -> int:
    """A file by its path in another root, on the file system of that root. Raises OSError."""
    return _openat2(root, path, _OpenHow(os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_XDEV | _RESOLVE_NO_MAGICLINKS))


def _openat2(root: int, path: str, how: _OpenHow) -> int:
    descriptor: int = _LIBC.syscall(
        ctypes.c_long(_SYS_OPENAT2), root, ctypes.c_char_p(os.fsencode(path)), ctypes.byref(how), ctypes.c_size_t(ctypes.sizeof(how))
    )
    if descriptor < 0:
        fault = ctypes.get_errno()
        raise OSError(fault, os.strerror(fault))
    return descriptor


def _is_fuse(mapped: MappedFile) -> bool:
    """Told from the mount table, since asking the file itself could already wait for the FUSE server. Its devices have major number 0."""
    major, _, minor = mapped.identity[0].partition(":")
    if int(major, 16) != 0:
        return False
    try:
        with Path(f"/proc/{mapped.pid}/mountinfo").open(encoding="utf-8", errors="surrogateescape") as file:
            mounts = file.read(_MAX_MAPS_BYTES)
    except OSError:
        return False
    device = ("0", str(int(minor, 16)))
    return any(found[:2] == device and found[2].startswith("fuse") for found in _MOUNT_LINE.findall(mounts))
