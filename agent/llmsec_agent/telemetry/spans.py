"""An exchange as a span of OpenTelemetry's GenAI conventions, and whether it is sent at all.

Times are capture time. The span's id follows from the exchange's, so one that is sent twice is the same span twice. Where the client sent a
trace context, the span is a child of the client's; else it is the only one of a trace of its own.
"""

from __future__ import annotations

import re
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final

import msgspec
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from llmsec_agent.config.schema import Sampling
from llmsec_agent.label_values import error_of
from llmsec_agent.telemetry import names
from llmsec_tap import __version__
from llmsec_tap.model import Deviation, Exchange, Finding, Message, Part, ToolDefinition
from llmsec_tap.plain_names import folded_name
from llmsec_tap.storage.rows import INT64_MAX, INT64_MIN, well_formed

# Of one exchange; how many there are in all is an attribute.
_MAX_EVENTS: Final = 32
_MAX_NAME: Final = 128
_MAX_VALUE: Final = 1024
_MAX_LIST: Final = 32
# Of what `content` adds: of one text, of the messages of one side, and of the JSON that they become.
_MAX_TEXT: Final = 16_384
_MAX_MESSAGES: Final = 64
_MAX_JSON: Final = 65_536
_HEX: Final = re.compile(r"[0-9a-f]+")
_SCOPE: Final = InstrumentationScope(names.SCOPE, __version__)
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)

Value = str | bool | int | float | list[str]


def is_sampled(exchange: Exchange, sampling: Sampling) -> bool:
    """By the trace's id, so that all hosts choose the same traces. What was found, or deviates, is never left out."""
    if exchange.deviations or any(finding.suppressed is None and finding.severity != "info" for finding in exchange.findings):
        return True
    rate = sampling.error_rate if error_of(exchange) is not None else sampling.default_rate
    # As OpenTelemetry's TraceIdRatioBased: the low 64 bits against a bound.
    return _trace_id(exchange) & (2**64 - 1) < round(rate * 2**64)


def span_of(exchange: Exchange, service: str, *, content: bool = False) -> ReadableSpan | None:
    """None where nobody knows when it was. Without `content` no text is in it, nor a name that may be one."""
    full, exchange = exchange, exchange if content else exchange.without_content()
    times = [moment for moment in (exchange.started_ns, exchange.first_byte_ns, exchange.ended_ns) if moment is not None]
    if not times:
        return None
    trace_id = _trace_id(exchange)
    parent_id = _number(exchange.span_id, 16) if _number(exchange.trace_id, 32) else 0
    failed = error_of(full) is not None
    error = error_of(exchange) or "_OTHER"  # as the conventions call what has no name
    attributes = _attributes(exchange)
    if failed:
        attributes["error.type"] = _clean(error, _MAX_NAME)
    if content:
        attributes |= _content(full)
    operation = exchange.operation or "chat"
    return ReadableSpan(
        name=_clean(f"{operation} {exchange.request_model}" if exchange.request_model else operation, _MAX_NAME),
        context=SpanContext(trace_id, _span_id(exchange.exchange_id), is_remote=False, trace_flags=_SAMPLED),
        parent=SpanContext(trace_id, parent_id, is_remote=True, trace_flags=_SAMPLED) if parent_id else None,
        resource=_resource(service, exchange.node or ""),
        attributes=attributes,
        events=_events(exchange, min(times), max(times)),
        kind=SpanKind.CLIENT,  # the conventions have no other for it
        status=Status(StatusCode.ERROR, _clean(error, _MAX_NAME)) if failed else Status(StatusCode.UNSET),
        start_time=min(times),
        end_time=max(times),
        instrumentation_scope=_SCOPE,
    )


@lru_cache(maxsize=256)
def _resource(service: str, node: str) -> Resource:
    """Made of what is known, not of this process and its environment."""
    host = {"host.name": _clean(node, _MAX_VALUE)} if node else {}
    return Resource({"service.name": service, "telemetry.sdk.name": "opentelemetry", "telemetry.sdk.language": "python", **host})


def resource_of(service: str, node: str = "") -> Resource:
    return _resource(service, node)


