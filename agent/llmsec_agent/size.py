"""What a load takes of cores, memory and disk, by constants that were measured. Everything that is a guess says so."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from llmsec_agent.shares import LEAST_BYTES
from llmsec_tap.errors import ConfigError
from llmsec_tap.limits import MIB


@dataclass(frozen=True)
class Measured:
    """`least`: a quiet machine; `most`: both its CPUs busy with other work, where the same takes twice the CPU time or more. `command` gave the figures."""

    least: float
    most: float
    unit: str
    what: str
    command: str
    is_extrapolated: bool = False


CONSTANTS: Final = {
    "idle": Measured(0.012, 0.03, "cores", "an agent without traffic", "bench/overhead.py start; bench/deployed.py"),
    "token": Measured(39e-6, 116e-6, "core s", "a token in a TLS write of its own: ring, decoding, detection, storing", "bench/overhead.py streams; bench/deployed.py"),
    "exchange": Measured(1.7e-3, 3.5e-3, "core s", "an exchange of hardly any text: decoding and detection", "bench/scenarios.py request_processing_small request_processing_large"),
    "text": Measured(0.96e-3, 1.7e-3, "core s a KB", "each KB of a request's text: rules, injection model", "bench/scenarios.py request_processing_small request_processing_large"),
    "store": Measured(150e-6, 260e-6, "core s", "storing an exchange", "bench/store.py write"),
    "deliver": Measured(182e-6, 200e-6, "core s", "sending an exchange to ClickHouse", "bench/store.py write"),
    "probe": Measured(7e-6, 13e-6, "core s", "a TLS write, in the observed process", "bench/overhead.py calls"),
    "base memory": Measured(142e6, 145e6, "bytes", "warden, listener, one decoder and its detection", "bench/deployed.py"),
    "decoder memory": Measured(108e6, 152e6, "bytes", "each further decoder with its detection", "bench/overhead.py streams"),
    "stream memory": Measured(15.3e3, 140e3, "bytes", "an open stream: fifty events, or one of 250 tokens with all that came with 100 of them", "bench/streams.py; bench/deployed.py"),
    "deliver memory": Measured(167e6, 429e6, "bytes", "the delivering process, at most while it catches up", "bench/store.py hold"),
    "row": Measured(53, 53, "bytes", "an exchange without its texts, on disk", "bench/store.py write"),
    "stored text": Measured(0.48, 0.48, "bytes a byte of text", "texts in Parquet; yours compress otherwise", "bench/store.py write", is_extrapolated=True),
    "delivered text": Measured(0.67, 0.67, "bytes a byte of text", "texts in ClickHouse before its merges", "bench/store.py write", is_extrapolated=True),
    "token text": Measured(4, 4, "bytes", "the text of a token, English", "none: a common estimate", is_extrapolated=True),
    "stream rate": Measured(50, 50, "tokens/s", "one stream, where --streams is not given", "none: what the benches send", is_extrapolated=True),
    "decoder tokens": Measured(40_000, 40_000, "tokens/s", "what one decoder holds", "computed from bench/decoders.py (92,000 in larger writes)", is_extrapolated=True),
    "decoder requests": Measured(4_000, 5_000, "requests/s", "what one decoder holds", "bench/overhead.py loss"),
    "asked rows": Measured(6e6, 6e6, "rows/s a core", "ClickHouse, a count by model", "computed from bench/store.py ask", is_extrapolated=True),
}  # fmt: skip
# What a configuration begins with in the chart, and what a limit must hold beside it (docs/operations.md).
_CAP: Final = 512 * MIB
_RING: Final = 32 * MIB
_OTHERS: Final = 100_000_000
_DAY_S: Final = 86_400
_MOST: Final = 1e9


@dataclass(frozen=True, kw_only=True)
class Load:
    """Of all hosts together. `streams`: answers under way at once; None is told from the tokens."""

    requests_per_second: float
    tokens_per_second: float
    request_kb: float = 2.0
    streams: int | None = None
    days: float = 30.0
    cores_per_node: float = 2.0
    clickhouse: bool = False
    content: bool = True


@dataclass(frozen=True)
class Range:
    least: float
    most: float

    def __add__(self, other: Range) -> Range:
        return Range(self.least + other.least, self.most + other.most)


@dataclass(frozen=True)
class Size:
    """Cores and memory are of all nodes together, but for those named `_a_node`; memory and disk in bytes."""

    nodes: int
    decoders_a_node: int
    cores: Range
    cores_of_observed: Range
    memory: Range
    memory_limit_a_node: int
    memory_cap_a_node: int
    disk_a_node: int
    clickhouse_bytes: int | None
    clickhouse_inserts_per_second: float | None
    clickhouse_core_s_for_a_day: float | None
    notes: tuple[str, ...]


def _of(name: str, count: float = 1.0) -> Range:
    constant = CONSTANTS[name]
    return Range(constant.least * count, constant.most * count)


def size(load: Load) -> Size:
    """Raises ConfigError for what is no load."""
    _check(load)
    requests, tokens = load.requests_per_second, load.tokens_per_second
    streams = load.streams if load.streams is not None else math.ceil(tokens / CONSTANTS["stream rate"].most)
    work = _of("token", tokens) + _of("exchange", requests) + _of("text", requests * load.request_kb) + _of("store", requests)
    if load.clickhouse:
        work += _of("deliver", requests)
    # Each node is idle, too; and what one decoder holds bounds a node that has few cores.
    room = load.cores_per_node - CONSTANTS["idle"].most
    nodes = max(1, math.ceil(work.most / room))
    held = tokens / CONSTANTS["decoder tokens"].least + requests / CONSTANTS["decoder requests"].least
    decoders = max(1, math.ceil(held / nodes))
    cap = max(_CAP, decoders * LEAST_BYTES)
    memory = _of("base memory", nodes) + _of("decoder memory", (decoders - 1) * nodes) + _of("stream memory", streams)
    limit = cap + decoders * _OTHERS + 2 * _RING + _OTHERS
    if load.clickhouse:
        memory += _of("deliver memory", nodes)
        limit += round(CONSTANTS["deliver memory"].most)
    stored = requests * _DAY_S * load.days
    text = load.content * (requests * load.request_kb * 1000 + tokens * CONSTANTS["token text"].most) * _DAY_S * load.days
    row = CONSTANTS["row"].most
    return Size(
        nodes=nodes,
        decoders_a_node=decoders,
        cores=work + _of("idle", nodes),
        cores_of_observed=_of("probe", tokens + 2 * requests),
        memory=memory,
        memory_limit_a_node=limit,
        memory_cap_a_node=cap,
        disk_a_node=round((stored * row + text * CONSTANTS["stored text"].most) / nodes),
        clickhouse_bytes=round(stored * row + text * CONSTANTS["delivered text"].most) if load.clickhouse else None,
        clickhouse_inserts_per_second=nodes / 5 if load.clickhouse else None,
        clickhouse_core_s_for_a_day=round(requests * _DAY_S / CONSTANTS["asked rows"].most, 1) if load.clickhouse else None,
        notes=tuple(
            _notes(load, nodes, decoders, _of("exchange", requests / nodes) + _of("text", requests * load.request_kb / nodes), streams)
        ),
    )


def _notes(load: Load, nodes: int, decoders: int, detection: Range, streams: int) -> list[str]:
    notes = []
    if nodes > 1:
        notes.append(
            f"one node of {load.cores_per_node:g} cores is not enough: {nodes} of them, or more cores on fewer (--cores-per-node). "
            "A tap runs where the traffic is, so these are the nodes that the traffic must be spread over"
        )
    if decoders > 1:
        notes.append(f"capture.decoders: {decoders}; more than two were not measured, as the machine has two CPUs")
    if detection.most > 1:
        notes.append(
            f"detection wants up to {detection.most:.1f} cores of a node: security.budget.share is 1.0, and what does not fit into it is marked and looked at by rules alone"
        )
    if load.streams is None:
        notes.append(f"--streams was not given: {streams:,} at once, by 50 tokens a second each")
    if load.clickhouse and nodes / 5 > 50:
        notes.append("more than 50 inserts a second: storage.clickhouse.flush_interval of 30s makes them a sixth")
    notes.append("`least` is a quiet machine, `most` one whose CPUs are busy with other work; plan by `most`")
    notes.append("extrapolated: " + ", ".join(name for name, constant in CONSTANTS.items() if constant.is_extrapolated) + " (--constants)")
    return notes


def _check(load: Load) -> None:
    for option, value, is_positive in (
        ("--requests-per-second", load.requests_per_second, True),
        ("--tokens-per-second", load.tokens_per_second, False),
        ("--request-kb", load.request_kb, False),
        ("--streams", load.streams or 0, False),
        ("--days", load.days, True),
    ):
        if not (0 < value <= _MOST or (value == 0 and not is_positive)):
            raise ConfigError(f"{option} {value:g}: not a load", f"Give a number {'above 0' if is_positive else 'from 0'} up to a billion.")
    if not 0.1 <= load.cores_per_node <= 1024:
        raise ConfigError(f"--cores-per-node {load.cores_per_node:g}: no node has that", "Give 0.1 to 1024.")
