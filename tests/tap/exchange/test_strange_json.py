"""Strange JSON, as requests, answers and events of streams: time grows with its size, memory stays under the account, and it is said."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llmsec_tap.identity.credentials import fingerprinter
from llmsec_tap.limits import MAX_OTHER_TEXT_CHARS, MAX_OTHER_TEXTS
from llmsec_tap.model import Exchange
from llmsec_tap.pipeline import Pipeline
from llmsec_tap.wire.flow import Flow
from support.replay import KEY

ASKED = b'{"model":"m","messages":[{"role":"user","content":"hi"}],"stream":true}'
ANSWER = b'{"id":"c","object":"chat.completion","model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}]}'
HEAD = b'{"model":"m","id":"c","object":"chat.completion","choices":[{"index":0,"message":{"content":"hi"}}],"messages":[{"role":"user","content":"hi"}],"x":'


def many(unit: bytes, size: int) -> bytes:
    return b",".join([unit] * (size // (len(unit) + 1)))


def numbered(pattern: bytes, size: int) -> bytes:
    return b",".join(pattern % number for number in range(size // (len(pattern) + 6)))


# Bodies of about so many bytes, that are requests and answers of the chat API at once.
SHAPES: dict[str, Callable[[int], bytes]] = {
    "deep arrays": lambda size: HEAD + b"[" * (size // 2) + b"]" * (size // 2) + b"}",
    "deep objects": lambda size: HEAD + b'{"a":' * (size // 6) + b"1" + b"}" * (size // 6) + b"}",
    "numbers": lambda size: HEAD + b"[" + many(b"1", size) + b"]}",
    "one text many times": lambda size: HEAD + b"[" + many(b'"a b c d"', size) + b"]}",
    "many texts": lambda size: HEAD + b"[" + numbered(b'"a b c %d"', size) + b"]}",
    "many long texts": lambda size: HEAD + b"[" + numbered(b'"' + b"abc " * 250 + b'%d"', size) + b"]}",
    "many addresses": lambda size: HEAD + b"[" + numbered(b'"a%d@b.example"', size) + b"]}",
    "objects": lambda size: HEAD + b"[" + numbered(b'{"t":"a b c %d"}', size) + b"]}",
    "one text": lambda size: HEAD + b'"' + b"a b " * (size // 4) + b'"}',
    "one word": lambda size: HEAD + b'"' + b"aB1-" * (size // 4) + b'"}',
    "escapes": lambda size: HEAD + b'"' + b"\\u00e9\\n" * (size // 8) + b'"}',
    "keys": lambda size: HEAD + b"{" + numbered(b'"k %d":1', size) + b"}}",
    "one key again and again": lambda size: HEAD + b"{" + numbered(b'"k":"a b %d"', size) + b"}}",
    "messages": lambda size: HEAD[:-4] + b'"messages":[' + numbered(b'{"role":"user","content":"hi there %d"}', size) + b"]}",
    "parts of a new type": lambda size: HEAD[:-4] + b'"messages":[{"role":"user","content":[' + numbered(b'{"type":"odd","text":"so it is %d"}', size) + b"]}]}",
    "calls": lambda size: HEAD[:-4] + b'"messages":[{"role":"assistant","tool_calls":[' + numbered(b'{"function":{"name":"f","arguments":"{}%d"}}', size) + b"]}]}",
    "calls of an answer": lambda size: HEAD[:-4] + b'"choices":[{"message":{"tool_calls":[' + numbered(b'{"function":{"name":"f","arguments":"{}%d"}}', size) + b"]}}]}",
    "documents": lambda size: HEAD[:-4] + b'"documents":[' + numbered(b'{"title":"a b","text":"hi there %d"}', size) + b"]}",
    "sources of an answer": lambda size: HEAD[:-4] + b'"search_results":[' + numbered(b'{"title":"a b","snippet":"hi there %d"}', size) + b"]}",
    "choices": lambda size: HEAD[:-4] + b'"choices":[' + numbered(b'{"index":%d,"message":{"content":"x y"}}', size) + b"]}",
    "tools": lambda size: HEAD[:-4] + b'"tools":[' + numbered(b'{"function":{"name":"f","description":"d e %d","parameters":{"a":"b c"}}}', size) + b"]}",
    "no end": lambda size: HEAD + b"[" + numbered(b'"a b %d"', size),
    "quotes": lambda size: HEAD + b'"' + b'\\"' * (size // 2),
    "space": lambda size: HEAD + b" " * size + b"1}",
}  # fmt: skip

# Events of a stream, the nth of them.
EVENTS: dict[str, tuple[str, Callable[[int], bytes]]] = {
    "texts of no name": ("/v1/chat/completions", lambda n: b'{"id":"c","model":"m","choices":[{"index":0,"delta":{"content":"a b"}}],"x%d":"so it is"}' % n),
    "a delta of no name": ("/v1/chat/completions", lambda n: b'{"id":"c","model":"m","choices":[{"index":0,"delta":{"content":"a b","y":"so it is %d"}}]}' % n),
    "calls of one name": ("/v1/chat/completions", lambda n: b'{"id":"c","model":"m","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"name":"f","arguments":"{\\"a\\":{}%d"}}]}}]}' % n),
    "calls of new ids": ("/v1/chat/completions", lambda n: b'{"id":"c","model":"m","choices":[{"index":0,"delta":{"tool_calls":[{"id":"%d","function":{"name":"f","arguments":"{}"}}]}}]}' % n),
    "sources": ("/v1/chat/completions", lambda n: b'{"id":"c","model":"m","choices":[{"index":0,"delta":{"content":"a b"}}],"search_results":[{"title":"so it is %d"}]}' % n),
    "deltas and done events": ("/v1/responses", lambda n: (b'{"type":"response.output_text.delta","output_index":%d,"delta":"so it is "}' if n % 2 else b'{"type":"response.output_text.done","output_index":9%d,"text":"so it is "}') % n),
    "items that are done": ("/v1/responses", lambda n: b'{"type":"response.output_item.done","output_index":%d,"item":{"type":"message","content":[{"type":"output_text","text":"so it is %d"}]}}' % (n, n)),
    "items of a new type": ("/v1/responses", lambda n: b'{"type":"response.output_item.done","output_index":%d,"item":{"type":"odd","said":"so it is %d"}}' % (n, n)),
    "deltas of a new kind": ("/v1/responses", lambda n: b'{"type":"response.odd.delta","item_id":"%d","delta":"so it is"}' % (n % 7)),
    "arguments of new ids": ("/v1/responses", lambda n: b'{"type":"response.function_call_arguments.delta","item_id":"i%d","delta":"so it is"}' % n),
    "blocks": ("/v1/messages", lambda n: b'{"type":"content_block_start","index":%d,"content_block":{"type":"tool_use","id":"t%d","name":"f","input":{}}}' % (n, n)),
    "results": ("/v1/messages", lambda n: b'{"type":"content_block_start","index":%d,"content_block":{"type":"x_tool_result","content":[{"text":"so it is %d"}]}}' % (n, n)),
    "partial arguments": ("/v1beta/models/m:streamGenerateContent?alt=sse", lambda n: b'{"candidates":[{"content":{"parts":[{"functionCall":{"name":"f","willContinue":true,"partialArgs":[{"jsonPath":"$.a","stringValue":"so it is %d","willContinue":true}]}}]}}]}' % n),
    "partial arguments at many paths": ("/v1beta/models/m:streamGenerateContent?alt=sse", lambda n: b'{"candidates":[{"content":{"parts":[{"functionCall":{"name":"f","willContinue":true,"partialArgs":[{"jsonPath":"$.a[%d].b","stringValue":"x y"}]}}]}}]}' % n),
}  # fmt: skip


def exchange_of(request: bytes, answer: bytes, *, path: str = "/v1/chat/completions", answer_type: str = "application/json") -> Exchange:
    exchanges: list[Exchange] = []
    pipeline = Pipeline(exchanges.append, fingerprinter(KEY), shield=False)
    connection = pipeline.open_flow(Flow("10.0.0.1:1000", "10.0.0.2:8000", 0, is_midstream=False))
    head = f"POST {path} HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: {len(request)}\r\n\r\n"
    connection.first.data(1, head.encode() + request)
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {answer_type}\r\nContent-Length: {len(answer)}\r\n\r\n"
    data = head.encode() + answer
    for at in range(0, len(data), 1 << 20):
        connection.second.data(2 + at, data[at : at + (1 << 20)])
    connection.close(1 << 40, "fin")
    pipeline.close()
    (exchange,) = exchanges
    return exchange


def spent(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def growth(measure: Callable[[int], float], size: int) -> float:
    """How many times longer eight times as much takes; the best of three, because a machine is never alone."""
    return min(measure(8 * size) / max(measure(size), 0.002) for _ in range(3))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("side", ["request", "answer"])
def test_bodies_take_linear_time(name: str, side: str) -> None:
    def measure(size: int) -> float:
        body = SHAPES[name](size)
        return spent(lambda: exchange_of(body, ANSWER) if side == "request" else exchange_of(ASKED, body))

    assert growth(measure, 64 * 1024) < 24


@pytest.mark.parametrize("name", EVENTS)
def test_streams_take_linear_time(name: str) -> None:
    path, event = EVENTS[name]

    def measure(count: int) -> float:
        body = b"".join(b"data: " + event(number) + b"\n\n" for number in range(count))
        return spent(lambda: exchange_of(ASKED, body, path=path, answer_type="text/event-stream"))

    assert growth(measure, 400) < 24


@pytest.mark.parametrize("name", EVENTS)
def test_what_is_kept_of_a_stream_is_bounded(name: str) -> None:
    path, event = EVENTS[name]
    body = b"".join(b"data: " + event(number) + b"\n\n" for number in range(2 * MAX_OTHER_TEXTS))
    exchange = exchange_of(ASKED, body, path=path, answer_type="text/event-stream")
    assert len(exchange.other_texts) <= MAX_OTHER_TEXTS
    assert sum(len(other.text) for other in exchange.other_texts) <= MAX_OTHER_TEXT_CHARS
    assert sum(len(message.parts) for message in exchange.response.messages) <= 2 * MAX_OTHER_TEXTS


_BIG = """
import sys, time
sys.path[:0] = sys.argv[3:]
from llmsec_tap.memory import peak_bytes
from test_strange_json import ANSWER, ASKED, SHAPES, exchange_of
body = SHAPES[sys.argv[1]](64 * 1024 * 1024 - 1024)
started = time.process_time()
exchange = exchange_of(body, ANSWER) if sys.argv[2] == "request" else exchange_of(ASKED, body)
print(time.process_time() - started, peak_bytes() >> 20, exchange.completeness, [a.name for a in exchange.anomalies])
"""


@pytest.mark.parametrize("side", ["request", "answer"])
@pytest.mark.parametrize("name", ["deep arrays", "many texts", "messages"])
def test_64_mib_stay_in_bounded_time_and_memory(name: str, side: str) -> None:
    here = Path(__file__).parent
    command = [sys.executable, "-c", _BIG, name, side, str(here), str(here.parents[1])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    seconds, peak, *said = done.stdout.split(maxsplit=2)
    assert float(seconds) < 60, done.stdout
    assert int(peak) < 768, done.stdout  # MiB: the body twice, its decoded value, the interpreter
    assert said, done.stdout
