"""Files that their owners made, or change, to harm a reader with more rights: every one is read safely or refused by name."""

from __future__ import annotations

import mmap
import os
import random
import struct
import threading
import time
from pathlib import Path
from typing import Self

import pytest

from llmsec_tap.capture.probes.elf import ELFError, ELFFile
from llmsec_tap.capture.probes.mapped import MappedFile, mapped_files, open_mapped
from llmsec_tap.capture.probes.targets import TargetFinder
from support.elf import TEXT_AT, elf, symbol

LIBRARY = elf(b"\0SSL_read\0SSL_write\0", symbol(0, 0) + symbol(1, TEXT_AT) + symbol(10, TEXT_AT + 16))


def refusal(path: Path) -> str:
    (found,) = TargetFinder().look_at_file(MappedFile(str(path), ("00:00", 0), str(path), is_exe=False)).refusals
    return found.reason


def test_the_library_of_these_tests_is_a_target(tmp_path: Path) -> None:
    path = tmp_path / "libssl.so"
    path.write_bytes(LIBRARY)
    (plan,) = TargetFinder().look_at_file(MappedFile(str(path), ("00:00", 0), str(path), is_exe=False)).plans
    assert [probe.offset for probe in plan.probes] == [TEXT_AT, TEXT_AT + 16]


@pytest.mark.parametrize("size", [64, 4096, TEXT_AT + 4096 + 8])
def test_a_file_cut_short_while_it_is_read(tmp_path: Path, size: int) -> None:
    """With a mapped file this is SIGBUS, the end of the tap."""
    path = tmp_path / "libssl.so"
    path.write_bytes(LIBRARY)
    with ELFFile(path) as file:
        os.truncate(path, size)
        with pytest.raises(ELFError, match="shrank"):
            file.functions(("SSL_read",))


def test_a_file_that_changes_all_the_time(tmp_path: Path) -> None:
    path = tmp_path / "libssl.so"
    path.write_bytes(LIBRARY)
    stop = threading.Event()

    def change() -> None:
        rng = random.Random(3)
        while not stop.is_set():
            os.truncate(path, rng.randrange(len(LIBRARY)))
            with path.open("r+b") as file:
                file.write(LIBRARY)
                file.seek(rng.randrange(len(LIBRARY)))
                file.write(rng.randbytes(8))

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(500):
            TargetFinder().look_at_file(MappedFile(str(path), ("00:00", 0), str(path), is_exe=True)).close()
    finally:
        stop.set()
        thread.join()


def test_a_sparse_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "libssl.so"
    path.write_bytes(LIBRARY)
    os.truncate(path, 3 << 30)
    assert "it is sparse (3072 MiB" in refusal(path)
    os.truncate(path, 5 << 30)
    assert "larger than 4 GiB" in refusal(path)


def test_a_name_without_end_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "libssl.so"
    path.write_bytes(elf(b"\0" + b"SSL_read\0" * 5000, symbol(1, TEXT_AT)))
    assert "holds SSL_read more than 256 times" in refusal(path)


def test_symbols_without_end_that_name_no_function_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "libssl.so"
    path.write_bytes(elf(b"\0SSL_read\0", symbol(1, TEXT_AT) * 300, text=b"\x06" * 4096))
    assert "more than 256 of its symbols" in refusal(path)


def more_tables(library: bytes, count: int) -> bytes:
    """The same symbol table under many section headers."""
    headers_at = struct.unpack_from("<Q", library, 40)[0]
    headers = library[headers_at : headers_at + 192] + library[headers_at + 64 : headers_at + 128] * count
    return library[:60] + struct.pack("<H", 3 + count) + library[62:headers_at] + headers


