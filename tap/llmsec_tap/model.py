"""The typed record of one exchange with a language model, and its parts.

Names follow OpenTelemetry's GenAI conventions where those have one, and docs/formats/exchange.md lists every field.
Structs rather than dataclasses: msgspec encodes them to JSON without a copy, leaves absent parts out, and is
several times cheaper to create, which counts at one exchange per request on a busy node.
"""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from llmsec_tap.plain_names import PARAMETERS, folded_name

Completeness = Literal["complete", "truncated", "gapped", "midstream", "aborted", "unreadable"]
CaptureKind = Literal["tls", "plain", "packet", "file", "sdk"]
Framing = Literal["sse", "ndjson", "json-array", "aws-eventstream", "websocket", "grpc"]


class Usage(msgspec.Struct, kw_only=True):
    """Token counts as the server states them, of 10^12 at most; the last statement of each wins, absent ones stay null."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_input_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None


class EstimatedUsage(msgspec.Struct, kw_only=True):
    """Token counts made here where the server states none, with the tokenizer that made them."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    tokenizer: str = ""


class ToolCall(msgspec.Struct, kw_only=True):
    """A call that the client is asked to run. `arguments` is text exactly as sent (usually JSON)."""

    id: str | None = None
    name: str | None = None
    arguments: str = ""


