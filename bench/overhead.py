"""What live capture costs the observed process, and itself: the numbers of docs/overhead.md. Needs root, nginx and wrk.

    python bench/overhead.py requests     CPU of an nginx worker per request and TLS call: tap off, on with --no-fast-probes, on, in turn
    python bench/overhead.py plain        the same over plain HTTP and TLS: not observed, observed without and with --plain
    python bench/overhead.py sockets      what a pair of calls over a socket pays: of another process, with TLS, with plain HTTP
    python bench/overhead.py calls        what probes add to a pair of calls inside one process: the same without the company of nginx and wrk
    python bench/overhead.py streams      first-token and inter-token latency of 100 streams at 50 tokens/s, off and on in turn; the tap's own cost
    python bench/overhead.py loss         where loss begins: nginx at full speed over ring sizes
    python bench/overhead.py start        start to attached, and idle memory

Each prints one JSON object with the machine, the commit and every sample; medians are computed from those.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tap"), str(ROOT / "analyzer"), str(ROOT / "agent")]

from support.agent import Agent  # noqa: E402
from support.tls_front import Certificate, Nginx, children, free_port, make_certificate, nginx, wait_for_port  # noqa: E402

SIZES = (256, 4096, 16384)
MODES: dict[str, tuple[str, ...] | None] = {"off": None, "on": ("--no-fast-probes",), "fast": ()}


def cpu_ns(pid: int) -> int:
    return sum(int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir())


def memory(pid: int, field: str = "VmRSS") -> float:
    return int(re.search(rf"^{field}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)[1]) / 1000  # type: ignore[index]


@contextmanager
def front(folder: Path, certificate: Certificate) -> Iterator[Nginx]:
    with nginx(folder / "nginx", certificate, "http://127.0.0.1:9") as running:
        for size in SIZES:
            (folder / "nginx" / str(size)).write_bytes(b"x" * size)
        yield running


def wrk(running: Nginx, size: int, seconds: int, *, plain: bool = False) -> int:
    """Requests answered by one keep-alive round of 8 connections."""
    url = f"http://127.0.0.1:{running.plain_port}/bytes/{size}" if plain else f"{running.url}/bytes/{size}"
    out = subprocess.run(["wrk", "-t1", "-c8", f"-d{seconds}s", url], capture_output=True, text=True, check=True).stdout
    return int(re.search(r"(\d+) requests in", out)[1])  # type: ignore[index]


def detection_of(agent: Agent) -> int:
    """The process id of its detection process."""
    return next(pid for pid in children(agent.process.pid) if b"llmsec_analyzer.worker" in Path(f"/proc/{pid}/cmdline").read_bytes())


def tap_of(warden: int) -> tuple[int, int]:
    """Warden and decoder: together they are the tap."""
    return warden, next(pid for pid in children(warden) if b"\0capture\0" in Path(f"/proc/{pid}/cmdline").read_bytes())


def summary(agent: Agent) -> dict[str, int]:
    found = re.search(
        r"seen ([\d,]+) TLS calls \(([\d,]+) bytes\).*dropped: ([\d,]+) calls .* in the kernel ring, ([\d,]+) records", agent.said
    )
    assert found is not None, agent.said
    calls, moved, lost, left_out = (int(text.replace(",", "")) for text in found.groups())
    return {"calls": calls, "bytes": moved, "lost_calls": lost, "left_out_records": left_out}


def request_sample(running: Nginx, worker: int, size: int, mode: str, seconds: int) -> dict[str, Any] | None:
    """None where another tap of this host was at work, too: with --all it slows what is measured, also with ours off."""
    options = MODES[mode]
    with ExitStack() as stack:
        agent = None if options is None else stack.enter_context(Agent("--pid", str(worker), "--format", "none", *options))
        ours = int(agent is not None)
        others = other_taps() - ours
        before, begun = cpu_ns(worker), time.monotonic()
        done = wrk(running, size, seconds)
        used, wall = cpu_ns(worker) - before, time.monotonic() - begun
        others = max(others, other_taps() - ours)
    if others:
        return None
    sample: dict[str, Any] = {"us_per_request": used / 1000 / done, "requests_per_s": done / wall}
    if agent is not None:
        seen = summary(agent)
        sample |= {"calls_per_request": seen["calls"] / done, "lost_calls": seen["lost_calls"], "calls": seen["calls"]}
    return sample


def requests(folder: Path, certificate: Certificate, rounds: int = 3, seconds: int = 2) -> dict[str, Any]:
    samples: dict[str, list[dict[str, Any]]] = {f"{size} {mode}": [] for size in SIZES for mode in MODES}
    with front(folder, certificate) as running:
        (worker,) = running.workers()
        for _ in range(rounds):
            for size in SIZES:
                for mode in MODES:
                    while (sample := request_sample(running, worker, size, mode, seconds)) is None:
                        time.sleep(2)
                    samples[f"{size} {mode}"].append(sample)
    result: dict[str, Any] = {"samples": samples}
    for size in SIZES:
        medians = {mode: statistics.median(row["us_per_request"] for row in samples[f"{size} {mode}"]) for mode in MODES}
        calls = statistics.median(row["calls_per_request"] for row in samples[f"{size} on"])
        result[f"{size}"] = {
            **{f"us_per_request_{mode}": round(value, 1) for mode, value in medians.items()},
            **{f"added_us_per_request_{mode}": round(medians[mode] - medians["off"], 1) for mode in ("on", "fast")},
            **{f"added_us_per_call_{mode}": round((medians[mode] - medians["off"]) / calls, 1) for mode in ("on", "fast")},
        }
    return result


PLAIN_MODES: dict[str, tuple[str, ...] | None] = {
    "off": None,
    "another process observed, --no-plain": ("--no-plain",),
    "another process observed": ("--plain",),
    "observed, --no-plain": ("--no-plain",),
    "observed": ("--plain",),
}


def plain(folder: Path, certificate: Certificate, rounds: int = 5, seconds: int = 2) -> dict[str, Any]:
    """CPU of the worker per request, us; with detection off, which would take what little of two CPUs is left."""
    samples: dict[str, list[float]] = {}
    lost = 0
    with ExitStack() as stack:
        running = stack.enter_context(front(folder, certificate))
        idle = subprocess.Popen([sys.executable, "-c", "import ssl, time; time.sleep(9999)"])
        stack.callback(idle.kill)
        (worker,) = running.workers()
        for _ in range(rounds):
            for protocol, size in ((protocol, size) for protocol in ("plain", "tls") for size in SIZES):
                for mode, options in PLAIN_MODES.items():
                    observed = idle.pid if mode.startswith("another") else worker
                    used, dropped = plain_sample(running, worker, observed, options, size, seconds, plain=protocol == "plain")
                    samples.setdefault(f"{protocol} {size} {mode}", []).append(used)
                    lost += dropped
    return {"samples": samples, "median_us": {name: statistics.median(row) for name, row in samples.items()}, "lost_calls": lost}


def plain_sample(
    running: Nginx, worker: int, observed: int, options: tuple[str, ...] | None, size: int, seconds: int, *, plain: bool
) -> tuple[float, int]:
    """CPU of the worker per request, us, and calls that were lost."""
    while other_taps():
        time.sleep(2)
    with ExitStack() as stack:
        agent = None
        if options is not None:
            agent = stack.enter_context(Agent("--pid", str(observed), "--format", "none", "--no-detect", *options))
        before = cpu_ns(worker)
        done = wrk(running, size, seconds, plain=plain)
        used = round((cpu_ns(worker) - before) / 1000 / done, 1)
    return used, summary(agent)["lost_calls"] if agent is not None else 0


# One send and one receive of 256 bytes over TCP, a hundred times, and a pause. What begins with the bytes tells what the socket carries.
SOCKET_PAIRS = """
import socket, sys, time
with socket.create_server(("127.0.0.1", 0)) as listener:
    one = socket.create_connection(listener.getsockname())
    two, _ = listener.accept()
