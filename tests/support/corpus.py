"""Runs recorded bodies through the dialects without packets, and compares with what the recordings hold.

Stream splitting here is deliberately naive and local: the product's own parsers are tested elsewhere, and a fault in
them should not hide one in a dialect.
"""

from __future__ import annotations

import base64
import gzip
import json
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from llmsec_tap.dialects.base import NotJSON, RequestView, ResponseView, parse_json
from llmsec_tap.dialects.draft import Draft
from llmsec_tap.dialects.failures import read_failure
from llmsec_tap.dialects.registry import classify_response
from llmsec_tap.identity.classify import classify
from llmsec_tap.identity.non_inference import auxiliary
from llmsec_tap.identity.who import identify

CORE = {"chat", "completion", "response", "embedding"}


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def sse_events(body: bytes) -> Iterator[tuple[str | None, bytes]]:
    name: str | None = None
    data: list[bytes] = []
    text = body.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    for line in [*text.split(b"\n"), b""]:
        if not line:
            if data:
                yield name, b"\n".join(data)
            name, data = None, []
            continue
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value.decode("utf-8", "replace")


def ndjson_events(body: bytes) -> Iterator[tuple[str | None, bytes]]:
    for line in body.replace(b"\0", b"\n").split(b"\n"):
        if line.strip():
            yield None, line.strip()


def array_events(body: bytes) -> Iterator[tuple[str | None, bytes]]:
    text = body.decode("utf-8", "replace")
    decoder = json.JSONDecoder()
    at = text.index("[") + 1
    while True:
        while at < len(text) and text[at] in " \t\r\n,":
            at += 1
        if at >= len(text) or text[at] == "]":
            return
        value, at = decoder.raw_decode(text, at)
        yield None, json.dumps(value).encode()


def aws_events(body: bytes) -> Iterator[tuple[str | None, bytes]]:
    at = 0
    while at + 16 <= len(body):
        total, head = struct.unpack_from(">II", body, at)
        headers: dict[str, str] = {}
        where = at + 12
        while where < at + 12 + head:
            size = body[where]
            name = body[where + 1 : where + 1 + size].decode()
            kind = body[where + 1 + size]
            assert kind == 7
            (length,) = struct.unpack_from(">H", body, where + 2 + size)
            headers[name] = body[where + 4 + size : where + 4 + size + length].decode()
            where += 4 + size + length
        event = headers.get(":event-type")
        if ":exception-type" in headers:
            event = "exception:" + headers[":exception-type"]
        yield event, body[at + 12 + head : at + total - 4]
        at += total


SPLITTERS = {"sse": sse_events, "ndjson": ndjson_events, "json-array": array_events, "aws-eventstream": aws_events}
FRAMINGS = {
    "text/event-stream": "sse",
    "application/x-ndjson": "ndjson",
    "application/jsonl": "ndjson",
    "application/vnd.amazon.eventstream": "aws-eventstream",
}


def views(row: dict[str, Any], *, host: str | None = None) -> tuple[RequestView, ResponseView, bytes]:
    """A recorded exchange as a dialect sees it; `host` replaces the recorded one."""
    url = urlsplit(row["url"])
    headers = {name.lower(): value for name, value in row["request_headers"]}
    headers["host"] = host or url.netloc
    target = url.path + ("?" + url.query if url.query else "")
    raw = base64.b64decode(row["request_body_b64"] or b"")
    request = RequestView(row["method"], target or "/", headers, raw)
    load(request)
    response = ResponseView(row["status"], {name.lower(): value for name, value in row["response_headers"]})
    return request, response, base64.b64decode(row["response_body_b64"] or b"")


def load(request: RequestView) -> None:
    if request.raw:
        try:
            request.body = parse_json(request.raw)
            request.body_is_json = True
        except NotJSON:
            pass


def run(request: RequestView | None, response: ResponseView, body: bytes) -> dict[str, Any]:
    """One exchange through the dialects, as a record of the product's field names."""
    draft = Draft()
    try:
        whole = parse_json(body) if body else None
    except NotJSON:
        whole = None
    framing = FRAMINGS.get(response.content_type)
    dialect = None
    if request is not None:
        dialect = classify(request)
    if request is None or (dialect is None and request.raw and not request.body_is_json):
        first = whole
        if framing is not None:
            _, data = next(SPLITTERS[framing](body), (None, b""))
            try:
                first = parse_json(data)
            except NotJSON:
                first = None
        dialect = classify_response(response, first)
    streaming = False
    if dialect is not None:
        if request is not None:
            dialect.decode_request(request, draft)
            framing = framing or dialect.framing(request, response)
        if framing is not None and response.status < 400:
            streaming = True
            handler = dialect.stream(request, response, draft)
            for at, (name, data) in enumerate(SPLITTERS[framing](body)):
                draft.events += 1
                handler(at, name, data)
        else:
            dialect.decode_response(request, response, whole, 0, draft)
    api = dialect.api if dialect is not None else None
    provider = identify(request, response, draft, dialect)
    operation = (draft.operation or dialect.operation) if dialect is not None else None
    if request is not None and (dialect is None or provider is None):
        operation = auxiliary(request, response)
        streaming = framing is not None
        if operation is not None:
            provider = identify(request, response, draft, None)
            if response.status >= 400:
                read_failure(response, whole, draft)
        else:
            provider = None
    choice = draft.choices.get(0)
    return {
        "provider": provider,
        "api": api,
        "operation": operation,
        "status": response.status,
        "streaming": streaming,
        "request_model": draft.request_model,
        "response_model": draft.response_model,
        "response_id": draft.response_id,
        "input_text": draft.input_text,
        "output_text": str(choice.text) if choice is not None and (choice.text or choice.text.given) else None,
        "reasoning_text": str(choice.reasoning) if choice is not None else None,
        "refusal_text": str(choice.refusal) if choice is not None else None,
        "tool_calls": [{"name": call.name, "arguments": call.arguments} for call in draft.tool_calls()],
        "finish_reasons": draft.finish_reasons(),
        "usage": {
            "input_tokens": draft.usage.input_tokens,
            "output_tokens": draft.usage.output_tokens,
            "cached_input_tokens": draft.usage.cached_input_tokens,
            "cache_write_tokens": draft.usage.cache_write_tokens,
            "reasoning_tokens": draft.usage.reasoning_tokens,
        },
        "error_type": draft.error_type,
        "embeddings": draft.embeddings,
        "embedding_dimensions": draft.embedding_dimensions,
        "n_tools": len(draft.tools),
        "terminated": draft.terminated,
        "anomalies": dict(draft.anomalies),
    }


