"""What types do not say: keys that go together, and what of a file does less than it seems to."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from llmsec_agent.config.channels import CHANNELS, REQUIRED, Channels
from llmsec_agent.config.custom import problems
from llmsec_agent.config.endpoints import Signal, endpoint_url
from llmsec_agent.config.names import secret_keys
from llmsec_agent.config.schema import Config, OTLPMetrics, Tracing
from llmsec_agent.config.secret import Secret
from llmsec_analyzer.typed_files import Problem, nearest
from llmsec_analyzer.yaml_files import Where

_ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:.%a-z]+\]|[A-Za-z0-9_.-]*):([0-9]{1,5})")
_MODE = re.compile(r"0?[0-7]{3}")
# sun_path of unix(7), with its end.
_MAX_SOCKET_PATH_BYTES = 107
_RULE_NAME = re.compile(r"[\w.-]{1,64}", re.ASCII)
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")
_MAIL = re.compile(r"[^@\s\x00-\x1f\x7f<>,;]{1,64}@[^@\s\x00-\x1f\x7f<>,;]{1,255}")
_LATER = "not in this version yet: "

Found = Sequence[tuple[Where, Where, Mapping[str, Any], str]]


def check_together(config: Config) -> Iterator[Problem]:
    """Faults between keys, each at the key that is to be changed."""
    yield from _capture(config)
    yield from _listeners(config)
    yield from _sdk(config)
    yield from _stores(config)
    yield from _backends(config)
    yield from _alerts(config)
    yield from _collectors(config)
    yield from _metrics(config)


def _capture(config: Config) -> Iterator[Problem]:
    if config.capture.ring_size & (config.capture.ring_size - 1):
        yield Problem(("capture", "ring_size"), "must be a power of two", "for example 16MiB")


def _sdk(config: Config) -> Iterator[Problem]:
    sdk = config.sdk
    if sdk.socket is not None and not (sdk.socket.startswith("/") and len(sdk.socket.encode()) <= _MAX_SOCKET_PATH_BYTES):
        yield Problem(
            ("sdk", "socket"), f"must be a path from / on, of {_MAX_SOCKET_PATH_BYTES} bytes at most", "for example /run/llmsec/sdk.sock"
        )
    if not _MODE.fullmatch(sdk.mode):
        yield Problem(("sdk", "mode"), "must be three octal digits, quoted", 'for example "0660"')


def _listeners(config: Config) -> Iterator[Problem]:
    server = config.server
    found = _ADDRESS.fullmatch(server.bind_address)
    if server.bind_address == "none":
        pass
    elif found is None or not 0 < int(found[1]) <= 65_535:
        yield Problem(("server", "bind_address"), "must be host:port, or none", "for example 127.0.0.1:8080")
    elif config.observability.metrics.enabled and int(found[1]) == config.observability.metrics.port:
        yield Problem(("observability", "metrics", "port"), "must not be the port of server.bind_address", "health is served there")
    if server.tls.enabled:
        for name in ("cert_file", "key_file"):
            if getattr(server.tls, name) is None:
                yield Problem(("server", "tls"), f"the key `{name}` is required where TLS is enabled")
    else:  # whoever gives one of these believes that HTTPS is served
        for name in ("cert_file", "key_file", "client_auth", "client_ca_file"):
            if getattr(server.tls, name) not in (None, "none"):
                yield Problem(("server", "tls", name), "is given, but server.tls.enabled is false", "set enabled: true, or leave it out")
    if not config.observability.metrics.path.startswith("/"):
        yield Problem(("observability", "metrics", "path"), "must begin with /")


def _stores(config: Config) -> Iterator[Problem]:
    for name, store in (("clickhouse", config.storage.clickhouse), ("redis", config.storage.redis)):
        for number, node in enumerate(store.nodes if store is not None else ()):
            found = _ADDRESS.fullmatch(node)
            if found is None or not 0 < int(found[1]) <= 65_535:
                yield Problem(("storage", name, "nodes", number), "must be host:port")
    postgres = config.storage.postgres
    if postgres is not None and postgres.min_connections > postgres.max_connections:
        yield Problem(("storage", "postgres", "min_connections"), "must not be more than max_connections")


def _backends(config: Config) -> Iterator[Problem]:
    for name, backend in config.backends.items():
        hosted = (backend.type == "azure_openai" and backend.resource_name) or backend.type == "aws_bedrock"
        if backend.base_url is None and not backend.endpoints and not hosted:
            yield Problem(("backends", name), "needs base_url or endpoints")
    wanted: list[tuple[Where, str]] = [(("routing", "rules", n, "backend"), rule.backend) for n, rule in enumerate(config.routing.rules)]
    if config.routing.default_backend is not None:
        wanted.append((("routing", "default_backend"), config.routing.default_backend))
    for where, name in wanted:
        if config.backends and name not in config.backends:
            yield Problem(where, "there is no backend of this name", nearest(name, list(config.backends)))


def _alerts(config: Config) -> Iterator[Problem]:
    channels = config.alerting.channels
    yield from _channels(channels)
    for number, rule in enumerate(config.alerting.rules):
        for at, channel in enumerate(rule.channels):
            if getattr(channels, channel) is None:
                yield Problem(("alerting", "rules", number, "channels", at), f"alerting.channels.{channel} is not given")
    names = [rule.name for rule in config.alerting.rules]
    for number, name in enumerate(names):
        if name in names[:number]:
            yield Problem(("alerting", "rules", number, "name"), "another rule has this name")
    for tenant, chosen in config.alerting.tenant_channels.items():
        for at, name in enumerate(chosen):
            if getattr(channels, name, None) is None:
                yield Problem(("alerting", "tenant_channels", tenant, at), "is no channel of alerting.channels")
    if config.alerting.rules:
        yield from _conditions(config)


def _conditions(config: Config) -> Iterator[Problem]:
    # RE2 is loaded where there are conditions.
    from llmsec_analyzer.alerts.rules import KEY_FIELDS, THRESHOLD_RULE, compile_condition
    from llmsec_analyzer.expressions import ExpressionError

    for number, rule in enumerate(config.alerting.rules):
        where: Where = ("alerting", "rules", number)
        try:
            compile_condition(rule.condition)
        except ExpressionError as fault:
            yield Problem((*where, "condition"), str(fault), fault.hint)
        for at, name in enumerate(rule.dedup or ()):
            if name not in KEY_FIELDS:
                yield Problem((*where, "dedup", at), "alerts cannot be told apart by this", nearest(name, KEY_FIELDS))
        if rule.name == THRESHOLD_RULE:
            yield Problem((*where, "name"), "is the name of the rule behind tenants.rules[].alert_threshold", "choose another")
        elif _RULE_NAME.fullmatch(rule.name) is None:
            yield Problem((*where, "name"), "must be of letters, digits, . _ - and at most 64 of them", "it is a label of a metric")


def _collectors(config: Config) -> Iterator[Problem]:
    tracing, metrics = config.observability.tracing, config.observability.metrics.otlp
    found: list[tuple[Where, Tracing | OTLPMetrics, Signal]] = [(("observability", "tracing"), tracing, "traces")]
    if metrics is not None:
        found.append((("observability", "metrics", "otlp"), metrics, "metrics"))
    for where, settings, signal in found:
        try:
            endpoint_url(settings.endpoint, settings.protocol, signal)
        except ValueError as fault:
            yield Problem(
                (*where, "endpoint"), str(fault), "for example http://collector:4318, or with protocol: grpc http://collector:4317"
            )
        for name in settings.headers:
            if not _HEADER.fullmatch(name):
                yield Problem((*where, "headers"), "one of the names is no name of a header", "letters, digits and -")


def _metrics(config: Config) -> Iterator[Problem]:
    for number, name, text, hint in problems(config.observability.metrics.custom_metrics):
        yield Problem(("observability", "metrics", "custom_metrics", number, name), text, hint)


def _channels(channels: Channels) -> Iterator[Problem]:
    for name in CHANNELS:
        settings = getattr(channels, name)
        where = ("alerting", "channels", name)
        if settings is None:
            continue
        needed = REQUIRED.get(name)
        if needed is not None and getattr(settings, needed) is None:
            yield Problem(where, f"the key `{needed}` is required", f"{needed}_file: /path, or {needed}: env:NAME")
        url = getattr(settings, "url", None)
        if isinstance(url, str) and (fault := fault_of(url)):
            yield Problem((*where, "url"), fault, "for example https://alerts.example.com/hook")
    email = channels.email
    if email is None:
        return
    where = ("alerting", "channels", "email")
    if not email.to:
        yield Problem(where, "the key `to` is required: a list of recipients", "to: [security@example.com]")
    for number, address in enumerate((email.from_address, *email.to)):
        if not _MAIL.fullmatch(address):
            yield Problem((*where, "to", number - 1) if number else (*where, "from_address"), "is no mail address")
    if (email.username is None) != (email.password is None):
        yield Problem(where, "`username` and `password` go together")
    if email.password is not None and email.tls == "none":
        yield Problem((*where, "tls"), "a password would be sent in clear", "starttls or tls")


def fault_of(url: str) -> str:
    """What is wrong with an address of HTTP; empty where nothing is."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or any(char <= " " or char == "\x7f" for char in url):
        return "must be an address with http:// or https:// and a host"
    return "credentials do not stand in an address: use `token`" if "@" in parts.netloc else ""


