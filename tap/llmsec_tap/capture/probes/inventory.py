"""The processes of this host that may talk to or serve a language model, and how each can be observed."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llmsec_tap.capture.host import proc
from llmsec_tap.capture.probes.targets import QUIC_REFUSED, TargetFinder, other_limits

# Words in a command line that say "model server". What they serve is usually plain HTTP.
_SERVERS: Final = re.compile(
    r"(?:^|[/\s\0-])(vllm|sglang|ollama|llama-server|llama_cpp|xllamacpp|text-generation-(?:launcher|router)|tritonserver|lmdeploy|tgi|mlc_llm|aphrodite)\b"
)
_LISTEN: Final = "0A"
IO_URING_REFUSED: Final = "plain HTTP that it sends or receives by io_uring is missing; --iface reads it"
_QUIC_PORT: Final = 443


@dataclass(frozen=True)
class Line:
    """One way in which a process can be observed, or one reason why not."""

    pid: int
    comm: str
    container: str | None
    what: str
    verdict: str  # probe, plain, refused
    detail: str


def inventory(finder: TargetFinder) -> list[Line]:
    """Every living process, the caller's own left out. A process that ends meanwhile, or may not be looked at, gives no line."""
    lines: list[Line] = []
    for pid in proc.all_pids():
        if pid == os.getpid():
            continue
        comm, container = proc.name_of(pid), proc.container_of_pid(pid)
        with finder.look(pid) as found:
            pass  # only what is said of the files, not the files
        for plan in found.plans:
            symbols = ", ".join(dict.fromkeys(probe.symbol for probe in plan.probes if "+0x" not in probe.symbol)) or "given offsets"
            notes = f" ({'; '.join(plan.notes)})" if plan.notes else ""
            lines.append(Line(pid, comm, container, plan.library, "probe", f"{Path(plan.shown).name}: {symbols}{notes}"))
        lines += [
            Line(pid, comm, container, "TLS", "refused", f"{Path(refusal.path).name}: {refusal.reason}")
            for refusal in (*found.refusals, *other_limits(pid))
        ]
        sockets, has_io_uring = _descriptors(pid)
        if not sockets.isdisjoint(_quic_inodes(pid)):
            lines.append(Line(pid, comm, container, "UDP 443", "refused", QUIC_REFUSED))
        if has_io_uring:
            lines.append(Line(pid, comm, container, "io_uring", "refused", IO_URING_REFUSED))
        server = _SERVERS.search(_command(pid))
        if server is not None:
            listening = _listening_inodes(pid)
            ports = sorted(listening[inode] for inode in sockets if inode in listening)
            where = f"listens on {', '.join(map(str, ports))}; " if ports else ""
            where += f"plain HTTP is read with --pid {pid}"
            lines.append(Line(pid, comm, container, f"{server[1]} server", "plain", where))
    return lines


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()[:4096].replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _listening_inodes(pid: int) -> dict[int, int]:
    """Of the network that the process is in: its inode -> port."""
    found: dict[int, int] = {}
    for table in ("tcp", "tcp6"):
        for row in proc.text_of(Path(f"/proc/{pid}/net/{table}")).splitlines()[1:]:
            fields = row.split()
            if len(fields) > 9 and fields[3] == _LISTEN:
                found[int(fields[9])] = int(fields[1].rpartition(":")[2], 16)
    return found


def _quic_inodes(pid: int) -> set[int]:
    """UDP sockets from or to port 443, in the process's own network: nothing else is served there."""
    found: set[int] = set()
    for table in (f"/proc/{pid}/net/udp", f"/proc/{pid}/net/udp6"):
        for row in proc.text_of(Path(table)).splitlines()[1:]:
            fields = row.split()
            if len(fields) > 9 and _QUIC_PORT in (int(end.rpartition(":")[2], 16) for end in fields[1:3]):
                found.add(int(fields[9]))
    return found


def _descriptors(pid: int) -> tuple[set[int], bool]:
    """The inodes of its sockets, and whether it has an io_uring."""
    found: set[int] = set()
    has_io_uring = False
    try:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = str(descriptor.readlink())
            except OSError:
                continue
            if target.startswith("socket:["):
                found.add(int(target[8:-1]))
            has_io_uring |= target == "anon_inode:[io_uring]"
    except OSError:
        return set(), False
    return found, has_io_uring
