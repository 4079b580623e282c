"""Writes a seeded capture of plain HTTP/1.1 LLM traffic: interleaved keep-alive connections, 60 % of answers streamed.

One chunk a segment, as model servers send; two exchanges a connection; `open` connections at a time. True totals go to OUT.json.

  python bench/make_capture.py OUT.pcap [--flows 2000] [--events 200] [--open 200] [--seed 1]
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

WORDS = [
    "the",
    "a",
    "model",
    "of",
    "to",
    "and",
    "in",
    "token",
    "stream",
    "request",
    "answer",
    "summarize",
    "report",
    "invoice",
    "python",
    "network",
    "flow",
    "budget",
    "agent",
    "naïve",
    "数据",
    '\\"quoted\\"',
    "line\\nbreak",
]
_MSS = 1448


def _text(rng: random.Random, count: int) -> str:
    return " ".join(rng.choices(WORDS, k=count))


def _exchange(rng: random.Random, events: int, totals: Counter[str]) -> Iterator[tuple[int, bytes, float]]:
    stream = rng.random() < 0.6
    ident = f"chatcmpl-{rng.getrandbits(96):024x}"
    body = f'{{"model":"gpt-4o","messages":[{{"role":"system","content":"Be brief."}},{{"role":"user","content":"{_text(rng, rng.randrange(20, 400))}"}}],"stream":{"true" if stream else "false"}}}'.encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: node.test\r\nAuthorization: Bearer sk-test-{rng.getrandbits(96):024x}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    totals["exchanges"] += 1
    yield 0, head.encode() + body, 0.01
    if not stream:
        answer = f'{{"id":"{ident}","object":"chat.completion","created":1760000000,"model":"gpt-4o-2024-08-06","choices":[{{"index":0,"message":{{"role":"assistant","content":"{_text(rng, rng.randrange(20, 800))}","refusal":null}},"logprobs":null,"finish_reason":"stop"}}],"usage":{{"prompt_tokens":57,"completion_tokens":212,"total_tokens":269}}}}'.encode()
        yield (
            1,
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(answer), answer),
            rng.uniform(0.3, 2),
        )
        return
    yield (
        1,
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n",
        rng.uniform(0.1, 0.8),
    )
    deltas = (
        ['{"role":"assistant","content":"","refusal":null}']
        + [f'{{"content":" {rng.choice(WORDS)}"}}' for _ in range(max(2, int(rng.gauss(events, events / 4))))]
        + ["{}"]
    )
    for number, delta in enumerate(deltas):
        finish = '"stop"' if number == len(deltas) - 1 else "null"
        data = f'data: {{"id":"{ident}","object":"chat.completion.chunk","created":1760000000,"model":"gpt-4o-2024-08-06","service_tier":"default","system_fingerprint":"fp_50cad350e4","choices":[{{"index":0,"delta":{delta},"logprobs":null,"finish_reason":{finish}}}]}}\n\n'.encode()
        totals["events"] += 1
        yield 1, b"%x\r\n%b\r\n" % (len(data), data), rng.uniform(0.002, 0.03)
    yield 1, b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n", 0.001


def _flow(number: int, start: float, seed: int, events: int, totals: Counter[str]) -> Iterator[tuple[float, bytes]]:
    rng = random.Random(seed * 1_000_003 + number)
    ends = (
        (socket.inet_aton(f"10.1.{number >> 8 & 255}.{number & 255}"), 20000 + number % 40000),
        (socket.inet_aton(f"10.9.0.{1 + number % 8}"), 8000),
    )
    seq, now = [rng.getrandbits(32), rng.getrandbits(32)], start

    def frame(side: int, flags: int, data: bytes = b"") -> tuple[float, bytes]:
        (src, sport), (dst, dport) = ends[side], ends[1 - side]
        tcp = struct.pack(
            ">HHIIBBHHH12s",
            sport,
            dport,
            seq[side] & 0xFFFFFFFF,
            seq[1 - side] & 0xFFFFFFFF,
            0x80,
            flags,
            502,
            0,
            0,
            b"\1\1\x08\n" + bytes(8),
        )
        ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 52 + len(data), 0, 0x4000, 64, 6, 0, src, dst)
        seq[side] += len(data) + (flags & 3 != 0)
        return now, b"\x02\0\0\0\0\2\x02\0\0\0\0\1\x08\0" + ip + tcp + data

    yield frame(0, 2)
    yield frame(1, 18)
    yield frame(0, 16)
    for _ in range(2):
        for side, data, pause in _exchange(rng, events, totals):
            now += pause
            for at in range(0, len(data), _MSS):
                now += 0.00002
                yield frame(side, 24, data[at : at + _MSS])
            if rng.random() < 0.5:
                yield frame(1 - side, 16)
    yield frame(0, 17)
    yield frame(1, 17)


def make(path: Path, *, flows: int, events: int, open_flows: int, seed: int) -> dict[str, int]:
    totals: Counter[str] = Counter()
    heap: list[tuple[float, int, bytes, Iterator[tuple[float, bytes]]]] = []
    started = 1_790_000_000.0
    numbers = iter(range(flows))

    def start() -> None:
        nonlocal started
        number = next(numbers, None)
        if number is not None:
            started += 6.0 / open_flows
            frames = _flow(number, started, seed, events, totals)
            when, raw = next(frames)
            heapq.heappush(heap, (when, number, raw, frames))

    for _ in range(open_flows):
        start()
    with path.open("wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, 1))
        while heap:
            when, number, raw, frames = heap[0]
            file.write(struct.pack("<IIII", int(when), int(when % 1 * 1e6), len(raw), len(raw)) + raw)
            totals["packets"] += 1
            step = next(frames, None)
            if step is None:
                heapq.heappop(heap)
                start()
            else:
                heapq.heapreplace(heap, (step[0], number, step[1], frames))
    path.with_name(path.name + ".json").write_text(json.dumps(totals))
    return dict(totals)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--flows", type=int, default=2000)
    parser.add_argument("--events", type=int, default=200)
    parser.add_argument("--open", type=int, default=200, dest="open_flows")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    print(
        json.dumps(
            make(arguments.out, flows=arguments.flows, events=arguments.events, open_flows=arguments.open_flows, seed=arguments.seed)
        )
    )


if __name__ == "__main__":
    main()
