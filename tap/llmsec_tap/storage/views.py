"""The SQL face of a store: views over the Parquet parts, each column with its comment.

The same statements make the views of `llmsec.duckdb` (for any DuckDB client) and those of the in-memory connection that
`llmsec-analyze query` uses, so the two cannot drift apart.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmsec_tap.errors import StorageError
from llmsec_tap.storage.damage import TAP_FILES
from llmsec_tap.storage.faults import storage_error
from llmsec_tap.storage.publish import publishing, write_all
from llmsec_tap.storage.schema import (
    ALERT,
    ANOMALY,
    DEVIATION,
    EXCHANGE_COLUMNS,
    FINDING,
    FLOAT,
    INT,
    PART,
    STORED_COLUMNS,
    TAP_COLUMNS,
    TAPS,
    TEXT,
    ColumnType,
    ListOf,
    sql_type,
)

if TYPE_CHECKING:
    import duckdb

DATABASE_NAME = "llmsec.duckdb"


@dataclass(frozen=True)
class ViewColumn:
    name: str
    type: str
    sql: str
    comment: str


@dataclass(frozen=True)
class View:
    name: str
    comment: str
    columns: tuple[ViewColumn, ...]
    source: str  # the FROM clause


_COMMENTS = {
    "exchange_id": "Derived from request, place and time under the installation's key: the same capture gives the same id on one host",
    "client": "ip:port of the side that asks; IPv6 in brackets",
    "server": "ip:port of the side that answers; IPv6 in brackets",
    "started_ns": "Capture time of the first request byte, epoch nanoseconds",
    "first_byte_ns": "Capture time of the first byte of the answer, epoch nanoseconds",
    "first_token_ns": "Capture time of the first response content (text, reasoning, refusal or tool call), epoch nanoseconds",
    "ended_ns": "Capture time of the last byte, epoch nanoseconds",
    "ttft_ms": "Time to first token, milliseconds of capture time; null when the capture does not contain enough information",
    "itl_ms_p50": "Median time between tokens, milliseconds",
    "itl_ms_p95": "95th percentile of the time between tokens, milliseconds",
    "output_tokens_per_s": "Output tokens per second while the answer streamed",
    "provider": "Who serves it (openai, anthropic, aws.bedrock, vllm, …); null: not LLM traffic",
    "api": "Wire dialect (openai.chat, anthropic.messages, bedrock.converse, …)",
    "operation": "OpenTelemetry operation: chat, text_completion, embeddings, generate_content, …",
    "method": "HTTP method as on the wire",
    "path": "Request target as on the wire; credentials and query values of unlisted names are masked",
    "http_version": "HTTP version as on the wire",
    "status": "HTTP status as on the wire; null when no answer was seen",
    "streaming": "Whether the answer came as a stream",
    "framing": "sse, ndjson, json-array, aws-eventstream, grpc or websocket; null for a plain body",
    "request_model": "Model the client asked for",
    "response_model": "Model the server says it used",
    "response_id": "Id the server gave its answer",
    "input_text": "Text of the last user message, or the prompt; exactly as sent",
    "output_text": "Answer of choice 0, deltas joined",
    "reasoning_text": "Reasoning of choice 0, deltas joined",
    "refusal_text": "Refusal of choice 0, deltas joined",
    "tool_calls": "Calls the client is asked to run; arguments as text",
    "finish_reasons": "Why each choice ended, as on the wire, by choice",
    "usage": "Token counts as the server states them; absent ones null",
    "usage_estimated": "Token counts made here where the server states none, and how",
    "error_type": "Error the server named, also inside a stream that began with 200",
    "tenant": "Tenant, from configuration",
    "api_key_fingerprint": "Keyed HMAC of the credential, never the credential",
    "process": "The observed process: pid, comm, exe, container_id, pod, namespace, labels; live capture only",
    "tls": "The connection's hellos, in packets: version, cipher suite, name asked for (SNI), ALPN, JA4; with bytes: it stayed closed, and the row stands for all of it",
    "completeness": "complete, truncated, gapped, midstream, aborted or unreadable (a body, part or head came whole and could not be read)",
    "anomalies": "Named oddities of the wire, with counts",
    "request": "Normalised request: messages (role, parts), tools, parameters (JSON text), body_bytes",
    "response": "Normalised answer: messages (one per choice), error_message, embeddings, body_bytes, events",
    "other_texts": "Text in places that the dialect does not name, by JSON path into the body; scanned like the rest",
    "request_id": "Id of this request, as the server's headers say, else the client's",
    "trace_id": "Trace it belongs to, from traceparent, b3 and the like",
    "span_id": "Span that called, from the same header",
    "session_id": "Session or conversation, as the client names it",
    "end_user": "Keyed fingerprint of the end user that the client names (user, metadata.user_id, safety_identifier)",
    "tags": "Metadata of the request that is text, masked (JSON text)",
    "client_agent": "Family and version of the SDK or program that asks",
    "deployment": "Azure's deployment",
    "api_version": "Azure's api-version",
    "rate_limit": "Limits of requests and tokens, what remains, when they reset, when to try again, as the server states them",
    "forwarded_client": "Client behind a proxy, by X-Forwarded-For, Forwarded or the PROXY protocol",
    "capture_kind": "tls or plain (calls of an observed process), packet (an interface), file (a replay) or sdk",
    "node": "Host that captured it; null for a replay",
    "risk_score": "0 to 100 when detection ran and nothing passed unread, else null",
    "risk_reasons": "What the score is made of: `rule: +points`, the heaviest first",
    "findings": "What detection found, when it ran",
    "security_score": "0 to 100: the gravest thing found, above 90 for a certain injection or a secret; null where risk_score is",
    "pii_types": "Kinds of personal data found, without those of severity info",
    "secret_types": "Kinds of secrets found, without those of severity info",
    "cost_usd": "What it costs by list prices, US dollars; null where the model has no price or no tokens are known",
    "deviations": "What was unusual about the traffic that it belongs to",
    "alerts": "Rules of alerts that it met, and what became of each",
}


def _exchange_columns() -> tuple[ViewColumn, ...]:
    stored = [ViewColumn(name, sql_type(kind), f'r."{name}"', _COMMENTS[name]) for name, kind in EXCHANGE_COLUMNS]
    derived = [
        ViewColumn("started", "TIMESTAMP", "make_timestamp(r.started_ns // 1000)", "started_ns as a UTC timestamp (microseconds)"),
        ViewColumn("ended", "TIMESTAMP", "make_timestamp(r.ended_ns // 1000)", "ended_ns as a UTC timestamp (microseconds)"),
        ViewColumn("day", "DATE", "CAST(make_timestamp(r.started_ns // 1000) AS DATE)", "UTC day of started"),
        ViewColumn("duration_ms", FLOAT, "(r.ended_ns - r.started_ns) / 1e6", "From the first request byte to the last byte, milliseconds"),
        ViewColumn(
            "model", TEXT, "coalesce(r.response_model, r.request_model)", "response_model, or request_model where the answer names none"
        ),
        *(
            ViewColumn(name, INT, f'r."usage"."{name}"', f"{what}, as the server states it")
            for name, what in (
                ("input_tokens", "Tokens of the prompt"),
                ("output_tokens", "Tokens of the answer"),
                ("cached_input_tokens", "Prompt tokens read from a cache"),
                ("cache_write_tokens", "Prompt tokens written to a cache"),
                ("reasoning_tokens", "Answer tokens spent on reasoning"),
            )
        ),
    ]
    return (*stored, *derived)


_WHICH = (
    ViewColumn("exchange_id", TEXT, "e.exchange_id", "The exchange this row belongs to"),
    ViewColumn("started", "TIMESTAMP", "e.started", "Start of that exchange, UTC"),
)

_MESSAGES_SOURCE = """(
    SELECT exchange_id, started, 'request' AS side, unnest("request".messages) AS m, generate_subscripts("request".messages, 1) AS i FROM exchanges
    UNION ALL
    SELECT exchange_id, started, 'response' AS side, unnest("response".messages) AS m, generate_subscripts("response".messages, 1) AS i FROM exchanges
) e"""


def _unnested(column: str) -> str:
    return f'(SELECT exchange_id, started, unnest("{column}") AS x, generate_subscripts("{column}", 1) AS i FROM exchanges) e'  # noqa: S608 - names from this file


def _member(name: str, kind: ColumnType | str, comment: str, sql: str | None = None) -> ViewColumn:
    return ViewColumn(name, sql_type(kind), sql or f'e.x."{name}"', comment)


_FINDING_COMMENTS = {
    "finding_id": "Id of the finding",
    "rule_id": "Rule that found it; stable once published",
    "rule_version": "Version of that rule",
    "category": "prompt_injection, jailbreak, system_prompt_leak, pii, secret, data_exfiltration, unsafe_output or anomaly",
    "type": "What exactly (EMAIL, aws_access_key_id, …)",
    "severity": "info, low, medium, high or critical",
    "confidence": "0 to 1",
    "location": "Which part, and character offsets in it; end exclusive",
    "preview": "The match and its surroundings, redacted",
    "fingerprint": "Keyed HMAC of the match",
    "taxonomy": "Where OWASP's lists for LLM applications and MITRE ATLAS put it",
    "explanation": "Why this is a finding",
    "at_output_token": "For findings in a stream: how many deltas had been seen",
    "suppressed": "Why it counts no longer, who says so, and until which day; null for one that counts",
}

_DEVIATION_COMMENTS = {
    "kind": "What deviates (docs/deviations.md)",
    "severity": "info, low, medium, high or critical",
    "scope": "What the subject is: tenant, key, client, upstream, model, session, canary or global",
    "subject": "Whose traffic deviates",
    "value": "What was seen, in the unit of its kind",
    "usual": "What it is otherwise; null where it is not measured against that",
    "line": "Beyond it, it is a deviation",
    "span_s": "Seconds that the value is of",
    "observations": "How many values the usual one was learnt from",
    "explanation": "The same in words",
}

_ALERT_COMMENTS = {
    "alert_id": "Id of the alert: of its rule, its key and the window that it opened",
    "rule": "Rule of the configuration (docs/alerts.md)",
    "priority": "critical, high, medium or low",
    "state": "firing: it was told; grouped: one more of an alert that was told; limited: its rule had told enough; silenced; resolved: it ended one",
    "dedup_key": "What makes two alerts of the rule one",
    "count": "Exchanges that the alert stood for then, with this one",
}

_TAP_COMMENTS = {
    "node": "Host that it captures on (`capture.node`, else NODE_NAME, else the host name)",
    "pid": "Process that decodes",
    "version": "Version of llmsec-trace",
    "started_ns": "When it began, epoch nanoseconds",
    "heartbeat_ns": "When it was last alive, epoch nanoseconds",
    "stopped_ns": "When it ended in order, epoch nanoseconds; null while it runs, and for one that died",
    "exchanges": "Exchanges seen by then",
    "not_stored": "Of them, those that this store could not take",
    "lost_records": "Pieces of calls and packets that were dropped before they were decoded",
    "degradation": "0 normal, 1 reduced, 2 essential, 3 emergency",
    "probes": "What it read from at the last heartbeat and what it could not, the first 200: `reads` (OpenSSL, Go, ..., plain HTTP, interface), the file or interface, the functions that are probed, "
    "how many processes map the file, and `problem`: why it is not read, null where it is",
    "probed": "How much it read from in all",
    "unprobed": "How much it could not read",
}


def _tap_columns() -> tuple[ViewColumn, ...]:
    stored = [ViewColumn(name, sql_type(kind), f't."{name}"', _TAP_COMMENTS[name]) for name, kind in TAP_COLUMNS]
    times = [
        ViewColumn(name.removesuffix("_ns"), "TIMESTAMP", f"make_timestamp(t.{name} // 1000)", f"{name} as a UTC timestamp (microseconds)")
        for name in ("started_ns", "heartbeat_ns", "stopped_ns")
    ]
    return (*stored, *times)


VIEWS: tuple[View, ...] = (
    View("exchanges", "One row per exchange with a language model", _exchange_columns(), ""),
    View(
        "messages",
        "One row per message of a request, and per choice of an answer",
        (
            *_WHICH,
            ViewColumn("side", TEXT, "e.side", "request or response"),
            ViewColumn("message_index", INT, "e.i - 1", "Place in the request, or choice of the answer, from 0"),
            ViewColumn("role", TEXT, "e.m.role", "As on the wire: system, developer, user, assistant, tool, …"),
            ViewColumn("finish_reason", TEXT, "e.m.finish_reason", "Why this choice ended"),
            ViewColumn(
                "text",
                TEXT,
                "array_to_string(list_transform(list_filter(e.m.parts, lambda p: p.type = 'text'), lambda p: p.content), '')",
                "Its text parts joined; empty for a message without text",
            ),
            ViewColumn("parts", sql_type(ListOf(PART)), "e.m.parts", "All parts in order: text, reasoning, tool_call, blob, …"),
        ),
        _MESSAGES_SOURCE,
    ),
    View(
        "tool_calls",
        "One row per call that a client is asked to run",
        (
            *_WHICH,
            ViewColumn("call_index", INT, "e.i - 1", "Place in the answer, from 0"),
            ViewColumn("call_id", TEXT, "e.x.id", "Id the server gave the call"),
            _member("name", TEXT, "Name of the tool"),
            _member("arguments", TEXT, "Arguments as text exactly as sent (usually JSON)"),
        ),
        _unnested("tool_calls"),
    ),
    View(
        "anomalies",
        "One row per kind of oddity of an exchange",
        (
            *_WHICH,
            *(_member(name, kind, {"name": "Name of the anomaly (docs/anomalies.md)", "count": "How often it was seen"}[name])
              for name, kind in ANOMALY.fields),
        ),
        _unnested("anomalies"),
    ),
    View(
        "findings",
        "One row per finding of the detectors",
        (*_WHICH, *(_member(name, kind, _FINDING_COMMENTS[name]) for name, kind in FINDING.fields)),
        _unnested("findings"),
    ),
    View(
        "deviations",
        "One row per deviation: traffic that was not as it was, or beyond a limit",
        (*_WHICH, *(_member(name, kind, _DEVIATION_COMMENTS[name]) for name, kind in DEVIATION.fields)),
        _unnested("deviations"),
    ),
    View(
        "alerts",
        "One row per rule of alerts that an exchange met",
        (*_WHICH, *(_member(name, kind, _ALERT_COMMENTS[name]) for name, kind in ALERT.fields)),
        _unnested("alerts"),
    ),
    View(TAPS, "One row per run of a tap that wrote to this store, replaced every 15 seconds while it lives", _tap_columns(), ""),
)  # fmt: skip


def literal(path: Path) -> str:
    """A path as a DuckDB glob that matches it alone."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in str(path))


