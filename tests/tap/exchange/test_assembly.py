"""An exchange is fed by whatever parsed its messages: nothing in it asks which version of HTTP that was."""

from __future__ import annotations

import json

from llmsec_tap.exchange.assembly import Context, ExchangeAssembly
from llmsec_tap.identity.credentials import fingerprinter
from llmsec_tap.model import Exchange
from llmsec_tap.wire.flow import Flow
from llmsec_tap.wire.messages import Head
from support.replay import KEY

FLOW = Flow("10.0.0.1:4000", "10.0.0.2:443", 1, is_midstream=False)


def head(ts_ns: int, *, status: int = 0) -> Head:
    if status:
        return Head(ts_ns, "2", [(b"content-type", b"text/event-stream")], status=status)
    headers = [(b"host", b"api.openai.com"), (b"content-type", b"application/json")]
    return Head(ts_ns, "2", headers, method="POST", target="/v1/chat/completions")


def event(text: str) -> bytes:
    chunk = {"id": "c", "object": "chat.completion.chunk", "model": "m", "choices": [{"index": 0, "delta": {"content": text}}]}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def test_streams_of_one_connection_that_interleave_are_records_of_their_own() -> None:
    found: list[Exchange] = []
    context = Context(found.append, fingerprinter(KEY), shield=False)
    one, three = (ExchangeAssembly(context, FLOW, FLOW.first, FLOW.second, stream) for stream in (1, 3))
    ids = []
    for at, (exchange, prompt) in enumerate(((one, "first"), (three, "third"))):
        exchange.request_head(head(at + 1))
        body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": prompt}]}
        exchange.request.data(at + 1, json.dumps(body).encode())
        exchange.request.end(at + 1, "complete")
        ids.append(exchange.exchange_id)
    for exchange in (three, one):
        exchange.response_head(head(10, status=200))
    for at, text in enumerate("ab"):
        one.response.data(20 + at, event(f"1{text}"))
        three.response.data(20 + at, event(f"3{text}"))
    for exchange in (three, one):
        exchange.response.data(30, b"data: [DONE]\n\n")
        exchange.response.end(30, "complete")
        assert exchange.is_ended
    assert [(e.input_text, e.output_text, e.http_version, e.provider, e.completeness) for e in found] == [
        ("third", "3a3b", "2", "openai", "complete"),
        ("first", "1a1b", "2", "openai", "complete"),
    ]
    assert [exchange.exchange_id for exchange in reversed(found)] == ids, "known as soon as the request is whole"


def test_what_is_told_after_the_end_changes_nothing() -> None:
    found: list[Exchange] = []
    exchange = ExchangeAssembly(Context(found.append, fingerprinter(KEY), shield=False), FLOW, FLOW.first, FLOW.second, 0)
    exchange.request_head(head(1))
    exchange.close(2, "reset")
    exchange.close(3, "fin")
    assert [(e.completeness, e.status, [a.name for a in e.anomalies]) for e in found] == [("aborted", None, ["http_no_response"])]
