"""Finding probe points: symbols, instruction walks, refusals. Real binaries of this host are used where they are there."""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from llmsec_tap.capture.ebpf.loader_api import Role
from llmsec_tap.capture.probes import x86
from llmsec_tap.capture.probes.build_ids import Offsets
from llmsec_tap.capture.probes.elf import ELFError, ELFFile
from llmsec_tap.capture.probes.mapped import MappedFile
from llmsec_tap.capture.probes.targets import TargetFinder, installed_libraries, kernel_tls_in_use
from support.agent import ROOT, environment


def mapped(path: Path, *, is_exe: bool = False) -> MappedFile:
    return MappedFile(str(path), ("00:00", hash(path)), str(path), is_exe)


def compiled(folder: Path, source: str, *options: str) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    out = folder / "made"
    subprocess.run(["gcc", "-x", "c", "-", "-o", out, *options], input=source.encode(), check=True)
    return out


LIBRARY = """
int SSL_read(void *s, void *b, int n) { return n; }
int SSL_write(void *s, const void *b, int n) { return n; }
int main(void) { return 0; }
"""


@pytest.mark.parametrize("options", [("-O0",), ("-O2", "-shared", "-fPIC"), ("-O0", "-rdynamic", "-s")])
def test_symbols_local_exported_and_stripped_to_exports(tmp_path: Path, options: tuple[str, ...]) -> None:
    path = compiled(tmp_path, LIBRARY, *options)
    (plan,) = TargetFinder().look_at_file(mapped(path)).plans
    assert {probe.role for probe in plan.probes} == {Role.READ, Role.WRITE}
    assert plan.notes == ("classic probes: it lacks SSL_read_ex or SSL_write_ex", "no SSL_read_ex, SSL_write_ex")
    code = path.read_bytes()
    for probe in plan.probes:
        assert code[probe.offset : probe.offset + 4] in (b"\xf3\x0f\x1e\xfa", b"\x55\x48\x89\xe5", b"\x89\xd0\xc3\x0f") or code[
            probe.offset
        ] in (0x55, 0x89)


def test_an_importing_library_is_not_a_target(tmp_path: Path) -> None:
    path = compiled(tmp_path, "int SSL_read(void *, void *, int); int f(void) { return SSL_read(0, 0, 0); }", "-shared", "-fPIC")
    found = TargetFinder().look_at_file(mapped(path))
    assert found.plans == []
    assert found.refusals == []


def test_stripped_tls_is_refused_by_name_and_taken_by_build_id_or_offsets(tmp_path: Path) -> None:
    source = 'const char *note = "BoringSSL"; int get(void) { return note[1]; } int put(void) { return note[0] == 0; } int main(void) { return get() + put(); }'
    path = compiled(tmp_path, source, "-O0", "-Wl,--build-id=0xabcdef0123456789")
    with ELFFile(path) as file:
        get, put = (file.functions((name,))[name].offset for name in ("get", "put"))
    subprocess.run(["strip", path], check=True)
    (refusal,) = TargetFinder().look_at_file(mapped(path)).refusals
    assert "stripped BoringSSL (build id abcdef0123456789)" in refusal.reason
    assert "--ssl-read-offset" in refusal.reason
    (plan,) = TargetFinder(known={"abcdef0123456789": Offsets(get, put)}).look_at_file(mapped(path)).plans
    assert [(probe.role, probe.offset) for probe in plan.probes] == [(Role.READ, get), (Role.WRITE, put)]
    (plan,) = TargetFinder(offsets=Offsets(put, get)).look_at_file(mapped(path, is_exe=True)).plans
    assert [probe.offset for probe in plan.probes] == [put, get]
    for wrong in (16, get + 1, get + 4, put + 2, 1 << 40):
        found = TargetFinder(offsets=Offsets(get, wrong)).look_at_file(mapped(path, is_exe=True))
        assert found.plans == []
        assert found.refusals[0].reason.startswith(f"no function can begin at offset {wrong:#x}")


READ = "int SSL_read(void *s, void *b, int n) { return n + (int)(long)b; }"
WRITE = "int SSL_write(void *s, const void *b, int n) { return n - 77; }"
# Clang and GCC lay functions out in the order of the source, and the two are of one size.
PAD = "__attribute__((aligned(64)))"


def test_a_build_that_is_known_must_say_the_same_again(tmp_path: Path) -> None:
    """One build id, two files: a copy is taken as it was found, and one that only claims to be that build is not believed."""
    options = ("-O0", "-shared", "-fPIC", "-Wl,--build-id=0xabcdef0123456789")
    honest = compiled(tmp_path, f"{PAD} {READ} {PAD} {WRITE}", *options).rename(tmp_path / "honest")
    liar = compiled(tmp_path, f"{PAD} {WRITE} {PAD} {READ}", *options).rename(tmp_path / "liar")
    copy = Path(shutil.copy(honest, tmp_path / "copy"))
    assert honest.stat().st_size == liar.stat().st_size
    for files in ((honest, copy, liar), (liar, copy, honest)):
        finder = TargetFinder()
        for path in files:
            (plan,) = finder.look_at_file(mapped(path)).plans
            (alone,) = TargetFinder().look_at_file(mapped(path)).plans
            assert set(plan.probes) == set(alone.probes)
        assert len(finder._builds) == 1


