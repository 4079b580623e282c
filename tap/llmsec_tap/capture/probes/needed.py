"""The TLS libraries that a program will map, told as it starts: from what its file and those it needs name (DT_NEEDED).

A hint, never more: what is not found here is found as the dynamic loader maps it, some milliseconds later. So only the usual folders
are searched and the loader's cache is not read; and only the file system of the process's own root, since to look a name up on another
one (FUSE, NFS, an automounter) may take as long as its owner likes.

Dynamic section: System V ABI, chapter 5. The order of the search: ld.so(8).
"""

from __future__ import annotations

import os
import re
import stat
import struct
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from llmsec_tap.capture.probes.elf import ELFError, ELFFile
from llmsec_tap.capture.probes.machine import library_folders
from llmsec_tap.capture.probes.mapped import NEVER_TLS, MappedFile, OpenFile, open_below

_TLS_LIBRARY: Final = re.compile(r"^lib(?:ssl|gnutls)[^/]*\.so[^/]*$")
_FOLDERS: Final = library_folders()
# Of one program: curl needs 27 libraries, most of which need no others. A hint may be incomplete.
_MAX_FILES = 48
_MAX_FOLDERS = 16
_MAX_NEEDED = 256
_MAX_ENVIRONMENT: Final = 256 << 10
_MAX_KNOWN = 1024
_DYNAMIC: Final = struct.Struct("<QQ")
_PT_DYNAMIC = 2
_DT_NEEDED, _DT_STRTAB, _DT_RPATH, _DT_RUNPATH = 1, 5, 15, 29
_MAX_NAME = 4096
_ROOT_MOUNT: Final = re.compile(r"^\d+ \d+ \S+ \S+ / .* - (\S+) ", re.MULTILINE)
_LOCAL: Final = frozenset(
    ("ext2", "ext3", "ext4", "xfs", "btrfs", "overlay", "tmpfs", "zfs", "f2fs", "erofs", "squashfs", "rootfs", "ramfs")
)


class Needs(NamedTuple):
    """What one file names."""

    libraries: tuple[str, ...]
    folders: tuple[str, ...]  # DT_RUNPATH, or else DT_RPATH; $ORIGIN as it stands


class NeededLibraries:
    """Remembers what files need, and gives what a process will map."""

    def __init__(self) -> None:
        self._needs: OrderedDict[tuple[int, ...], Needs] = OrderedDict()

    def of(self, pid: int) -> Iterator[tuple[MappedFile, OpenFile]]:
        """TLS libraries that a process which has just started will map. Whoever takes a file closes it."""
        try:
            if not _is_local(pid):
                return
            root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_CLOEXEC | os.O_DIRECTORY)
        except OSError:
            return
        try:
            exe = str(Path(f"/proc/{pid}/exe").readlink())
            file = _open(root, exe)
            if file is not None:
                yield from self._walk(pid, root, exe, file)
        except OSError:
            return
        finally:
            os.close(root)

    def _walk(self, pid: int, root: int, exe: str, file: OpenFile) -> Iterator[tuple[MappedFile, OpenFile]]:
        with file:
            needs = self._needed_by(file)
        if not needs.libraries:
            return
        inherited = _library_path(pid)
        waiting = [(name, _expanded(needs, exe)) for name in needs.libraries]
        seen: set[str] = set()
        while waiting and len(seen) < _MAX_FILES:
            name, own = waiting.pop(0)
            if name in seen or "/" in name or NEVER_TLS.search(f"/{name}"):
                continue
            seen.add(name)
            for folder in dict.fromkeys((*inherited, *own, *_FOLDERS)):
                path = f"{folder}/{name}"
                found = _open(root, path)
                if found is None:
                    continue
                if _TLS_LIBRARY.search(name):
                    yield MappedFile(path, found.identity, found.path, is_exe=False, pid=pid), found
                else:
                    with found:
                        needs = self._needed_by(found)
                    waiting += [(other, _expanded(needs, path)) for other in needs.libraries]
                break

    def _needed_by(self, file: OpenFile) -> Needs:
        known = self._needs.get(file.key)
        if known is None:
            try:
                with ELFFile(file.path) as elf:
                    known = read_needs(elf)
            except (ELFError, OSError, ValueError, struct.error):
                known = Needs((), ())
            self._needs[file.key] = known
            if len(self._needs) > _MAX_KNOWN:
                self._needs.popitem(last=False)
        self._needs.move_to_end(file.key)
        return known


def read_needs(file: ELFFile) -> Needs:
    """Raises ELFError."""
    segment = next((segment for segment in file.segments if segment[0] == _PT_DYNAMIC), None)
    if segment is None:
        return Needs((), ())
    data = file.read(segment[2], min(segment[5], 16 << 10))
    entries = list(_DYNAMIC.iter_unpack(data[: len(data) // _DYNAMIC.size * _DYNAMIC.size]))
    strings = next((file.file_offset(value) for tag, value in entries if tag == _DT_STRTAB), None)
    if strings is None:
        return Needs((), ())

    def text(at: int) -> str:
        # A name's length is told by its end alone.
        place = strings + at
        return file.read(place, min(_MAX_NAME, file.size - place)).partition(b"\0")[0].decode(errors="surrogateescape")

    libraries = [text(value) for tag, value in entries if tag == _DT_NEEDED][:_MAX_NEEDED]
    paths = {tag: text(value) for tag, value in entries if tag in (_DT_RPATH, _DT_RUNPATH)}
    folders = paths.get(_DT_RUNPATH) or paths.get(_DT_RPATH) or ""
    return Needs(tuple(libraries), tuple(folders.split(":")[:_MAX_FOLDERS]) if folders else ())


def _expanded(needs: Needs, path: str) -> list[str]:
    origin = path.rpartition("/")[0]
    folders = [folder.replace("${ORIGIN}", origin).replace("$ORIGIN", origin) for folder in needs.folders]
    return [folder for folder in folders if folder.startswith("/")]


def _library_path(pid: int) -> list[str]:
    try:
        with Path(f"/proc/{pid}/environ").open("rb") as file:
            environment = file.read(_MAX_ENVIRONMENT)
    except OSError:
        return []
    for entry in environment.split(b"\0"):
        if entry.startswith(b"LD_LIBRARY_PATH="):
            folders = re.split("[:;]", entry.partition(b"=")[2].decode(errors="surrogateescape"))
            return [folder for folder in folders if folder.startswith("/")][:_MAX_FOLDERS]
    return []


def _is_local(pid: int) -> bool:
    """Whether names under the process's root are looked up by the kernel itself. Told from the mount table, without asking the mount."""
    with Path(f"/proc/{pid}/mountinfo").open(encoding="utf-8", errors="surrogateescape") as file:
        kinds = _ROOT_MOUNT.findall(file.read(_MAX_ENVIRONMENT))
    return bool(kinds) and kinds[-1] in _LOCAL


def _open(root: int, path: str) -> OpenFile | None:
    try:
        file = OpenFile(open_below(root, path))
    except OSError:
        return None
    if stat.S_ISREG(file.status.st_mode):
        return file
    file.close()
    return None