class Part(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One part of a message, in the shape of OpenTelemetry's `gen_ai.*.messages`.

    type           fields
    text           content
    reasoning      content
    refusal        content
    tool_call      id, name, arguments (text)
    tool_call_response  id, name, content (text)
    document       uri, content (title and text); given to the model, found by its tools, or cited by it
    blob, uri, file     modality, mime_type, uri (for `uri`), id (for `file`), size_bytes (for `blob`); never the bytes
    other          name (the part's own type on the wire), content (text, where it has any)
    """

    type: str
    content: str | None = None
    id: str | None = None
    name: str | None = None
    arguments: str | None = None
    modality: str | None = None
    mime_type: str | None = None
    uri: str | None = None
    size_bytes: int | None = None


class Message(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One turn: role as on the wire (system, developer, user, assistant, tool, …) and its parts in order."""

    role: str
    parts: list[Part] = []
    finish_reason: str | None = None


class ToolDefinition(msgspec.Struct, kw_only=True, omit_defaults=True):
    name: str
    description: str | None = None


class Request(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The request, normalised. System instructions sent outside the messages come first, with role `system`."""

    messages: list[Message] = []
    tools: list[ToolDefinition] = []
    parameters: dict[str, str | int | float | bool | None] = {}
    body_bytes: int = 0


class Response(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The answer, normalised: one message per choice. `error_message` is the server's own text."""

    messages: list[Message] = []
    error_message: str | None = None
    embeddings: int | None = None
    embedding_dimensions: int | None = None
    body_bytes: int = 0
    events: int | None = None


class OtherText(msgspec.Struct, kw_only=True, frozen=True):
    """Text that reached the model, or may have, from a place that no dialect names; `path` is a JSON path (RFC 9535) into the body."""

    path: str
    text: str


class Label(msgspec.Struct, kw_only=True, frozen=True):
    name: str
    value: str


class Process(msgspec.Struct, kw_only=True, frozen=True):
    """The observed process; live capture only. `labels` are those of its pod."""

    pid: int
    comm: str | None = None
    exe: str | None = None
    container_id: str | None = None
    pod: str | None = None
    namespace: str | None = None
    labels: list[Label] = []


class AnomalyCount(msgspec.Struct, kw_only=True, frozen=True):
    name: str
    count: int


Category = Literal["prompt_injection", "jailbreak", "system_prompt_leak", "pii", "secret", "data_exfiltration", "unsafe_output", "anomaly"]
Severity = Literal["info", "low", "medium", "high", "critical"]


class Location(msgspec.Struct, kw_only=True, frozen=True):
    """Where in an exchange: which text, and character offsets in it, end exclusive. docs/detection.md lists the parts."""

    part: str
    start: int
    end: int

    @property
    def is_in_answer(self) -> bool:
        return self.part.startswith("response")


class Taxonomy(msgspec.Struct, kw_only=True, frozen=True):
    """Ids in public lists of threats; the ATLAS one names the release it is taken from."""

    owasp_llm_2025: str | None = None
    owasp_llm_2026: str | None = None
    mitre_atlas: str | None = None


class Suppressed(msgspec.Struct, kw_only=True, frozen=True):
    """Why a finding counts no longer, who says so, and the last day (UTC, `YYYY-MM-DD`) on which that holds."""

    reason: str
    owner: str
    until: str


class Finding(msgspec.Struct, kw_only=True, frozen=True):
    """What a detector found. Never holds the matched text: `preview` is redacted and `fingerprint` a keyed hash."""

    finding_id: str
    exchange_id: str = ""  # in a stored exchange it is the exchange's own
    rule_id: str
    rule_version: str
    category: Category
    type: str
    severity: Severity
    confidence: float
    location: Location
    preview: str
    fingerprint: str
    taxonomy: Taxonomy
    explanation: str
    at_output_token: int | None = None
    suppressed: Suppressed | None = None  # it is kept, and adds to no score, alert or exit code


class Deviation(msgspec.Struct, kw_only=True, frozen=True):
    """Traffic that is not as it was, or beyond what was allowed, told with the exchange that showed it. The figures are what it rests on."""

    kind: str
    severity: Severity
    scope: str  # what kind of thing the subject is: tenant, key, client, upstream, model, session, canary, global
    subject: str
    value: float
    usual: float | None = None  # what the value is otherwise
    line: float | None = None  # beyond it, it is a deviation
    span_s: float | None = None  # the time that the value is of
    observations: int | None = None  # how many values the usual one was learnt from
    explanation: str = ""


class AlertMark(msgspec.Struct, kw_only=True, frozen=True):
    """A rule of the configuration that the exchange met, and what became of it.

    state      firing: it was told. grouped: it is one more of an alert that was told. limited: its rule had told enough in this minute.
               silenced: somebody silenced it. resolved: it ended what an alert was about
    count      exchanges that the alert stood for then, with this one
    """

    alert_id: str
    rule: str
    priority: str
    state: str
    dedup_key: str
    count: int


class Counts(msgspec.Struct, kw_only=True):
    requests: int | None = None
    tokens: int | None = None


class Resets(msgspec.Struct, kw_only=True):
    requests: float | None = None
    tokens: float | None = None


class RateLimit(msgspec.Struct, kw_only=True):
    """What the server's headers say of its limits; seconds run from the answer."""

    limits: Counts = msgspec.field(default_factory=Counts)
    remaining: Counts = msgspec.field(default_factory=Counts)
    reset_s: Resets = msgspec.field(default_factory=Resets)
    retry_after_s: float | None = None


class TLS(msgspec.Struct, kw_only=True, frozen=True):
    """What the hellos of a connection say. The bytes are given where nothing of it could be read, as they were on the wire."""

    transport: Literal["tcp", "quic"]
    version: str | None = None
    cipher_suite: str | None = None
    server_name: str | None = None  # as the client asked for it (SNI), in lower case
    alpn_offered: list[str] = []
    alpn: str | None = None  # what the server chose; in TLS 1.3 only its key log tells
    ja4: str | None = None
    client_bytes: int | None = None
    server_bytes: int | None = None


class Exchange(msgspec.Struct, kw_only=True):
    """One request and its answer. Times are capture time, epoch nanoseconds; texts are exactly as sent.

    exchange/record.py makes it whole. Four hands add to it, in this order, before it is handed on: an estimator of tokens (`usage_estimated`,
    and a rate where there was none), detection's report (`risk_score`, `risk_reasons`, `findings`, anomalies of detection), the watcher
    (`cost_usd`, `deviations`), and who decides about alerts (`alerts`).
    `risk_score` is null where detection did not run or something could not be read; 0 says that it found nothing.
    """

    exchange_id: str
    client: str
    server: str
    started_ns: int | None = None
    first_byte_ns: int | None = None
    first_token_ns: int | None = None
    ended_ns: int | None = None
    ttft_ms: float | None = None
    itl_ms_p50: float | None = None
    itl_ms_p95: float | None = None
    output_tokens_per_s: float | None = None
    provider: str | None = None
    api: str | None = None
    operation: str | None = None
    method: str | None = None
    path: str | None = None
    http_version: str | None = None
    status: int | None = None
    streaming: bool = False
    framing: Framing | None = None
    request_model: str | None = None
    response_model: str | None = None
    response_id: str | None = None
    input_text: str | None = None
    output_text: str | None = None
    reasoning_text: str | None = None
    refusal_text: str | None = None
    tool_calls: list[ToolCall] = []
    finish_reasons: list[str | None] = []
    usage: Usage = msgspec.field(default_factory=Usage)
    usage_estimated: EstimatedUsage | None = None
    error_type: str | None = None
    tenant: str | None = None
    api_key_fingerprint: str | None = None
    process: Process | None = None
    tls: TLS | None = None
    completeness: Completeness = "complete"
    anomalies: list[AnomalyCount] = []
    request: Request = msgspec.field(default_factory=Request)
    response: Response = msgspec.field(default_factory=Response)
    other_texts: list[OtherText] = []
    request_id: str | None = None
    trace_id: str | None = None
    span_id: str | None = None
    session_id: str | None = None
    end_user: str | None = None
    tags: dict[str, str] = {}
    client_agent: str | None = None
    deployment: str | None = None
    api_version: str | None = None
    rate_limit: RateLimit | None = None
    forwarded_client: str | None = None
    capture_kind: CaptureKind = "file"
    node: str | None = None
    risk_score: int | None = None
    risk_reasons: list[str] = []
    findings: list[Finding] = []
    security_score: int | None = None
    pii_types: list[str] = []
    secret_types: list[str] = []
    cost_usd: float | None = None
    deviations: list[Deviation] = []
    alerts: list[AlertMark] = []

    @property
    def is_connection(self) -> bool:
        """It stands for a whole connection that could not be read, not for one request."""
        return self.tls is not None and self.tls.client_bytes is not None

    @property
    def is_request(self) -> bool:
        """One request to a language model, of which something was read."""
        return self.provider is not None and not self.is_connection

    def without_content(self) -> Exchange:
        """The same record with every text left out (`--no-content`).

        Counts, numbers, switches and times stay, and words that are an API's own vocabulary: names without white space,
        values of parameters that are listed in plain_names.py. Whatever else a client or server wrote is content.
        """
        return msgspec.structs.replace(
            self,
            method=_word(self.method),
            path=_plain_path(self.path),
            tls=_plain_tls(self.tls),
            request_model=_word(self.request_model),
            response_model=_word(self.response_model),
            response_id=_word(self.response_id),
            input_text=None,
            output_text=None,
            reasoning_text=None,
            refusal_text=None,
            error_type=_word(self.error_type),
            other_texts=[],
            request_id=_word(self.request_id),
            session_id=_word(self.session_id),
            end_user=_word(self.end_user),
            tags={},
            client_agent=_word(self.client_agent),
            deployment=_word(self.deployment),
            finish_reasons=[_word(reason) for reason in self.finish_reasons],
            findings=[msgspec.structs.replace(finding, preview="") for finding in self.findings],
            deviations=[_bare(deviation) for deviation in self.deviations],
            alerts=[msgspec.structs.replace(mark, dedup_key=_bare_key(mark)) for mark in self.alerts],
            tool_calls=[ToolCall(id=_word(call.id), name=_word(call.name)) for call in self.tool_calls],
            request=Request(
                parameters={
                    name: value
                    for name, value in self.request.parameters.items()
                    if _word(name) and (not isinstance(value, str) or (folded_name(name) in PARAMETERS and _word(value)))
                },
                body_bytes=self.request.body_bytes,
            ),
            response=Response(
                embeddings=self.response.embeddings,
                embedding_dimensions=self.response.embedding_dimensions,
                body_bytes=self.response.body_bytes,
                events=self.response.events,
            ),
        )


_WORD = re.compile(r"[\w.:/@+-]{1,128}", re.ASCII)
_PATH_PART = re.compile(r"[^/?#&;=]+")
_PLAIN_PART = re.compile(r"[\w.~:@$!*(),+-]{1,64}", re.ASCII)


def _word(value: str | None) -> str | None:
    """A name as an API has it. A sentence in its place is content."""
    return value if value is not None and _WORD.fullmatch(value) else None


def _plain_tls(tls: TLS | None) -> TLS | None:
    """What a client offers is its own to fill."""
    if tls is None:
        return None
    offered = [name for name in tls.alpn_offered if _word(name)]
    return msgspec.structs.replace(tls, server_name=_word(tls.server_name), alpn_offered=offered, alpn=_word(tls.alpn))


# Deviations whose subject or explanation quotes what a client named.
_QUOTING = frozenset(("new_model", "new_tool", "agent_loop", "agent_loop_lasting"))


def _bare(deviation: Deviation) -> Deviation:
    subject = deviation.subject if deviation.scope in {"tenant", "key", "upstream"} else _word(deviation.subject) or ""
    explanation = "" if deviation.kind in _QUOTING or deviation.scope == "model" else deviation.explanation
    return msgspec.structs.replace(deviation, subject=subject, explanation=explanation)


_KEY = re.compile(r"[\w.:/@+=,-]{1,512}", re.ASCII)


def _bare_key(mark: AlertMark) -> str:
    return mark.dedup_key if _KEY.fullmatch(mark.dedup_key) else f"{mark.rule}/"


def _plain_path(path: str | None) -> str | None:
    """A target without parts that may be sentences: percent-encoded or long ones."""
    return path and _PATH_PART.sub(lambda part: part[0] if _PLAIN_PART.fullmatch(part[0]) else "*", path)


_encoder = msgspec.json.Encoder()


def to_json(exchange: Exchange) -> bytes:
    """One line of JSON, UTF-8, without the newline."""
    return _encoder.encode(exchange)
