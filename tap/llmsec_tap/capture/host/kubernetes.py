"""The pod of a container, from the node's kubelet or the API server.

In a pod, the service account's token and certificate are mounted, and NODE_NAME and NODE_IP come from the downward API. The
kubelet's /pods (10250, authorised by nodes/proxy) is asked first: it is on this node and knows the node's pods only. Where it
refuses, the API server is asked for the pods of this node. Outside Kubernetes there is no lookup and no request is made.

The token goes to nobody who cannot show a certificate of the cluster's authority. Many kubelets have one of their own making: then
the API server is asked, unless LLMSEC_KUBELET_INSECURE=1 says that whoever answers at the node's address may have the token.

In a capture the questions are asked by a process of their own (`PodHelper`), the only one that uses the network. It tells the decoders the
pods, and the warden, where processes are chosen by the labels of their pod, the ids of the containers that have them: nothing else of
what the cluster answers is read with rights.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Final

from llmsec_tap import privileges
from llmsec_tap.capture.host.process import Pod
from llmsec_tap.journal import Journal

_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
INSECURE_VARIABLE: Final = "LLMSEC_KUBELET_INSECURE"
_TIMEOUT_S = 2.0
# A container that is not in the list yet is looked for again, but not more often than this.
_REFRESH_S = 5.0
_MAX_ANSWER = 64 << 20
# Where pods are chosen by their labels, the list is read so often.
_FOLLOW_S: Final = 2.0
_MAX_CHOSEN: Final = 1 << 20

Fetch = Callable[[str], bytes]


class ClusterPods:
    """The pods of this node by container id, as they were at the last `refresh`. `fetch` takes a URL; a failing one leaves what is known."""

    def __init__(self, urls: list[str], fetch: Fetch) -> None:
        self._urls = urls
        self._fetch = fetch
        self.table: dict[str, Pod] = {}

    def refresh(self) -> Exception | None:
        """Ask the first that answers. Where none does, what the last one said."""
        fault: Exception | None = None
        for url in self._urls:
            try:
                self.table = pods_by_container(json.loads(self._fetch(url)))
            except (OSError, ValueError) as raised:  # URLError is an OSError
                fault = raised
            else:
                return None
        return fault


def pods_by_container(answer: Any) -> dict[str, Pod]:
    """A PodList as a table. Raises ValueError where it is none; an odd entry in it is passed over."""
    if not isinstance(answer, dict) or not isinstance(answer.get("items"), list):
        raise ValueError("not a list of pods")  # noqa: TRY004 - of what came, not of our call
    found: dict[str, Pod] = {}
    for item in answer["items"]:
        meta, status = (item.get("metadata"), item.get("status")) if isinstance(item, dict) else (None, None)
        if not isinstance(meta, dict) or not isinstance(status, dict):
            continue
        labels = {str(key): str(value) for key, value in (meta.get("labels") or {}).items()}
        pod = Pod(str(meta.get("name", "")), str(meta.get("namespace", "")), labels)
        for group in ("containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"):
            for container in status.get(group) or []:
                _, _, container_id = str(container.get("containerID", "")).partition("://")  # containerd://…, cri-o://…, docker://…
                if container_id:
                    found[container_id] = pod
    return found


def _urls(account: Path) -> list[str]:
    if not (account / "token").exists():
        return []
    node, node_ip = os.environ.get("NODE_NAME"), os.environ.get("NODE_IP")
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    urls = [f"https://{_bracketed(node_ip)}:10250/pods"] if node_ip else []
    if host and node:
        urls.append(f"https://{_bracketed(host)}:{port}/api/v1/pods?fieldSelector=spec.nodeName%3D{node}")
    return urls


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _fetcher(account: Path) -> Fetch:
    import ssl  # noqa: PLC0415 - 20 ms, and only in Kubernetes
    import urllib.request  # noqa: PLC0415

    authority = account / "ca.crt"
    context = ssl.create_default_context(cafile=str(authority) if authority.exists() else None)
    insecure = ssl.create_default_context()
    insecure.check_hostname = False
    insecure.verify_mode = ssl.CERT_NONE
    kubelet = insecure if os.environ.get(INSECURE_VARIABLE) == "1" else context

    def fetch(url: str) -> bytes:
        token = (account / "token").read_text().strip()  # read each time: it is exchanged about every hour
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})  # noqa: S310 - https, made above
        chosen = kubelet if ":10250/" in url else context
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S, context=chosen) as answer:  # noqa: S310
            content: bytes = answer.read(_MAX_ANSWER)
            return content

    return fetch


class PodHelper:
    """The process that asks, and the sockets over which the decoders hear, one each. A byte there asks for a fresh table.

    `chosen` is the warden's: the containers of the pods that have all of the given labels.
    """

    def __init__(self, sockets: Sequence[socket.socket], pid: int, chosen: ChosenContainers) -> None:
        self.sockets = sockets
        self.pid = pid
        self.chosen = chosen

    def keep(self, number: int | None) -> None:
        """Close the sockets that are not of this decoder; all of them in a process that is none."""
        for other, sock in enumerate(self.sockets):
            if other != number:
                sock.close()

    @classmethod
    def start(
        cls, journal: Journal, account: Path = _ACCOUNT, *, decoders: int = 1, labels: Collection[tuple[str, str]] = ()
    ) -> PodHelper | None:
        """None outside Kubernetes. It ends when a decoder does. Call it while there are no threads."""
        urls = _urls(account)
        if not urls:
            return None
        pairs = [socket.socketpair() for _ in range(decoders)]
        warden, chosen = socket.socketpair()
        pid = os.fork()
        if pid:
            for _, theirs in pairs:
                theirs.close()
            chosen.close()
            return cls([ours for ours, _ in pairs], pid, ChosenContainers(warden))
        try:
            for ours, _ in pairs:
                ours.close()
            warden.close()
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            pods = ClusterPods(urls, _fetcher(account))
            privileges.become(privileges.unprivileged_user())
            privileges.confine(network=True)
            _tell_pods([theirs for _, theirs in pairs], pods, journal, Chooser(chosen, labels))
        except OSError as fault:
            journal.warning("pods_unnamed", f"pods stay unnamed: {fault}")
        finally:
            os._exit(0)


def _tell_pods(sockets: Sequence[socket.socket], pods: ClusterPods, journal: Journal, chooser: Chooser) -> None:
    """Tell the table to all now, and to each that asks, until one of them closes."""
    told = ""
    asking = list(sockets)
    while True:
        fault = pods.refresh()
        if fault is None:
            chooser.tell(pods.table)
            for sock in asking:
                _send(sock, json.dumps(pods.table).encode())
        elif str(fault) != told:
            told = str(fault)
            journal.warning("pods_unknown", f"pods are not known: {told}")
        asking, _, _ = select.select(sockets, (), (), _FOLLOW_S if chooser.labels else None)
        if not all(sock.recv(1) for sock in asking):
            return


def _send(sock: socket.socket, message: bytes) -> None:
    sock.sendall(len(message).to_bytes(4, "big") + message)


class Chooser:
    """In the helper: which containers belong to pods that have all of `labels`, told when it changes."""

    def __init__(self, sock: socket.socket, labels: Collection[tuple[str, str]]) -> None:
        self.labels = frozenset(labels)
        self._socket = sock
        self._told: set[str] = set()

    def tell(self, pods: dict[str, Pod]) -> None:
        chosen = {container for container, pod in pods.items() if self.labels and self.labels <= pod.labels.items()}
        if chosen != self._told:
            self._told = chosen
            _send(self._socket, "\n".join(sorted(chosen)).encode()[:_MAX_CHOSEN])


class ChosenContainers:
    """In the warden: what the helper told last."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._buffer = bytearray()
        sock.setblocking(False)

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def read(self) -> frozenset[str] | None:
        """The containers' ids where they have changed. Raises EOFError when the helper is gone, or says too much."""
        with contextlib.suppress(BlockingIOError):
            while len(self._buffer) <= 4 + _MAX_CHOSEN:
                data = self._socket.recv(1 << 16)
                if not data:
                    raise EOFError
                self._buffer += data
        chosen = None
        while len(self._buffer) >= 4 and len(self._buffer) >= (end := 4 + int.from_bytes(self._buffer[:4], "big")):
            chosen = frozenset(self._buffer[4:end].decode(errors="replace").split())
            del self._buffer[:end]
        if len(self._buffer) > 4 + _MAX_CHOSEN:
            raise EOFError
        return chosen


class RemotePods:
    """What the helper told last: a `PodLookup` for the decoder."""

    def __init__(self, sock: socket.socket, *, refresh_s: float = _REFRESH_S) -> None:
        self._socket = sock
        self._refresh_s = refresh_s
        self._asked = time.monotonic()
        self._buffer = bytearray()
        self._pods: dict[str, Pod] = {}
        sock.setblocking(False)

    def pod_of(self, container_id: str) -> Pod | None:
        self._read()
        known = self._pods.get(container_id)
        if known is None and time.monotonic() - self._asked >= self._refresh_s:
            self._asked = time.monotonic()
            with contextlib.suppress(OSError):
                self._socket.send(b"?")
        return known

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._socket.recv(1 << 20):
                self._buffer += data
        while len(self._buffer) >= 4 and len(self._buffer) >= (end := 4 + int.from_bytes(self._buffer[:4], "big")):
            self._pods = {name: Pod(*values) for name, values in json.loads(bytes(self._buffer[4:end])).items()}
            del self._buffer[:end]
