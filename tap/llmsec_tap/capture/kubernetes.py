"""The pod of a container, from the node's kubelet or the API server: one implementation of `PodLookup`.

In a pod, the service account's token and certificate are mounted, and NODE_NAME and NODE_IP come from the downward API. The
kubelet's /pods (10250, authorised by nodes/proxy) is asked first: it is on this node and knows the node's pods only. Where it
refuses, the API server is asked for the pods of this node. Outside Kubernetes there is no lookup and no request is made.
"""

from __future__ import annotations

import json
import os
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from llmsec_tap.capture.process import Pod, PodLookup

_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TIMEOUT_S = 2.0
# A container that is not in the list yet is looked for again, but not more often than this.
_REFRESH_S = 5.0
_MAX_ANSWER = 64 << 20

Fetch = Callable[[str], bytes]


class ClusterPods:
    """Keeps the pods of this node by container id. `fetch` takes a URL; a failing one leaves what is known.

    The list is fetched by a thread of its own: `pod_of` answers from what is known and never waits.
    """

    def __init__(self, urls: list[str], fetch: Fetch, *, refresh_s: float = _REFRESH_S) -> None:
        self._urls = urls
        self._fetch = fetch
        self._refresh_s = refresh_s
        self._pods: dict[str, Pod] = {}
        self._asked = 0.0
        self._busy = threading.Lock()
        self.refresh()

    def pod_of(self, container_id: str) -> Pod | None:
        known = self._pods.get(container_id)
        if known is None and time.monotonic() - self._asked >= self._refresh_s:
            threading.Thread(target=self.refresh, name="llmsec-pods", daemon=True).start()
        return known

    def refresh(self) -> None:
        if not self._busy.acquire(blocking=False):
            return
        try:
            self._asked = time.monotonic()
            for url in self._urls:
                try:
                    self._pods = pods_by_container(json.loads(self._fetch(url)))
                except (OSError, ValueError, urllib.error.URLError):
                    continue
                return
        finally:
            self._busy.release()


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


def find_pods(account: Path = _ACCOUNT) -> PodLookup | None:
    """The lookup where this runs in Kubernetes, else None."""
    try:
        token = (account / "token").read_text().strip()
    except OSError:
        return None
    node, node_ip = os.environ.get("NODE_NAME"), os.environ.get("NODE_IP")
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    urls = [f"https://{node_ip}:10250/pods"] if node_ip else []
    if host and node:
        address = f"[{host}]" if ":" in host else host
        urls.append(f"https://{address}:{port}/api/v1/pods?fieldSelector=spec.nodeName%3D{node}")
    return ClusterPods(urls, _fetcher(token, account / "ca.crt")) if urls else None


def _fetcher(token: str, authority: Path) -> Fetch:
    context = ssl.create_default_context(cafile=str(authority) if authority.exists() else None)
    # Kubelets serve with a certificate of their own unless the cluster signs them; only the node itself is asked, over its own address.
    kubelet = ssl.create_default_context()
    kubelet.check_hostname = False
    kubelet.verify_mode = ssl.CERT_NONE

    def fetch(url: str) -> bytes:
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})  # noqa: S310 - https, made above
        chosen = kubelet if ":10250/" in url else context
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S, context=chosen) as answer:  # noqa: S310
            content: bytes = answer.read(_MAX_ANSWER)
            return content

    return fetch
