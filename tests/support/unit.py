"""What systemd would forbid the service of deploy/systemd, by util-linux and libseccomp: capabilities, system calls, address families, writable code.

Of the unit are read: CapabilityBoundingSet, SystemCallFilter, RestrictAddressFamilies, MemoryDenyWriteExecute, Environment, LimitNOFILE, UMask and the
commands. A directive that is neither applied nor named in `ELSEWHERE` fails the test that reads it.
"""

from __future__ import annotations

import configparser
import json
import os
import socket
import subprocess
from pathlib import Path

UNIT = Path(__file__).parents[2] / "deploy/systemd/llmsec-tap.service"

APPLIED = {
    *("CapabilityBoundingSet", "SystemCallFilter", "RestrictAddressFamilies", "MemoryDenyWriteExecute", "NoNewPrivileges", "Environment"),
    *("LimitNOFILE", "LimitCORE", "UMask", "RestrictNamespaces", "SystemCallErrorNumber", "ExecStart", "ExecStartPre"),
}
# By the mounts of support/image_root.py: all read-only but state and /tmp, no devices, no homes.
BY_MOUNTS = {
    *("ProtectSystem", "ProtectHome", "PrivateTmp", "PrivateDevices", "ProtectKernelTunables", "ProtectControlGroups", "StateDirectory"),
    *("StateDirectoryMode", "ReadWritePaths", "RuntimeDirectory", "RuntimeDirectoryPreserve"),
}
# About the service manager, or about what the capabilities and system calls above leave out anyway.
ELSEWHERE = {
    *(
        "Type",
        "ExecReload",
        "WatchdogSec",
        "Restart",
        "RestartSec",
        "TimeoutStopSec",
        "KillMode",
        "MemoryMax",
        "OOMScoreAdjust",
        "TasksMax",
    ),
    *("ProtectKernelModules", "ProtectKernelLogs", "ProtectClock", "ProtectHostname", "RestrictRealtime", "RestrictSUIDSGID"),
    *("LockPersonality", "RemoveIPC", "SystemCallArchitectures"),
}

# Run inside the root, by its own Python, as the last step before the service: argument 1 is JSON.
_FILTER = """
import ctypes, json, os, resource, sys
what = json.loads(sys.argv[1])
lib = ctypes.CDLL("libseccomp.so.2")
lib.seccomp_init.restype = ctypes.c_void_p
class Compare(ctypes.Structure):
    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]
MASKED, EQUAL, ALLOW = 7, 4, 0x7FFF0000
context = ctypes.c_void_p(lib.seccomp_init(0x00050000 | 1))  # EPERM
def allow(name, *compare):
    number = lib.seccomp_syscall_resolve_name(name.encode())
    if number >= 0:
        assert lib.seccomp_rule_add_array(context, ALLOW, number, len(compare), (Compare * len(compare))(*compare)) == 0, name
for name in what["calls"]:
    if name in ("mprotect", "pkey_mprotect"):
        allow(name, Compare(2, MASKED, 4, 0))
    elif name == "mmap":
        allow(name, Compare(2, MASKED, 4, 0)); allow(name, Compare(2, MASKED, 2, 0))
    elif name == "socket":
        for family in what["families"]:
            allow(name, Compare(0, EQUAL, family, 0))
    elif name not in ("unshare", "setns"):
        allow(name)
files = min(what["files"], resource.getrlimit(resource.RLIMIT_NOFILE)[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
os.umask(what["umask"])
assert lib.seccomp_load(context) == 0
os.execv(what["command"][0], what["command"])
"""


def directives() -> dict[str, str]:
    parser = configparser.ConfigParser(strict=True, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(UNIT.read_text())
    return dict(parser["Service"])


def _calls(name: str) -> set[str]:
    """A system call, or all of one of systemd's groups."""
    if not name.startswith("@"):
        return {name}
    shown = subprocess.run(["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, check=True).stdout
    names = [line.strip() for line in shown.splitlines()[1:] if line.strip() and not line.strip().startswith("#")]
    return {call for each in names for call in _calls(each)}


def restricted(command: list[str]) -> list[str]:
    """What runs the command, inside a root, with the unit's environment and no more rights than it leaves."""
    service = directives()
    what = {
        "calls": sorted(call for name in service["SystemCallFilter"].split() for call in _calls(name)),
        "families": [getattr(socket, name).value for name in service["RestrictAddressFamilies"].split()],
        "files": int(service["LimitNOFILE"]),
        "umask": int(service["UMask"], 8),
        "command": command,
    }
    held = ",".join(f"+{name.removeprefix('CAP_').lower()}" for name in service["CapabilityBoundingSet"].split())
    rights = ["setpriv", f"--bounding-set=-all,{held}", "--inh-caps=-all", "--ambient-caps=-all", "--no-new-privs"]
    path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    notified = [f"{name}={os.environ[name]}" for name in ("NOTIFY_SOCKET",) if name in os.environ]
    return ["env", "-i", path, *service["Environment"].split(), *notified, *rights, "/usr/bin/python3", "-c", _FILTER, json.dumps(what)]
