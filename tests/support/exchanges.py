"""Made-up exchanges with a value in every field."""

from __future__ import annotations

from typing import Any

import msgspec

from llmsec_tap.model import (
    TLS,
    AlertMark,
    AnomalyCount,
    Counts,
    Deviation,
    EstimatedUsage,
    Exchange,
    Finding,
    Location,
    Message,
    OtherText,
    Part,
    Process,
    RateLimit,
    Request,
    Resets,
    Response,
    Taxonomy,
    ToolCall,
    ToolDefinition,
    Usage,
)

STARTED = 1_795_000_000_123_456_789  # 2026-11-18


def a_finding(**changes: Any) -> Finding:
    values: dict[str, Any] = {
        "finding_id": "0f",
        "exchange_id": "",
        "rule_id": "pii.email",
        "rule_version": "1",
        "category": "pii",
        "type": "EMAIL",
        "severity": "low",
        "confidence": 0.9,
        "location": Location(part="request.messages[0].parts[0]", start=3, end=19),
        "preview": "a***@example.org",
        "fingerprint": "5e",
        "taxonomy": Taxonomy(owasp_llm_2025="LLM02", owasp_llm_2026="LLM02", mitre_atlas="ATLAS 2026.05 AML.T0057"),
        "explanation": "an address",
    }
    return Finding(**{**values, **changes})


def full_exchange(number: int = 0, **changes: Any) -> Exchange:
    """Every field has a value, no two the same."""
    exchange = Exchange(
        exchange_id=f"{number:08x}{'ab' * 12}",
        client="10.0.0.1:40000",
        server="[2001:db8::1]:443",
        started_ns=STARTED + number * 1_000_000,
        first_byte_ns=STARTED + number * 1_000_000 + 240_000_001,
        first_token_ns=STARTED + number * 1_000_000 + 250_000_001,
        ended_ns=STARTED + number * 1_000_000 + 900_000_002,
        ttft_ms=250.5,
        itl_ms_p50=1.25,
        itl_ms_p95=4.75,
        output_tokens_per_s=33.3,
        provider="openai",
        api="openai.chat",
        operation="chat",
        method="POST",
        path="/v1/chat/completions?key=***",
        http_version="1.1",
        status=200,
        streaming=True,
        framing="sse",
        request_model="gpt-4o",
        response_model="gpt-4o-2024-08-06",
        response_id=f"chatcmpl-{number}",
        input_text="  What is the weather in Malmö?\r\n",
        output_text="I'll look 🌦️\n\ttab\x00nul \x1b[31m",
        reasoning_text="Think.",
        refusal_text="No.",
        tool_calls=[ToolCall(id="call_1", name="get_weather", arguments='{"city": "Malmö"}'), ToolCall(id=None, name="x", arguments="")],
        finish_reasons=["tool_calls", "stop"],
        usage=Usage(input_tokens=11, output_tokens=12, cached_input_tokens=13, cache_write_tokens=14, reasoning_tokens=15),
        usage_estimated=EstimatedUsage(input_tokens=21, output_tokens=22, tokenizer="o200k_base"),
        error_type="rate_limit_error",
        tenant="acme",
        api_key_fingerprint="hmac:0123",
        tls=TLS(
            transport="tcp",
            version="TLS 1.3",
            cipher_suite="TLS_AES_128_GCM_SHA256",
            server_name="api.example.org",
            alpn_offered=["h2", "http/1.1"],
            alpn="http/1.1",
            ja4="t13d0302h2_000000000000_000000000000",
        ),
        process=Process(pid=4242, comm="python", exe="/usr/bin/python3", container_id="c0ffee", pod="web-1", namespace="shop"),
        completeness="gapped",
        anomalies=[AnomalyCount(name="tcp_gap", count=2), AnomalyCount(name="sse_bad_json", count=1)],
        request=Request(
            messages=[
                Message(role="system", parts=[Part(type="text", content="Be brief.")]),
                Message(
                    role="user",
                    parts=[
                        Part(type="text", content="What is "),
                        Part(type="text", content="this?"),
                        Part(type="blob", modality="image", mime_type="image/png", size_bytes=1234),
                        Part(type="uri", modality="image", uri="https://example.org/a.png"),
                    ],
                ),
                Message(role="tool", parts=[Part(type="tool_call_response", id="call_0", name="f", content="42")]),
            ],
            tools=[ToolDefinition(name="get_weather", description="Weather of a city"), ToolDefinition(name="x")],
            parameters={"temperature": 0.5, "max_tokens": 100, "stream": True, "stop": None, "user": "ü"},
            body_bytes=1111,
        ),
        response=Response(
            messages=[
                Message(
                    role="assistant",
                    parts=[
                        Part(type="reasoning", content="Think."),
                        Part(type="text", content="I'll look 🌦️"),
                        Part(type="tool_call", id="call_1", name="get_weather", arguments='{"city": "Malmö"}'),
                    ],
                    finish_reason="tool_calls",
                ),
                Message(role="assistant", parts=[Part(type="text", content="Other choice")], finish_reason="stop"),
            ],
            error_message="slow down",
            embeddings=3,
            embedding_dimensions=1536,
            body_bytes=2222,
            events=80,
        ),
        other_texts=[OtherText(path="$.documents[0].text", text="A document about Malmö.")],
        request_id="req_1",
        trace_id="0af7651916cd43dd8448eb211c80319c",
        span_id="b7ad6b7169203331",
        session_id="session-1",
        end_user="hmac:4567",
        tags={"team": "weather"},
        client_agent="openai-python/2.1.0",
        deployment="chat-eu",
        api_version="2025-04-01-preview",
        rate_limit=RateLimit(
            limits=Counts(requests=60, tokens=1000),
            remaining=Counts(requests=59, tokens=900),
            reset_s=Resets(requests=1.5, tokens=2.5),
            retry_after_s=3.5,
        ),
        forwarded_client="203.0.113.9",
        capture_kind="tls",
        node="node-7",
        risk_score=17,
        risk_reasons=["pii.email: +17"],
        findings=[a_finding(exchange_id=f"{number:08x}{'ab' * 12}")],
        security_score=21,
        pii_types=["EMAIL"],
        secret_types=["github"],
        cost_usd=0.0125,
        deviations=[
            Deviation(
                kind="cost",
                severity="medium",
                scope="tenant",
                subject="team-a",
                value=1.5,
                usual=0.25,
                line=0.75,
                span_s=300.0,
                observations=40,
                explanation="six times the usual",
            )
        ],
        alerts=[
            AlertMark(
                alert_id="a1", rule="cost_anomaly", priority="medium", state="firing", dedup_key="cost_anomaly/tenant=team-a", count=1
            )
        ],
    )
    return msgspec.structs.replace(exchange, **changes)
