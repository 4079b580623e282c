"""The stored row: one per exchange, with everything that belongs to it nested inside.

One row, one file, one rename: an exchange appears with all its messages, tool calls, anomalies and findings or not at all.
Types are written once here and turned into Arrow types (writing) and SQL types (documentation); docs/formats/store.md
lists the views over these rows, and a test holds the three together.
"""

from __future__ import annotations

from dataclasses import dataclass

SCHEMA_VERSION = 2

TEXT = "VARCHAR"
INT = "BIGINT"
FLOAT = "DOUBLE"
BOOL = "BOOLEAN"


@dataclass(frozen=True)
class ListOf:
    item: ColumnType


@dataclass(frozen=True)
class StructOf:
    fields: tuple[tuple[str, ColumnType], ...]


ColumnType = str | ListOf | StructOf


def struct(**fields: ColumnType) -> StructOf:
    return StructOf(tuple(fields.items()))


USAGE = struct(input_tokens=INT, output_tokens=INT, cached_input_tokens=INT, cache_write_tokens=INT, reasoning_tokens=INT)
ESTIMATED_USAGE = struct(input_tokens=INT, output_tokens=INT, tokenizer=TEXT)
TOOL_CALL = struct(id=TEXT, name=TEXT, arguments=TEXT)
PART = struct(type=TEXT, content=TEXT, id=TEXT, name=TEXT, arguments=TEXT, modality=TEXT, mime_type=TEXT, uri=TEXT, size_bytes=INT)
MESSAGE = struct(role=TEXT, parts=ListOf(PART), finish_reason=TEXT)
REQUEST = struct(
    messages=ListOf(MESSAGE),
    tools=ListOf(struct(name=TEXT, description=TEXT)),
    parameters=TEXT,  # JSON: its keys are whatever the caller sent, so they cannot be columns
    body_bytes=INT,
)
RESPONSE = struct(messages=ListOf(MESSAGE), error_message=TEXT, embeddings=INT, embedding_dimensions=INT, body_bytes=INT, events=INT)
PROCESS = struct(pid=INT, comm=TEXT, exe=TEXT, container_id=TEXT, pod=TEXT, namespace=TEXT, labels=ListOf(struct(name=TEXT, value=TEXT)))
TLS = struct(
    transport=TEXT,
    version=TEXT,
    cipher_suite=TEXT,
    server_name=TEXT,
    alpn_offered=ListOf(TEXT),
    alpn=TEXT,
    ja4=TEXT,
    client_bytes=INT,
    server_bytes=INT,
)
OTHER_TEXT = struct(path=TEXT, text=TEXT)
COUNTS = struct(requests=INT, tokens=INT)
RATE_LIMIT = struct(limits=COUNTS, remaining=COUNTS, reset_s=struct(requests=FLOAT, tokens=FLOAT), retry_after_s=FLOAT)
ANOMALY = struct(name=TEXT, count=INT)
FINDING = struct(
    finding_id=TEXT,
    rule_id=TEXT,
    rule_version=TEXT,
    category=TEXT,
    type=TEXT,
    severity=TEXT,
    confidence=FLOAT,
    location=struct(part=TEXT, start=INT, end=INT),
    preview=TEXT,
    fingerprint=TEXT,
    taxonomy=struct(owasp_llm_2025=TEXT, owasp_llm_2026=TEXT, mitre_atlas=TEXT),
    explanation=TEXT,
    at_output_token=INT,
    suppressed=struct(reason=TEXT, owner=TEXT, until=TEXT),
)
DEVIATION = struct(
    kind=TEXT,
    severity=TEXT,
    scope=TEXT,
    subject=TEXT,
    value=FLOAT,
    usual=FLOAT,
    line=FLOAT,
    span_s=FLOAT,
    observations=INT,
    explanation=TEXT,
)
ALERT = struct(alert_id=TEXT, rule=TEXT, priority=TEXT, state=TEXT, dedup_key=TEXT, count=INT)