def parts_pattern(root: Path) -> str:
    """The glob of all parts, with the folder's own name protected from being read as a pattern."""
    return f"{literal(root.resolve())}/exchanges/*/part-*.parquet"


def _quote(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def all_parts(root: Path) -> str:
    """The parts that are there when one asks, as the argument of read_parquet."""
    return _quote(parts_pattern(root))


def these_parts(files: Sequence[Path]) -> str:
    return f"[{', '.join(_quote(literal(path)) for path in files)}]"


def all_tap_files(root: Path) -> str:
    return _quote(f"{literal(root.resolve())}/exchanges/*/{TAP_FILES}")


def view_statements(files: str, tap_files: str | None) -> list[str]:
    """CREATE VIEW statements over files (arguments of read_parquet), to be run in order in an empty database. None: there are none."""
    parts = f"read_parquet({files}, union_by_name=true, hive_partitioning=false)"
    # One row per exchange: where an exchange was stored again, the row of the newest part counts. Repeats are found by the
    # 64-bit row_key alone: two exchanges of ten million share one with a chance of 3 in a million, and comparing ids as
    # well would double the cost of every query (docs/formats/store.md has the figures).
    # The parts are listed twice, and a merge may publish its copies in between. The list of the newest comes first, so its
    # rows are all in the second list too: a copy that only the second one has is not its newest and stays unseen for this once.
    source = f"""(SELECT row_key, max(stored_seq) AS stored_seq FROM {parts} GROUP BY row_key) newest
RIGHT JOIN {parts} r ON r.row_key = newest.row_key
WHERE newest.row_key IS NULL OR r.stored_seq = newest.stored_seq"""  # noqa: S608 - the path is quoted
    return [f"CREATE VIEW {name} AS {sql}" for name, sql in _views(source, tap_files)]


def deduplicated_views(files: str, tap_files: str | None, older: str | None, *, alike: bool) -> list[str]:
    """Statements that replace the views of `view_statements` where it is known which rows are older copies (`deduplicated`)."""
    views = _views(deduplicated(files, older, alike=alike), tap_files)
    return [f"CREATE OR REPLACE VIEW {name} AS {sql}" for name, sql in views if name in ("exchanges", TAPS)]


def narrowed_view(files: str, older: str | None, *, alike: bool) -> str:
    """A statement that has a connection of its own see these parts alone."""
    return next(
        f"CREATE OR REPLACE TEMP VIEW {name} AS {sql}"
        for name, sql in _views(deduplicated(files, older, alike=alike), None)
        if name == "exchanges"
    )


def deduplicated(files: str, older: str | None, *, alike: bool) -> str:
    """A FROM clause. `older`: a table with row_key and stored_seq of each older copy; None: there are none. `alike`: all parts have the same columns, so
    none but those in question is opened to look.
    """
    parts = f"read_parquet({files}, union_by_name={str(not alike).lower()}, hive_partitioning=false) r"
    return f"{parts} ANTI JOIN {older} o ON r.row_key = o.row_key AND r.stored_seq = o.stored_seq" if older else parts


def _views(source: str, tap_files: str | None) -> list[tuple[str, str]]:
    """Names and their SELECT; `source` is the FROM clause of exchanges."""
    none = ", ".join(f'NULL::{sql_type(kind)} AS "{name}"' for name, kind in TAP_COLUMNS)
    taps = (
        f"(SELECT {none} LIMIT 0) t" if tap_files is None else f"read_parquet({tap_files}, union_by_name=true, hive_partitioning=false) t"
    )
    sources = {"exchanges": source, TAPS: taps}
    made = []
    for view in VIEWS:
        columns = ",\n  ".join(f'{column.sql} AS "{column.name}"' for column in view.columns)
        made.append((view.name, f"SELECT\n  {columns}\nFROM {view.source or sources[view.name]}"))
    return made


def comment_statements() -> list[str]:
    statements = []
    for view in VIEWS:
        statements.append(f"COMMENT ON VIEW {view.name} IS {_quote(view.comment)}")
        statements += [f'COMMENT ON COLUMN {view.name}."{column.name}" IS {_quote(column.comment)}' for column in view.columns]
    return statements


def create_views(connection: duckdb.DuckDBPyConnection, files: str, tap_files: str | None) -> None:
    for statement in (*view_statements(files, tap_files), *comment_statements()):
        connection.execute(statement)


def layout() -> str:
    """Changes whenever a stored column or a view does; a store made with another one gets its views anew."""
    text = "\n".join(
        (
            *view_statements(all_parts(Path("/")), all_tap_files(Path("/"))),
            *comment_statements(),
            *(f"{name} {sql_type(kind)}" for name, kind in STORED_COLUMNS),
        )
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_database(root: Path) -> None:
    """Write `llmsec.duckdb` anew and put it in place by rename: never opens the old one, so a reader's lock is no obstacle."""
    import duckdb  # noqa: PLC0415

    target = root / DATABASE_NAME
    try:
        # Made elsewhere: DuckDB reads a question mark in the path of a database as the start of options.
        with tempfile.TemporaryDirectory(prefix="llmsec-views-") as scratch:
            fresh = Path(scratch) / DATABASE_NAME
            connection = duckdb.connect(str(fresh), config={"threads": 1})
            try:
                create_views(connection, all_parts(root), all_tap_files(root))
            finally:
                connection.close()
            with publishing(target) as descriptor:
                write_all(descriptor, fresh.read_bytes())
    except OSError as fault:
        raise storage_error("cannot write", target, fault) from None
    except duckdb.Error as fault:
        raise StorageError(f"cannot write {target}: {str(fault).splitlines()[0]}", "check free space", retryable=True) from None


def write_database_apart(root: Path) -> None:
    """`write_database` in a process of its own: DuckDB adds 45 MB to a writer that never needs it again."""
    if "duckdb" in sys.modules:
        write_database(root)
        return
    package_folder = str(Path(__file__).parents[2])
    done = subprocess.run(  # noqa: S603 - this interpreter, our own module
        [sys.executable, "-P", "-c", _APART, package_folder, str(root)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        message, _, hint = (done.stderr.strip().rpartition("\n")[2] or "the process that writes it failed").partition("\t")
        raise StorageError(message, hint or "try again")


_APART = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from llmsec_tap.errors import StorageError
from llmsec_tap.storage.views import write_database
try:
    write_database(Path(sys.argv[2]))
except StorageError as fault:
    sys.exit(f"{fault}\\t{fault.hint}")
"""
