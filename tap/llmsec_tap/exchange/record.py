"""The finished record: what was said (the draft) and the facts around it, as one `Exchange`. Nothing here decides or reads bytes."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from llmsec_tap.anomalies import AnomalyName
from llmsec_tap.dialects.draft import Draft
from llmsec_tap.exchange.timing import Timings, timings
from llmsec_tap.identity.credentials import Fingerprinter, clean_text
from llmsec_tap.identity.masking import mask_method, mask_record, mask_target
from llmsec_tap.identity.whose import Whose
from llmsec_tap.model import TLS, AnomalyCount, CaptureKind, Completeness, Exchange, Framing, Process, Request, Response
from llmsec_tap.wire.messages import Head


class Facts(msgspec.Struct, kw_only=True, frozen=True, gc=False):
    """All that is known of an exchange beside its draft, once it has ended.

    Without a `provider` it is not traffic of a language model: nothing of its draft comes on the record.
    """

    exchange_id: str
    client: str
    server: str
    process: Process | None
    request_head: Head | None
    response_head: Head | None
    request_bytes: int  # as on the wire, codings included
    response_bytes: int
    started_ns: int | None
    response_body_ns: int | None  # of the first byte of the answer's body
    ended_ns: int
    framing: Framing | None  # None: the answer came whole
    provider: str | None
    api: str | None
    operation: str | None
    credential: str | None  # in plain: only its fingerprint comes on the record
    completeness: Completeness
    whose: Whose
    tenant: str | None
    proxied: str | None  # the client that a PROXY protocol header named
    capture_kind: CaptureKind
    node: str | None
    tls: TLS | None


def build_record(facts: Facts, draft: Draft, anomalies: Mapping[AnomalyName, int], fingerprint: Fingerprinter) -> Exchange:
    """The record, masked and timed. Detection adds its report later, and an estimator token counts; nobody else writes to it."""
    head, response_head = facts.request_head, facts.response_head
    is_llm = facts.provider is not None
    is_stream = facts.framing is not None and is_llm
    any_head = head or response_head
    times = timings(draft, facts.started_ns if facts.completeness != "midstream" else None) if is_stream else Timings()
    exchange = Exchange(
        exchange_id=facts.exchange_id,
        client=facts.client,
        server=facts.server,
        started_ns=facts.started_ns,
        first_byte_ns=response_head.ts_ns if response_head is not None else facts.response_body_ns,
        first_token_ns=draft.first_text_ns if is_llm else None,
        ended_ns=facts.ended_ns,
        ttft_ms=times.ttft_ms,
        itl_ms_p50=times.itl_ms_p50,
        itl_ms_p95=times.itl_ms_p95,
        output_tokens_per_s=times.output_tokens_per_s,
        provider=facts.provider,
        api=facts.api,
        operation=facts.operation,
        method=mask_method(head.method, fingerprint) if head is not None and head.method else None,
        path=mask_target(head.target, fingerprint) if head is not None and head.target else None,
        http_version=(any_head.version or None) if any_head is not None else None,
        status=(response_head.status or None) if response_head is not None else None,
        streaming=is_stream,
        framing=facts.framing if is_stream else None,
        api_key_fingerprint=fingerprint(facts.credential) if facts.credential else None,
        tenant=facts.tenant if is_llm else None,
        process=facts.process,
        tls=facts.tls,
        capture_kind=facts.capture_kind,
        node=facts.node,
        completeness=facts.completeness,
        anomalies=[AnomalyCount(name=name, count=count) for name, count in sorted(anomalies.items())],
        request=Request(body_bytes=facts.request_bytes),
        response=Response(body_bytes=facts.response_bytes, events=draft.events if is_stream else None),
    )
    if is_llm:
        _whose(exchange, facts)
        _said(exchange, draft)
        mask_record(exchange, fingerprint)
    return clean_text(exchange) if "json_not_strict" in anomalies else exchange


def _whose(exchange: Exchange, facts: Facts) -> None:
    whose = facts.whose
    exchange.request_id, exchange.trace_id, exchange.span_id = whose.request_id, whose.trace_id, whose.span_id
    exchange.session_id, exchange.end_user, exchange.tags = whose.session_id, whose.end_user, whose.tags
    exchange.client_agent, exchange.deployment, exchange.api_version = whose.client_agent, whose.deployment, whose.api_version
    exchange.rate_limit = whose.rate_limit
    exchange.forwarded_client = whose.forwarded_client or facts.proxied


def _said(exchange: Exchange, draft: Draft) -> None:
    """What the two sides said, from the draft."""
    first = draft.choices.get(0)
    if first is not None:
        exchange.output_text = str(first.text) if first.text or first.text.given else None
        exchange.reasoning_text = str(first.reasoning) or None
        exchange.refusal_text = str(first.refusal) or None
    exchange.request_model = draft.request_model
    exchange.response_model = draft.response_model
    exchange.response_id = draft.response_id
    exchange.input_text = draft.input_text
    exchange.tool_calls = draft.tool_calls()
    exchange.finish_reasons = draft.finish_reasons()
    exchange.usage = draft.usage
    exchange.error_type = draft.error_type
    exchange.other_texts = draft.other_texts
    exchange.request.messages = draft.messages
    exchange.request.tools = draft.tools
    exchange.request.parameters = draft.parameters
    exchange.response.messages = [choice.message() for _, choice in sorted(draft.choices.items())]
    exchange.response.error_message = draft.error_message
    exchange.response.embeddings = draft.embeddings
    exchange.response.embedding_dimensions = draft.embedding_dimensions
