"""What live capture needs of a host, each as one finding with the one thing to do about it. Nothing is changed to find out."""

from __future__ import annotations

import ctypes.util
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from llmsec_tap import privileges
from llmsec_tap.capture.ebpf.bcc import kernel_headers
from llmsec_tap.capture.ebpf.choose import open_loader
from llmsec_tap.capture.ebpf.core import object_path, supports_uprobe_multi
from llmsec_tap.capture.ebpf.loader_api import KernelSettings, Probe, ProbePlan, Role
from llmsec_tap.capture.host.proc import sees_host_pids
from llmsec_tap.capture.probes.elf import ELFError, ELFFile
from llmsec_tap.capture.probes.machine import MACHINES
from llmsec_tap.capture.probes.mapped import mapped_files
from llmsec_tap.errors import ConfigError, KernelError
from llmsec_tap.journal import SILENT

Verdict = Literal["ok", "warn", "fail"]
_CAPABILITIES: Final = (("CAP_BPF", 39), ("CAP_PERFMON", 38), ("CAP_SYS_PTRACE", 19), ("CAP_NET_RAW", 13))
_CAP_SYS_ADMIN: Final = 21
_MIN_KERNEL: Final = (5, 15)
_BCC_FOLDER: Final = "/usr/lib/python3/dist-packages"


@dataclass(frozen=True)
class Finding:
    name: str
    verdict: Verdict
    detail: str
    advice: str = ""


def check_host() -> list[Finding]:
    """In the order in which one would repair it. The last of them really loads and attaches, where the ones before allow."""
    findings = [_kernel(), _btf(), _libbpf(), _object(), _capabilities(), _lockdown(), _seccomp(), _pid_namespace()]
    if all(finding.verdict != "fail" for finding in findings):
        findings.append(_attach())
    findings += [_decoder(), _packets(), _bcc()]
    return findings


def _kernel() -> Finding:
    release = os.uname().release
    if os.uname().machine not in MACHINES:
        return Finding(
            "kernel",
            "fail",
            f"{release} on {os.uname().machine}",
            "TLS capture runs on x86-64 and aarch64; captures of other hosts can be replayed.",
        )
    parts = release.split(".")
    version = int(parts[0]), int("".join(char for char in parts[1] if char.isdigit()) or 0)
    if version < _MIN_KERNEL:
        return Finding("kernel", "fail", f"{release} is too old", "Linux 5.15 or later is needed (attach cookies, ring buffers).")
    if not supports_uprobe_multi():
        return Finding("kernel", "warn", f"{release}: no uprobe_multi (6.6), so CAP_SYS_ADMIN is needed", "Run as root.")
    return Finding("kernel", "ok", f"{release}, uprobe_multi")


def _btf() -> Finding:
    if Path("/sys/kernel/btf/vmlinux").is_file():
        return Finding("BTF", "ok", "/sys/kernel/btf/vmlinux")
    return Finding(
        "BTF", "fail", "/sys/kernel/btf/vmlinux is missing", "Use a kernel with CONFIG_DEBUG_INFO_BTF, and mount /sys in the container."
    )


def _libbpf() -> Finding:
    try:
        ctypes.CDLL("libbpf.so.1")
    except OSError:
        return Finding("libbpf", "fail", "libbpf.so.1 is not installed", "apt-get install libbpf1 (Debian, Ubuntu) or dnf install libbpf.")
    return Finding("libbpf", "ok", "libbpf.so.1")


def _object() -> Finding:
    try:
        return Finding("eBPF object", "ok", str(object_path()))
    except KernelError as fault:
        return Finding("eBPF object", "fail", str(fault), fault.hint)


def _capabilities() -> Finding:
    held = privileges.effective_capabilities()
    missing = [name for name, bit in _CAPABILITIES if not held >> bit & 1]
    is_admin = bool(held >> _CAP_SYS_ADMIN & 1)
    if is_admin:  # before Linux 5.8 it was all of them, and it still implies BPF and PERFMON
        missing = [name for name in missing if name not in ("CAP_BPF", "CAP_PERFMON")]
    if not supports_uprobe_multi() and not is_admin:
        missing.append("CAP_SYS_ADMIN")
    if not missing:
        return Finding("capabilities", "ok", "CAP_SYS_ADMIN" if is_admin else ", ".join(name for name, _ in _CAPABILITIES))
    only_optional = set(missing) <= {"CAP_NET_RAW"}
    return Finding(
        "capabilities",
        "warn" if only_optional else "fail",
        "missing " + ", ".join(missing),
        "Run as root, or give them: systemd AmbientCapabilities=, Kubernetes securityContext.capabilities.add.",
    )