# In the order of model.Exchange.
EXCHANGE_COLUMNS: tuple[tuple[str, ColumnType], ...] = (
    ("exchange_id", TEXT),
    ("client", TEXT),
    ("server", TEXT),
    ("started_ns", INT),
    ("first_byte_ns", INT),
    ("first_token_ns", INT),
    ("ended_ns", INT),
    ("ttft_ms", FLOAT),
    ("itl_ms_p50", FLOAT),
    ("itl_ms_p95", FLOAT),
    ("output_tokens_per_s", FLOAT),
    ("provider", TEXT),
    ("api", TEXT),
    ("operation", TEXT),
    ("method", TEXT),
    ("path", TEXT),
    ("http_version", TEXT),
    ("status", INT),
    ("streaming", BOOL),
    ("framing", TEXT),
    ("request_model", TEXT),
    ("response_model", TEXT),
    ("response_id", TEXT),
    ("input_text", TEXT),
    ("output_text", TEXT),
    ("reasoning_text", TEXT),
    ("refusal_text", TEXT),
    ("tool_calls", ListOf(TOOL_CALL)),
    ("finish_reasons", ListOf(TEXT)),
    ("usage", USAGE),
    ("usage_estimated", ESTIMATED_USAGE),
    ("error_type", TEXT),
    ("tenant", TEXT),
    ("api_key_fingerprint", TEXT),
    ("process", PROCESS),
    ("tls", TLS),
    ("completeness", TEXT),
    ("anomalies", ListOf(ANOMALY)),
    ("request", REQUEST),
    ("response", RESPONSE),
    ("other_texts", ListOf(OTHER_TEXT)),
    ("request_id", TEXT),
    ("trace_id", TEXT),
    ("span_id", TEXT),
    ("session_id", TEXT),
    ("end_user", TEXT),
    ("tags", TEXT),  # JSON, as the parameters
    ("client_agent", TEXT),
    ("deployment", TEXT),
    ("api_version", TEXT),
    ("rate_limit", RATE_LIMIT),
    ("forwarded_client", TEXT),
    ("capture_kind", TEXT),
    ("node", TEXT),
    ("risk_score", INT),
    ("risk_reasons", ListOf(TEXT)),
    ("findings", ListOf(FINDING)),
    ("security_score", INT),
    ("pii_types", ListOf(TEXT)),
    ("secret_types", ListOf(TEXT)),
    ("cost_usd", FLOAT),
    ("deviations", ListOf(DEVIATION)),
    ("alerts", ListOf(ALERT)),
)
# row_key: 64 bits of a hash of exchange_id, so that finding repeated exchanges compares integers, not texts.
ROW_COLUMNS: tuple[tuple[str, ColumnType], ...] = (*EXCHANGE_COLUMNS, ("row_key", INT))
# stored_seq: grows with every part written; of two rows for one exchange the higher one counts.
STORED_COLUMNS: tuple[tuple[str, ColumnType], ...] = (*ROW_COLUMNS, ("stored_seq", INT))

# One row for each run of a tap (taps.py): the view's name, and the folder's beside those of days.
TAPS = "taps"
TAP_COLUMNS: tuple[tuple[str, ColumnType], ...] = (
    ("node", TEXT),
    ("pid", INT),
    ("version", TEXT),
    ("started_ns", INT),
    ("heartbeat_ns", INT),
    ("stopped_ns", INT),
    ("exchanges", INT),
    ("not_stored", INT),
    ("lost_records", INT),
    ("degradation", INT),
    ("probes", ListOf(struct(reads=TEXT, target=TEXT, symbols=TEXT, processes=INT, problem=TEXT))),
    ("probed", INT),
    ("unprobed", INT),
)

# Columns with few different values, where a Parquet dictionary pays; texts that never repeat only waste the attempt.
DICTIONARY_COLUMNS = (
    "client",
    "server",
    "provider",
    "api",
    "operation",
    "method",
    "path",
    "http_version",
    "status",
    "framing",
    "request_model",
    "response_model",
    "finish_reasons.list.element",
    "error_type",
    "tenant",
    "api_key_fingerprint",
    "completeness",
    "client_agent",
    "deployment",
    "api_version",
    "capture_kind",
    "node",
    "request.messages.list.element.role",
    "request.messages.list.element.parts.list.element.type",
    "request.parameters",
    "response.messages.list.element.role",
    "response.messages.list.element.parts.list.element.type",
    "stored_seq",
)
STATISTICS_COLUMNS = (
    "exchange_id",
    "started_ns",
    "status",
    "provider",
    "request_model",
    "response_model",
    "tenant",
    "row_key",
    "stored_seq",
)


def sql_type(kind: ColumnType) -> str:
    """The type as DuckDB prints it."""
    if isinstance(kind, ListOf):
        return f"{sql_type(kind.item)}[]"
    if isinstance(kind, StructOf):
        return "STRUCT(" + ", ".join(f'"{name}" {sql_type(inner)}' for name, inner in kind.fields) + ")"
    return kind