def _attributes(exchange: Exchange) -> dict[str, Value]:
    usage, process = exchange.usage, exchange.process
    host, port = split_address(exchange.server)
    client, client_port = split_address(exchange.client)
    found: dict[str, Value | None] = {
        "gen_ai.operation.name": exchange.operation,
        "gen_ai.provider.name": exchange.provider,
        "gen_ai.request.model": exchange.request_model,
        "gen_ai.request.stream": exchange.streaming,
        "gen_ai.response.id": exchange.response_id,
        "gen_ai.response.model": exchange.response_model,
        "gen_ai.response.finish_reasons": [reason for reason in exchange.finish_reasons[:_MAX_LIST] if reason] or None,
        "gen_ai.response.time_to_first_chunk": exchange.ttft_ms / 1000 if exchange.ttft_ms is not None else None,
        "gen_ai.usage.input_tokens": usage.input_tokens,
        "gen_ai.usage.output_tokens": usage.output_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.cached_input_tokens,
        "gen_ai.usage.cache_creation.input_tokens": usage.cache_write_tokens,
        "gen_ai.usage.reasoning.output_tokens": usage.reasoning_tokens,
        "gen_ai.conversation.id": exchange.session_id,
        "server.address": host,
        "server.port": port,
        "client.address": client,
        "client.port": client_port,
        "http.response.status_code": exchange.status,
        "user_agent.original": exchange.client_agent,
        "enduser.pseudo.id": exchange.end_user,
        "llmsec.exchange_id": exchange.exchange_id,
        "llmsec.api": exchange.api,
        "llmsec.capture.kind": exchange.capture_kind,
        "llmsec.completeness": exchange.completeness,
        "llmsec.tenant": exchange.tenant,
        "llmsec.api_key_fingerprint": exchange.api_key_fingerprint,
        "llmsec.request_id": exchange.request_id,
        "llmsec.risk_score": exchange.risk_score,
        "llmsec.security_score": exchange.security_score,
        "llmsec.cost_usd": exchange.cost_usd,
        "llmsec.findings": len(exchange.findings),
        "llmsec.deviations": len(exchange.deviations),
    }
    if process is not None:
        found |= {
            "process.pid": process.pid,
            "process.executable.name": process.comm,
            "container.id": process.container_id,
            "k8s.pod.name": process.pod,
            "k8s.namespace.name": process.namespace,
        }
    for name, value in exchange.request.parameters.items():
        folded = folded_name(name)
        attribute, kind = names.PARAMETERS.get(folded, ("", int))
        if attribute and isinstance(value, int | float) and not isinstance(value, bool) and (kind is float or value == int(value)):
            found.setdefault(attribute, kind(value))
        elif folded in ("stop", "stopsequences") and isinstance(value, str):
            found["gen_ai.request.stop_sequences"] = [value]
    return {name: kept for name, value in found.items() if (kept := _kept(value)) is not None}


def _kept(value: Value | None) -> Value | None:
    """As it fits into OTLP, or None: valid UTF-8 of bounded length, integers of 64 bits."""
    if isinstance(value, str):
        return _clean(value, _MAX_VALUE) or None
    if isinstance(value, list):
        return [_clean(item, _MAX_VALUE) for item in value]
    if isinstance(value, int) and not INT64_MIN <= value <= INT64_MAX:
        return None
    return value


def _events(exchange: Exchange, started_ns: int, ended_ns: int) -> list[Event]:
    counted = [finding for finding in exchange.findings if finding.suppressed is None]
    events = [_finding(finding, ended_ns if finding.location.is_in_answer else started_ns) for finding in counted[:_MAX_EVENTS]]
    return [*events, *(_deviation(deviation, ended_ns) for deviation in exchange.deviations[:_MAX_EVENTS])]


def _finding(finding: Finding, at_ns: int) -> Event:
    attributes: dict[str, Value] = {
        names.FINDING_ID: finding.finding_id,
        names.FINDING_RULE: finding.rule_id,
        names.FINDING_CATEGORY: finding.category,
        names.FINDING_SCORE: finding.confidence,
        names.FINDING_HASH: finding.fingerprint,
        names.FINDING_VERDICT: "warn",  # a tap neither allows nor denies
        names.FINDING_TARGET: "llm_output" if finding.location.is_in_answer else "llm_input",
        "llmsec.finding.type": finding.type,
        "llmsec.finding.severity": finding.severity,
        "llmsec.finding.part": finding.location.part,
    }
    return Event(names.FINDING_EVENT, {name: _kept(value) or "" for name, value in attributes.items()}, at_ns)


