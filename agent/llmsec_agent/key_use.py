"""Who uses which key: the first use of a key from a workload that is new to it, and a key that several workloads use.

Both are facts on the record (anomalies `key_new_workload`, `key_shared`), and detection makes findings of them. What is known is of this run
and this decoder, in bounded memory: the first workload that is seen with a key is taken for its owner.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from typing import Final

from llmsec_tap.model import AnomalyCount, Exchange

_MAX_KEYS: Final = 4096
_MAX_WORKLOADS: Final = 16
# Two workloads use a key at the same time where no more than this lies between.
_TOGETHER_NS: Final = 3_600_000_000_000
# Replicas of one deployment, and pods of one set, are one workload: their names end in what Kubernetes makes up.
_REPLICA: Final = re.compile(r"(?:-[a-z0-9]{6,10})?-[a-z0-9]{5}$|-\d{1,5}$")


class _Key:
    __slots__ = ("shared_ns", "workloads")

    def __init__(self) -> None:
        self.workloads: OrderedDict[str, int] = OrderedDict()  # when each was last seen, the latest last
        self.shared_ns: int | None = None


class KeyUse:
    def __init__(self) -> None:
        self._keys: OrderedDict[str, _Key] = OrderedDict()

    def look(self, exchange: Exchange) -> None:
        """Mark the exchange with what is unusual in its use of its key."""
        fingerprint, workload = exchange.api_key_fingerprint, workload_of(exchange)
        if exchange.provider is None or fingerprint is None or workload is None or exchange.capture_kind == "sdk":
            return  # what an application says of its keys may be of a key of its own, and it may be captured, too
        key = self._keys.get(fingerprint)
        if key is None:
            key = self._keys[fingerprint] = _Key()
            if len(self._keys) > _MAX_KEYS:
                self._keys.popitem(last=False)
        self._keys.move_to_end(fingerprint)
        now_ns = exchange.started_ns or 0
        names = []
        if key.workloads and workload not in key.workloads:
            names.append("key_new_workload")
        others = any(name != workload and abs(now_ns - at) <= _TOGETHER_NS for name, at in key.workloads.items())
        if others and (key.shared_ns is None or abs(now_ns - key.shared_ns) > _TOGETHER_NS):
            key.shared_ns = now_ns
            names.append("key_shared")
        key.workloads[workload] = now_ns
        key.workloads.move_to_end(workload)
        if len(key.workloads) > _MAX_WORKLOADS:
            key.workloads.popitem(last=False)
        if names:
            exchange.anomalies = [*exchange.anomalies, *(AnomalyCount(name=name, count=1) for name in names)]


def workload_of(exchange: Exchange) -> str | None:
    """Pods by what made them, other processes by their program, and where no process is known, the client's address."""
    process = exchange.process
    if process is not None:
        if process.pod is not None:
            return f"{process.namespace}/{_REPLICA.sub('', process.pod)}"
        return process.exe or process.comm
    return (exchange.forwarded_client or exchange.client).rpartition(":")[0] or None
