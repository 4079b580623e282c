"""What a live capture is asked to do, by flags or by file."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from llmsec_tap import limits

if TYPE_CHECKING:
    from llmsec_agent.alerts_lane import AlertPlan
    from llmsec_agent.config.schema import CustomMetric
    from llmsec_agent.watching import WatchPlan
    from llmsec_tap.identity.whose import WhoseSettings
    from llmsec_tap.storage.retention import Retention


@dataclass(frozen=True, kw_only=True)
class CaptureSettings:
    """What a decoder reads, keeps and may take. `ports`: of the interfaces; None for all. `output`: table, jsonl or none.

    `survive`: an interface that goes down is waited for; else it ends the capture.
    `node`: name of this host on what is stored. `whose`: how tenants and end users are named. `plain`: plain HTTP of observed processes, too.
    """

    interfaces: tuple[str, ...] = ()
    ports: frozenset[int] | None = None
    write: str | None = None
    write_secrets: bool = False
    store: str | None = None
    content: bool = True
    tokenizer: str | None = None
    memory_cap_bytes: int = limits.MEMORY_CAP_BYTES
    duration_s: float | None = None
    output: str = "none"
    retention: Retention | None = None  # none: nothing is deleted
    audit: str | None = None  # least severity of findings for the store's audit log
    configuration: dict[str, str] = field(default_factory=dict)  # what the audit log says of it
    flush_s: float = 5.0  # a record is on the disk after so long
    survive: bool = False
    node: str = ""
    whose: WhoseSettings | None = None
    watch_keys: bool = False  # say where a key is used by a new workload, or by several
    plain: bool = False
    observes: bool = True  # processes; with neither these nor interfaces, applications send their records
    watch: WatchPlan | None = None  # deviations
    alerts: AlertPlan | None = None  # what somebody is told; the agent's alone
    custom_metrics: tuple[CustomMetric, ...] = ()


def looks_at_plain(chosen: bool | Literal["auto"], *, interfaces: tuple[str, ...]) -> bool:
    """Whether plain HTTP of observed processes is captured: where an interface is read, it would be seen twice."""
    return not interfaces if chosen == "auto" else chosen


def node_name(configured: str | None = None) -> str:
    """As configured, as Kubernetes calls the node, or the host's own name."""
    return configured or os.environ.get("NODE_NAME") or socket.gethostname()
