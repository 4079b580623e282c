"""Where in a process TLS plaintext can be probed. Anything that cannot be probed is reported with the reason.

A file is examined once (device, inode, size and times are its key): a library that fifty processes map costs one look. Plans name
the descriptor that was examined, so that the probes go into that file and no other, whatever happens to its path meanwhile.
"""

from __future__ import annotations

import contextlib
import re
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Self

from llmsec_tap.capture.ebpf.loader_api import Probe, ProbePlan, Role
from llmsec_tap.capture.probes import x86
from llmsec_tap.capture.probes.build_ids import KNOWN_BUILD_IDS, Offsets
from llmsec_tap.capture.probes.elf import ELFError, ELFFile, Evidence, Function
from llmsec_tap.capture.probes.machine import HOST, library_folders
from llmsec_tap.capture.probes.mapped import CannotOpen, MappedFile, OpenFile, device_of, mapped_files, open_mapped
from llmsec_tap.capture.probes.needed import NeededLibraries

_OPENSSL: Final[dict[str, Role]] = {
    "SSL_read": Role.READ,
    "SSL_write": Role.WRITE,
    "SSL_read_ex": Role.READ_EX,
    "SSL_write_ex": Role.WRITE_EX,
    "SSL_new": Role.NEW,
    "SSL_free": Role.FREE,
    "SSL_clear": Role.FREE,  # the object is used for another connection from here on
}
_WITH_FLAGS: Final = "SSL_write_ex2"
_GNUTLS: Final[dict[str, Role]] = {
    "gnutls_record_recv": Role.READ,
    "gnutls_record_send": Role.WRITE,
    "gnutls_deinit": Role.FREE,
}
_GO_READ, _GO_WRITE, _GO_CLOSE = "crypto/tls.(*Conn).Read", "crypto/tls.(*Conn).Write", "crypto/tls.(*Conn).Close"
_GO_RETURNS: Final = frozenset((Role.GO_READ_RETURN, Role.GO_WRITE_RETURN))
_MOVES_BYTES: Final = frozenset((Role.READ, Role.WRITE, Role.READ_EX, Role.WRITE_EX, Role.GO_READ, Role.GO_WRITE))
# The dynamic loader, and the empty function that it calls for debuggers whenever it has mapped or unmapped something.
_LINKER: Final = re.compile(r"/ld-(?:linux|musl|\d)[^/]*\.so")
_LINKER_TELLS: Final = "_dl_debug_state"
_LIBSSL_NAME: Final = re.compile(r"/lib(?:ssl|boringssl)[^/]*\.so")
_GNUTLS_NAME: Final = re.compile(r"/libgnutls\.so")
# Go's registers carry arguments since 1.17; before, they are on the stack.
_GO_VERSION: Final = re.compile(rb"\xff Go buildinf:.{18}([\x04-\x20])(go1\.\d+[^\x00-\x1f]*)", re.DOTALL)
_MIN_GO = (1, 17)
_MAX_GO_FUNCTION = 65_536
# Files that are remembered, the last that were mapped: a node runs some hundreds of programs and libraries at a time.
_MAX_FILES_KNOWN = 1024
# Builds of TLS libraries and of programs that hold one; each takes some kilobytes of evidence.
_MAX_BUILDS_KNOWN = 256
# The instructions that a function's probe stands on.
_ENTRY_BYTES = 16

# Text that the code of a TLS implementation carries even where its symbols are stripped.
_TRACES: Final[tuple[tuple[bytes, str], ...]] = (
    (b"BoringSSL", "stripped BoringSSL"),
    (b"ssl/tls_record.cc", "stripped BoringSSL"),
    (b"ssl/record/rec_layer_s3.c", "stripped OpenSSL"),
    (b"rustls::", "rustls without symbols"),
    (b"rustls-", "rustls without symbols"),
)
_QUIC: Final = re.compile(r"/lib(?:msquic|quiche|ngtcp2|lsquic|nghttp3)[^/]*\.so|/aioquic/[^/]+\.so")
QUIC_REFUSED: Final = "QUIC (HTTP/3): its streams do not pass TLS functions; not captured"
KERNEL_TLS: Final = Path("/proc/net/tls_stat")


