"""Real TLS servers on loopback: nginx in front of a model server, whose access log tells each client's own port; server scripts."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from support.agent import environment

_NGINX = """
daemon off; worker_processes {workers}; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
  log_format call "$remote_port $http_x_call";
  access_log {folder}/access.log call;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  client_max_body_size 64m; client_body_buffer_size 64m; keepalive_requests 100000;
  server {{
    listen 127.0.0.1:{plain_port}; listen 127.0.0.1:{port} ssl{http2}; ssl_certificate {cert}; ssl_certificate_key {key};
    location / {{ proxy_pass {upstream}; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; proxy_read_timeout 120s; }}
    location /bytes/ {{ alias {folder}/; }}
  }}
}}
"""


@dataclass
class Certificate:
    cert: Path
    key: Path


@dataclass
class Nginx:
    url: str
    port: int
    pid: int
    folder: Path
    plain_port: int

    def ports_by_call(self) -> dict[str, int]:
        """X-Call header -> the client's port, as the server saw it: the witness against which addresses are checked."""
        rows = (line.split() for line in (self.folder / "access.log").read_text().splitlines())
        return {row[1]: int(row[0]) for row in rows if len(row) == 2}

    def workers(self) -> set[int]:
        return set(children(self.pid))


def children(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                    found.append(int(entry.name))
    return found


def make_certificate(folder: Path) -> Certificate:
    made = Certificate(folder / "cert.pem", folder / "key.pem")
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", made.key, "-out", made.cert, "-days", "30",
         "-subj", "/CN=localhost", "-addext", names],
        check=True, capture_output=True,
    )  # fmt: skip
    return made


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_for_port(port: int, process: subprocess.Popen[bytes], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"nothing listens on {port} (exit {process.poll()})")
        time.sleep(0.05)


@contextlib.contextmanager
def nginx(folder: Path, certificate: Certificate, upstream: str, *, workers: int = 1, http2: bool = False) -> Iterator[Nginx]:
    port, plain_port = free_port(), free_port()
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "nginx.conf"
    config.write_text(
        _NGINX.format(
            folder=folder,
            port=port,
            plain_port=plain_port,
            upstream=upstream,
            cert=certificate.cert,
            key=certificate.key,
            workers=workers,
            http2=" http2" if http2 else "",
        )
    )
    if os.geteuid() == 0:
        config.write_text("user root;" + config.read_text())
    process = subprocess.Popen(["nginx", "-c", config, "-p", folder], stderr=subprocess.DEVNULL)
    try:
        wait_for_port(port, process)
        yield Nginx(f"https://127.0.0.1:{port}", port, process.pid, folder, plain_port)
    finally:
        process.terminate()
        process.wait(10)


@contextlib.contextmanager
def python_server(script: Path, *arguments: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A server script of tests/support, listening on `port` when entered."""
    env = {**environment(), "PYTHONPATH": environment()["PYTHONPATH"] + os.pathsep + str(script.parents[1])}
    process = subprocess.Popen([sys.executable, script, *arguments], env=env)
    try:
        wait_for_port(port, process)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