def loads(text: Any) -> Any:
    if isinstance(text, str):
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text


def calls(entries: Any) -> list[dict[str, Any]]:
    return [{"name": entry.get("name"), "arguments": loads(entry.get("arguments"))} for entry in entries or []]


def comparisons(want: dict[str, Any], got: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """(field, expected, decoded) for every field that the recording states."""
    names = {
        "status": "status",
        "streaming": "streaming",
        "model_request": "request_model",
        "model_response": "response_model",
        "response_id": "response_id",
        "last_user_text": "input_text",
        "completion_text": "output_text",
        "reasoning_text": "reasoning_text",
        "refusal_text": "refusal_text",
        "error_type": "error_type",
        "n_embeddings": "embeddings",
        "embedding_dim": "embedding_dimensions",
    }
    for field, name in names.items():
        if field in want and not (field == "last_user_text" and want.get("request_is_synthetic")):
            yield field, want[field], got[name]
    if "finish_reason" in want:
        yield "finish_reason", want["finish_reason"], (got["finish_reasons"] or [None])[0]
    if "tool_calls" in want:
        yield "tool_calls", calls(want["tool_calls"]), calls(got["tool_calls"])
    for name, count in (want.get("usage") or {}).items():
        yield "usage." + name, count, got["usage"].get(name)


def same(want: Any, got: Any) -> bool:
    if isinstance(want, str) and isinstance(got, str):
        return want == got or want.strip() == got.strip()
    return want == got or (want in ("", [], None) and got in ("", [], None))


class Score:
    def __init__(self) -> None:
        self.found: Counter[str] = Counter()
        self.expected: Counter[str] = Counter()
        self.right: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()
        self.misses: list[tuple[str, str, str, Any, Any]] = []
        self.false_llm: list[str] = []
        self.providers: Counter[tuple[str, str, str | None]] = Counter()

    def add(self, want: dict[str, Any], got: dict[str, Any]) -> None:
        group = str(want["dialect"])
        self.expected[group] += 1
        if got["provider"]:
            self.found[group] += 1
        else:
            self.misses.append((want["id"], group, "found", True, False))
        self.providers[(want["provider"], group, got["provider"])] += 1
        for field, wanted, had in comparisons(want, got):
            self.asked[group] += 1
            if same(wanted, had):
                self.right[group] += 1
            else:
                self.misses.append((want["id"], group, field, wanted, had))


def score(folder: Path, *, all_operations: bool = False) -> Score:
    expected = {row["id"]: row for row in read_jsonl(folder / "expected.jsonl.gz")}
    result = Score()
    for row in read_jsonl(folder / "exchanges.jsonl.gz"):
        want = expected[row["id"]]
        if all_operations or want["operation"] in CORE:
            result.add(want, run(*views(row)))
    for row in read_jsonl(folder / "negatives.jsonl.gz"):
        got = run(*views(row))
        if got["provider"]:
            result.false_llm.append(f"{row['id']} {row['method']} {row['url']} {got['provider']} {got['operation']}")
    return result


def main() -> None:
    import sys

    result = score(Path(sys.argv[1]), all_operations="--all" in sys.argv)
    by_field = Counter((group, field) for _, group, field, _, _ in result.misses)
    for identity, group, field, want, got in result.misses[:400]:
        print(identity, group, field, "want", repr(want)[:140], "got", repr(got)[:140])
    for group, count in sorted(result.expected.items(), key=lambda item: -item[1]):
        print(f"{group:28} {count:6} found {result.found[group]:6} fields {result.right[group]}/{result.asked[group]}")
    for key, count in by_field.most_common():
        print(count, *key)
    print("found", sum(result.found.values()), "of", sum(result.expected.values()))
    right, asked = sum(result.right.values()), sum(result.asked.values())
    print(f"fields {right} of {asked} {right / asked:.4%}")
    print("negatives taken for LLM:", result.false_llm)
    if "--providers" in sys.argv:
        for provider_key, count in sorted(result.providers.items(), key=str):
            print(count, *provider_key)


if __name__ == "__main__":
    main()
