"""Texts of recorded traffic, each with its role, its place and the repository that recorded it: harmless texts for training.

Recorded exchanges are JSON lines (method, url, headers and bodies in base64, `source_repo`, `license`); the decoder of the tap reads
them, so the texts are those that a scan of the same traffic sees. Nobody attacks in them but tests of guardrails, which
`SUSPICIOUS` leaves out of what is taken for harmless.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from llmsec_analyzer.judge.exchange_parts import TextPart, operator_text, text_parts
from llmsec_tap.identity.credentials import fingerprinter
from llmsec_tap.model import Exchange
from llmsec_tap.pipeline import Pipeline
from llmsec_tap.wire.flow import Flow

# Hop-by-hop headers, and what no longer agrees with the recorded body.
_LEFT_OUT = frozenset(("connection", "keep-alive", "proxy-connection", "transfer-encoding", "content-length", "content-encoding", "expect"))
# Tests of guardrails send attacks: they are attacks, whoever recorded them.
SUSPICIOUS = re.compile(r"ignore (all|any|your|the|previous|prior)|jailbreak|prompt injection|system prompt|reveal your", re.IGNORECASE)
_KEY = bytes(32)
_OTHERS = frozenset(("system", "developer", "assistant", "model", "tool_call"))


def exchanges(recorded: Path) -> Iterator[tuple[dict[str, Any], Exchange]]:
    """Each recorded exchange with what the decoder makes of it."""
    with gzip.open(recorded, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            row = json.loads(line)
            decoded: list[Exchange] = []
            pipeline = Pipeline(decoded.append, fingerprinter(_KEY), shield=False)
            client = f"10.0.{number >> 8 & 255}.{number & 255}:40000"
            connection = pipeline.open_flow(Flow(client, "10.2.0.1:80", number, is_midstream=False))
            connection.first.data(number, _request(row))
            connection.second.data(number, _response(row))
            connection.close(number, "fin")
            pipeline.close()
            for exchange in decoded:
                yield row, exchange


def held_out(share: str) -> Callable[[str], bool]:
    """Whether a repository is of the part of them that is left out: `0/4` leaves out about a fourth."""
    part, parts = map(int, share.split("/"))
    return lambda repository: zlib.crc32(repository.encode()) % parts == part


def rows(recorded: Path) -> Iterator[dict[str, Any]]:
    """Training rows: every text once for a repository and role, label 0."""
    seen: set[tuple[str, str, str]] = set()
    for recording, exchange in exchanges(recorded):
        for part in text_parts(exchange):
            key = (recording["source_repo"], part.role, part.text)
            if not part.is_request or part.role in ("assistant", "tool_call") or key in seen or SUSPICIOUS.search(part.text):
                continue
            seen.add(key)
            yield _row(f"traffic:{len(seen)}", part, recording)


def pairs(recorded: Path) -> Iterator[dict[str, Any]]:
    """The same texts with the system prompt and the tools that they came under (`system`), where there are any."""
    seen: set[tuple[str, str, str, str]] = set()
    for recording, exchange in exchanges(recorded):
        parts = list(text_parts(exchange))
        system = operator_text(parts)
        for part in parts if system else ():
            key = (recording["source_repo"], part.role, part.text, system)
            if not part.is_request or part.kind == "tool_definition" or part.role in _OTHERS or key in seen or SUSPICIOUS.search(part.text):
                continue
            seen.add(key)
            row = _row(f"traffic pair:{len(seen)}", part, recording)
            yield {**row, "system": system, "family": f"{row['source']}/{part.kind}"}


def _row(number: str, part: TextPart, recording: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": number, "text": part.text, "label": 0, "category": f"traffic_{part.kind}", "role": part.role, "lang": "",
        "source": f"traffic {recording['source_repo']}", "license": recording["license"], "set": "traffic",
    }  # fmt: skip


def _request(row: dict[str, Any]) -> bytes:
    url = urlsplit(row["url"])
    body = base64.b64decode(row["request_body_b64"])
    lines = [f"{row['method']} {url.path or '/'}{'?' if url.query else ''}{url.query} HTTP/1.1", f"Host: {url.netloc}"]
    return _message(lines, [pair for pair in row["request_headers"] if pair[0].lower() != "host"], body)


def _response(row: dict[str, Any]) -> bytes:
    return _message([f"HTTP/1.1 {row['status']} X"], row["response_headers"], base64.b64decode(row["response_body_b64"]))


def _message(lines: list[str], headers: list[list[str]], body: bytes) -> bytes:
    lines += [f"{name}: {value}" for name, value in headers if name.lower() not in _LEFT_OUT and not name.startswith(":")]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}"]).encode("utf-8", "replace") + b"\r\n\r\n" + body
