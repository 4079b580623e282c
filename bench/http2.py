"""HTTP/2 beside HTTP/1: what an event of a stream costs, and whether anything crosses between streams.

  python bench/http2.py [--events 50000] [--streams 100]
  python bench/http2.py --convert HTTP1.pcap HTTP2.pcap     say a capture's exchanges again over HTTP/2, to be scored with the same map

`--convert` keeps each connection's addresses and its exchanges in their order; frames and segments are cut at random.
"""

from __future__ import annotations

import argparse
import json
import random
import struct
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from llmsec_tap.capture.files.pcap import CaptureReader
from llmsec_tap.identity.credentials import fingerprinter
from llmsec_tap.model import Exchange
from llmsec_tap.pipeline import Pipeline
from support.http2 import HELLO, SERVER_HELLO, Hearing, Side, as_http2, request, response
from support.wire import START_NS, Talk, pcap

_BODY = json.dumps({"model": "gpt-4o", "stream": True, "messages": [{"role": "user", "content": "hi"}]}).encode()
_DONE = b"data: [DONE]\n\n"
_HTTP1_CALL = b"POST /v1/chat/completions HTTP/1.1\r\nHost: model\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
_HTTP1_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def event(stream: int, number: int) -> bytes:
    value = {
        "id": f"chatcmpl-{stream}",
        "object": "chat.completion.chunk",
        "created": 1760000000,
        "model": "gpt-4o-2024-08-06",
        "choices": [{"index": 0, "delta": {"content": f" {stream}.{number}"}, "finish_reason": None}],
    }
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


class Feeder:
    """Segments straight into the reassembler, one event each: the frames' cost is not what is measured here."""

    def __init__(self) -> None:
        self.exchanges: list[Exchange] = []
        self.pipeline = Pipeline(self.exchanges.append, fingerprinter(b"x" * 32), shield=False)
        self.now = START_NS
        self.seq: dict[tuple[int, int], int] = {}

    def say(self, connection: int, side: int, data: bytes, flags: int = 24) -> None:
        client, server = b"\x0a" + struct.pack(">I", connection)[1:], b"\x0b\0\0\1"
        key = client + server + struct.pack(">HH", 40000, 80) if side == 0 else server + client + struct.pack(">HH", 80, 40000)
        seq = self.seq.get((connection, side), 0)
        self.now += 1000
        self.pipeline.tcp.segment(self.now, key, seq, 1, flags, data)
        self.seq[connection, side] = seq + len(data) + (flags == 2) + (flags == 18)

    def open(self, connection: int) -> None:
        self.say(connection, 0, b"", 2)
        self.say(connection, 1, b"", 18)


def measure(turns: list[tuple[int, bytes]], feeder: Feeder) -> float:
    """CPU seconds for answers' segments: (connection, bytes)."""
    began = time.process_time()
    for connection, data in turns:
        feeder.say(connection, 1, data)
    return time.process_time() - began


def http1(events: int, streams: int) -> tuple[float, list[Exchange]]:
    """As many connections as streams: HTTP/1 has no other way."""
    feeder = Feeder()
    for stream in range(streams):
        feeder.open(stream)
        feeder.say(stream, 0, _HTTP1_CALL % (len(_BODY), _BODY))
        feeder.say(stream, 1, _HTTP1_HEAD)
    turns = [(n % streams, event(n % streams, n // streams)) for n in range(events)]
    cost = measure([(stream, b"%x\r\n%b\r\n" % (len(data), data)) for stream, data in turns], feeder)
    for stream in range(streams):
        feeder.say(stream, 1, b"%x\r\n%b\r\n0\r\n\r\n" % (len(_DONE), _DONE))
    feeder.pipeline.close()
    return cost, feeder.exchanges


def http2(events: int, streams: int) -> tuple[float, list[Exchange]]:
    feeder, client, server = Feeder(), Side(), Side()
    feeder.open(0)
    feeder.say(0, 0, HELLO)
    feeder.say(0, 1, SERVER_HELLO)
    for stream in range(streams):
        feeder.say(0, 0, client.headers(2 * stream + 1, request()) + client.data(2 * stream + 1, _BODY, ends=True))
        feeder.say(0, 1, server.headers(2 * stream + 1, response(b"200", b"text/event-stream")))
    turns = [(0, server.data(2 * (n % streams) + 1, event(n % streams, n // streams))) for n in range(events)]
    cost = measure(turns, feeder)
    for stream in range(streams):
        feeder.say(0, 1, server.data(2 * stream + 1, _DONE, ends=True))
    feeder.pipeline.close()
    return cost, feeder.exchanges


def crossed(exchanges: list[Exchange], events: int, streams: int) -> int:
    """Exchanges whose text is not exactly their own."""
    wrong = 0
    for exchange in exchanges:
        stream = int((exchange.response_id or "-1").rpartition("-")[2])
        wrong += exchange.output_text != "".join(f" {stream}.{n}" for n in range(len(range(stream, events, streams))))
    return wrong


def convert(source: Path, target: Path) -> None:
    hearing, rng = Hearing(), random.Random(7)
    CaptureReader(hearing).read(str(source))
    hearing.close()
    frames: list[tuple[int, bytes]] = []
    for (client, server), said in hearing.said.items():
        ends = [(host.strip("[]"), int(port)) for host, _, port in (client.rpartition(":"), server.rpartition(":"))]
        # One after the other, so that the order in which they begin is kept.
        talk = Talk(client=ends[0], server=ends[1], now_ns=frames[-1][0] + 10**9 if frames else START_NS, step_ns=1000)
        frames += as_http2(said, talk, rng, at_once=4).frames
    target.write_bytes(pcap(frames))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=50_000)
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--convert", type=Path, nargs=2, metavar=("HTTP1", "HTTP2"))
    arguments = parser.parse_args()
    if arguments.convert:
        convert(*arguments.convert)
        return
    events, streams = arguments.events, arguments.streams
    best: dict[str, float] = {}
    for _ in range(arguments.rounds):
        for name, run in (("HTTP/1", http1), ("HTTP/2", http2)):
            cost, exchanges = run(events, streams)
            wrong = crossed(exchanges, events, streams)
            if wrong or len(exchanges) != streams:
                sys.exit(f"{name}: {len(exchanges)} exchanges of {streams}, {wrong} with another's text")
            best[name] = min(cost / events * 1e6, best.get(name, float("inf")))
    print(f"{events:,} events over {streams} streams, each stream's text its own")
    print(f"us an event: HTTP/1 {best['HTTP/1']:.2f}, HTTP/2 {best['HTTP/2']:.2f}; ratio {best['HTTP/2'] / best['HTTP/1']:.2f}")


if __name__ == "__main__":
    main()
