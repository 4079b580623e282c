"""The chart, rendered by Helm's own engine: valid for each Kubernetes, with no more rights than docs/deployment.md argues, and a configuration that our own check takes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmsec_tap import privileges

pytest.importorskip("helm_python", reason="helm-python-sdk has no wheel for this machine")
import kubernetes_validate

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "generate-manifests"
EXAMPLES = sorted(path.stem for path in (ROOT / "deploy/helm/examples").glob("*.yaml"))
VERSIONS = ("1.25.0", "1.29.0", "1.30.0", "1.33.0", "1.37.0")


@cache
def _ask(values: str) -> tuple[int, str]:
    done = subprocess.run([sys.executable, SCRIPT, "--render"], input=values, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout or done.stderr


def ask_helm(values: dict[str, Any]) -> tuple[int, str]:
    return _ask(json.dumps(values))


def rendered(values: dict[str, Any]) -> list[dict[str, Any]]:
    code, text = ask_helm(values)
    assert code == 0, text
    return list(yaml.safe_load_all(text))


def example(name: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((ROOT / "deploy/helm/examples" / f"{name}.yaml").read_text())
    return values


def one(documents: list[dict[str, Any]], *kinds: str) -> dict[str, Any]:
    (found,) = [document for document in documents if document["kind"] in kinds]
    return found


def pod_of(documents: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The pod's specification, and the tap's container in it."""
    pod = one(documents, "DaemonSet", "Deployment")["spec"]["template"]["spec"]
    (tap,) = [container for container in pod["containers"] if container["name"] == "tap"]
    return pod, tap


def test_the_plain_manifests_are_the_charts() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}: run scripts/generate-manifests"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", EXAMPLES)
def test_each_form_is_valid_in_each_kubernetes(name: str, version: str) -> None:
    for document in rendered({**example(name), "kubeVersion": version}):
        if document["kind"] != "PodMonitor":  # a resource of its operator
            kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("name", EXAMPLES)
