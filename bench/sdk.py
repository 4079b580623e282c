"""What the SDK costs an application: added time per request and per piece of a stream on the caller's thread, memory, exchanges per second.

    .venv/bin/python bench/sdk.py [--requests N] [--pieces N] [--detection]

A transport in memory answers at once, so that nothing but the SDK differs between the two runs; they are made in turn, round by round.
Figures are the differences of the percentiles with and without it. With `--detection` its process examines every record on the same cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx

from llmsec_trace import Callback, InstrumentationConfig, SecurityConfig, flush, instrument, stats, uninstrument

URL = "http://model.test/v1/chat/completions"
BODY = json.dumps({"model": "gpt-4", "messages": [{"role": "user", "content": "What do passive taps see? " * 20}]}).encode()
ANSWER = json.dumps(
    {
        "id": "c-1", "object": "chat.completion", "model": "gpt-4",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Everything that passes. " * 40}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 200},
    }
).encode()  # fmt: skip
CHUNK = b"data: " + json.dumps({"id": "c-1", "model": "gpt-4", "choices": [{"index": 0, "delta": {"content": " word"}}]}).encode() + b"\n\n"


class Pieces(httpx.SyncByteStream, httpx.AsyncByteStream):
    def __init__(self, count: int) -> None:
        self._count = count

    def __iter__(self) -> Iterator[bytes]:
        for _ in range(self._count):
            yield CHUNK
        yield b"data: [DONE]\n\n"

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self:
            yield part


class Model(httpx.BaseTransport, httpx.AsyncBaseTransport):
    def __init__(self, pieces: int) -> None:
        self._pieces = pieces

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if request.headers.get("accept") == "text/event-stream":
            return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=Pieces(self._pieces))
        return httpx.Response(200, headers={"content-type": "application/json"}, content=ANSWER)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return self.handle_request(request)


def percentile(times: list[int], share: float) -> float:
    """In microseconds."""
    return sorted(times)[min(len(times) - 1, int(len(times) * share))] / 1000


def requests_of(client: httpx.Client, count: int, pause_s: float) -> list[int]:
    times = []
    for _ in range(count):
        start = time.perf_counter_ns()
        client.post(URL, content=BODY)
        times.append(time.perf_counter_ns() - start)
        time.sleep(pause_s)
    return times


async def async_requests_of(client: httpx.AsyncClient, count: int, pause_s: float) -> list[int]:
    times = []
    for _ in range(count):
        start = time.perf_counter_ns()
        await client.post(URL, content=BODY)
        times.append(time.perf_counter_ns() - start)
        await asyncio.sleep(pause_s)
    return times


def pieces_of(client: httpx.Client, pause_s: float) -> list[int]:
    times = []
    with client.stream("POST", URL, content=BODY, headers={"accept": "text/event-stream"}) as answer:
        parts = answer.iter_raw()
        while True:
            start = time.perf_counter_ns()
            part = next(parts, None)
            times.append(time.perf_counter_ns() - start)
            if part is None:
                return times
            if pause_s:
                time.sleep(pause_s)


def compare(name: str, bare: list[int], ours: list[int]) -> None:
    for share, label in ((0.5, "p50"), (0.99, "p99")):
        without, with_it = percentile(bare, share), percentile(ours, share)
        print(f"{name:34} {label}  without {without:8.1f} us  with {with_it:8.1f} us  added {with_it - without:8.1f} us")


def config_of(*, detects: bool) -> InstrumentationConfig:
    return InstrumentationConfig(destinations=[Callback(lambda _record: None)], security=SecurityConfig(enabled=detects))


def caller(config: InstrumentationConfig, requests: int, pieces: int) -> None:
    client = httpx.Client(transport=Model(pieces))
    requests_of(client, 200, 0)
    for pause_s, how in ((0.002, "500 a second"), (0.0, "without pause")):
        bare, ours = [], []
        for _ in range(5):
            uninstrument(client)
            bare += requests_of(client, requests // 5, pause_s)
            instrument(client, config)
            ours += requests_of(client, requests // 5, pause_s)
            flush(60)
        compare(f"request, {how}", bare, ours)
    bare, ours = [], []
    for pause_s, how in ((0.001, "1,000 a second"), (0.0, "without pause")):
        bare, ours = [], []
        for _ in range(5):
            uninstrument(client)
            bare += pieces_of(client, pause_s)
            instrument(client, config)
            ours += pieces_of(client, pause_s)
            flush(60)
        compare(f"piece of a stream, {how}", bare, ours)

    async def run() -> None:
        async with httpx.AsyncClient(transport=Model(pieces)) as client:
            bare, ours = [], []
            for _ in range(5):
                uninstrument(client)
                bare += await async_requests_of(client, requests // 5, 0.002)
                instrument(client, config)
                ours += await async_requests_of(client, requests // 5, 0.002)
            compare("request, async, 500 a second", bare, ours)

    asyncio.run(run())
    flush(60)
    print(stats())


def rate(config: InstrumentationConfig, requests: int) -> None:
    client: Any = instrument(httpx.Client(transport=Model(50)), config)
    before = stats()
    start, cpu = time.perf_counter(), time.process_time()
    for _ in range(requests):
        client.post(URL, content=BODY)
    flush(120)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    told = stats()
    recorded, dropped, undetected = (getattr(told, name) - getattr(before, name) for name in ("recorded", "dropped", "undetected"))
    scored = f", {recorded - undetected} of them scored" if config.security.enabled else ""
    print(
        f"{requests} whole answers as fast as the client goes: {recorded} recorded{scored}, {dropped} dropped, {recorded / seconds:,.0f} a second, {cpu / requests * 1e3:.2f} ms of CPU each with the client's own"
    )


MEMORY = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
import argparse, asyncio, subprocess, httpx
def peak(pid):
    return next(int(line.split()[1]) // 1024 for line in Path(f"/proc/{{pid}}/status").read_text().splitlines() if line.startswith("VmHWM"))
def children():
    return [pid for thread in Path("/proc/self/task").iterdir() for pid in (thread / "children").read_text().split()]
{work}
print(peak("self"), *map(peak, children()))
"""
WORK = """
import sdk
client = sdk.instrument(httpx.Client(transport=sdk.Model(50)), sdk.config_of(detects={detects}))
for _ in range(200):
    client.post(sdk.URL, content=sdk.BODY)
sdk.flush(60)
"""


def memory(*, detects: bool) -> None:
    """Peaks of two processes: one that does nothing, and one that makes 200 calls, with its detection process."""
    for name, work in (("with httpx", ""), ("recorded", WORK.format(detects=detects))):
        code = MEMORY.format(here=str(Path(__file__).parent), work=work)
        told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
        print(f"memory of a process {name}: {told[0]} MB" + (f", of detection's {told[1]} MB" if told[1:] else ""))
    times = []
    for _ in range(5):
        line = "import time; t = time.perf_counter(); from llmsec_trace import instrument; print(time.perf_counter() - t)"
        times.append(float(subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=True).stdout))
    print(f"`from llmsec_trace import instrument`: {sorted(times)[2] * 1e3:.0f} ms (median of 5)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--pieces", type=int, default=1000)
    parser.add_argument("--detection", action="store_true")
    options = parser.parse_args()
    chosen = config_of(detects=options.detection)
    caller(chosen, options.requests, options.pieces)
    rate(chosen, options.requests)
    memory(detects=options.detection)
