"""tshark as a second opinion on reassembly: the same messages, bodies and stream events on clean, disordered and coded captures.

The option `tcp.reassemble_out_of_order` is needed: without it tshark loses messages on disordered captures.
"""

from __future__ import annotations

import gzip
import json
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from support.fixture_captures import LIVE, live_frames
from support.replay import replay
from support.wire import Talk, pcap

pytestmark = [
    pytest.mark.tshark,
    pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed"),
]


# In a process of its own: pyshark leaves event loops and pipes to the garbage collector.
_PYSHARK = """
import asyncio, collections, json, sys, pyshark
prefs = {"tcp.reassemble_out_of_order": "TRUE", "tcp.desegment_tcp_streams": "TRUE", "http.tcp.port": "1-65535"}
capture = pyshark.FileCapture(sys.argv[1], display_filter="http", use_json=True, keep_packets=False, override_prefs=prefs,
                              eventloop=asyncio.new_event_loop())
requests, statuses = collections.Counter(), collections.Counter()
for packet in capture:
    for layer in packet.get_multiple_layers("http"):
        for line in layer._all_fields:
            if line.startswith(("POST ", "GET ")):
                requests[line.removesuffix("\\\\r\\\\n")] += 1
            elif line.startswith("HTTP/1.1 "):
                statuses[line.split()[1]] += 1
print(json.dumps([requests, statuses]))
"""


def by_tshark(path: Path) -> tuple[Counter[str], Counter[int]]:
    """Request lines and response status codes, as pyshark gives them."""
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", _PYSHARK, str(path)], capture_output=True, check=True)
    requests, statuses = json.loads(result.stdout)
    return Counter(requests), Counter({int(status): count for status, count in statuses.items()})


def by_us(path: Path) -> tuple[Counter[str], Counter[int]]:
    exchanges, _ = replay(path)
    return (
        Counter(f"{e.method} {e.path} HTTP/{e.http_version}" for e in exchanges if e.method),
        Counter(e.status for e in exchanges if e.status and e.completeness == "complete"),  # tshark shows a message at its end
    )


def test_a_real_capture(tmp_path: Path) -> None:
    path = tmp_path / "live.pcap"
    path.write_bytes(gzip.decompress(LIVE.read_bytes()))
    ours = by_us(path)
    assert ours == by_tshark(path)
    assert sum(ours[0].values()) == 10


@pytest.mark.parametrize("seed", range(3))
def test_disordered_captures(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    frames: list[tuple[int, bytes]] = []
    body = b'{"model":"m","messages":[{"role":"user","content":"' + b"x" * 3000 + b'"}]}'
    for number in range(40):
        talk = Talk(client=("10.1.0.7", 40000 + number), mss=rng.choice((200, 700, 1448))).open()
        for turn in range(3):
            answer = b"y" * rng.randint(1, 9000)
            talk.say(
                0,
                b"POST /v1/chat/completions?n=%d HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b"
                % (number * 10 + turn, len(body), body),
            )
            if rng.random() < 0.5:
                chunks = b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in (answer[i : i + 500] for i in range(0, len(answer), 500)))
                talk.say(1, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")
            else:
                talk.say(1, b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(answer), answer))
        mixed = talk.close().frames
        for at in range(3, len(mixed) - 4):
            both_data = len(mixed[at][1]) > 60 and len(mixed[at + 1][1]) > 60 and mixed[at][1][26:30] == mixed[at + 1][1][26:30]
            if both_data and rng.random() < 0.1:
                mixed[at], mixed[at + 1] = (mixed[at][0], mixed[at + 1][1]), (mixed[at + 1][0], mixed[at][1])
        frames += [frame for frame in mixed for _ in range(1 + (rng.random() < 0.03))]
    path = tmp_path / "noisy.pcap"
    path.write_bytes(pcap(sorted(frames, key=lambda frame: frame[0])))
    ours, theirs = by_us(path), by_tshark(path)
    assert sum(ours[0].values()) == 120
    assert ours == theirs


def test_stream_events_are_the_lines_that_tshark_shows(tmp_path: Path) -> None:
    """tshark's dechunked bodies hold exactly the events that we counted."""
    path = tmp_path / "live.pcap"
    path.write_bytes(pcap(live_frames()))
    shown = subprocess.run(
        ["tshark", "-r", str(path), "-o", "tcp.reassemble_out_of_order:TRUE", "-Y", 'http.content_type contains "event-stream"', "-T", "fields", "-e", "http.file_data"],
        capture_output=True, check=True, text=True,
    )  # fmt: skip
    bodies = [
        bytes.fromhex(line.replace(":", "")) if set(line) <= set("0123456789abcdef:") else line.encode()
        for line in shown.stdout.split("\n")
        if line
    ]
    events = sum(body.count(b"data: ") - body.count(b"data: [DONE]") for body in bodies)
    complete = [e for e in replay(path)[0] if e.streaming and e.completeness == "complete"]
    assert events == sum(e.response.events or 0 for e in complete)
