"""`capture.labels`: processes of the pods that a cluster's API names, in containers without a runtime."""

from __future__ import annotations

import http.server
import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from llmsec_analyzer.stored.session import QuerySession
from support.containers import ECHO, GROUPS, ID, contained, group, hierarchies
from support.https_calls import ask_once
from support.needs import program
from support.running_agent import agent
from support.tls_front import Certificate, free_port, python_server

TOKEN = "made-up-token"
# A pod's view of its service account, without touching the host's folders.
IN_A_POD = """
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mkdir -p /run/secrets/kubernetes.io
cp -r "$ACCOUNT" /run/secrets/kubernetes.io/serviceaccount
exec "$@"
"""


class Cluster(http.server.ThreadingHTTPServer):
    """An API server with one pod, whose labels may change."""

    def __init__(self, port: int, labels: dict[str, str]) -> None:
        super().__init__(("127.0.0.1", port), Answers)
        self.labels = labels
        self.asked: list[str] = []

    def pods(self) -> dict[str, Any]:
        meta = {"name": "chat-0", "namespace": "prod", "labels": self.labels}
        return {"items": [{"metadata": meta, "status": {"containerStatuses": [{"containerID": f"containerd://{ID}"}]}}]}


class Answers(http.server.BaseHTTPRequestHandler):
    server: Cluster

    def do_GET(self) -> None:
        is_known = self.headers["authorization"] == f"Bearer {TOKEN}"
        self.server.asked.append(self.path)
        body = json.dumps(self.server.pods() if is_known else {"kind": "Status"}).encode()
        self.send_response(200 if is_known else 401)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def cluster(certificate: Certificate, labels: dict[str, str]) -> Iterator[tuple[Cluster, int]]:
    port = free_port()
    with Cluster(port, labels) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate.cert, certificate.key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server, port
        finally:
            server.shutdown()
            thread.join()


def stored(folder: Path) -> list[tuple[Any, ...]]:
    with QuerySession.open(folder) as session:
        found = session.select("SELECT process.pod, process.namespace, request.messages[1].parts[1].content FROM exchanges ORDER BY ALL")
        return list(found.rows())


def test_pods_are_chosen_by_their_labels_as_these_change(certificate: Certificate, tmp_path: Path) -> None:
    program("unshare", "util-linux")
    account = tmp_path / "account"
    account.mkdir()
    (account / "token").write_text(TOKEN)
    (account / "ca.crt").write_bytes(certificate.cert.read_bytes())
    outside = free_port()
    version = next(iter(hierarchies()))
    with (
        cluster(certificate, {"app": "batch", "tier": "gpu"}) as (api, api_port),
        python_server(ECHO, "threads", str(outside), str(certificate.cert), str(certificate.key), port=outside),
        group(hierarchies()[version], GROUPS["containerd"]) as entered,
        contained(entered, tmp_path, certificate) as (_, inside),
    ):
        env = {
            "ACCOUNT": str(account),
            "NODE_NAME": "node-1",
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "KUBERNETES_SERVICE_PORT": str(api_port),
        }
        prefix = ("unshare", "--mount", "sh", "-euc", IN_A_POD, "sh")
        with agent(tmp_path, prefix=prefix, env=env, chosen={"labels": {"app": "chat", "tier": "gpu"}}) as running:
            running.ready()
            running.until(lambda: len(api.asked) > 1, "the list of pods was not read again")
            ask_once(inside, certificate.cert, "before it has the label")
            api.labels = {"app": "chat", "tier": "gpu", "other": "label"}
            running.until(lambda: "processes chosen now: " in running.said, "the pod was not chosen")
            ask_once(inside, certificate.cert, "chosen")
            ask_once(outside, certificate.cert, "outside of any pod")
            running.until(lambda: running.value('llmsec_exchanges_total{kind="llm"}') == 1, "the exchange was not seen")
            api.labels = {"app": "batch", "tier": "gpu"}
            running.until(lambda: running.said.count("processes chosen now: ") == 2, "the pod is chosen still")
            ask_once(inside, certificate.cert, "after it had the label")
            running.stop()
            assert running.process.returncode == 0, running.said
        assert {path.partition("?")[0] for path in api.asked} == {"/api/v1/pods"}
        assert stored(running.store) == [("chat-0", "prod", "chosen")]


def test_labels_need_a_cluster(tmp_path: Path) -> None:
    with agent(tmp_path, chosen={"labels": {"app": "chat"}}) as running, pytest.raises(AssertionError):
        running.ready()
    assert "capture.labels: this is not a pod with a service account" in running.said
    assert running.process.returncode == 2