# --- notes ------------------------------------------------------------------------------------------------------------------


def notes_on(config: Config, given: Found) -> Iterator[tuple[Where, str]]:
    """What was given and only a proxy could honour, what is not in this version yet, and secrets that cannot be read here."""
    alike: dict[tuple[Where, str], list[Where]] = {}
    for where, pattern, facts, _ in given:
        if "later" in facts:
            alike.setdefault((pattern, _LATER + facts["later"]), []).append(where)
        elif "instead" in facts and not (pattern[-1] == "output" and config.observability.logging.output == "stderr"):
            alike.setdefault((pattern, facts["instead"]), []).append(where)
    for (_, text), places in alike.items():
        more = f" (and for {len(places) - 1} more)" if len(places) > 1 else ""
        yield places[0], text + more
    for where in secret_keys():
        secret = _at(config, where)
        if isinstance(secret, Secret) and (warning := secret.warning()):
            yield where, warning
    if config.storage.redis is not None and config.storage.postgres is None:
        yield ("storage", "redis"), "without storage.postgres there is nothing to cache"
    tracing = config.observability.tracing
    if tracing.enabled and "://" not in tracing.endpoint:
        url = endpoint_url(tracing.endpoint, tracing.protocol, "traces")
        yield ("observability", "tracing", "endpoint"), f"spans go to {url} by OTLP, which Jaeger takes in place of its own protocols"


def _at(value: Any, where: Where) -> Any:
    for step in where:
        value = getattr(value, str(step), None)
    return value
