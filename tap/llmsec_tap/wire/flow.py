"""What a byte stream is to the stages above TCP: two directions, each fed with data, gaps and an end.

The stages push into sinks rather than return events: at one call per packet and stage, a list and an event object each would
double the cost of the whole pipeline (docs/adr/0001-push-sinks.md has the measurement). Each sink takes the same three inputs.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Callable
from typing import Protocol

from llmsec_tap.account import no_account
from llmsec_tap.anomalies import AnomalyName
from llmsec_tap.model import TLS, CaptureKind, Process


class StreamSink(Protocol):
    """One direction of a connection, in order. Implementations never raise on any input.

    `data` is an attribute: a sink may replace it as it learns what the direction carries, so callers look it up each time.
    """

    data: Callable[[int, bytes], None]

    def gap(self, ts_ns: int, length: int | None) -> None:
        """`length` bytes were lost by the capture here; None: unknown how many."""

    def other(self, ts_ns: int, data: bytes) -> None:
        """A second copy of bytes that were given already, or will be, which differs: the receiver may have read this one."""

    def again(self) -> None:
        """The end was none: more comes."""

    def end(self, ts_ns: int, reason: str) -> None:
        """No more data: reason is fin, reset, expired, capture_end or closed."""


class FlowSink(Protocol):
    """A connection: one sink for what its first endpoint sends, one for what its second sends, and the close of both."""

    @property
    def first(self) -> StreamSink: ...

    @property
    def second(self) -> StreamSink: ...

    def close(self, ts_ns: int, reason: str) -> None: ...

    def anomaly(self, name: AnomalyName) -> None: ...


class Flow:
    """A connection's facts. `first` opened it where that was seen; without a SYN (`is_midstream`) content decides who is client."""

    __slots__ = ("first", "is_midstream", "kind", "number", "opened_ns", "process", "proxied", "reserve", "second", "tls")

    def __init__(
        self,
        first: str,
        second: str,
        opened_ns: int,
        *,
        is_midstream: bool,
        process: Process | None = None,
        kind: CaptureKind | None = None,
    ) -> None:
        self.first = first
        self.second = second
        self.opened_ns = opened_ns
        self.is_midstream = is_midstream
        self.process = process
        self.kind = kind  # None: packets, of whatever the pipeline reads
        self.number = 0  # in the order in which the pipeline opened its connections
        self.proxied: str | None = None  # the client that a PROXY protocol header named
        self.tls: TLS | None = None  # where it is what TLS carried, in packets
        self.reserve: Callable[[int], bool] = no_account  # room in the account (account.py) for what this connection holds

    def inside(self, tls: TLS) -> Flow:
        """The connection that this one carries, in the clear."""
        flow = Flow(self.first, self.second, self.opened_ns, is_midstream=self.is_midstream, process=self.process, kind=self.kind)
        flow.number, flow.proxied, flow.reserve, flow.tls = self.number, self.proxied, self.reserve, tls
        return flow


def endpoints(key: bytes) -> tuple[str, str]:
    """A segment key (addresses and ports as on the wire) as `ip:port` of source and destination, IPv6 in brackets."""
    size = (len(key) - 4) // 2
    source_port, destination_port = struct.unpack(">HH", key[-4:])
    source = ipaddress.ip_address(key[:size])
    destination = ipaddress.ip_address(key[size : 2 * size])
    if size == 4:
        return f"{source}:{source_port}", f"{destination}:{destination_port}"
    return f"[{source}]:{source_port}", f"[{destination}]:{destination_port}"
