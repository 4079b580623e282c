"""What the two eBPF loaders have in common, as the rest of the capture sees them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from llmsec_tap import limits

if TYPE_CHECKING:
    from llmsec_tap.capture.ebpf.ring import Ring


MAX_RINGS: Final = 16  # TAP_MAX_RINGS in bpf/state.h


class Role(Enum):
    """What stands at a probed address, and so which program runs there."""

    READ = "read"
    WRITE = "write"
    READ_EX = "read_ex"
    WRITE_EX = "write_ex"
    NEW = "new"
    FREE = "free"
    GO_READ = "go_read"
    GO_WRITE = "go_write"
    GO_READ_RETURN = "go_read_return"
    GO_WRITE_RETURN = "go_write_return"
    GO_CLOSE = "go_close"
    LIBRARIES = "libraries"  # the dynamic loader has changed what is mapped


class Probe(NamedTuple):
    role: Role
    offset: int  # in the file
    symbol: str


@dataclass(frozen=True, kw_only=True)
class ProbePlan:
    """The probes of one file. `identity` is its device and inode: one library may be mapped under many paths.

    `path` names an open descriptor of the file that was examined; `shown` is the path as the process sees it.
    """

    path: str
    identity: tuple[str, int]
    library: str
    probes: tuple[Probe, ...]
    notes: tuple[str, ...] = ()
    shown: str = ""

    @property
    def is_linker(self) -> bool:
        return all(probe.role is Role.LIBRARIES for probe in self.probes)

    @property
    def symbols(self) -> str:
        """What is probed, as people read it."""
        return ", ".join(dict.fromkeys(probe.symbol for probe in self.probes if "+0x" not in probe.symbol)) or "given offsets"


class ProbeState(NamedTuple):
    """One file as far as its calls are read. `processes`: how many map it now. `problem`: why it is not probed, empty where it is."""

    library: str
    file: str
    symbols: str
    processes: int
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class KernelSettings:
    """What the kernel half is told before it is loaded."""

    only_targets: bool
    follow_forks: bool = True
    watch_all: bool = False
    comms: tuple[str, ...] = ()
    ring_bytes: int = limits.RING_BYTES  # of each
    rings: int = 1  # from 1 to MAX_RINGS; a connection's records are all in one
    plain: bool = False  # plain HTTP of the sockets of observed processes, too
    helper_pid: int = 0  # processes of the tap's own that are never watched, beside the one that loads
    listener_pid: int = 0


class KernelTotals(NamedTuple):
    """What the kernel half counted since it was loaded."""

    calls: int = 0
    bytes: int = 0
    lost_records: int = 0
    lost_bytes: int = 0
    lost_calls: int = 0
    unreadable_calls: int = 0
    cut_calls: int = 0
    lost_processes: int = 0
    plain_calls: int = 0  # of `calls`, those over a socket without TLS
    plain_bytes: int = 0
    unseen_sockets: int = 0  # began by io_uring, sendfile or the like, which leave nothing to read


class ConnectionLoss(NamedTuple):
    """A connection of which records found no room: how far the kernel half counted, so that the reader can tell what is missing."""

    pid: int
    connection: int
    epoch_ns: int
    lost: int
    read_bytes: int
    written_bytes: int


@dataclass(frozen=True)
class Attachment:
    """One plan attached to one process (or to all: pid None)."""

    plan: ProbePlan
    pid: int | None
    links: tuple[object, ...] = field(repr=False)


class Loader(Protocol):
    """A loaded kernel half. Raises KernelError from its constructor and from `attach`; every other method never raises."""

    name: str
    method: str  # how probes are attached: uprobe_multi or perf
    plain: bool  # whether plain HTTP of sockets is seen

    def attach(self, plan: ProbePlan, pid: int | None) -> Attachment: ...

    def detach(self, attachment: Attachment) -> None: ...

    def watch(self, pid: int) -> None:
        """Make a process a target; it may already be one."""

    def unwatch(self, pid: int) -> None:
        """Make it none any more. What its probes see from here on is left out; what is in the ring stays."""

    def select_comm(self, comm: str) -> None:
        """Processes of this name become targets as they start. Counts only where the settings had a name."""

    def deselect_comm(self, comm: str) -> None: ...

    def consume(self) -> list[bytes]:
        """The records that came since the last call, oldest first in each ring, up to a bound."""

    def ring_descriptor(self, number: int) -> int:
        """One of the rings of those records, for a process that reads it in this one's place (`ring.Ring`)."""

    @property
    def ring_bytes(self) -> int: ...

    @property
    def processes(self) -> Ring:
        """Starts, forks, ends and loads of the processes; its reader is woken at once."""

    def totals(self) -> KernelTotals: ...

    def losses(self) -> list[ConnectionLoss]: ...

    def detach_all(self) -> None:
        """Take every probe out; what is in the ring stays readable until `close`."""

    def close(self) -> None: ...