def test_a_known_build_is_not_searched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = compiled(tmp_path, LIBRARY, "-O0", "-shared", "-fPIC", "-Wl,--build-id=0xabcdef0123456789")
    finder = TargetFinder()
    first = finder.look_at_file(mapped(path)).plans
    copy = Path(shutil.copy(path, tmp_path / "copy"))
    monkeypatch.setattr(ELFFile, "functions", lambda *_: pytest.fail("it was searched"))
    (plan,) = finder.look_at_file(mapped(copy)).plans
    assert plan.probes == first[0].probes
    assert plan.shown == str(copy)


def test_rustls_without_symbols_is_refused_by_name(tmp_path: Path) -> None:
    path = compiled(tmp_path, 'const char *note = "rustls::conn"; int main(void) { return note[0] == 0; }', "-s")
    (refusal,) = TargetFinder().look_at_file(mapped(path)).refusals
    assert refusal.reason.startswith("rustls without symbols")


def test_openssl_of_this_host() -> None:
    library = next((file for file in installed_libraries() if "libssl.so.3" in file.path), None)
    if library is None:
        pytest.skip("libssl.so.3 is not installed")
    (plan,) = TargetFinder(fast=False).look_at_file(library).plans
    assert plan.library == "OpenSSL 3"
    assert {probe.role for probe in plan.probes} >= {Role.READ, Role.WRITE, Role.READ_EX, Role.WRITE_EX, Role.NEW, Role.FREE}
    (fast,) = TargetFinder(fast=True).look_at_file(library).plans
    if fast.notes == ("fast probes",):
        assert {probe.role for probe in fast.probes} == {Role.READ_EX, Role.WRITE_EX, Role.NEW, Role.FREE}
        exported = {probe.offset for probe in plan.probes if probe.role in (Role.READ, Role.WRITE, Role.READ_EX, Role.WRITE_EX)}
        assert not exported & {probe.offset for probe in fast.probes if probe.role in (Role.READ_EX, Role.WRITE_EX)}


INSIDE = """
typedef unsigned long size_t;
static __attribute__((noinline)) int reading(void *s, void *b, size_t n, size_t *m) { *m = n; return 1; }
static __attribute__((noinline)) int writing(void *s, const void *b, size_t n, size_t *m) { *m = n; return 2; }
int SSL_read(void *s, void *b, int n) { size_t m; return reading(s, b, n, &m) > 0 ? (int)m : -1; }
int SSL_read_ex(void *s, void *b, size_t n, size_t *m) { return reading(s, b, n, m) > 0; }
int SSL_write(void *s, const void *b, int n) { size_t m; return writing(s, b, n, &m) > 0 ? (int)m : -1; }
int SSL_write_ex(void *s, const void *b, size_t n, size_t *m) { return writing(s, b, n, m) > 0; }
"""


@pytest.mark.parametrize(
    ("source", "note"),
    [
        (INSIDE, "fast probes"),
        (
            INSIDE.replace("return reading(s, b, n, m)", "return writing(s, b, n, m)"),
            "classic probes: SSL_read and SSL_read_ex do not share",
        ),
        # OpenSSL 3.3 and later: flags come before the place where the count goes, which would be read as that place.
        (
            INSIDE + "int SSL_write_ex2(void *s, const void *b, size_t n, size_t f, size_t *m) { return 1; }",
            "classic probes: this OpenSSL's",
        ),
    ],
    ids=["shared", "not-shared", "with-flags"],
)
def test_internal_functions_are_probed_where_that_is_sure(tmp_path: Path, source: str, note: str) -> None:
    path = compiled(tmp_path, source, "-O0", "-shared", "-fPIC", "-fcf-protection=none")
    (plan,) = TargetFinder().look_at_file(mapped(path)).plans
    assert plan.notes[0].startswith(note)
    with ELFFile(path) as file:
        names = ("reading", "writing") if note == "fast probes" else ("SSL_read", "SSL_write", "SSL_read_ex", "SSL_write_ex")
        assert {probe.offset for probe in plan.probes} == {function.offset for function in file.functions(names).values()}
    (plan,) = TargetFinder(fast=False).look_at_file(mapped(path)).plans
    assert len(plan.probes) == 4
    assert plan.notes == ()


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"\x7fELF" + b"\xff" * 100, b"MZ" + bytes(200)])
def test_what_is_no_elf_file_gives_nothing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    found = TargetFinder().look_at_file(mapped(path))
    assert (found.plans, found.refusals) == ([], [])


