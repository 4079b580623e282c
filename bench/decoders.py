"""At what load one decoder leaves connections out, and two do not. Needs root.

    python bench/decoders.py [SECONDS [TOKENS_A_SECOND ...]]

A TLS server streams chunks of OpenAI's form, many in one write, over connections of two seconds each; its client reads and does not decrypt. So
the load takes a fifth of a core, and what is left of the machine is for the decoders. Detection is off: it takes as much again. All have the
same memory cap and ring together. Prints a row for each load and number of decoders, and one JSON object of them all.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tap"), str(ROOT / "analyzer"), str(ROOT / "agent")]

from support.agent import Agent  # noqa: E402
from support.tls_front import Certificate, children, free_port, make_certificate, wait_for_port  # noqa: E402

CONNECTIONS, STREAM_S, WRITES = 32, 2.0, 40  # at once; of each, so long, in so many writes
MEMORY_CAP_MIB = 1024

SERVER = """
import socket, ssl, sys, threading, time
port, cert, key, events, pause, writes = int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), float(sys.argv[5]), int(sys.argv[6])
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(cert, key)
chunk = b'data: {"id":"x","object":"chat.completion.chunk","model":"m","choices":[{"index":0,"delta":{"content":" word"},"finish_reason":null}]}\\n\\n'
piece = (b"%x\\r\\n" % len(chunk) + chunk + b"\\r\\n") * events
def talk(raw):
    try:
        with context.wrap_socket(raw, server_side=True) as sock:
            sock.recv(4096)
            sock.sendall(b"HTTP/1.1 200 OK\\r\\ncontent-type: text/event-stream\\r\\ntransfer-encoding: chunked\\r\\n\\r\\n")
            due = time.monotonic()
            for _ in range(writes):
                sock.sendall(piece)
                due += pause
                time.sleep(max(0.0, due - time.monotonic()))
            sock.sendall(b"0\\r\\n\\r\\n")
    except OSError:
        pass
with socket.create_server(("127.0.0.1", port), backlog=256) as listening:
    while True:
        threading.Thread(target=talk, args=(listening.accept()[0],), daemon=True).start()
"""

CLIENT = """
import os, socket, ssl, sys, threading, time
port, cert, connections, stream_s, seconds = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), float(sys.argv[5])
context = ssl.create_default_context(cafile=cert)
context.check_hostname = False
body = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"hello"}]}'
request = b"POST /v1/chat/completions HTTP/1.1\\r\\nhost: x\\r\\ncontent-type: application/json\\r\\ncontent-length: %d\\r\\n\\r\\n" % len(body) + body
done = []
def ask(number):
    time.sleep(number * stream_s / connections)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        sock = context.wrap_socket(socket.create_connection(("127.0.0.1", port)), server_hostname="x")
        sock.sendall(request)
        descriptor = sock.detach()
        while os.read(descriptor, 1 << 20):
            pass
        os.close(descriptor)
        done.append(1)
threads = [threading.Thread(target=ask, args=(number,)) for number in range(connections)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(done))
"""


def cpu_s(pid: int) -> float:
    """Of all its threads, also those that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def sample(folder: Path, certificate: Certificate, tokens_per_s: int, decoders: int, seconds: float) -> dict[str, Any]:
    server_script, client_script = folder / "server.py", folder / "client.py"
    server_script.write_text(SERVER)
    client_script.write_text(CLIENT)
    port = free_port()
    events = round(tokens_per_s * STREAM_S / CONNECTIONS / WRITES)
    told = [str(port), str(certificate.cert), str(certificate.key), str(events), str(STREAM_S / WRITES), str(WRITES)]
    server = subprocess.Popen([sys.executable, server_script, *told])
    try:
        wait_for_port(port, server)
        options = ("--format", "none", "--no-detect", "--decoders", str(decoders), "--memory-cap", str(MEMORY_CAP_MIB))
        with Agent("--pid", str(server.pid), *options) as agent:
            tap = [pid for pid in children(agent.process.pid) if b"\0capture\0" in Path(f"/proc/{pid}/cmdline").read_bytes()]
            before = {pid: cpu_s(pid) for pid in (server.pid, *tap)}
            begun = time.monotonic()
            asked = [str(port), str(certificate.cert), str(CONNECTIONS), str(STREAM_S), str(seconds)]
            client = subprocess.run([sys.executable, client_script, *asked], capture_output=True, text=True, check=True)
            wall = time.monotonic() - begun
            used = {pid: cpu_s(pid) - before[pid] for pid in before}
            time.sleep(1.0)
        said = agent.said
    finally:
        server.kill()
        server.wait()
    exchanges, gapped = number(r"([\d,]+) exchanges \(", said), number(r"([\d,]+) gapped", said)
    asked_for = int(client.stdout)
    return {
        "decoders": decoders,
        "tokens_per_s": round(asked_for * events * WRITES / wall),
        "streams": asked_for,
        "exchanges": exchanges,
        "gapped": gapped,
        "connections_left_out": number(r"of ([\d,]+) connections in the tap's queue", said),
        "lost_calls": number(r"dropped: ([\d,]+) calls", said),
        "decoders_cpu_percent": [round(used[pid] / wall * 100) for pid in sorted(tap)],
        "server_cpu_percent": round(used[server.pid] / wall * 100),
    }


def number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found is not None, text
    return int(found[1].replace(",", ""))


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 20.0
    loads = [int(word) for word in sys.argv[2:]] or [30_000, 45_000, 60_000]
    rows = []
    with tempfile.TemporaryDirectory() as name:
        certificate = make_certificate(Path(name))
        for tokens_per_s in loads:
            for decoders in (1, 2):
                rows.append(sample(Path(name), certificate, tokens_per_s, decoders, seconds))
                print(rows[-1], file=sys.stderr, flush=True)
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    machine = {"kernel": os.uname().release, "cpus": os.cpu_count(), "load": os.getloadavg(), "commit": commit}
    print(json.dumps({"machine": machine, "seconds": seconds, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
