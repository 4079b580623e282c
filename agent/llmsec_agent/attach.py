"""The first half of a capture's start: probes in place. It imports little, so that the probes are attached before the rest is imported.

What the processes say meanwhile waits in the ring.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from llmsec_tap.capture.ebpf.choose import open_loader
from llmsec_tap.capture.ebpf.core import supports_socket_tracepoints
from llmsec_tap.capture.host.proc import sees_host_pids
from llmsec_tap.capture.probes.build_ids import Offsets
from llmsec_tap.capture.probes.selection import Observed, Selection
from llmsec_tap.capture.probes.targets import TargetFinder
from llmsec_tap.errors import ConfigError, KernelError
from llmsec_tap.journal import Journal

if TYPE_CHECKING:
    from llmsec_tap.capture.ebpf.loader_api import Loader

_MAX_OFFSETS_FILE = 1 << 20


def attach(
    selection: Selection,
    finder: TargetFinder,
    backend: str,
    journal: Journal,
    *,
    ring_bytes: int,
    rings: int = 1,
    helper_pid: int = 0,
    listener_pid: int = 0,
    plain: bool | Literal["auto"] = False,
) -> tuple[Loader, Observed]:
    """Load, and place the probes. Raises KernelError or SourceError, with nothing left behind.

    `plain`: plain HTTP of the processes, too. True: it must be possible; auto: where it is not, the journal says so.
    """
    begun = time.monotonic()
    if not sees_host_pids():
        journal.warning(
            "process_namespace",
            "in a process namespace of its own the tap takes the kernel's process ids for others: it may see nothing. "
            "Give it the host's (Kubernetes hostPID: true, docker --pid=host), or read an interface",
        )
    settings = replace(
        selection.kernel_settings(ring_bytes, plain=bool(plain)), rings=rings, helper_pid=helper_pid, listener_pid=listener_pid
    )
    loader = open_loader(backend, settings, journal)
    if plain and not loader.plain:
        why = _why_not_plain(loader)
        if plain is True:
            loader.close()
            raise KernelError(f"plain HTTP of processes cannot be captured: {why}", "Leave out --plain; --iface reads plain HTTP, too.")
        journal.warning("plain_unseen", f"plain HTTP of processes is not captured ({why}); --iface reads it from an interface", reason=why)
    observed = Observed(loader, finder, selection, journal)
    try:
        observed.start()
    except BaseException:
        loader.close()
        raise
    what = "plain HTTP and " if loader.plain else ""
    what += f"{observed.libraries} TLS librar{'y' if observed.libraries == 1 else 'ies'}"
    elapsed_s = time.monotonic() - begun
    journal.info("attached", f"attached to {what} in {elapsed_s:.2f} s", libraries=observed.libraries, elapsed_s=round(elapsed_s, 3))
    return loader, observed


def _why_not_plain(loader: Loader) -> str:
    if loader.name == "bcc":
        return "the backend bcc does not read it"
    return "this kernel refuses the programs for it" if supports_socket_tracepoints() else "it takes Linux 6.3 or later"


def read_offsets(given: tuple[int, int] | None, file: str | None, *, fast: bool) -> TargetFinder:
    """The finder of probe points with what the options add. Raises ConfigError for a file that is not as documented."""
    known: dict[str, Offsets] = {}
    if file is not None:
        import tomllib  # rarely needed, and 5 ms of every start

        try:
            path = Path(file)
            if path.stat().st_size > _MAX_OFFSETS_FILE:
                raise ConfigError(f"{file} is too large", "It holds one line for each stripped library.")
            for build_id, entry in tomllib.loads(path.read_text()).items():
                library = str(entry.get("library", "offsets by build id"))
                new = int(entry["new"]) if "new" in entry else None
                known[build_id.lower()] = Offsets(int(entry["read"]), int(entry["write"]), library, new)
        except OSError as fault:
            raise ConfigError(f"cannot read {file}: {fault.strerror}", "Check the name and the permissions.") from None
        except (ValueError, KeyError, TypeError, AttributeError) as fault:
            raise ConfigError(f"{file}: {fault}", 'Write one line each: "BUILD-ID" = { read = 0x1234, write = 0x5678 }.') from None
    return TargetFinder(offsets=None if given is None else Offsets(*given), known=known, fast=fast)