@dataclass(frozen=True)
class Refusal:
    """TLS that is there and cannot be probed: which file, what it is, why not and what helps."""

    path: str
    reason: str


@dataclass
class Findings:
    """What was found. Its files are open for the plans' sake: use it as a context manager, or `close` it."""

    plans: list[ProbePlan] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    linkers: list[ProbePlan] = field(default_factory=list)  # where it shows that a library was loaded
    files: dict[str, OpenFile] = field(default_factory=dict)  # by the path that plans name

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        for file in self.files.values():
            file.close()
        self.files.clear()

    def is_unchanged(self, plan: ProbePlan) -> bool:
        """Whether the plan's file is what it was when it was examined."""
        return self.files[plan.path].is_unchanged

    def add(self, other: Findings) -> None:
        self.plans += other.plans
        self.refusals += other.refusals
        self.linkers += other.linkers
        self.files |= other.files


@dataclass(frozen=True)
class _Build:
    """What was found in a build, and what in the file says so."""

    plans: tuple[ProbePlan, ...]
    evidence: tuple[Evidence, ...]
    entries: tuple[int, ...]  # probed offsets that are the beginning of a function
    with_flags: bool


class TargetFinder:
    """Looks at processes and remembers files."""

    def __init__(self, *, offsets: Offsets | None = None, known: dict[str, Offsets] | None = None, fast: bool = True) -> None:
        """`fast`: probe the functions inside libssl's exported ones, in each file where that is sure."""
        self._offsets = offsets
        self._known = {**KNOWN_BUILD_IDS, **(known or {})}
        self._fast = fast
        self._files: OrderedDict[tuple[object, ...], Findings] = OrderedDict()
        self._builds: OrderedDict[tuple[object, ...], _Build] = OrderedDict()
        self._needed = NeededLibraries()

    def look(self, pid: int) -> Findings:
        """What a process maps now. Empty for one that is gone or may not be looked at."""
        return self.look_at(mapped_files(pid))

    def look_at(self, files: Iterable[MappedFile]) -> Findings:
        found = Findings()
        for mapped in files:
            found.add(self.look_at_file(mapped))
        return found

    def look_at_file(self, mapped: MappedFile) -> Findings:
        try:
            file = open_mapped(mapped)
        except CannotOpen as reason:
            named = _LIBSSL_NAME.search(mapped.path) or _GNUTLS_NAME.search(mapped.path) or mapped.is_exe
            return Findings(refusals=[Refusal(mapped.path, str(reason))] if named else [])
        return Findings() if file is None else self._look_at_open(mapped, file)

    def look_ahead(self, pid: int) -> Findings:
        """The TLS libraries that a process which has just started will map (needed.py), before it does."""
        found = Findings()
        for mapped, file in self._needed.of(pid):
            found.add(self._look_at_open(mapped, file))
        return found

    def _look_at_open(self, mapped: MappedFile, file: OpenFile) -> Findings:
        """`file` is closed, unless the findings have it."""
        key = (file.key, mapped.is_exe, _LINKER.search(mapped.path) is not None)
        known = self._files.get(key)
        if known is None:
            known = self._files[key] = self._examine(mapped._replace(opened=file.path))
            if len(self._files) > _MAX_FILES_KNOWN:
                self._files.popitem(last=False)
        self._files.move_to_end(key)
        found = Findings([_at(plan, file, mapped) for plan in known.plans], list(known.refusals))
        found.linkers = [_at(plan, file, mapped) for plan in known.linkers]
        if found.plans or found.linkers:
            found.files[file.path] = file
        else:
            file.close()
        return found

    def _examine(self, mapped: MappedFile) -> Findings:
        found = Findings()
        try:
            with ELFFile(mapped.opened) as file:
                self._examine_build(file, mapped, found)
        except ELFError as reason:
            return Findings(refusals=[Refusal(mapped.path, f"not examined: {reason}")] if reason.is_trap else [])
        except (OSError, ValueError):
            return Findings()
        return found

    def _examine_build(self, file: ELFFile, mapped: MappedFile, found: Findings) -> None:
        """Of a build that was examined before, in another file, only what the plans rest on: a large program is read for 0.1 s.

        Whoever made the other file may have lied in it about this build: so this file must say the same itself, symbol by symbol.
        """
        build_id = file.build_id()
        key = (build_id, file.size, mapped.is_exe, _LINKER.search(mapped.path) is not None)
        known = self._builds.get(key) if build_id is not None else None
        if (
            known is not None
            and file.holds(known.evidence)
            and all(file.is_function(at, is_named=True) for at in known.entries)
            and file.names(_WITH_FLAGS) == known.with_flags  # what it has no name for counts, too
        ):
            self._builds.move_to_end(key)
            found.plans += [replace(plan, path=mapped.opened, identity=mapped.identity) for plan in known.plans]
            return
        functions: dict[str, Function] = {}
        self._examine_elf(file, mapped, found, functions)
        if build_id is None or not functions or not found.plans or found.refusals:
            return
        # Returns inside Go's functions are in their code, which is compared.
        entries = tuple(probe.offset for plan in found.plans for probe in plan.probes if probe.role not in _GO_RETURNS)
        evidence = [item for name, function in functions.items() for item in file.evidence(name, function)]
        evidence += [file.evidence_at(entry, _ENTRY_BYTES) for entry in entries]
        self._builds[key] = _Build(tuple(found.plans), tuple(evidence), entries, file.names(_WITH_FLAGS))
        if len(self._builds) > _MAX_BUILDS_KNOWN:
            self._builds.popitem(last=False)

    def _examine_elf(self, file: ELFFile, mapped: MappedFile, found: Findings, used: dict[str, Function]) -> None:
        """`used` gets the functions that the plans rest on."""
        if _LINKER.search(mapped.path):
            for name, function in file.functions((_LINKER_TELLS,)).items():
                probe = Probe(Role.LIBRARIES, function.offset, name)
                found.linkers.append(ProbePlan(path=mapped.opened, identity=mapped.identity, library="dynamic loader", probes=(probe,)))
            return
        if self._offsets is not None and mapped.is_exe:
            self._take_offsets(file, mapped, self._offsets, found)
            return
        if ".go.buildinfo" in file.sections:
            self._examine_go(file, mapped, found, used)
            return
        for names, library in ((_OPENSSL, "OpenSSL"), (_GNUTLS, "GnuTLS")):
            functions = file.functions((*names, _WITH_FLAGS))
            if any(names.get(name) in _MOVES_BYTES for name in functions):
                found.plans.append(self._plan(file, mapped, functions, names, library))
                used |= functions
        if found.plans:
            return
        build_id = file.build_id()
        if build_id in self._known:
            self._take_offsets(file, mapped, self._known[build_id], found)
            return
        trace = file.which([text for text, _ in _TRACES])
        if trace is not None:
            found.refusals.append(Refusal(mapped.path, _no_symbols(dict(_TRACES)[trace], build_id)))

    def _take_offsets(self, file: ELFFile, mapped: MappedFile, offsets: Offsets, found: Findings) -> None:
        """A probe in the middle of an instruction would damage the process, so a given offset must look like a function's beginning."""
        given = (offsets.read, offsets.write, offsets.new)
        wrong = [hex(offset) for offset in given if offset is not None and not file.is_function(offset)]
        if wrong:
            found.refusals.append(Refusal(mapped.path, f"no function can begin at offset {' or '.join(wrong)}; nothing was probed"))
        else:
            found.plans.append(_offset_plan(mapped, offsets))

    def _plan(self, file: ELFFile, mapped: MappedFile, functions: dict[str, Function], names: dict[str, Role], library: str) -> ProbePlan:
        probes = [Probe(names[name], function.offset, name) for name, function in functions.items() if name in names]
        notes: list[str] = []
        if library == "OpenSSL":
            library = _flavour(file, mapped, functions)
            if self._fast:
                probes, note = _fast_probes(file, functions, probes)
                notes.append(note)
        missing = [name for name in names if name not in functions and names[name] in _MOVES_BYTES]
        if missing:
            notes.append("no " + ", ".join(missing))
        return ProbePlan(
            path=mapped.opened, identity=mapped.identity, library=library, probes=tuple(_one_per_address(probes)), notes=tuple(notes)
        )

    def _examine_go(self, file: ELFFile, mapped: MappedFile, found: Findings, used: dict[str, Function]) -> None:
        version = go_version(file)
        functions = file.functions((_GO_READ, _GO_WRITE, _GO_CLOSE))
        if _GO_READ not in functions or _GO_WRITE not in functions:
            if file.which([b"crypto/tls.(*Conn).Write"]):
                found.refusals.append(Refusal(mapped.path, "Go crypto/tls without a symbol table (-ldflags -s); build it without -s"))
            return
        if version is not None and version < _MIN_GO:
            found.refusals.append(
                Refusal(mapped.path, f"Go {version[0]}.{version[1]}: arguments are in registers since 1.17 only; build it with a newer Go")
            )
            return
        probes = []
        for name, entry, leave in ((_GO_READ, Role.GO_READ, Role.GO_READ_RETURN), (_GO_WRITE, Role.GO_WRITE, Role.GO_WRITE_RETURN)):
            function = functions[name]
            try:
                code = file.code(function) if function.size <= _MAX_GO_FUNCTION else b""
                ends = file.machine.returns(code)
            except x86.UnknownInstruction:
                ends = []
            if not ends:
                found.refusals.append(
                    Refusal(mapped.path, f"{name}: its return instructions cannot be told apart; please report this binary")
                )
                return
            probes.append(Probe(entry, function.offset, name))
            probes += [Probe(leave, function.offset + end, f"{name}+{end:#x}") for end in ends]
        if _GO_CLOSE in functions:
            probes.append(Probe(Role.GO_CLOSE, functions[_GO_CLOSE].offset, _GO_CLOSE))
        found.plans.append(ProbePlan(path=mapped.opened, identity=mapped.identity, library="Go crypto/tls", probes=tuple(probes)))
        used |= functions