one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
kinds = {"http": b"GET / HTTP/1.1\\r\\nx: ".ljust(252, b"x") + b"\\r\\n\\r\\n", "tls": b"\\x17\\x03\\x03".ljust(256, b"x")}
print("ready", flush=True)
for line in sys.stdin:
    kind, seconds = line.split()
    taken, until = [], time.monotonic() + float(seconds)
    while time.monotonic() < until:
        begun = time.thread_time_ns()
        for _ in range(100):
            one.sendall(kinds[kind])
            two.recv(4096)
        taken.append((time.thread_time_ns() - begun) / 100_000)
        time.sleep(0.003)
    taken.sort()
    print(taken[0], taken[len(taken) // 10], taken[len(taken) // 2], flush=True)
"""


def sockets(_folder: Path, _certificate: Certificate, rounds: int = 3, seconds: float = 1.5) -> dict[str, Any]:
    """CPU of one send and one receive over a socket, us: the least, the tenth and the half of all batches."""
    samples: dict[str, list[list[float]]] = {}
    command = [sys.executable, "-c", SOCKET_PAIRS]
    idle = subprocess.Popen([sys.executable, "-c", "import ssl, time; time.sleep(9999)"])
    try:
        for _ in range(rounds):
            for mode, options in PLAIN_MODES.items():
                for kind in ("tls", "http"):
                    with (
                        ExitStack() as stack,
                        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process,
                    ):
                        assert process.stdin is not None
                        assert process.stdout is not None
                        process.stdout.readline()
                        while other_taps():
                            time.sleep(2)
                        if options is not None:
                            observed = idle.pid if mode.startswith("another") else process.pid
                            stack.enter_context(Agent("--pid", str(observed), "--format", "none", "--no-detect", *options))
                            time.sleep(0.5)
                        process.stdin.write(f"{kind} {seconds}\n")
                        process.stdin.flush()
                        samples.setdefault(f"{mode}, {kind}", []).append(
                            [round(float(part), 2) for part in process.stdout.readline().split()]
                        )
                        process.stdin.close()
    finally:
        idle.kill()
    return {"samples": samples, "least_us": {mode: min(row[0] for row in rows) for mode, rows in samples.items()}}


# Both ends of a connection over memory: one write and one read of 256 bytes, a hundred times, and a pause.
PAIRS = """
import ssl, sys, time
server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context(cafile=sys.argv[1])
server.load_cert_chain(sys.argv[1], sys.argv[2])
client.check_hostname = False
there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
ends = [client.wrap_bio(back, there), server.wrap_bio(there, back, server_side=True)]
open_ends = list(ends)
while open_ends:
    for end in list(open_ends):
        try:
            end.do_handshake()
            open_ends.remove(end)
        except ssl.SSLWantReadError:
            pass
print("ready", flush=True)
for line in sys.stdin:
    taken, until = [], time.monotonic() + float(line)
    while time.monotonic() < until:
        begun = time.thread_time_ns()
        for _ in range(100):
            ends[0].write(b"x" * 256)
            ends[1].read(4096)
        taken.append((time.thread_time_ns() - begun) / 100_000)
        time.sleep(0.003)
    taken.sort()
    print(taken[0], taken[len(taken) // 10], taken[len(taken) // 2], flush=True)
"""


def calls(folder: Path, certificate: Certificate, rounds: int = 3, seconds: float = 2.0) -> dict[str, Any]:
    """CPU of one write and one read, us: the least, the tenth and the half of all batches."""
    samples: dict[str, list[list[float]]] = {mode: [] for mode in MODES}
    command = [sys.executable, "-c", PAIRS, str(certificate.cert), str(certificate.key)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        for _ in range(rounds):
            for mode, options in MODES.items():
                with ExitStack() as stack:
                    while other_taps():
                        time.sleep(2)
                    if options is not None:
                        stack.enter_context(Agent("--pid", str(process.pid), "--format", "none", "--no-detect", *options))
                        time.sleep(0.5)
                    process.stdin.write(f"{seconds}\n")
                    process.stdin.flush()
                    samples[mode].append([round(float(part), 2) for part in process.stdout.readline().split()])
        process.stdin.close()
    least = {mode: min(row[0] for row in rows) for mode, rows in samples.items()}
    return {"samples": samples, "least_us": least, "added_us": {mode: round(least[mode] - least["off"], 1) for mode in ("on", "fast")}}


SERVER = """
import asyncio, ssl, sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[2], sys.argv[3])
chunk = b'data: {"id":"x","object":"chat.completion.chunk","model":"m","choices":[{"index":0,"delta":{"content":" word"},"finish_reason":null}]}\\n\\n'
piece = b"%x\\r\\n" % len(chunk) + chunk + b"\\r\\n"
async def talk(reader, writer):
    try:
        head = await reader.readuntil(b"\\r\\n\\r\\n")
        await reader.readexactly(int(head.lower().split(b"content-length:")[1].split(b"\\r")[0]))
        writer.write(b"HTTP/1.1 200 OK\\r\\ncontent-type: text/event-stream\\r\\ntransfer-encoding: chunked\\r\\n\\r\\n")
        next_at = asyncio.get_running_loop().time()
        for _ in range(int(sys.argv[4])):
            writer.write(piece)
            next_at += 0.02
            await asyncio.sleep(max(0, next_at - asyncio.get_running_loop().time()))
        writer.write(b"0\\r\\n\\r\\n")
        await writer.drain()
    finally:
        writer.close()
async def main():
    async with await asyncio.start_server(talk, "127.0.0.1", int(sys.argv[1]), ssl=context, backlog=256) as server:
        await server.serve_forever()
asyncio.run(main())
"""


async def one_stream(port: int, context: ssl.SSLContext, ttft: list[float], gaps: list[float]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    body = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"hello"}]}'
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    )
    last = time.perf_counter()
    await reader.readuntil(b"\r\n\r\n")
    first = True
    while int(await reader.readline(), 16):
        await reader.readuntil(b"\n\n\r\n")
        now = time.perf_counter()
        (ttft if first else gaps).append((now - last) * 1000)
        last, first = now, False
    writer.close()


async def all_streams(port: int, context: ssl.SSLContext, count: int) -> tuple[list[float], list[float]]:
    ttft: list[float] = []
    gaps: list[float] = []

    async def later(number: int) -> None:
        await asyncio.sleep(number * 0.01)
        await one_stream(port, context, ttft, gaps)

    await asyncio.gather(*(later(number) for number in range(count)))
    return ttft, gaps


def quantiles(values: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=100)
    return {"p50": round(cuts[49], 2), "p99": round(cuts[98], 2)}


def streams(folder: Path, certificate: Certificate, count: int = 100, tokens: int = 250, rounds: int = 3) -> dict[str, Any]:
    script = folder / "server.py"
    script.write_text(SERVER)
    port = free_port()
    server = subprocess.Popen([sys.executable, script, str(port), certificate.cert, certificate.key, str(tokens)])
    context = ssl.create_default_context(cafile=str(certificate.cert))
    context.check_hostname = False
    samples: dict[str, list[dict[str, Any]]] = {mode: [] for mode in MODES}
    try:
        wait_for_port(port, server)
        for _ in range(rounds):
            for mode, options in MODES.items():
                with ExitStack() as stack:
                    agent = None if options is None else stack.enter_context(Agent("--pid", str(server.pid), *options))
                    if agent is not None:
                        time.sleep(0.5)
                    own = sum(map(cpu_ns, tap_of(agent.process.pid))) if agent is not None else 0
                    beside = cpu_ns(detection_of(agent)) if agent is not None else 0
                    before, begun = cpu_ns(server.pid), time.monotonic()
                    ttft, gaps = asyncio.run(all_streams(port, context, count))
                    wall = time.monotonic() - begun
                    sample: dict[str, Any] = {"ttft_ms": quantiles(ttft), "itl_ms": quantiles(gaps)}
                    sample |= {
                        "server_cpu_percent": round((cpu_ns(server.pid) - before) / wall / 1e7, 1),
                        "tokens_per_s": round((len(gaps) + len(ttft)) / wall),
                    }
                    if agent is not None:
                        sample["tap_cpu_percent"] = round((sum(map(cpu_ns, tap_of(agent.process.pid))) - own) / wall / 1e7, 2)
                        sample["tap_rss_mb"] = [memory(pid) for pid in tap_of(agent.process.pid)]
                        sample["detection_cpu_percent"] = round((cpu_ns(detection_of(agent)) - beside) / wall / 1e7, 2)
                        sample["detection_rss_mb"] = memory(detection_of(agent))
                        rows = agent.wait_for_exchanges(count)
                        sample["complete"] = sum(row["completeness"] == "complete" for row in rows)
                if agent is not None:
                    sample |= summary(agent)
                    delays = re.search(r"half of them within ([\d.]+) ms, 99 % within ([\d.]+) ms", agent.said)
                    sample["scanned_within_ms"] = [float(part) for part in delays.groups()] if delays is not None else None
                samples[mode].append(sample)
    finally:
        server.kill()
        server.wait()
    return {"streams": count, "tokens_each": tokens, "samples": samples}


def loss(folder: Path, certificate: Certificate, seconds: int = 3) -> dict[str, Any]:
    rows = []
    with front(folder, certificate) as running:
        (worker,) = running.workers()
        for size in (4096, 16384):
            for ring_kib in (64, 256, 1024, 4096, 16384):
                with Agent("--pid", str(worker), "--format", "none", "--ring-size", str(ring_kib)) as agent:
                    done = wrk(running, size, seconds)
                    time.sleep(1.5)
                found = re.search(r"([\d,]+) exchanges .*?, ([\d,]+) gapped", agent.said)
                assert found is not None
                exchanges, gapped = (int(text.replace(",", "")) for text in found.groups())
                rows.append(
                    {"size": size, "ring_kib": ring_kib, "requests": done, "exchanges": exchanges, "gapped": gapped, **summary(agent)}
                )
    return {"rows": rows}


def start(folder: Path, certificate: Certificate, times: int = 7) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    # With compiled bytecode, as an installed package has it, whatever this shell's settings are.
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT / "tap", ROOT / "analyzer", ROOT / "agent"))),
        "PYTHONPYCACHEPREFIX": str(folder),
    }
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    with front(folder, certificate) as running:
        (worker,) = running.workers()
        for run in range(times + 1):
            begun = time.monotonic()
            command = [
                sys.executable,
                "-m",
                "llmsec_agent.cli.tap.app",
                "capture",
                "--pid",
                str(worker),
                "--store",
                "none",
                "--format",
                "none",
            ]
            process = subprocess.Popen(command, stderr=subprocess.PIPE, env=env)
            assert process.stderr is not None
            line = b""
            while b"attached to" not in line:
                line = process.stderr.readline()
                if not line:
                    raise SystemExit(f"the capture ended with {process.wait()}")
            attached = time.monotonic() - begun
            time.sleep(2)
            row: dict[str, Any] = {"attached_s": round(attached, 3), "of_which_loader": float(line.split()[-2])}
            tap = tap_of(process.pid)
            row["cpu_s"] = sum(map(cpu_ns, tap)) / 1e9
            row |= {"rss_mb": [memory(pid) for pid in tap], "anonymous_mb": [memory(pid, "RssAnon") for pid in tap]}
            before = sum(map(cpu_ns, tap))
            time.sleep(3)
            row["idle_cpu_percent"] = round((sum(map(cpu_ns, tap)) - before) / 3e7, 2)
            if run > 0:  # the first one compiled
                rows.append(row)
            process.send_signal(signal.SIGINT)
            process.wait()
    return {"rows": rows, "median_attached_s": statistics.median(row["attached_s"] for row in rows)}


def other_taps() -> int:
    """Captures on this host, each counted once: the decoder is a child of its warden."""
    taps = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            command = path.read_bytes()
            names = (b"llmsec_agent", b"llmsec-tap", b"llmsec_tap")  # as a module, as installed, and as it was once called
            if any(name in command for name in names) and {b"capture", b"agent"} & set(command.split(b"\0")):
                taps.add(int(path.parent.name))
    return len(taps - {child for pid in taps for child in children(pid)})


def main() -> None:
    part = {"requests": requests, "plain": plain, "sockets": sockets, "calls": calls, "streams": streams, "loss": loss, "start": start}[
        sys.argv[1]
    ]
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    machine = {
        "kernel": os.uname().release,
        "cpus": os.cpu_count(),
        "load": os.getloadavg(),
        "commit": commit,
        "python": sys.version.split()[0],
        "other_taps": other_taps(),
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result = part(folder, make_certificate(folder))
    print(
        json.dumps(
            {"part": sys.argv[1], "machine": machine, **result, "load_after": os.getloadavg(), "other_taps_after": other_taps()}, indent=1
        )
    )


if __name__ == "__main__":
    main()
