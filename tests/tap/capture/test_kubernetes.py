"""The pods' names over real TLS: who gets the service account's token, and how the decoder hears."""

from __future__ import annotations

import http.server
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from llmsec_tap.capture.host.kubernetes import INSECURE_VARIABLE, Chooser, ChosenContainers, ClusterPods, RemotePods, _fetcher, _tell_pods
from llmsec_tap.capture.host.process import Pod
from support.journal import Said
from support.needs import program
from support.tls_front import make_certificate

ID = "a" * 64
ANSWER = json.dumps(
    {
        "items": [
            {
                "metadata": {"name": "chat", "namespace": "prod", "labels": {"app": "chat"}},
                "status": {"containerStatuses": [{"containerID": f"containerd://{ID}"}]},
            }
        ]
    }
).encode()


@contextmanager
def kubelet(cert: Path, key: Path) -> Iterator[tuple[str, list[str | None]]]:
    """A server that notes the Authorization header of each request; its URL and the notes."""
    noted: list[str | None] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            noted.append(self.headers["Authorization"])
            self.send_response(200)
            self.end_headers()
            self.wfile.write(ANSWER)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)

    class Server(http.server.ThreadingHTTPServer):
        def get_request(self) -> tuple[socket.socket, Any]:
            accepted, address = self.socket.accept()
            try:
                return context.wrap_socket(accepted, server_side=True), address
            except OSError:  # a client that does not like the certificate may be gone before the handshake has begun
                accepted.close()
                raise

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"https://127.0.0.1:{server.server_address[1]}", noted
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def account(tmp_path: Path) -> Path:
    program("openssl")
    folder = tmp_path / "account"
    folder.mkdir()
    cluster = make_certificate(folder)
    (folder / "ca.crt").write_bytes(cluster.cert.read_bytes())
    (folder / "token").write_text("the-token\n")
    return folder


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_token_goes_to_nobody_without_a_certificate_of_the_cluster(
    account: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stranger").mkdir()
    stranger = make_certificate(tmp_path / "stranger")
    with kubelet(stranger.cert, stranger.key) as (url, noted):
        with pytest.raises(OSError, match="certificate verify failed"):
            _fetcher(account)(f"{url}/:10250/pods")
        assert noted == []
        monkeypatch.setenv(INSECURE_VARIABLE, "1")
        assert _fetcher(account)(f"{url}/:10250/pods") == ANSWER
        assert noted == ["Bearer the-token"]
        with pytest.raises(OSError, match="certificate verify failed"):
            _fetcher(account)(f"{url}/api/v1/pods")  # of the API server there is no doubt in any case


def test_the_token_is_read_anew_each_time(account: Path) -> None:
    certificate = account / "cert.pem", account / "key.pem"
    with kubelet(*certificate) as (url, noted):
        fetch = _fetcher(account)
        fetch(url)
        (account / "token").write_text("its successor")
        fetch(url)
    assert noted == ["Bearer the-token", "Bearer its successor"]


def test_the_decoder_hears_of_pods_and_asks_again_for_unknown_ones() -> None:
    ours, theirs = socket.socketpair()
    answers = [ANSWER, b"no json", ANSWER.replace(b'"chat"', b'"renamed"')]
    journal = Said()
    cluster = ClusterPods(["https://x"], lambda _: answers.pop(0))
    chosen, told = socket.socketpair()
    helper = threading.Thread(target=_tell_pods, args=([theirs], cluster, journal, Chooser(told, [("app", "chat")])), daemon=True)
    helper.start()
    pods = RemotePods(ours, refresh_s=3600)
    while pods.pod_of(ID) is None:
        time.sleep(0.01)
    assert pods.pod_of(ID) == Pod("chat", "prod", {"app": "chat"})
    containers = ChosenContainers(chosen)
    assert containers.read() == {ID}
    pods = RemotePods(ours, refresh_s=0.0)
    while (renamed := pods.pod_of(ID)) is None:  # unknown again, so it asks; the answer that is no list changes nothing
        time.sleep(0.01)
    assert renamed.name == "renamed"
    assert journal.texts == ["pods are not known: Expecting value: line 1 column 1 (char 0)"]
    ours.close()
    helper.join(5)
    assert containers.read() == frozenset()  # its label is another one now, too
    for sock in (theirs, chosen, told):
        sock.close()
    assert not helper.is_alive(), "it ends with the decoder"
