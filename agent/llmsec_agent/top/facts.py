"""What the live view reads of events (docs/formats/events.md). Whatever else a line has is skipped, so texts are not held twice."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec

from llmsec_tap.errors import SourceError
from llmsec_tap.model import Severity

# Ids are kept of thousands of exchanges, so a line may not make one of megabytes.
Id = Annotated[str, msgspec.Meta(max_length=200)]


class ProcessFacts(msgspec.Struct, frozen=True, kw_only=True):
    pid: int | None = None
    comm: str | None = None
    container_id: str | None = None
    pod: str | None = None
    namespace: str | None = None


class UsageFacts(msgspec.Struct, frozen=True, kw_only=True):
    input_tokens: int | None = None
    output_tokens: int | None = None


class TLSFacts(msgspec.Struct, frozen=True, kw_only=True):
    server_name: str | None = None
    client_bytes: int | None = None


class FindingFacts(msgspec.Struct, frozen=True, kw_only=True):
    finding_id: Id
    rule_id: str
    severity: Severity
    preview: str = ""
    type: str | None = None
    at_output_token: int | None = None
    suppressed: Any = None


class ExchangeFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Of an exchange that has ended; times are epoch nanoseconds. The same names as on the record."""

    exchange_id: Id
    client: str = ""
    server: str = ""
    started_ns: int | None = None
    ended_ns: int | None = None
    ttft_ms: float | None = None
    provider: str | None = None
    method: str | None = None
    path: str | None = None
    status: int | None = None
    request_model: str | None = None
    response_model: str | None = None
    error_type: str | None = None
    tenant: str | None = None
    process: ProcessFacts | None = None
    tls: TLSFacts | None = None
    usage: UsageFacts | None = None
    usage_estimated: UsageFacts | None = None
    completeness: str = "complete"
    risk_score: int | None = None
    findings: list[FindingFacts] = []


class Started(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="exchange_started"):
    ts_ns: int
    exchange_id: Id
    client: str = ""
    server: str = ""
    process: ProcessFacts | None = None
    provider: str | None = None
    request_model: str | None = None
    tenant: str | None = None


class Found(FindingFacts, frozen=True, kw_only=True, tag_field="event", tag="finding"):
    ts_ns: int
    exchange_id: Id = ""


class Ended(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="exchange"):
    ts_ns: int
    exchange: ExchangeFacts


class Deviated(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="deviation"):
    ts_ns: int
    kind: str
    severity: Severity
    exchange_id: Id = ""
    scope: str = ""
    subject: str = ""
    explanation: str = ""


class AlertFacts(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="alert"):
    ts_ns: int
    rule: str = ""
    priority: str = ""
    exchange_id: Id | None = None


class Lost(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="loss"):
    ts_ns: int
    what: str
    count: int


Event = Started | Found | Ended | Deviated | AlertFacts | Lost

_decoder: Final[msgspec.json.Decoder[Event]] = msgspec.json.Decoder(Event)


def event_of(line: bytes) -> Event:
    """Raises SourceError where the line is no event."""
    try:
        return _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
        raise SourceError(
            f"not a line of --format events: {str(fault)[:200]}", "pipe `llmsec-tap capture --format events` into it"
        ) from None
