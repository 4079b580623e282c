"""One request, asked of each server and read by the tap: whatever a server read must stand in the record, or the record must say that it does not."""

from __future__ import annotations

from dataclasses import dataclass, field

from differential.real_servers import Servers, ask
from differential.requests import Sample
from llmsec_tap.anomalies import UNREAD
from llmsec_tap.model import Exchange, to_json
from support.replay import replay
from support.wire import Talk, pcap

_ANSWER = b'{"id":"c","object":"chat.completion","model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"ok"},"finish_reason":"stop"}]}'


@dataclass
class Verdict:
    sample: Sample
    taken: list[str] = field(default_factory=list)  # servers that read the prompt
    missed: list[str] = field(default_factory=list)  # of them, those whose exchange the tap neither read nor marked
    records: list[Exchange] = field(default_factory=list)


def judge(sample: Sample, servers: Servers) -> Verdict:
    verdict = Verdict(sample)
    for name, port in servers.ports.items():
        if name == "llamacpp" and not _for_llama(sample):
            continue
        answer = ask(port, sample.raw)
        if b"x-seen: 1" not in answer.lower() and not (name == "llamacpp" and answer.startswith(b"HTTP/1.1 200")):
            continue
        verdict.taken.append(name)
        records = read(sample.raw, answer)
        if not is_read(records) and not is_marked(records):
            verdict.missed.append(name)
            verdict.records = records
    return verdict


def read(raw: bytes, answer: bytes) -> list[Exchange]:
    talk = Talk().open()
    talk.say(0, raw)
    talk.say(1, answer).close()
    exchanges, _ = replay(pcap(talk.frames))
    return exchanges


def is_read(records: list[Exchange]) -> bool:
    return any(record.provider is not None and b"MARKER" in to_json(record) for record in records)


def is_marked(records: list[Exchange]) -> bool:
    """Something of a language model's exchange is said to be unread, or not whole."""
    return any(
        record.provider is not None and (record.completeness != "complete" or any(anomaly.name in UNREAD for anomaly in record.anomalies))
        for record in records
    )


def _for_llama(sample: Sample) -> bool:
    """It answers what it takes, and does not say what it read: only bodies whose JSON holds the prompt once are asked of it."""
    return (
        sample.raw.startswith(b"POST ")
        and b"MARKER" in sample.raw
        and b"/v1/chat/completions" in sample.raw[:60]
        and not any("again" in step for step in sample.steps)
    )