@pytest.mark.parametrize(
    "make",
    [
        lambda n: elf(b"\0SSL_read\0" * 200, b"\xff" * 24 * n),
        lambda n: elf(b"\0SSL_read\0" * 200, struct.pack("<I", 1) * 6 * n),
        lambda n: elf(b"\0" + b"SSL_rea" * n, symbol(1, TEXT_AT)),
        lambda n: elf(b"\0SSL_read\0", b"".join(symbol(1, 1 << 40) for _ in range(n))),
        lambda n: more_tables(elf(b"\0SSL_rea\0" * (n // 4), symbol(1, TEXT_AT)), n // 400),
    ],
    ids=["far symbols", "every byte names it", "nearly the name", "all of that name", "many tables of the same bytes"],
)
def test_the_work_is_linear_in_the_file(tmp_path: Path, make: object) -> None:
    def cost(count: int) -> float:
        path = tmp_path / "libssl.so"
        path.write_bytes(make(count))  # type: ignore[operator]
        best = 1e9
        for _ in range(3):
            begun = time.process_time()
            with ELFFile(path) as file:
                assert file.functions(("SSL_read", "SSL_write", "SSL_new", "SSL_free")) == {}
            best = min(best, time.process_time() - begun)
        return best

    # Eight times as much: linear work takes eight times as long, quadratic work 64 times; between them a busy machine has room.
    assert cost(400_000) <= 20 * cost(50_000) + 0.002


@pytest.mark.parametrize("value", [TEXT_AT + 1, 0, 1 << 40])
def test_a_symbol_that_is_no_instruction(tmp_path: Path, value: int) -> None:
    """Code that does not decode from there, a place outside, and the file's own head (not a function, though mapped executable)."""
    path = tmp_path / "libssl.so"
    path.write_bytes(elf(b"\0SSL_read\0", symbol(1, value), text=b"\x06" * 4096))
    assert TargetFinder().look_at_file(MappedFile(str(path), ("00:00", 0), str(path), is_exe=False)).plans == []


class Mapping:
    """This process maps a file executable, as another user's would."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_EXEC)

    def found(self, path: Path) -> MappedFile:
        return next(file for file in mapped_files(os.getpid()) if file.path.removesuffix(" (deleted)") == str(path))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._map.close()


def test_what_stands_at_the_path_by_now_is_not_opened(tmp_path: Path) -> None:
    path, victim = tmp_path / "libssl.so", tmp_path / "victim"
    path.write_bytes(LIBRARY)
    victim.write_bytes(LIBRARY)
    original = path.stat().st_ino
    with Mapping(path) as mapping:
        before = mapping.found(path)
        link = tmp_path / "link"
        link.symlink_to(victim)
        link.rename(path)
        for mapped in (before, mapping.found(path)):
            file = open_mapped(mapped)
            # By the mapping itself (root), or not at all.
            assert file is None or file.status.st_ino == original
            if file is not None:
                file.close()
        by_path = before._replace(addresses="0-0")  # as if the mapping could not be opened
        file = open_mapped(by_path)
        assert file is None or file.status.st_ino == original


def test_a_plan_names_what_was_examined(tmp_path: Path) -> None:
    path, victim = tmp_path / "libssl.so", tmp_path / "victim"
    path.write_bytes(LIBRARY)
    victim.write_bytes(LIBRARY)
    with Mapping(path) as mapping, TargetFinder().look_at([mapping.found(path)]) as found:
        (plan,) = found.plans
        inode = path.stat().st_ino
        victim.rename(path)
        assert Path(plan.path).stat().st_ino == inode
        assert plan.shown == str(path)
        assert Path(plan.path).stat().st_size == len(LIBRARY)


def test_a_file_written_to_after_the_look_is_known_as_changed(tmp_path: Path) -> None:
    path = tmp_path / "libssl.so"
    path.write_bytes(LIBRARY)
    with TargetFinder().look_at_file(MappedFile(str(path), ("00:00", 0), str(path), is_exe=False)) as found:
        (plan,) = found.plans
        assert found.is_unchanged(plan)
        with path.open("r+b") as file:
            file.write(b"\x7f")
        os.utime(path, ns=(1, 1))
        assert not found.is_unchanged(plan)


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path, make: object) -> None:
    path = tmp_path / "libssl.so"
    make(path)  # type: ignore[operator]
    found = TargetFinder().look_at_file(MappedFile(str(path), ("00:00", 0), str(path), is_exe=True))
    assert (found.plans, found.refusals) == ([], [])


def test_a_plan_stands_for_the_file_that_was_opened(tmp_path: Path) -> None:
    """A process that says it maps the host's library, and has another at that place by now, must not make the real one count as probed."""
    path = tmp_path / "libssl.so"
    path.write_bytes(LIBRARY)
    claimed = MappedFile("/usr/lib/libssl.so.3", ("08:01", 4711), str(path), is_exe=False)
    with TargetFinder().look_at_file(claimed) as found:
        (plan,) = found.plans
        status = path.stat()
        assert plan.identity == (f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}", status.st_ino)
