"""The whole configuration file as one tree of frozen types: every key, its default, unit and range, and what it does.

docs/configuration.md is generated from this. A key with `instead` is the original design's for a proxy in the request path: it is
taken, and a note says what a passive tap does in its place. One with `later` is checked and does nothing in this version.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from llmsec_agent.config.channels import ChannelName, Channels
from llmsec_agent.config.secret import Secret
from llmsec_analyzer.settings import DetectionSettings, Profile
from llmsec_analyzer.typed_files import key
from llmsec_tap import limits

Port = Annotated[int, key(at_least=1, at_most=65_535)]
Name = Annotated[str, key(filled=True)]


# --- capture ----------------------------------------------------------------------------------------------------------------


class Capture(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    pids: Annotated[tuple[Annotated[int, key(at_least=1)], ...], key("processes to observe")] = ()
    comms: Annotated[tuple[Name, ...], key("processes of these names (/proc/PID/comm), also later ones")] = ()
    containers: Annotated[tuple[Name, ...], key("processes of these containers; the id's first digits do")] = ()
    labels: Annotated[dict[str, str], key("processes of pods on this node that have all of these labels")] = {}
    all: Annotated[bool, key("every process, also later ones")] = False
    plain: Annotated[
        bool | Literal["auto"], key("plain HTTP of the chosen processes, too (Linux 6.3 and later); auto: unless interfaces are read")
    ] = "auto"
    interfaces: Annotated[tuple[Name, ...], key("read plain HTTP from these interfaces (lo, eth0, any)")] = ()
    ports: Annotated[tuple[Port, ...], key("of interfaces: only these TCP ports; empty: any")] = ()
    follow_children: Annotated[bool, key("observe what a process of `pids` forks, too")] = True
    backend: Annotated[Literal["auto", "core", "bcc"], key("which eBPF loader; auto takes core, then bcc, and says why")] = "auto"
    fast_probes: Annotated[bool | Literal["auto"], key("probe libssl's internal functions where that is sure, at a third of the cost")] = (
        "auto"
    )
    offsets_file: Annotated[
        str | None,
        key("TOML with the places of TLS functions in stripped programs, by build id (docs/capture.md)", filled=True),
    ] = None
    ring_size: Annotated[
        int,
        key(
            "buffer between kernel and tap, shared out over the decoders; a power of two",
            unit="size",
            at_least=4 * limits.KIB,
            at_most=1024 * limits.MIB,
        ),
    ] = limits.RING_BYTES
    memory_cap: Annotated[
        int, key("resident memory of all decoders at most; detection processes are apart", unit="size", at_least=192 * limits.MIB)
    ] = limits.MEMORY_CAP_BYTES
    user: Annotated[
        str | None,
        key(
            "account that decodes when started as root; none: the caller of sudo, `llmsec`, or a number of its own",
            env="LLMSEC_USER",
            filled=True,
        ),
    ] = None
    decoders: Annotated[
        int | Literal["auto"],
        key("processes that decode; auto: one for four CPUs, four at most, each with 256MiB of memory_cap", at_least=1, at_most=16),
    ] = "auto"
    node: Annotated[str | None, key("name of this host; none: NODE_NAME, or its host name", filled=True)] = None


# --- storage ----------------------------------------------------------------------------------------------------------------


class ClassBounds(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    days: Annotated[float | None, key("delete what is older; none: keep", above=0)] = None
    bytes: Annotated[int | None, key("delete the oldest beyond this size; none: no bound", unit="size", at_least=limits.MIB)] = None


class ClassDays(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    days: Annotated[float | None, key("delete what is older; none: keep", above=0)] = None


class TenantRetention(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    content: Annotated[ClassDays, key("texts; counts, names and times stay")] = ClassDays()
    metadata: Annotated[ClassDays, key("whole records; one with findings stays without its texts until those may go")] = ClassDays()
    findings: Annotated[ClassDays, key("findings; scores stay")] = ClassDays()


class Retention(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    days: Annotated[float | None, key("delete what is older; none: keep", above=0)] = None
    bytes: Annotated[int | None, key("delete the oldest beyond this size; none: no bound", unit="size", at_least=limits.MIB)] = None
    content: Annotated[ClassBounds, key("texts; counts, names and times stay. `bytes`: of the parts that have texts")] = ClassBounds()
    metadata: Annotated[ClassDays, key("whole records; one with findings stays without its texts until those may go")] = ClassDays()
    findings: Annotated[ClassDays, key("findings; scores stay")] = ClassDays()
    alerts: Annotated[
        ClassDays, key("what is to be sent to whom, and what was, whole files of it; an alert on its exchanges goes with them")
    ] = ClassDays()
    audit: Annotated[ClassBounds, key("the audit log, whole files of it; what is left still proves itself")] = ClassBounds()
    tenants: Annotated[dict[str, TenantRetention], key("by tenant, instead of content, metadata and findings above")] = {}


class Audit(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    findings: Annotated[
        Literal["info", "low", "medium", "high", "critical", "none"],
        key("least severity of findings that the audit log has; none: no findings"),
    ] = "high"


class TTL(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    metadata_days: Annotated[float | None, key("whole rows; none: keep", above=0)] = None
    content_days: Annotated[float | None, key("their texts, while counts and times stay; none: with the row", above=0)] = None
    findings_days: Annotated[float | None, key("their findings; none: with the row", above=0)] = None


_ONE_CONNECTION = "a host delivers over one connection: it writes one batch after the other"


class ClickHouse(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    nodes: Annotated[tuple[Name, ...], key("`host:port`, the first that answers is used", env="LLMSEC_CLICKHOUSE_NODES", filled=True)]
    database: Annotated[str, key("database", filled=True)] = "llmsec_traces"
    username: Annotated[str, key("user", filled=True)] = "llmsec"
    password: Annotated[Secret | None, key("its password: `env:NAME` or `file:/path`")] = None
    max_connections: Annotated[int, key("connections at once", at_least=1, instead=_ONE_CONNECTION)] = 100
    connection_timeout: Annotated[float, key("until a connection counts as failed", unit="duration", above=0)] = 30.0
    query_timeout: Annotated[float, key("until a statement counts as failed", unit="duration", above=0)] = 60.0
    batch_size: Annotated[int, key("rows a batch", at_least=1)] = 10_000
    flush_interval: Annotated[float, key("a batch is sent after so long", unit="duration", above=0)] = 5.0
    max_batch_delay: Annotated[float, key("a row waits so long at most", unit="duration", above=0)] = 10.0
    max_buffer_size: Annotated[
        int | None,
        key(
            "what may wait in the folder while the database is away; beyond it the oldest parts are declared lost; none: as `retention.bytes` has it",
            unit="size",
            at_least=limits.MIB,
        ),
    ] = None
    cluster: Annotated[
        str | None, key("name of the cluster on the server, for replicated and distributed tables; none: tables of one server", filled=True)
    ] = None
    ttl: Annotated[TTL, key("what the server deletes, and when; `llmsec-analyze db migrate` tells it")] = TTL()


_ONE_QUESTION = "one process asks for all keys at once, over one connection"


class Postgres(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    host: Annotated[
        str, key("host; of several, with commas between them, the first that answers: a primary, then its replicas", filled=True)
    ] = "postgres-primary"
    port: Annotated[int, key("port", at_least=1, at_most=65_535)] = 5432
    database: Annotated[str, key("database", filled=True)] = "llmsec_metadata"
    username: Annotated[str, key("user", filled=True)] = "llmsec"
    password: Annotated[Secret | None, key("its password: `env:NAME` or `file:/path`")] = None
    max_connections: Annotated[int, key("connections at once", at_least=1, instead=_ONE_QUESTION)] = 50
    min_connections: Annotated[int, key("connections kept open", at_least=0, instead=_ONE_QUESTION)] = 10
    connection_timeout: Annotated[float, key("until a connection counts as failed", unit="duration", above=0)] = 30.0


class Redis(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    mode: Annotated[Literal["standalone", "sentinel", "cluster"], key("how its nodes belong together")] = "standalone"
    nodes: Annotated[tuple[Name, ...], key("`host:port`", filled=True)] = ("localhost:6379",)
    master: Annotated[str, key("of sentinel: how it calls the primary", filled=True)] = "mymaster"
    tls: Annotated[bool, key("connect over TLS")] = False
    password: Annotated[Secret | None, key("its password: `env:NAME` or `file:/path`")] = None
    default_ttl: Annotated[float, key("until an entry expires", unit="duration", above=0)] = 300.0
    max_memory_usage: Annotated[
        int,
        key(
            "memory that the cache may take",
            unit="size",
            at_least=limits.MIB,
            instead="the server bounds its own memory (maxmemory); entries here are some 200 bytes a key and expire after `default_ttl`",
        ),
    ] = 2_000_000_000


class Storage(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    path: Annotated[str, key("folder of the store; `none` keeps nothing", env="LLMSEC_STORE", filled=True, address=True)] = (
        "/var/lib/llmsec-trace"
    )
    content: Annotated[Literal["full", "redacted", "none"], key("texts as sent, with secrets and personal data masked, or left out")] = (
        "full"
    )
    flush_interval: Annotated[float, key("a record is on the disk after so long", unit="duration", above=0)] = 5.0
    retention: Annotated[Retention, key("what is deleted, and when")] = Retention()
    audit: Annotated[Audit, key("the store's audit log (docs/formats/store.md)")] = Audit()
    clickhouse: Annotated[ClickHouse | None, key("a ClickHouse database that the folder's records are delivered to")] = None
    postgres: Annotated[Postgres | None, key("a database of tenants and their keys (docs/tenants.md)")] = None
    redis: Annotated[Redis | None, key("a cache before it that hosts share")] = None


# --- server and observability -----------------------------------------------------------------------------------------------


class TLS(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    enabled: Annotated[bool, key("serve HTTPS")] = False
    cert_file: Annotated[str | None, key("certificate chain, PEM", filled=True)] = None
    key_file: Annotated[str | None, key("its key, PEM", filled=True)] = None
    client_auth: Annotated[Literal["none", "optional", "required"], key("whether clients show a certificate")] = "none"
    client_ca_file: Annotated[str | None, key("who signs clients' certificates, PEM; none: whom the system trusts", filled=True)] = None


_BODIES = f"a tap refuses nothing by size: it reads bodies up to {limits.MAX_BODY_BYTES >> 20} MiB and marks longer ones truncated"
_HEADS = f"a tap refuses nothing by size: it reads heads up to {limits.MAX_HEAD_BYTES >> 20} MiB, so that none slips by unread"
_CONNECTIONS = f"a tap accepts no connections: it follows up to {limits.MAX_CONNECTIONS:,} within `capture.memory_cap`"
_NO_TIMEOUT = "a tap ends no connection: it follows each until its peers close it, and forgets one that is silent for an hour"


class Server(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    bind_address: Annotated[
        str, key("where the agent serves /health and /ready, `host:port`; none: nowhere", env="LLMSEC_BIND_ADDRESS", filled=True)
    ] = "127.0.0.1:8080"
    tls: Annotated[TLS, key("TLS of /health, /ready and /metrics")] = TLS()
    max_connections: Annotated[int, key("connections to forward", at_least=1, instead=_CONNECTIONS)] = 10_000
    keep_alive_timeout: Annotated[float, key("idle connections", unit="duration", above=0, instead=_NO_TIMEOUT)] = 30.0
    read_timeout: Annotated[float, key("slow requests", unit="duration", above=0, instead=_NO_TIMEOUT)] = 60.0
    write_timeout: Annotated[float, key("slow answers", unit="duration", above=0, instead=_NO_TIMEOUT)] = 60.0
    max_request_size: Annotated[int, key("larger requests", unit="size", at_least=1, instead=_BODIES)] = 50_000_000
    max_header_size: Annotated[int, key("larger headers", unit="size", at_least=1, instead=_HEADS)] = 8_000


Headers = Annotated[dict[str, Secret], key("headers of each request, whose values are secrets: `env:NAME` or `file:/path`")]
CAFile = Annotated[str | None, key("who signs the collector's certificate, PEM; none: whom the system trusts", filled=True)]


class OTLPMetrics(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    endpoint: Annotated[str, key("collector that takes metrics", filled=True, address=True)] = "http://localhost:4318/v1/metrics"
    protocol: Annotated[Literal["http", "grpc"], key("OTLP over HTTP (usually port 4318) or gRPC (4317)")] = "http"
    interval: Annotated[float, key("between two exports", unit="duration", at_least=1)] = 15.0
    headers: Headers = {}
    ca_file: CAFile = None


Label = Literal[
    "tenant_id", "backend", "model", "operation", "api", "status", "error_type", "streaming", "node", "namespace", "process", "capture_kind"
]


class CustomMetric(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    name: Annotated[str, key("name of the metric; one of /metrics' own for traffic takes these labels and buckets instead", filled=True)]
    type: Annotated[Literal["counter", "histogram"], key("its type")]
    measures: Annotated[
        Literal[
            "requests", "errors", "findings", "deviations", "cost_usd", "duration", "ttft", "input_tokens", "output_tokens", "risk_score"
        ]
        | None,
        key("what it counts, or observes of each exchange (times in seconds); none: requests for a counter, the duration for a histogram"),
    ] = None
    labels: Annotated[tuple[Label, ...], key("its labels; of each the first hundred values, and two thousand series in all")] = ()
    buckets: Annotated[tuple[float, ...], key("upper bounds of a histogram's buckets; empty: 10 ms to 10 s")] = ()


class Metrics(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    enabled: Annotated[bool, key("serve /metrics")] = True
    address: Annotated[str, key("where to serve it; 0.0.0.0: on every interface", filled=True)] = "127.0.0.1"
    port: Annotated[int, key("port", at_least=1, at_most=65_535)] = 9090
    path: Annotated[str, key("path", filled=True)] = "/metrics"
    custom_metrics: Annotated[tuple[CustomMetric, ...], key("metrics with labels of your choice")] = ()
    otlp: Annotated[
        OTLPMetrics | None, key("OpenTelemetry's GenAI metrics to a collector, also where /metrics is switched off (docs/telemetry.md)")
    ] = None


class Sampling(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    default_rate: Annotated[
        float,
        key("share of exchanges; those with findings or deviations are sent always", env="LLMSEC_SAMPLING_RATE", at_least=0, at_most=1),
    ] = 0.1
    error_rate: Annotated[float, key("share of those that failed", at_least=0, at_most=1)] = 1.0


class Tracing(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    enabled: Annotated[bool, key("send traces")] = False
    endpoint: Annotated[
        str, key("collector that takes spans; Jaeger does on port 4318", env="LLMSEC_TRACING_ENDPOINT", filled=True, address=True)
    ] = "http://localhost:4318/v1/traces"
    protocol: Annotated[Literal["http", "grpc"], key("OTLP over HTTP (usually port 4318) or gRPC (4317)")] = "http"
    headers: Headers = {}
    ca_file: CAFile = None
    service_name: Annotated[str, key("name of the service on traces", env="LLMSEC_SERVICE_NAME", filled=True)] = "llmsec-trace"
    batch_size: Annotated[int, key("traces a request", env="LLMSEC_BATCH_SIZE", at_least=1)] = 100
    flush_interval: Annotated[float, key("a trace is sent after so long", unit="duration", env="LLMSEC_FLUSH_INTERVAL", above=0)] = 5.0
    max_queue_size: Annotated[
        int, key("exchanges that may wait while the collector is away; beyond it the oldest are counted and not sent", at_least=1)
    ] = 100_000
    content: Annotated[bool, key("also send the texts that the store has: prompts, answers, tools")] = False
    sampling: Annotated[Sampling, key("which traces are sent; the store keeps all")] = Sampling()


class Logging(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    level: Annotated[
        Literal["debug", "info", "warn", "error"], key("least level that is written; LLMSEC_DEBUG=true is debug", words={"warning": "warn"})
    ] = "info"
    format: Annotated[Literal["text", "json"], key("lines for people, or JSON lines")] = "text"
    output: Annotated[
        Literal["stderr", "stdout"], key("always stderr", instead="standard output holds records: what is logged goes to standard error")
    ] = "stderr"
    include_fields: Annotated[tuple[Name, ...], key("facts that JSON lines have besides time, level and event; empty: all")] = ()


class Observability(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    metrics: Annotated[Metrics, key("Prometheus metrics of the agent")] = Metrics()
    tracing: Annotated[Tracing, key("a span for each exchange, to a collector (docs/telemetry.md)")] = Tracing()
    logging: Annotated[Logging, key("what the agent writes to standard error")] = Logging()


# --- tenants, backends, routing ---------------------------------------------------------------------------------------------


class TenantMatch(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Whose requests; all that is given must hold, nothing at all holds for every request."""

    api_key_prefix: Annotated[str | None, key("first characters of the client's key", filled=True)] = None
    model: Annotated[str | None, key("requested model; here and below * and ? stand for any characters", filled=True)] = None
    tenant_id: Annotated[str | None, key("tenant by header", filled=True)] = None
    api_key_fingerprint: Annotated[str | None, key("the client's key, as `llmsec-analyze tenants fingerprint` prints it", filled=True)] = (
        None
    )
    access_key_id: Annotated[str | None, key("AWS access key id of a signed request (SigV4)", filled=True)] = None
    deployment: Annotated[str | None, key("Azure's deployment", filled=True)] = None
    headers: Annotated[dict[str, str], key("request headers and what they say")] = {}
    process: Annotated[str | None, key("name or path of the observed process", filled=True)] = None
    pod: Annotated[str | None, key("its pod", filled=True)] = None
    namespace: Annotated[str | None, key("namespace of its pod", filled=True)] = None
    path: Annotated[str | None, key("path of the request, without its query", filled=True)] = None