def installed_libraries() -> list[MappedFile]:
    """The host's own TLS libraries and dynamic loader: processes that start later most likely map these."""
    found = []
    seen: set[tuple[str, int]] = set()
    for folder in library_folders():
        for pattern in ("libssl.so.*", "libgnutls.so.*"):
            for path in sorted(Path(folder).glob(pattern)):
                try:
                    status = path.stat()
                except OSError:
                    continue
                identity = (device_of(status), status.st_ino)
                if identity not in seen:
                    seen.add(identity)
                    found.append(MappedFile(str(path), identity, str(path), is_exe=False))
    with contextlib.suppress(OSError):
        status = Path(HOST.LINKER).stat()
        found.append(MappedFile(HOST.LINKER, (device_of(status), status.st_ino), HOST.LINKER, is_exe=False))
    return found


def other_limits(pid: int) -> list[Refusal]:
    """What bypasses every TLS library's own functions: kernel TLS and QUIC, as far as mapped libraries tell."""
    refusals = [Refusal(mapped.path, QUIC_REFUSED) for mapped in mapped_files(pid) if _QUIC.search(mapped.path)]
    for mapped in mapped_files(pid):
        if _LIBSSL_NAME.search(mapped.path) and kernel_tls_in_use():
            refusals.append(
                Refusal(mapped.path, "kernel TLS is in use on this host: what a process sends with SSL_sendfile is not captured")
            )
            break
    return refusals


