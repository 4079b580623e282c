"""The image under the chart's limits: the numbers of docs/deployment.md. Needs root, cgroups v1 or v2, and a root of scripts/build-image-root.

    python bench/deployed.py ROOT FACTS.json [SECONDS [STREAMS]]     default 60 and 100

Streams of 250 tokens, one TLS write each, fifty a second: STREAMS of them at once are 50 x STREAMS tokens a second. First the agent is idle for
SECONDS, then under that load, then it is replaced by a new one, as a rollout does, while the load goes on. Prints one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tap"), str(ROOT / "analyzer"), str(ROOT / "agent")]
TOKENS, PAUSE_S = 250, 0.02


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One request a connection; the stream of an OpenAI chat."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    await reader.readexactly(length)
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
    begun = time.monotonic()
    for number in range(TOKENS):
        chunk = {
            "id": "x",
            "object": "chat.completion.chunk",
            "model": "bench",
            "choices": [{"index": 0, "delta": {"content": f"token{number} "}}],
        }
        data = b"data: " + json.dumps(chunk).encode() + b"\n\n"
        writer.write(b"%x\r\n%s\r\n" % (len(data), data))
        await writer.drain()
        await asyncio.sleep(max(0.0, begun + (number + 1) * PAUSE_S - time.monotonic()))
    writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
    await writer.drain()
    writer.close()


async def serve(port: int, cert: str, key: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    await (await asyncio.start_server(answer, "127.0.0.1", port, ssl=context)).serve_forever()


async def call(port: int, seconds: float, streams: int) -> int:
    """How many streams ended whole."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    ends, made = time.monotonic() + seconds, 0

    async def one(number: int) -> None:
        nonlocal made
        await asyncio.sleep(TOKENS * PAUSE_S * number / streams)
        while time.monotonic() < ends:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
            body = json.dumps({"model": "bench", "stream": True, "messages": [{"role": "user", "content": f"stream {number}"}]}).encode()
            writer.write(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
                % (len(body), body)
            )
            while not (await reader.readline()).startswith(b"data: [DONE]"):
                pass
            made += 1
            writer.close()

    await asyncio.gather(*(one(number) for number in range(streams)))
    return made


class Group:
    """A cgroup with the limits of a container; `into` is shell that enters it."""

    def __init__(self, limits: dict[str, str]) -> None:
        base, name = Path("/sys/fs/cgroup"), "llmsec-bench"
        memory = int(limits["memory"].removesuffix("Mi")) << 20
        quota = int(float(limits["cpu"]) * 100_000)
        self._v2 = (base / "cgroup.controllers").exists()
        kinds = ("",) if self._v2 else ("memory", "cpu", "cpuacct")
        self._folders = [base / kind / name for kind in kinds]
        for folder in self._folders:
            folder.mkdir(exist_ok=True)
        if self._v2:
            (self._folders[0] / "memory.max").write_text(str(memory))
            (self._folders[0] / "cpu.max").write_text(f"{quota} 100000")
        else:
            (self._folders[0] / "memory.limit_in_bytes").write_text(str(memory))
            (self._folders[1] / "cpu.cfs_quota_us").write_text(str(quota))
        self.into = "; ".join(f"echo $$ > {folder}/cgroup.procs" for folder in self._folders)

    def cpu_s(self) -> float:
        if self._v2:
            return int((self._folders[0] / "cpu.stat").read_text().split()[1]) / 1e6
        return int((self._folders[2] / "cpuacct.usage").read_text()) / 1e9

    def resident_mb(self) -> float:
        """Memory of processes; of files, only what cannot be dropped counts against a limit."""
        facts = dict(line.split() for line in (self._folders[0] / "memory.stat").read_text().splitlines())
        return round((int(facts["anon"]) if self._v2 else int(facts["total_rss"])) / 1e6, 1)

    def end(self) -> None:
        for folder in self._folders:
            folder.rmdir()


def looked_at(group: Group, seconds: float) -> dict[str, float]:
    cpu, begun, most = group.cpu_s(), time.monotonic(), 0.0
    while time.monotonic() - begun < seconds:
        time.sleep(1)
        most = max(most, group.resident_mb())
    return {"cores": round((group.cpu_s() - cpu) / (time.monotonic() - begun), 3), "resident_mb": most}


def stored(store: Path) -> Counter[str]:
    """Exchanges in the store by completeness, of both agents: they write to one folder."""
    sql = "SELECT completeness, count(*) AS n FROM exchanges WHERE provider IS NOT NULL GROUP BY 1"
    command = [Path(sys.executable).parent / "llmsec-analyze", "query", "--store", store, "--format", "json", sql]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return Counter({row["completeness"]: row["n"] for row in map(json.loads, done.stdout.splitlines())})


def main() -> None:
    from support.image_root import Contained, manifest
    from support.tls_front import free_port, make_certificate, wait_for_port

    root, facts = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    seconds, streams = (int(text) for text in (*sys.argv[3:5], "60", "100")[-2 if len(sys.argv) == 3 else 0 :][:2])
    tap, _ = manifest("node")
    group = Group(tap["resources"]["limits"])
    result: dict[str, Any] = {"limits": tap["resources"]["limits"], "tokens_per_second": streams / PAUSE_S, "image_bytes": facts["bytes"]}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        certificate = make_certificate(folder)
        port = free_port()
        server = subprocess.Popen([sys.executable, __file__, "--serve", str(port), str(certificate.cert), str(certificate.key)])
        wait_for_port(port, server)

        def begin(seconds: float) -> subprocess.Popen[str]:
            command = [sys.executable, __file__, "--call", str(port), str(seconds), str(streams)]
            return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

        def start() -> Contained:
            return Contained(root, facts, folder, "node", group.into, all=False, pids=[server.pid], plain=False)

        running = start()
        result["ready_s"] = round(running.ready(), 2)
        time.sleep(5)
        result["idle"] = looked_at(group, seconds)
        calls = begin(seconds)
        result["load"] = looked_at(group, seconds)
        made = int(calls.communicate()[0])
        time.sleep(5)  # the store writes every second or so
        before = stored(running.store)
        lost = {each: running.value(each) for each in ("llmsec_kernel_lost_records_total", "llmsec_queue_left_out_records_total")}
        result["load"] |= {"streams": made, "stored": dict(before), **lost}
        calls = begin(30)
        time.sleep(12)
        begun = time.monotonic()
        result["rollout"] = {"stop_s": round(running.stop(), 2)}
        running = start()
        result["rollout"] |= {"ready_s": round(running.ready(), 2), "blind_s": round(time.monotonic() - begun, 2)}
        made = int(calls.communicate()[0])
        time.sleep(5)
        result["stop_s"] = round(running.stop(), 2)
        result["rollout"] |= {"streams": made, "stored": dict(stored(running.store) - before)}
        server.kill()
        server.wait()
    group.end()
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        asyncio.run(serve(int(sys.argv[2]), sys.argv[3], sys.argv[4]))
    elif sys.argv[1] == "--call":
        print(asyncio.run(call(int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))))
    else:
        main()