class RequestRate(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    requests_per_minute: Annotated[int, key("requests a minute", at_least=1)]


class TenantRule(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    match: Annotated[TenantMatch, key("whose requests; the first rule that matches counts")] = TenantMatch()
    tenant: Annotated[str, key("name of the tenant", filled=True)]
    plan: Annotated[str | None, key("plan of the tenant, shown by `llmsec-analyze tenants`", filled=True)] = None
    rate_limit: Annotated[RequestRate | None, key("rate to report on")] = None
    content: Annotated[
        Literal["full", "redacted", "none"] | None,
        key(
            "texts of this tenant: as `storage.content` says, with secrets and personal data masked, or never; the strictest of its rules counts"
        ),
    ] = None
    profile: Annotated[Profile | None, key("how much is found in its exchanges; none: `security.profile`")] = None
    confidence_threshold: Annotated[
        float | None,
        key("score from which its texts count as injection; none: as for all", at_least=0, at_most=1),
    ] = None
    alert_threshold: Annotated[
        Literal["info", "low", "medium", "high", "critical"] | None,
        key("least severity that alerts for this tenant, besides `alerting.rules`"),
    ] = None


class Tenants(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    default: Annotated[str | None, key("tenant of all that no rule names", env="LLMSEC_TENANT_ID", filled=True)] = None
    header: Annotated[
        str, key("request header that names the tenant; read where this section or LLMSEC_TENANT_ID is given", filled=True)
    ] = "x-tenant-id"
    end_users_in_clear: Annotated[bool, key("keep `end_user` as the client names it; else a keyed fingerprint")] = False
    rules: Annotated[
        tuple[TenantRule, ...],
        key(
            "who is which tenant; the first that matches counts, then `storage.postgres`, the header, `default`, and a name made of the key's fingerprint"
        ),
    ] = ()
    unresolved_content: Annotated[
        Literal["full", "redacted", "none"],
        key("texts of exchanges whose tenant `storage.postgres` had not told in time (tenant_unresolved)"),
    ] = "full"
    watch_keys: Annotated[bool, key("say where a key is used by a new workload, or by several; only where the file has this section")] = (
        True
    )


_NO_CHOICE = "a tap chooses no upstream: it records which one served each exchange"


class HealthCheck(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    path: Annotated[str, key("path", filled=True)] = "/health"
    interval: Annotated[float, key("between checks", unit="duration", above=0)] = 10.0
    timeout: Annotated[float, key("until a check failed", unit="duration", above=0)] = 5.0
    retries: Annotated[int, key("failures in a row", at_least=0)] = 3


class LoadBalancer(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    algorithm: Annotated[Literal["weighted_round_robin", "round_robin"], key("order of endpoints")] = "round_robin"
    health_check: Annotated[
        HealthCheck | None,
        key("checks of endpoints", instead="a tap sends nothing to upstreams: it sees their answers, errors and silence"),
    ] = None


class Endpoint(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    url: Annotated[str, key("address of the upstream", filled=True, address=True)]
    weight: Annotated[int | None, key("share of requests", at_least=0, instead=_NO_CHOICE)] = None


class ConnectionPool(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    max_idle: Annotated[int, key("idle connections", at_least=0)] = 100
    max_active: Annotated[int, key("connections at once", at_least=1)] = 1000
    idle_timeout: Annotated[float, key("until an idle one is closed", unit="duration", above=0)] = 300.0


class RetryPolicy(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    max_attempts: Annotated[int, key("attempts", at_least=1)] = 3
    backoff_strategy: Annotated[Literal["exponential", "linear", "fixed"], key("growth of the delay")] = "exponential"
    base_delay: Annotated[float, key("first delay", unit="duration", at_least=0)] = 0.1
    max_delay: Annotated[float, key("longest delay", unit="duration", at_least=0)] = 5.0
    retry_on: Annotated[tuple[Name, ...], key("what is tried again")] = ("connection_error", "timeout", "5xx_status")


class CircuitBreaker(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    failure_threshold: Annotated[int, key("failures that open it", at_least=1)] = 10
    success_threshold: Annotated[int, key("successes that close it", at_least=1)] = 3
    recovery_timeout: Annotated[float, key("until it is tried again", unit="duration", above=0)] = 30.0
    half_open_max_calls: Annotated[int, key("calls that try it", at_least=1)] = 3


class UpstreamRate(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    requests_per_minute: Annotated[int | None, key("requests a minute", at_least=1)] = None
    tokens_per_minute: Annotated[int | None, key("tokens a minute", at_least=1)] = None


class Backend(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    type: Annotated[Literal["vllm", "sglang", "tgi", "ollama", "openai", "anthropic", "azure_openai", "aws_bedrock"], key("what it speaks")]
    base_url: Annotated[str | None, key("its address", filled=True, address=True)] = None
    endpoints: Annotated[tuple[Endpoint, ...], key("its addresses, where there are several")] = ()
    resource_name: Annotated[str | None, key("of azure_openai: the resource", filled=True)] = None
    region: Annotated[str | None, key("of aws_bedrock: the region", filled=True)] = None
    api_version: Annotated[str | None, key("of azure_openai: version of the API", filled=True)] = None
    deployments: Annotated[dict[str, str], key("of azure_openai: model to deployment")] = {}
    rate_limiting: Annotated[UpstreamRate | None, key("what the upstream allows")] = None
    timeout: Annotated[
        float | None,
        key("until a request failed", unit="duration", above=0, instead="a tap gives up no request: it records how long each took"),
    ] = None
    load_balancer: Annotated[LoadBalancer | None, key("choice of endpoint", instead=_NO_CHOICE)] = None
    connection_pool: Annotated[
        ConnectionPool | None, key("connections kept", instead="a tap opens no connections: it counts those of the observed processes")
    ] = None
    retry_policy: Annotated[
        RetryPolicy | None, key("failed requests", instead="a tap sends nothing again: each attempt that a client makes is an exchange")
    ] = None
    circuit_breaker: Annotated[
        CircuitBreaker | None,
        key("failing upstreams", instead="a tap cannot hold back requests: failures are on the exchanges, as status and error_type"),
    ] = None


class RoutingRule(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    match: Annotated[TenantMatch, key("which requests")] = TenantMatch()
    backend: Annotated[str, key("name of a backend", filled=True, instead=_NO_CHOICE)]
    rate_limit: Annotated[RequestRate | None, key("rate to report on")] = None


class Routing(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    default_backend: Annotated[str | None, key("backend of all else", filled=True, instead=_NO_CHOICE)] = None
    rules: Annotated[tuple[RoutingRule, ...], key("which requests go where")] = ()


# --- alerting ---------------------------------------------------------------------------------------------------------------


class AlertRule(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    name: Annotated[str, key("name of the rule", filled=True)]
    condition: Annotated[str, key("such as `security_score > 90`; docs/alerts.md has its language and fields", filled=True)]
    channels: Annotated[tuple[ChannelName, ...], key("where it goes", filled=True)]
    priority: Annotated[Literal["low", "medium", "high", "critical"], key("how urgent it is")] = "medium"
    dedup: Annotated[
        tuple[Name, ...] | None,
        key("fields whose values make two alerts of the rule one; none: `tenant`, or `server` where it is about an upstream's health"),
    ] = None
    window: Annotated[
        float, key("what is the same is counted so long, and told once; a state is over after so long", unit="duration", above=0)
    ] = 600.0
    max_per_minute: Annotated[int, key("alerts at most; one more message says how many were left out", at_least=1)] = 10
    for_tenants: Annotated[tuple[Name, ...], key("only exchanges of these tenants; * and ? are wildcards; empty: of all")] = ()


class Alerting(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    channels: Annotated[Channels, key("where alerts can go")] = Channels()
    rules: Annotated[tuple[AlertRule, ...], key("what alerts")] = ()
    tenant_channels: Annotated[
        dict[str, tuple[Name, ...]],
        key("channels for alerts of these tenants (* and ? are wildcards) in place of the rule's; the first counts"),
    ] = {}
    content: Annotated[bool, key("alerts carry redacted previews of what was found; else no text of an exchange")] = False


# --- the file ---------------------------------------------------------------------------------------------------------------


class SDK(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    socket: Annotated[
        str | None, key("Unix socket that takes their records, such as /run/llmsec/sdk.sock; none: there is none", filled=True)
    ] = None
    mode: Annotated[str, key("who may write to it, as chmod has it: 0660 its group, 0666 every process of the host")] = "0660"
    group: Annotated[str | None, key("the socket's group; none: the agent's own", filled=True)] = None


class Config(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The whole file. What is not given has its default."""

    capture: Annotated[Capture, key("what `llmsec-tap agent` observes")] = Capture()
    storage: Annotated[Storage, key("where records are kept")] = Storage()
    security: Annotated[DetectionSettings, key("what is looked for in texts (docs/detection.md)")] = DetectionSettings()
    alerting: Annotated[Alerting, key("who is told of what (docs/alerts.md, docs/alerts-channels.md)")] = Alerting()
    observability: Annotated[Observability, key("metrics, traces and logs of the agent itself")] = Observability()
    server: Annotated[Server, key("the agent's own listener")] = Server()
    sdk: Annotated[SDK, key("applications that record themselves (docs/sdk.md)")] = SDK()
    tenants: Annotated[Tenants, key("who is which tenant")] = Tenants()
    routing: Annotated[Routing, key("the original design's rules for requests", later="its matches name no tenants")] = Routing()
    backends: Annotated[
        dict[str, Backend],
        key("upstreams by name; what `rate_limiting` allows is compared with the traffic, the rest is not needed"),
    ] = {}