def test_config_check_takes_each_configuration(name: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(one(rendered(example(name)), "ConfigMap")["data"]["config.yaml"])
    command = [sys.executable, "-m", "llmsec_agent.cli.analyze.app", "config", "check", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 errors" in done.stdout + done.stderr


# What Kubernetes' Pod Security Standards forbid, as far as a pod of ours could do it (kubernetes.io/docs/concepts/security/pod-security-standards).
_OF_BASELINE = {
    *("AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE"),
    *("SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"),
}
_VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


def broken(pod: dict[str, Any], tap: dict[str, Any]) -> Iterator[str]:
    security = tap["securityContext"]
    added = set(security.get("capabilities", {}).get("add", []))
    kinds = {kind for volume in pod["volumes"] for kind in volume if kind != "name"}
    yield from (f"baseline:{name}" for name in ("hostPID", "hostIPC", "hostNetwork") if pod.get(name))
    if security.get("privileged"):
        yield "baseline:privileged"
    yield from (f"baseline:{name}" for name in added - _OF_BASELINE)
    if "hostPath" in kinds:
        yield "baseline:hostPath"
    if any("hostPort" in port for port in tap["ports"]):
        yield "baseline:hostPort"
    if security.get("appArmorProfile", {}).get("type") == "Unconfined":
        yield "baseline:appArmor"
    if security.get("seccompProfile", {}).get("type") == "Unconfined":
        yield "baseline:seccomp"
    if kinds - _VOLUMES - {"hostPath"}:
        yield "restricted:volumes"
    if security.get("allowPrivilegeEscalation") is not False:
        yield "restricted:allowPrivilegeEscalation"
    if not security.get("runAsNonRoot") or security.get("runAsUser") == 0:
        yield "restricted:runAsNonRoot"
    if security.get("capabilities", {}).get("drop") != ["ALL"]:
        yield "restricted:drop"
    yield from (f"restricted:{name}" for name in (added & _OF_BASELINE) - {"NET_BIND_SERVICE"})
    if security.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
        yield "restricted:seccomp"


_ANOTHER_USER = {"restricted:runAsNonRoot", *(f"restricted:{name}" for name in ("CHOWN", "KILL", "SETGID", "SETUID"))}
_OF_A_NODE = {*(f"baseline:{name}" for name in ("hostPID", "hostPath", "appArmor", "BPF", "PERFMON", "SYS_PTRACE")), *_ANOTHER_USER}
EXCEPTIONS = {
    "node": _OF_A_NODE,
    "fleet": _OF_A_NODE,
    "gateway": _OF_A_NODE,
    "interfaces": {*_OF_A_NODE, "baseline:hostNetwork", "baseline:NET_RAW"},
    "sidecar": {"baseline:NET_RAW", *_ANOTHER_USER},
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_rules_of_pod_security_are_kept_but_for_what_is_argued(name: str) -> None:
    found = set(broken(*pod_of(rendered({**example(name), "kubeVersion": "1.31.0"}))))
    assert found == EXCEPTIONS[name]
    text = (ROOT / "docs/deployment.md").read_text()
    for exception in found:
        assert f"`{exception.partition(':')[2]}`" in text, "docs/deployment.md does not argue it"


def test_the_nightly_benchmark_is_off_by_itself_and_keeps_the_restricted_rules() -> None:
    assert not [document for document in rendered({}) if document["kind"] == "CronJob"]
    job = one(rendered({"benchmark": {"enabled": True}}), "CronJob")
    assert (job["metadata"]["name"], job["spec"]["schedule"]) == ("llmsec-performance-benchmark", "0 2 * * *")
    pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert {variable["name"]: variable["value"] for variable in container["env"]} == {
        "BENCHMARK_DURATION": "300s",
        "RESULTS_BUCKET": "/results",
    }
    security = {**pod["securityContext"], **container["securityContext"]}
    assert not set(broken(pod, {**container, "ports": [], "securityContext": security}))
    script = Path(container["command"][1]).relative_to("/opt/llmsec-trace")
    assert (ROOT / script).is_file()
    assert f"COPY {script} /opt/llmsec-trace/{script.parent}/" in (ROOT / "deploy/docker/Dockerfile").read_text()


def test_privileged_is_for_those_who_ask() -> None:
    _, tap = pod_of(rendered({"privileged": True}))
    assert tap["securityContext"]["privileged"] is True
    assert "capabilities" not in tap["securityContext"]


def test_all_that_is_added_is_known_to_the_warden() -> None:
    for name in EXAMPLES:
        for capability in pod_of(rendered(example(name)))[1]["securityContext"]["capabilities"]["add"]:
            assert f"CAP_{capability}" in privileges.CAPABILITIES


def test_the_root_is_read_only_and_all_that_is_written_is_mounted() -> None:
    for name in EXAMPLES:
        pod, tap = pod_of(rendered(example(name)))
        assert tap["securityContext"]["readOnlyRootFilesystem"] is True
        volumes = {volume["name"] for volume in pod["volumes"]}
        mounts = {mount["mountPath"]: mount for mount in tap["volumeMounts"]}
        assert {mount["name"] for mount in mounts.values()} <= volumes
        assert {"/var/lib/llmsec-trace", "/tmp"} <= {path for path, mount in mounts.items() if not mount.get("readOnly")}


def test_the_socket_of_applications_is_in_a_folder_of_the_host() -> None:
    assert "sdk" not in {volume["name"] for volume in pod_of(rendered(example("node")))[0]["volumes"]}
    pod, tap = pod_of(rendered({"form": "node", "config": {"sdk": {"socket": "/run/llmsec/sdk.sock", "mode": "0666"}}}))
    assert {"name": "sdk", "hostPath": {"path": "/run/llmsec", "type": "DirectoryOrCreate"}} in pod["volumes"]
    assert {"name": "sdk", "mountPath": "/run/llmsec"} in tap["volumeMounts"]


def test_secrets_are_files_that_only_root_reads() -> None:
    pod, tap = pod_of(rendered(example("fleet")))
    secrets = [volume["secret"] for volume in pod["volumes"] if "secret" in volume]
    assert {secret["secretName"] for secret in secrets} == {"clickhouse", "slack", "fingerprint-key"}
    assert {secret["defaultMode"] for secret in secrets} == {0o400}
    assert "fsGroup" not in pod.get("securityContext", {}), "it would add a group's right to read the key, which the tap refuses"
    assert all("valueFrom" not in variable or "fieldRef" in variable["valueFrom"] for variable in tap["env"])


def test_the_account_may_list_pods_and_nothing_else() -> None:
    assert one(rendered({}), "ClusterRole")["rules"] == [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]
    kinds = {document["kind"] for document in rendered(example("sidecar"))}
    assert kinds == {"ConfigMap", "Deployment"}, "a sidecar asks no cluster"


def test_before_130_app_armor_is_an_annotation() -> None:
    documents = rendered({"kubeVersion": "1.29.0"})
    meta = one(documents, "DaemonSet")["spec"]["template"]["metadata"]
    assert meta["annotations"]["container.apparmor.security.beta.kubernetes.io/tap"] == "unconfined"
    assert "appArmorProfile" not in pod_of(documents)[1]["securityContext"]


REFUSED = [
    ({"autoscaling": {"enabled": True}}, "does not scale by replicas"),
    ({"service": {"type": "LoadBalancer"}}, "no LoadBalancer"),
    ({"ingress": {"enabled": True}}, "nobody sends requests to a tap"),
    ({"failover": {"enabled": True}}, "nothing to fail over to"),
    ({"podDisruptionBudget": {"minAvailable": 2}}, "updateStrategy.maxUnavailable"),
    ({"replicaCount": 5}, "the number of nodes"),
    ({"form": "sidecar"}, "give the application's containers"),
    ({"form": "gateway"}, "say which"),
    ({**example("sidecar"), "config": {"capture": {"comms": ["python3"]}}}, "form node with config.capture.labels"),
    ({"form": "proxy"}, "form"),
    ({"nonsense": 1}, "nonsense"),
    ({"image": {"digest": "sha256:1234"}}, "digest"),
    ({"updateStrategy": {"maxUnavailable": 0}}, "maxUnavailable"),
]


@pytest.mark.parametrize(("values", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_what_a_tap_cannot_be_is_refused_with_a_sentence(values: dict[str, Any], said: str) -> None:
    code, text = ask_helm(values)
    assert code == 1
    assert said in text