def _decoder() -> Finding:
    """What reads traffic: tried in a child, and told by the kernel."""
    try:
        user, found = privileges.unprivileged_user(), privileges.trial()
    except ConfigError as fault:
        return Finding("decoder", "fail", str(fault), fault.hint)
    except OSError as fault:
        return Finding("decoder", "fail", f"cannot be confined ({fault})", "Use a kernel with seccomp filters (CONFIG_SECCOMP_FILTER).")
    name = user.name if user is not None and user.name != str(user.uid) else ""
    facts = f"user {found.uid}{f' ({name})' if name else ''}, capabilities {found.capabilities:#x}, "
    facts += f"no new privileges: {'yes' if found.no_new_privileges else 'NO'}, seccomp filter: {'yes' if found.is_filtered else 'NO'}"
    if found.capabilities or not found.no_new_privileges or not found.is_filtered:
        return Finding("decoder", "fail", facts, "Decoding would keep rights that it must not have; please report this.")
    if found.uid == 0:
        return Finding(
            "decoder", "warn", facts, "It runs as root without capabilities: give CAP_SETUID and CAP_SETGID, or run as another user."
        )
    return Finding("decoder", "ok", facts)


def _lockdown() -> Finding:
    try:
        text = Path("/sys/kernel/security/lockdown").read_text()
    except OSError:
        return Finding("lockdown", "ok", "not in use")
    mode = text.partition("[")[2].partition("]")[0]
    if mode == "confidentiality":
        return Finding("lockdown", "fail", "confidentiality: eBPF may not read memory", "Boot with lockdown=integrity or none.")
    return Finding("lockdown", "ok", mode or "none")


def _seccomp() -> Finding:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("Seccomp:") and line.split()[1] == "2":
            return Finding(
                "seccomp", "warn", "a filter is in force; it may forbid bpf(2)", "If attaching fails, run with seccomp=unconfined."
            )
    return Finding("seccomp", "ok", "no filter")


def _pid_namespace() -> Finding:
    inside = "container" if Path("/.dockerenv").exists() or Path("/run/.containerenv").exists() else "process namespace of its own"
    try:
        is_hosts = sees_host_pids()
    except OSError:
        return Finding("processes", "warn", "/proc is not mounted", "Mount the host's /proc.")
    if is_hosts:
        return Finding("processes", "ok", "the host's process ids")
    return Finding(
        "processes",
        "fail",
        f"a {inside}: the host's processes cannot be seen",
        "Run with hostPID: true (Kubernetes) or --pid=host (docker).",
    )


def _attach() -> Finding:
    """Load everything and put one probe into this very process: nothing else notices."""
    try:
        loader = open_loader("core", KernelSettings(only_targets=True, ring_bytes=1 << 16, plain=True), SILENT)
    except KernelError as fault:
        return Finding("attach", "fail", str(fault), fault.hint)
    try:
        loader.attach(_probe_of_own(), os.getpid())
    except (KernelError, LookupError) as fault:
        return Finding("attach", "fail", str(fault), "Send this line and the kernel's version with a report.")
    finally:
        loader.close()
    if not loader.plain:
        return Finding(
            "attach",
            "warn",
            f"a probe placed and taken out ({loader.method}); plain HTTP of processes cannot be read (Linux 6.3 or later)",
            "Read plain HTTP from an interface (--iface).",
        )
    return Finding("attach", "ok", f"programs loaded, a probe placed and taken out ({loader.method}); plain HTTP of processes can be read")


def _probe_of_own() -> ProbePlan:
    for mapped in mapped_files(os.getpid()):
        try:
            with ELFFile(mapped.path) as file:
                found = file.functions(("bpf_object__open_file",))
        except (ELFError, OSError):
            continue
        for name, function in found.items():
            return ProbePlan(
                path=mapped.path, identity=mapped.identity, library="libbpf", probes=(Probe(Role.FREE, function.offset, name),)
            )
    raise LookupError("libbpf's own functions were not found")


def _packets() -> Finding:
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0).close()
    except OSError as fault:
        return Finding("packets", "warn", f"--iface cannot be used: {fault.strerror}", "Run as root, or with CAP_NET_RAW.")
    return Finding("packets", "ok", "AF_PACKET (--iface)")


def _bcc() -> Finding:
    if not Path(_BCC_FOLDER, "bcc").is_dir():
        return Finding("bcc", "ok", "not installed; only --backend bcc would need it (apt-get install python3-bpfcc)")
    if kernel_headers() is None:
        return Finding(
            "bcc",
            "warn",
            "installed, but without kernel headers",
            "For --backend bcc: apt-get install linux-headers-amd64, or set BCC_KERNEL_SOURCE.",
        )
    return Finding("bcc", "ok", "installed, with kernel headers")