def go_version(file: ELFFile) -> tuple[int, int] | None:
    match = _GO_VERSION.search(file.section(".go.buildinfo"))
    if match is None:
        return None
    major, minor = re.findall(rb"\d+", match[2])[:2]
    return int(major), int(minor)


def kernel_tls_in_use(statistics: Path = KERNEL_TLS) -> bool:
    """Whether any connection of this host has its TLS in the kernel now. Which process it is of, the kernel does not say."""
    try:
        counters = dict(line.split() for line in statistics.read_text().splitlines())
    except (OSError, ValueError):
        return False
    return any(counters.get(name, "0") != "0" for name in ("TlsCurrTxSw", "TlsCurrRxSw", "TlsCurrTxDevice", "TlsCurrRxDevice"))


def _at(plan: ProbePlan, file: OpenFile, mapped: MappedFile) -> ProbePlan:
    """`plan` for this file. Its identity is that of what was opened: what a process says it maps may be another by now."""
    return replace(plan, path=file.path, identity=file.identity, shown=mapped.path)


def _offset_plan(mapped: MappedFile, offsets: Offsets) -> ProbePlan:
    places = ((Role.READ, offsets.read), (Role.WRITE, offsets.write), (Role.NEW, offsets.new))
    probes = tuple(Probe(role, offset, f"+{offset:#x}") for role, offset in places if offset is not None)
    return ProbePlan(path=mapped.opened, identity=mapped.identity, library=offsets.library, probes=probes)


