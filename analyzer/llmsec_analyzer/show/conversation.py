"""One exchange as text to read: who said what, then what it cost and what was odd about it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator

from llmsec_analyzer.show.finding_rows import finding_line
from llmsec_analyzer.show.terminal import visible
from llmsec_tap.model import TLS, Exchange, Message, Part

_INDENT = "  "


def render(exchange: Exchange) -> str:
    """Ends with a newline. Nothing of the content can steer a terminal."""
    return "\n".join(_lines(exchange)) + "\n"


def _lines(exchange: Exchange) -> Iterator[str]:
    yield f"exchange {_one(exchange.exchange_id)}"
    yield from _facts(exchange)
    for message in exchange.request.messages:
        yield from _message(message, "")
    if exchange.request.tools:
        yield ""
        yield f"tools offered: {', '.join(_one(tool.name) for tool in exchange.request.tools)}"
    for other in exchange.other_texts:
        yield ""
        yield f"--- elsewhere: {_one(other.path)}"
        yield from _block(other.text)
    several = len(exchange.response.messages) > 1
    for choice, message in enumerate(exchange.response.messages):
        yield from _message(message, f" (choice {choice})" if several else "")
    if exchange.response.error_message is not None or exchange.error_type is not None:
        yield ""
        yield f"error: {_one(exchange.error_type or 'not named')}"
        if exchange.response.error_message:
            yield from _block(exchange.response.error_message)
    if not exchange.request.messages and not exchange.response.messages:
        yield ""
        yield "no messages: content was not stored, or none was seen"
    if exchange.anomalies:
        yield ""
        yield "anomalies: " + ", ".join(f"{_one(item.name)} x{item.count}" for item in exchange.anomalies)
    if exchange.findings:
        yield ""
        yield "findings:"
        for finding in exchange.findings:
            yield _INDENT + _one(finding_line(finding))


def _facts(exchange: Exchange) -> Iterator[str]:
    route = f"{exchange.client} -> {exchange.server}"
    yield f"{_moment(exchange.started_ns)}  {_one(route)}  {exchange.completeness}"
    request = " ".join(_one(word) for word in (exchange.method, exchange.path) if word)
    if request:
        answer = f" -> {exchange.status}" if exchange.status is not None else " -> no answer seen"
        framing = f" {exchange.framing}" if exchange.framing else ""
        yield f"HTTP/{_one(exchange.http_version or '?')} {request}{answer}{framing}"
    names = [
        ("provider", exchange.provider),
        ("api", exchange.api),
        ("operation", exchange.operation),
        ("model", exchange.request_model),
        ("answered by", exchange.response_model if exchange.response_model != exchange.request_model else None),
        ("tenant", exchange.tenant),
        ("key", exchange.api_key_fingerprint),
    ]
    if any(value for _, value in names):
        yield "  ".join(f"{name}: {_one(value)}" for name, value in names if value)
    yield from _hellos(exchange.tls)
    if exchange.process is not None:
        process = exchange.process
        where = [process.container_id, process.namespace and f"{process.namespace}/{process.pod}"]
        yield f"process {process.pid} {_one(process.comm or '')} {_one(process.exe or '')} {' '.join(_one(w) for w in where if w)}".rstrip()
    if exchange.request.parameters:
        yield "parameters: " + ", ".join(f"{_one(name)}={_one(str(value))}" for name, value in exchange.request.parameters.items())
    times = [
        ("total", (exchange.ended_ns - exchange.started_ns) / 1e6 if exchange.ended_ns and exchange.started_ns else None, "ms"),
        ("first token", exchange.ttft_ms, "ms"),
        ("between tokens p50", exchange.itl_ms_p50, "ms"),
        ("p95", exchange.itl_ms_p95, "ms"),
        ("speed", exchange.output_tokens_per_s, "tokens/s"),
    ]
    if any(value is not None for _, value, _ in times):
        yield "times: " + ", ".join(f"{name} {value:.1f} {unit}" for name, value, unit in times if value is not None)
    yield from _tokens(exchange)
    if exchange.finish_reasons:
        yield "finish: " + ", ".join(_one(reason or "not said") for reason in exchange.finish_reasons)
    if exchange.risk_score is not None:
        yield f"risk score: {exchange.risk_score}"
    elif exchange.completeness == "unreadable":
        yield "risk score: none, something passed unread"


def _hellos(tls: TLS | None) -> Iterator[str]:
    if tls is None:
        return
    facts = [
        ("server name", tls.server_name),
        ("ALPN", tls.alpn or ", ".join(tls.alpn_offered)),
        ("suite", tls.cipher_suite),
        ("JA4", tls.ja4),
    ]
    version = tls.version or ("QUIC" if tls.transport == "quic" else "TLS")
    yield "  ".join([_one(version), *(f"{name}: {_one(value)}" for name, value in facts if value)])
    if tls.client_bytes is not None:
        yield f"not opened: {tls.client_bytes:,} bytes from the client, {tls.server_bytes or 0:,} from the server"


def _tokens(exchange: Exchange) -> Iterator[str]:
    usage = exchange.usage
    counts = [
        ("in", usage.input_tokens),
        ("out", usage.output_tokens),
        ("cached", usage.cached_input_tokens),
        ("cache write", usage.cache_write_tokens),
        ("reasoning", usage.reasoning_tokens),
    ]
    if any(count is not None for _, count in counts):
        yield "tokens: " + ", ".join(f"{name} {count}" for name, count in counts if count is not None)
    estimate = exchange.usage_estimated
    if estimate is not None:
        yield f"tokens, estimated by {_one(estimate.tokenizer)}: in {estimate.input_tokens}, out {estimate.output_tokens}"


def _message(message: Message, suffix: str) -> Iterator[str]:
    yield ""
    reason = f" [{_one(message.finish_reason)}]" if message.finish_reason else ""
    yield f"--- {_one(message.role)}{suffix}{reason}"
    for part in message.parts:
        yield from _part(part)


def _part(part: Part) -> Iterator[str]:
    if part.type == "text":
        yield from _block(part.content or "")
    elif part.type == "tool_call":
        yield f"{_INDENT}[call {_one(part.name or '?')} {_one(part.id or '')}]".replace(" ]", "]")
        yield from _block(part.arguments or "")
    elif part.type == "tool_call_response":
        yield f"{_INDENT}[result of {_one(part.name or part.id or '?')}]"
        yield from _block(part.content or "")
    elif part.content is not None:
        yield f"{_INDENT}[{_one(part.type)}]"
        yield from _block(part.content)
    else:
        facts = [part.modality, part.mime_type, part.name, part.uri, part.id]
        size = f" {part.size_bytes} bytes" if part.size_bytes is not None else ""
        yield f"{_INDENT}[{_one(part.type)} {' '.join(_one(fact) for fact in facts if fact)}{size}]"


def _block(text: str) -> Iterator[str]:
    """Indented, so that content cannot pass for one of our own lines."""
    for line in visible(text, keep_lines=True).split("\n"):
        yield (_INDENT + line).rstrip() if not line else _INDENT + line


def _one(text: str) -> str:
    return visible(text)


def _moment(ns: int | None) -> str:
    if ns is None:
        return "time unknown"
    try:
        moment = dt.datetime.fromtimestamp(ns // 1_000_000_000, tz=dt.UTC)
    except (OverflowError, ValueError, OSError):
        return f"{ns} ns"
    return f"{moment:%Y-%m-%d %H:%M:%S}.{ns // 1_000_000 % 1000:03d} UTC"
