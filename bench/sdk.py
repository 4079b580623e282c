"""What the SDK costs an application: added time per request and per piece of a stream on the caller's thread, memory, exchanges per second.

    .venv/bin/python bench/sdk.py [--requests N] [--pieces N]

A transport in memory answers at once, so that nothing but the SDK differs between the two runs; they are made in turn, round by round.
Figures are the differences of the percentiles with and without it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx

from llmsec_trace import Callback, InstrumentationConfig, flush, instrument, stats, uninstrument

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


def caller(requests: int, pieces: int) -> None:
    config = InstrumentationConfig(destinations=[Callback(lambda _record: None)])
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


def rate(requests: int) -> None:
    config = InstrumentationConfig(destinations=[Callback(lambda _record: None)])
    client: Any = instrument(httpx.Client(transport=Model(50)), config)
    before = stats()
    start, cpu = time.perf_counter(), time.process_time()
    for _ in range(requests):
        client.post(URL, content=BODY)
    flush(120)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    told = stats()
    recorded, dropped = told.recorded - before.recorded, told.dropped - before.dropped
    print(
        f"{requests} whole answers as fast as the client goes: {recorded} recorded, {dropped} dropped, {recorded / seconds:,.0f} a second, {cpu / requests * 1e3:.2f} ms of CPU each with the client's own"
    )


MEMORY = """
import resource, sys
import httpx
{instrument}
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def memory() -> None:
    loaded = "from llmsec_trace import *; instrument(httpx.Client(), InstrumentationConfig(destinations=[Callback(print)]))"
    told = [
        int(subprocess.run([sys.executable, "-c", MEMORY.format(instrument=line)], capture_output=True, text=True, check=True).stdout)
        for line in ("", loaded)
    ]
    print(
        f"memory of a process: {told[0]} MB with httpx, {told[1]} MB when it is instrumented; this one at its peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MB"
    )
    times = []
    for _ in range(5):
        line = "import time; t = time.perf_counter(); from llmsec_trace import instrument; print(time.perf_counter() - t)"
        times.append(float(subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=True).stdout))
    print(f"`from llmsec_trace import instrument`: {sorted(times)[2] * 1e3:.0f} ms (median of 5)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--pieces", type=int, default=1000)
    options = parser.parse_args()
    caller(options.requests, options.pieces)
    rate(options.requests)
    memory()