def test_damaged_elf_files_never_raise_anything_else() -> None:
    whole = Path("/bin/true").read_bytes()
    rng = random.Random(7)
    for _ in range(200):
        data = bytearray(whole[: rng.randrange(64, len(whole))])
        for _ in range(20):
            data[rng.randrange(min(len(data), 4096))] = rng.randrange(256)
        path = Path("/dev/shm/llmsec-damaged")
        path.write_bytes(data)
        try:
            with ELFFile(path) as file:
                file.functions(("main", "SSL_read"))
                file.build_id()
        except ELFError:
            pass
        finally:
            path.unlink()


def test_instruction_lengths_agree_with_the_assembler(tmp_path: Path) -> None:
    """Every instruction of a real program's text, walked function by function, against objdump's own boundaries."""
    if shutil.which("objdump") is None:
        pytest.skip("objdump is not installed (apt-get install binutils)")
    listing = subprocess.run(["objdump", "-d", "--no-addresses", "-w", "/bin/true"], capture_output=True, text=True, check=True).stdout
    checked = 0
    for line in listing.splitlines():
        columns = line.split("\t")
        if len(columns) < 3 or "(bad)" in columns[2]:
            continue
        code = bytes.fromhex(columns[1].replace(" ", "")) if len(columns) == 3 else b""
        if not code:
            continue
        found = next(x86.instructions(code + b"\x90" * 16))
        assert found.length == len(code), line
        checked += 1
    assert checked > 1000


@pytest.mark.parametrize(
    ("code", "ends"),
    [
        ("c3", [0]),
        ("b8c3c3c3c3 c3", [5]),  # mov eax, 0xc3c3c3c3; ret
        ("488d05c3000000 c3", [7]),  # lea rax, [rip+0xc3]; ret
        ("7401 90 c3 c20800", [3, 4]),
        ("0f84c3000000 c3", [6]),
        ("c5f877 c3", [3]),  # vzeroupper; ret
        ("48b8c3c3c3c3c3c3c3c3 c3", [10]),
    ],
)
def test_returns_are_not_looked_for_inside_instructions(code: str, ends: list[int]) -> None:
    assert x86.returns(bytes.fromhex(code.replace(" ", ""))) == ends


def test_a_walk_that_cannot_be_trusted_says_so() -> None:
    for code in (b"\x06\xc3", b"\x48", b"\xe8\x00"):
        with pytest.raises(x86.UnknownInstruction):
            x86.returns(code)


def test_the_first_call_and_pushes() -> None:
    assert x86.first_call(bytes.fromhex("4883ec08 e810000000 e820000000".replace(" ", ""))) == 4 + 5 + 16
    assert x86.first_call(b"\xc3") is None
    assert x86.is_push(b"\x55")
    assert x86.is_push(b"\x41\x57")
    assert not x86.is_push(b"\x48\x83\xec\x18")


def test_the_dynamic_loader_is_no_target_but_tells_of_new_libraries() -> None:
    found = TargetFinder().look(os.getpid())
    (linker,) = found.linkers
    assert linker.is_linker
    assert [probe.symbol for probe in linker.probes] == ["_dl_debug_state"]
    assert not any(plan.is_linker for plan in found.plans)


def test_the_finder_of_stripped_boringssl_finds_what_the_symbols_say(tmp_path: Path) -> None:
    """On libraries that have their symbols, with the symbols taken away."""
    if shutil.which("strip") is None:
        pytest.skip("strip is not installed (apt-get install binutils)")
    checked = 0
    for module, name in (("curl_cffi", "_wrapper.abi3.so"), ("xllamacpp", "xllamacpp.abi3.so")):
        package = importlib.util.find_spec(module)
        if package is None or package.origin is None:
            continue
        library = Path(package.origin).with_name(name)
        stripped = tmp_path / name
        subprocess.run(["strip", "-o", stripped, library], check=True)
        with ELFFile(library) as file, ELFFile(stripped) as without:
            functions = file.functions(("SSL_read", "SSL_write", "SSL_new"))
            assert without.functions(("SSL_read",)) == {}
        done = subprocess.run(
            [sys.executable, ROOT / "scripts/find-boringssl", stripped], capture_output=True, text=True, check=True, env=environment()
        )
        (found,) = tomllib.loads(done.stdout).values()
        assert {place: found[place] for place in ("read", "write", "new")} == {
            place: functions[f"SSL_{place}"].offset for place in ("read", "write", "new")
        }
        checked += 1
    if not checked:
        pytest.skip("curl_cffi and xllamacpp are in the dependency group `peers`")


def test_kernel_tls_is_told_from_the_kernels_own_count(tmp_path: Path) -> None:
    statistics = tmp_path / "tls_stat"
    assert not kernel_tls_in_use(statistics), "a kernel without it"
    text = "TlsCurrTxSw                     \t{}\nTlsCurrRxSw                     \t0\nTlsTxSw                         \t7\n"
    statistics.write_text(text.format(0))
    assert not kernel_tls_in_use(statistics), "used once, not now"
    statistics.write_text(text.format(2))
    assert kernel_tls_in_use(statistics)