def _deviation(deviation: Deviation, at_ns: int) -> Event:
    attributes: dict[str, Value | None] = {
        "llmsec.deviation.kind": deviation.kind,
        "llmsec.deviation.severity": deviation.severity,
        "llmsec.deviation.scope": deviation.scope,
        "llmsec.deviation.value": deviation.value,
        "llmsec.deviation.usual": deviation.usual,
        "llmsec.deviation.line": deviation.line,
    }
    return Event(names.DEVIATION_EVENT, {name: kept for name, value in attributes.items() if (kept := _kept(value)) is not None}, at_ns)


# --- content ----------------------------------------------------------------------------------------------------------------


def _content(exchange: Exchange) -> dict[str, Value]:
    """The texts, in the shapes of the conventions' JSON schemas; what is too long is cut, oldest messages first."""
    messages = exchange.request.messages
    system = [part for message in messages if message.role == "system" for part in message.parts]
    found = {
        "gen_ai.system_instructions": _json([_part(part) for part in system[:_MAX_MESSAGES]]),
        "gen_ai.input.messages": _json([_message(message) for message in messages if message.role != "system"][-_MAX_MESSAGES:]),
        "gen_ai.output.messages": _json([_message(message) for message in exchange.response.messages[:_MAX_MESSAGES]]),
        "gen_ai.tool.definitions": _json([_tool(tool) for tool in exchange.request.tools[:_MAX_MESSAGES]]),
    }
    return {name: value for name, value in found.items() if value}


def _json(items: list[dict[str, Any]]) -> str:
    """Empty for none."""
    while items:
        text = msgspec.json.encode(items).decode()
        if len(text) <= _MAX_JSON:
            return text
        items = items[1:]
    return ""


def _message(message: Message) -> dict[str, Any]:
    found: dict[str, Any] = {"role": _clean(message.role, _MAX_NAME), "parts": [_part(part) for part in message.parts[:_MAX_MESSAGES]]}
    if message.finish_reason:
        found["finish_reason"] = _clean(message.finish_reason, _MAX_NAME)
    return found


def _part(part: Part) -> dict[str, Any]:
    content = _clean(part.content or "", _MAX_TEXT)
    if part.type == "tool_call":
        return {
            "type": "tool_call",
            "id": _clean(part.id or "", _MAX_NAME),
            "name": _clean(part.name or "", _MAX_NAME),
            "arguments": _clean(part.arguments or "", _MAX_TEXT),
        }
    if part.type == "tool_call_response":
        return {"type": "tool_call_response", "id": _clean(part.id or "", _MAX_NAME), "response": content}
    return {"type": _clean(part.type, _MAX_NAME), "content": content}


def _tool(tool: ToolDefinition) -> dict[str, Any]:
    return {"type": "function", "name": _clean(tool.name, _MAX_NAME), "description": _clean(tool.description or "", _MAX_TEXT)}


# --- ids, addresses, texts --------------------------------------------------------------------------------------------------


def _trace_id(exchange: Exchange) -> int:
    return _number(exchange.trace_id, 32) or int.from_bytes(_digest(exchange.exchange_id, b"trace", 16), "big") or 1


def _span_id(exchange_id: str) -> int:
    return int.from_bytes(_digest(exchange_id, b"span", 8), "big") or 1


def _digest(text: str, person: bytes, size: int) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=size, person=person).digest()


def _number(text: str | None, digits: int) -> int:
    """0 for what is no id of so many hexadecimal digits."""
    return int(text, 16) if text is not None and len(text) == digits and _HEX.fullmatch(text) else 0


def split_address(address: str) -> tuple[str, int | None]:
    """`host:port`, `[v6]:port`; without a port where there is none."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isascii() or not port.isdecimal() or len(port) > 5:
        return address.strip("[]"), None
    return host.strip("[]"), int(port)


def _clean(text: str, size: int) -> str:
    return well_formed(text[:size])
