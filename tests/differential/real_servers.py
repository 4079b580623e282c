"""The servers that requests are tried on, each in a process of its own on a loopback port, for as long as the test runs.

uvicorn (httptools and h11) with FastAPI, Go's net/http with encoding/json, node's http with JSON.parse, nginx before h11, and
llama.cpp's own server. What is not installed is left out, and `missing` says so.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent / "servers"
_START_S = 60.0
_NGINX = """worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log /dev/null;
events {{ worker_connections 256; }}
http {{ access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u;
scgi_temp_path {folder}/s; client_max_body_size 64m; large_client_header_buffers 4 64k;
server {{ listen 127.0.0.1:{port}; location / {{ proxy_http_version 1.1; proxy_pass http://127.0.0.1:{behind}; }} }} }}
"""


@dataclass
class Servers:
    ports: dict[str, int] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def real_servers(folder: Path, *, llama: bool = True) -> Iterator[Servers]:
    servers = Servers()
    with contextlib.ExitStack() as stack:

        def start(name: str, command: list[str]) -> None:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder)
            stack.callback(process.wait)
            stack.callback(process.terminate)

        has_fastapi = all(importlib.util.find_spec(module) for module in ("fastapi", "multipart", "httptools"))
        for parser in ("httptools", "h11"):
            if has_fastapi:
                port = servers.ports[parser] = free_port()
                start(parser, [sys.executable, str(HERE / "python_app.py"), str(port), parser])
            else:
                servers.missing[parser] = "fastapi, httptools and python-multipart are in the group peers"
        if shutil.which("go"):
            built = folder / "go_server"
            subprocess.run(["go", "build", "-o", str(built), str(HERE / "server.go")], check=True, env=_go_environment(folder))
            port = servers.ports["go"] = free_port()
            start("go", [str(built), str(port)])
        else:
            servers.missing["go"] = "apt-get install golang-go"
        if shutil.which("node"):
            port = servers.ports["node"] = free_port()
            start("node", ["node", str(HERE / "server.js"), str(port)])
        else:
            servers.missing["node"] = "apt-get install nodejs"
        if shutil.which("nginx") and has_fastapi:
            port = servers.ports["nginx"] = free_port()
            (folder / "nginx.conf").write_text(_NGINX.format(folder=folder, port=port, behind=servers.ports["h11"]))
            start("nginx", ["nginx", "-c", str(folder / "nginx.conf"), "-p", str(folder)])
        else:
            servers.missing["nginx"] = "apt-get install nginx-light"
        if llama and importlib.util.find_spec("xllamacpp") and importlib.util.find_spec("gguf"):
            from support.model_server import model_server

            port = free_port()
            stack.enter_context(model_server(folder, port))
            servers.ports["llamacpp"] = port
        elif llama:
            servers.missing["llamacpp"] = "xllamacpp and gguf are in the group peers"
        for name, port in servers.ports.items():
            _wait_for(name, port)
        yield servers


def _go_environment(folder: Path) -> dict[str, str]:
    import os

    return {**os.environ, "GOCACHE": str(folder / "gocache"), "GO111MODULE": "off", "GOFLAGS": ""}


def _wait_for(name: str, port: int) -> None:
    until = time.monotonic() + _START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > until:
                raise TimeoutError(f"{name} does not answer on port {port}") from None
            time.sleep(0.05)
        else:
            return


def ask(port: int, raw: bytes, *, wait_s: float = 1.0) -> bytes:
    """The bytes of one answer; empty where there is none in time."""
    out = b""
    with socket.create_connection(("127.0.0.1", port), timeout=wait_s) as connection:
        try:
            connection.sendall(raw)
            while not _is_whole(out):
                piece = connection.recv(65536)
                if not piece:
                    break
                out += piece
        except OSError:
            pass
    return out


def _is_whole(answer: bytes) -> bool:
    """Whether the last final answer has its whole body. What follows a first one (pipelining) is not waited for."""
    at = 0
    while True:
        head_end = answer.find(b"\r\n\r\n", at)
        if head_end < 0:
            return False
        head = answer[at:head_end].lower()
        if head.startswith(b"http/1.1 1"):
            at = head_end + 4
            continue
        body = answer[head_end + 4 :]
        if b"transfer-encoding: chunked" in head:
            return body.endswith(b"0\r\n\r\n")
        for line in head.split(b"\r\n"):
            if line.startswith(b"content-length:"):
                return len(body) >= int(line.partition(b":")[2])
        return False
