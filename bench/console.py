"""The console's pages over a large store: times, bytes, memory, first paint.

  python bench/console.py [--exchanges 1000000] [--store FOLDER] [--rounds 20]

The store is made here unless a folder with one is named. `serve` runs as a person begins it; pages are asked for one after the other.
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from http.cookiejar import CookieJar
from pathlib import Path
from urllib.request import HTTPCookieProcessor, build_opener

from llmsec_tap.model import Exchange, Message, Part, Request, Response, Usage
from llmsec_tap.storage import StoreWriter, create_store, open_store
from llmsec_tap.storage.compact import compact

_START = 1_790_000_000_000_000_000
_SPACING_NS = 600_000_000  # a million are a week


def exchange(number: int) -> Exchange:
    text, answer = f"question {number} about the weather " * 8, f"answer {number}: it rains " * 12
    started = _START + number * _SPACING_NS
    return Exchange(
        exchange_id=f"{started // 1_000_000:012x}{number:020x}", client=f"10.0.{number % 250}.1:4000", server="10.2.0.9:8000", started_ns=started,
        first_byte_ns=started + 10_000_000, first_token_ns=started + 20_000_000, ended_ns=started + 900_000_000, ttft_ms=20.0 + number % 50, provider="vllm", api="openai.chat",
        operation="chat", method="POST", path="/v1/chat/completions", http_version="1.1", status=500 if number % 97 == 0 else 200, streaming=True, framing="sse",
        request_model=f"model-{number % 12}", input_text=text, output_text=answer, tenant=f"tenant-{number % 30}", usage=Usage(input_tokens=60, output_tokens=80),
        cost_usd=0.0005, risk_score=number % 100 if number % 11 == 0 else 0, request=Request(messages=[Message(role="user", parts=[Part(type="text", content=text)])]),
        response=Response(messages=[Message(role="assistant", parts=[Part(type="text", content=answer)])]),
    )  # fmt: skip


def made(folder: Path, count: int) -> Path:
    began = time.monotonic()
    writer = StoreWriter(create_store(folder))
    for number in range(count):
        writer.add(exchange(number))
    writer.close()
    for _ in range(2):  # as a store is some minutes later: small parts are merged, then their originals removed
        compact(open_store(folder), time.time_ns() + 10**12, grace_ns=0)
    print(f"store of {count:,} exchanges made in {time.monotonic() - began:.0f} s")
    return folder


def resident_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def first_paint(address: str, base: str, page: str) -> float | None:
    browser = shutil.which("chromium")
    if browser is None:
        return None
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        shown = started.new_page()
        shown.goto(address)
        shown.goto(base + page, wait_until="load")
        paint = None
        for _ in range(100):  # the page's policy lets no function be polled
            paint = shown.evaluate("performance.getEntriesByName('first-contentful-paint')[0]?.startTime")
            if paint is not None:
                break
            time.sleep(0.05)
        started.close()
        return float(paint) if paint is not None else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exchanges", type=int, default=1_000_000)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        store = options.store or made(Path(scratch) / "store", options.exchanges)
        command = [str(Path(sys.executable).with_name("llmsec-analyze")), "serve", "--store", str(store), "--port", "0"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
            assert server.stderr is not None
            found = re.search(r"http://\S+", server.stderr.readline())
            assert found is not None
            address = found[0]
            base = address.split("/login")[0]
            opener = build_opener(HTTPCookieProcessor(CookieJar()))
            try:
                began = time.perf_counter()
                opener.open(address).read()  # leads to the overview of everything, as nothing is of today
                print(
                    f"overview, first {(time.perf_counter() - began) * 1e3:7.0f} ms with the login and the store's opening; later once for each new part"
                )
                listed = opener.open(base + "/exchanges").read().decode()
                one = re.findall(r'href="/exchanges/(\w{32})"', listed)[0]
                pages = {
                    "overview": "/?since=all", "list": "/exchanges", "list, filtered": "/exchanges?tenant=tenant-7&has_error=1",
                    "list, deep": f"/exchanges?before={_START + 1000 * _SPACING_NS}-0", "text search": "/exchanges?text=question+77777+about", "exchange": f"/exchanges/{one}",
                    "a chart": "/charts/requests.svg?since=all",
                }  # fmt: skip
                for name, page in pages.items():
                    times, size = [], 0
                    for _ in range(options.rounds):
                        began = time.perf_counter()
                        size = len(opener.open(base + page).read())
                        times.append((time.perf_counter() - began) * 1e3)
                    times.sort()
                    print(
                        f"{name:15} p50 {statistics.median(times):7.0f} ms   p95 {times[int(len(times) * 0.95) - 1]:7.0f} ms   {size:8,} bytes"
                    )
                print(f"serve: {resident_mib(server.pid):.0f} MiB resident")
                paint = first_paint(address, base, "/?since=all")
                print(f"first paint of the overview: {paint:.0f} ms" if paint is not None else "no chromium: first paint not measured")
            finally:
                server.terminate()


if __name__ == "__main__":
    main()
