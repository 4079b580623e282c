"""Containers by cgroup path, pods by recorded answers."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from llmsec_tap.capture.host.kubernetes import ClusterPods, PodHelper, RemotePods, pods_by_container
from llmsec_tap.capture.host.proc import container_of
from llmsec_tap.capture.host.process import Pod, ProcessTable
from llmsec_tap.journal import SILENT

ID = "4f8a1c" + "0123456789abcdef" * 3 + "0123456789"


@pytest.mark.parametrize(
    ("runtime", "cgroup"),
    [
        ("docker, v1", f"12:memory:/docker/{ID}\n11:cpu:/docker/{ID}\n"),
        ("docker, v2, systemd", f"0::/system.slice/docker-{ID}.scope\n"),
        ("docker in docker", f"0::/docker/{'a' * 64}/docker/{ID}\n"),
        ("containerd, v1, cgroupfs", f"5:pids:/kubepods/besteffort/pod0d5cf8b1-8e64/{ID}\n"),
        (
            "containerd, v2, systemd",
            f"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0d5c.slice/cri-containerd-{ID}.scope\n",
        ),
        ("containerd, v1, systemd without scope", f"7:cpu:/system.slice/containerd.service/kubepods-pod1.slice:cri-containerd:{ID}\n"),
        ("cri-o, v1", f"8:devices:/kubepods.slice/kubepods-pod1.slice/crio-{ID}.scope\n"),
        ("cri-o, v2, nested", f"0::/kubepods.slice/kubepods-pod1.slice/crio-{ID}.scope/container\n"),
        ("podman, root", f"0::/machine.slice/libpod-{ID}.scope/container\n"),
        ("podman, rootless", f"0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope/container\n"),
    ],
)
def test_container_of_a_cgroup(runtime: str, cgroup: str) -> None:
    assert container_of(cgroup) == ID, runtime


@pytest.mark.parametrize(
    "cgroup", ["", "0::/\n", "0::/user.slice/session-1.scope\n", "1:name=systemd:/init.scope\n", f"0::/{'f' * 63}\n", f"0::/x{'f' * 65}\n"]
)
def test_no_container(cgroup: str) -> None:
    assert container_of(cgroup) is None


ANSWER: dict[str, Any] = {
    "kind": "PodList",
    "items": [
        {
            "metadata": {"name": "chat-7d9", "namespace": "prod", "labels": {"app": "chat", "tier": "gpu"}},
            "status": {
                "containerStatuses": [{"containerID": f"containerd://{ID}"}, {"containerID": ""}],
                "initContainerStatuses": [{"containerID": f"containerd://{'b' * 64}"}],
            },
        },
        {"metadata": {"name": "pending", "namespace": "prod"}, "status": {}},
        {"odd": True},
    ],
}
CHAT = Pod("chat-7d9", "prod", {"app": "chat", "tier": "gpu"})


def test_pods_of_a_recorded_answer() -> None:
    assert pods_by_container(ANSWER) == {ID: CHAT, "b" * 64: CHAT}
    for wrong in ([], {"items": 5}, None):
        with pytest.raises(ValueError, match="not a list"):
            pods_by_container(wrong)


def test_the_kubelet_is_asked_first_and_the_server_where_it_refuses() -> None:
    asked: list[str] = []

    def fetch(url: str) -> bytes:
        asked.append(url)
        if "10250" in url:
            raise PermissionError
        return json.dumps(ANSWER).encode()

    pods = ClusterPods(["https://node:10250/pods", "https://server/api"], fetch)
    assert pods.refresh() is None
    assert asked == ["https://node:10250/pods", "https://server/api"]
    assert pods.table[ID] == CHAT
    assert "c" * 64 not in pods.table


def test_an_unknown_container_does_not_ask_again_at_once() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        pods = RemotePods(ours, refresh_s=3600)
        assert pods.pod_of("c" * 64) is None
        with pytest.raises(BlockingIOError):
            theirs.recv(1)


def test_a_failing_refresh_keeps_what_is_known() -> None:
    answers = [json.dumps(ANSWER).encode(), b"no json", b"[]"]
    pods = ClusterPods(["https://x"], lambda _: answers.pop(0))
    assert pods.refresh() is None
    assert isinstance(pods.refresh(), ValueError)
    assert isinstance(pods.refresh(), ValueError)
    assert pods.table[ID] == CHAT


def test_outside_kubernetes_nothing_is_asked(tmp_path: Path) -> None:
    assert PodHelper.start(SILENT, tmp_path) is None


def test_process_facts(tmp_path: Path) -> None:
    folder = tmp_path / "77"
    folder.mkdir()
    (folder / "comm").write_text("vllm\n")
    (folder / "exe").symlink_to("/usr/bin/python3.11")
    (folder / "cgroup").write_text(f"0::/docker/{ID}\n")

    class Pods:
        def pod_of(self, container_id: str) -> Pod | None:
            return CHAT if container_id == ID else None

    table = ProcessTable(Pods(), tmp_path)
    process = table.get(77)
    assert (process.comm, process.exe, process.container_id, process.pod, process.namespace) == (
        "vllm",
        "/usr/bin/python3.11",
        ID,
        "chat-7d9",
        "prod",
    )
    assert [(label.name, label.value) for label in process.labels] == [("app", "chat"), ("tier", "gpu")]
    assert table.get(77) is process
    assert table.get(77, "renamed").comm == "renamed"
    gone = table.get(78, "curl")
    assert (gone.comm, gone.exe, gone.container_id) == ("curl", None, None)
    assert ProcessTable().get(os.getpid()).exe is not None
