"""What decoder and detection process say to each other: MessagePack messages, each behind its length (4 bytes, big-endian)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from llmsec_analyzer.judge.exchange_parts import Report, TextPart
from llmsec_analyzer.judge.facts import Facts
from llmsec_analyzer.settings import DetectionSettings, Sensitivity
from llmsec_tap.model import Finding, Severity

_LENGTH_BYTES = 4
# Far above what an exchange can hold within the limits of decoding.
_MAX_MESSAGE_BYTES = 1 << 28
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class Start(msgspec.Struct, tag="start", array_like=True):
    """The first message. `key` makes the fingerprints; it goes through the pipe, as arguments and environment are seen by others."""

    settings: DetectionSettings
    key: bytes
    redact: bool = False  # reports then say where everything is that is masked
    early_from: Severity = "high"  # findings in streams that are told as they come


class Increments(msgspec.Struct, tag="increments", array_like=True):
    """Text increments of one answer, in order. `at_ns`: when the first of them was decoded (CLOCK_MONOTONIC, the same in every process)."""

    stream: int
    kind: str
    choice: int
    at_ns: int
    texts: list[str]


class Begin(msgspec.Struct, tag="begin", array_like=True):
    """The increments of this stream that follow are of the answer of this exchange."""

    stream: int
    exchange_id: str


class Examine(msgspec.Struct, tag="examine", array_like=True):
    """A whole exchange, or its request. `stream` is the one its answer came by, 0 where none did; `pressure` the step that the queue asks for.

    `unread`: anomalies by which something of it was not read. `is_request`: its answer is still out, so this has time limits.
    `facts`: where the settings ask for them (suppressions). `noted`: facts of the record that are findings. `sensitivity`: of its tenant.
    `masks`: the report says where everything is that is masked.
    """

    number: int
    stream: int
    exchange_id: str
    pressure: int
    parts: list[TextPart]
    unread: list[str] = []
    is_request: bool = False
    facts: Facts | None = None
    noted: list[str] = []
    sensitivity: Sensitivity | None = None
    masks: bool = False


class Forget(msgspec.Struct, tag="forget", array_like=True):
    """Discard this stream: no exchange will follow."""

    stream: int


class Ready(msgspec.Struct, tag="ready", array_like=True):
    """The answer to `Start`; `error` says what is wrong with the configuration, `notes` what of it does nothing any longer."""

    error: str = ""
    hint: str = ""
    redacts: bool = False  # the configuration has matches of some rules masked
    notes: list[str] = []


class Early(msgspec.Struct, tag="early", array_like=True):
    """Found in an answer that still streams, `finding.at_output_token` says with which of its increments."""

    stream: int
    finding: Finding


class DetectorFault(msgspec.Struct, tag="fault", array_like=True):
    """A detector failed for the first time: which, how and where in our code."""

    detector: str
    fault: str
    where: str


class Examined(msgspec.Struct, tag="examined", array_like=True):
    number: int
    report: Report


class Totals(msgspec.Struct, tag="totals", array_like=True):
    """Every few seconds, and before the process exits: what it counted since its start. Delays are from an increment's decoding to the end of its scan, milliseconds."""

    faults: dict[str, int]
    increments: int
    delay_ms_p50: float | None = None
    delay_ms_p99: float | None = None


ToWorker = Start | Begin | Increments | Examine | Forget
FromWorker = Ready | Early | DetectorFault | Examined | Totals

_encoder = msgspec.msgpack.Encoder()


def frame(message: ToWorker | FromWorker) -> bytes:
    try:
        data = _encoder.encode(message)
    except UnicodeEncodeError:
        data = _encoder.encode(_clean(message))
    return len(data).to_bytes(_LENGTH_BYTES, "big") + data


class Frames:
    """Messages out of bytes as they come. Raises msgspec.MsgspecError for what is none."""

    def __init__(self, kinds: Any) -> None:
        self._decoder = msgspec.msgpack.Decoder(kinds)
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        buffer = self._buffer
        buffer += data
        at = 0
        try:
            while len(buffer) - at >= _LENGTH_BYTES:
                length = int.from_bytes(buffer[at : at + _LENGTH_BYTES], "big")
                if length > _MAX_MESSAGE_BYTES:
                    raise msgspec.DecodeError(f"a message of {length} bytes")
                end = at + _LENGTH_BYTES + length
                if len(buffer) < end:
                    break
                message = self._decoder.decode(memoryview(buffer)[at + _LENGTH_BYTES : end])
                at = end
                yield message
        finally:
            del buffer[:at]


def _clean(value: Any) -> Any:
    """Lone surrogates, which UTF-8 cannot hold, as U+FFFD: one character for one, so that offsets stay."""
    if isinstance(value, str):
        return _LONE_SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [_clean(item) for item in value]
    if isinstance(value, msgspec.Struct):
        return msgspec.structs.replace(value, **{name: _clean(getattr(value, name)) for name in value.__struct_fields__})
    return value