def _no_symbols(trace: str, build_id: str | None) -> str:
    what = f" (build id {build_id})" if build_id else ""
    return f"{trace}{what}: no probe point; give --ssl-read-offset and --ssl-write-offset"


def _flavour(file: ELFFile, mapped: MappedFile, functions: dict[str, Function]) -> str:
    if "SSL_read_ex" not in functions:
        return "BoringSSL" if not _LIBSSL_NAME.search(mapped.path) or file.which([b"BoringSSL"]) else "OpenSSL 1.0"
    versions = {b"OpenSSL 3.": "OpenSSL 3", b"OpenSSL 1.1": "OpenSSL 1.1"}
    version = file.which(list(versions))
    if version is not None:
        return versions[version]
    return "OpenSSL 3" if ".so.3" in mapped.path else "OpenSSL 1.1" if ".so.1.1" in mapped.path else "OpenSSL"


def _fast_probes(file: ELFFile, functions: dict[str, Function], probes: list[Probe]) -> tuple[list[Probe], str]:
    """Probe the internal functions that SSL_read and SSL_read_ex (and the writing pair) both call, where that is sure.

    The exported functions of most builds begin with an instruction that the kernel must single-step; the internal ones begin
    with a push, which it emulates: an order cheaper. They also see BIO_read and BIO_write over an SSL BIO, which bypass the
    exported ones. Sure means: both callers' first direct call goes to the same function, which begins with a push; and it takes the
    arguments that are expected: those of OpenSSL up to 3.2, before SSL_write_ex2 brought flags.
    """
    if file.machine is not x86:
        return probes, f"classic probes: kernels of {file.machine.NAME} execute every probed instruction out of line"
    if _WITH_FLAGS in functions:
        return probes, "classic probes: this OpenSSL's internal functions take other arguments"
    fast: list[Probe] = []
    for plain, extended, role in (("SSL_read", "SSL_read_ex", Role.READ_EX), ("SSL_write", "SSL_write_ex", Role.WRITE_EX)):
        if plain not in functions or extended not in functions:
            return probes, "classic probes: it lacks SSL_read_ex or SSL_write_ex"
        target = _first_call(file, functions[plain])
        if target is None or target != _first_call(file, functions[extended]):
            return probes, f"classic probes: {plain} and {extended} do not share one internal function"
        if not file.is_function(target) or not x86.is_push(file.read(target, 2)):
            return probes, f"classic probes: the function inside {plain} does not begin with a push"
        fast.append(Probe(role, target, f"{plain}'s internal function"))
    return [*fast, *(probe for probe in probes if probe.role not in _MOVES_BYTES)], "fast probes"


def _first_call(file: ELFFile, function: Function) -> int | None:
    try:
        relative = x86.first_call(file.code(function))
    except x86.UnknownInstruction:
        return None
    # Relative to the function both in memory and in the file: both are in the same segment.
    return None if relative is None else function.offset + relative


def _one_per_address(probes: list[Probe]) -> list[Probe]:
    """Aliases of one function (SSL_clear and SSL_free never are, but a build may fold identical code) are probed once."""
    seen: dict[int, Probe] = {}
    for probe in probes:
        seen.setdefault(probe.offset, probe)
    return list(seen.values())
