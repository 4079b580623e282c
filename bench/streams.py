"""Memory of open streams, and the cost of an event as one stream grows.

python bench/streams.py [--streams 10000] [--events 50] [--grow 100000]
"""

from __future__ import annotations

import argparse
import gc
import json
import struct
import time
from pathlib import Path

from llmsec_tap.identity.credentials import fingerprinter
from llmsec_tap.pipeline import Pipeline

_BODY = b'{"model":"gpt-4o","messages":[{"role":"user","content":"Write a long answer, please."}],"stream":true}'
_REQUEST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: node\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
    len(_BODY),
    _BODY,
)
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(number: int) -> bytes:
    value = {
        "id": "chatcmpl-0123456789abcdef",
        "object": "chat.completion.chunk",
        "created": 1760000000,
        "model": "gpt-4o-2024-08-06",
        "choices": [{"index": 0, "delta": {"content": f" word{number % 1000}"}, "finish_reason": None}],
    }
    data = b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(data), data)


class Feeder:
    """Segments straight into the reassembler: the frames' cost is not what is measured here."""

    def __init__(self) -> None:
        self.done = 0
        self.pipeline = Pipeline(self._count, fingerprinter(b"x" * 32), shield=False)
        self.now = 1_790_000_000_000_000_000

    def _count(self, exchange: object) -> None:
        self.done += 1

    def key(self, number: int, side: int) -> bytes:
        client, server = b"\x0a" + struct.pack(">I", number)[1:], b"\x0b\0\0\1"
        return client + server + struct.pack(">HH", 40000, 80) if side == 0 else server + client + struct.pack(">HH", 80, 40000)

    def send(self, number: int, side: int, seq: int, data: bytes, flags: int = 24) -> int:
        self.now += 1000
        self.pipeline.tcp.segment(self.now, self.key(number, side), seq, 1, flags, data)
        return seq + len(data)

    def open(self, number: int) -> int:
        self.send(number, 0, 0, b"", 2)
        self.send(number, 1, 0, b"", 18)
        self.send(number, 0, 1, _REQUEST)
        return self.send(number, 1, 1, _HEAD)


def resident() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def memory(streams: int, events: int) -> None:
    feeder = Feeder()
    feeder.open(0)
    chunks = [chunk(n) for n in range(events)]
    text = sum(len(f" word{n % 1000}") for n in range(events))
    before = resident()
    positions = [feeder.open(number) for number in range(1, streams + 1)]
    for data in chunks:
        for number in range(streams):
            positions[number] = feeder.send(number + 1, 1, positions[number], data)
    used = (resident() - before) / streams
    bodies = len(_BODY) + text
    print(f"{streams:,} open streams, {events} events each: {used / 1000:.1f} kB each, of which {bodies / 1000:.1f} kB are bodies")
    feeder.pipeline.close()
    assert feeder.done == streams + 1


def growth(events: int) -> None:
    feeder = Feeder()
    seq = feeder.open(1)
    window = events // 10
    data = [chunk(n) for n in range(1000)]
    costs = []
    for start in range(0, events, window):
        began = time.process_time()
        for number in range(start, start + window):
            seq = feeder.send(1, 1, seq & 0xFFFFFFFF, data[number % 1000])
        costs.append((time.process_time() - began) / window * 1e6)
    began = time.process_time()
    feeder.pipeline.close()
    print(
        f"one stream of {events:,} events, us an event by tenth: {' '.join(f'{cost:.1f}' for cost in costs)}; closing it {1e3 * (time.process_time() - began):.0f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=10_000)
    parser.add_argument("--events", type=int, default=50)
    parser.add_argument("--grow", type=int, default=100_000)
    arguments = parser.parse_args()
    growth(arguments.grow)
    memory(arguments.streams, arguments.events)


if __name__ == "__main__":
    main()
