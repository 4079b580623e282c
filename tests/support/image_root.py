"""The image's root file system, run as the chart says and without a container runtime: namespaces, mounts and capabilities by util-linux.

What a runtime would take from the manifest is read from the manifest: capabilities, the read-only root, mounts, variables and arguments.
"""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from support.agent import ROOT
from support.tls_front import free_port

# $1 the root; then pairs SOURCE TARGET (read-only ones as SOURCE:ro), `--`, and what is run in it.
_MOUNTS = """
set -e
mount --make-rprivate /
root=$1; shift
mount --bind "$root" "$root"; mount -o remount,bind,ro "$root"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"; mount -o remount,bind,ro "$root/sys"
mount -t tmpfs -o mode=0755 tmpfs "$root/dev"
for device in null zero full random urandom; do : > "$root/dev/$device"; mount --bind "/dev/$device" "$root/dev/$device"; done
mkdir "$root/dev/shm"; mount -t tmpfs tmpfs "$root/dev/shm"
while [ "$1" != -- ]; do
    mount --bind "${1%:ro}" "$root$2"
    case $1 in *:ro) mount -o remount,bind,ro "$root$2" ;; *) mount -o remount,bind,rw "$root$2" ;; esac
    shift 2
done
shift
exec chroot "$root" "$@"
"""


def manifest(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tap's container of deploy/manifests/NAME.yaml, and its configuration."""
    documents = {document["kind"]: document for document in yaml.safe_load_all((ROOT / f"deploy/manifests/{name}.yaml").read_text())}
    workload = documents.get("DaemonSet") or documents["Deployment"]
    (tap,) = [each for each in workload["spec"]["template"]["spec"]["containers"] if each["name"] == "tap"]
    return tap, yaml.safe_load(documents["ConfigMap"]["data"]["config.yaml"])


def build(folder: Path) -> dict[str, Any]:
    """Make the root in `folder`; what scripts/build-image-root says of it. Takes a minute and a half."""
    done = subprocess.run([ROOT / "scripts/build-image-root", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def contained(root: Path, image: dict[str, Any], tap: dict[str, Any], mounts: dict[str, Path], *command: str) -> list[str]:
    """The command line that runs this in the container `tap` of a manifest; `mounts`: what is bound where it mounts something."""
    security = tap["securityContext"]
    assert security["capabilities"]["drop"] == ["ALL"]
    assert security["readOnlyRootFilesystem"]
    held = ",".join(f"+{name.lower()}" for name in security["capabilities"]["add"])
    read_only = {mount["mountPath"]: mount.get("readOnly", False) for mount in tap["volumeMounts"]}
    assert set(mounts) == set(read_only)
    pairs = [word for path, source in mounts.items() for word in (f"{source}:ro" if read_only[path] else str(source), path)]
    variables = {name: value for name, value in image["environment"].items() if name != "DEBIAN_FRONTEND"}
    variables |= {each["name"]: each["value"] for each in tap["env"] if "value" in each}
    rights = ["setpriv", f"--bounding-set=-all,{held}", "--inh-caps=-all", "--ambient-caps=-all", "--no-new-privs"]
    return mounted(root, pairs, ["env", "-i", *(f"{name}={value}" for name, value in variables.items()), *rights, *command])


def mounted(root: Path, pairs: list[str], command: list[str]) -> list[str]:
    """Run in this root, read-only but for `pairs` of a source (with `:ro` behind it: that, too) and where it is in there."""
    return ["unshare", "--mount", "sh", "-c", _MOUNTS, "sh", str(root), *pairs, "--", *command]


class Contained:
    """The agent of one pod on this host; `folder` keeps what the node would: store, key, and here the log."""

    def __init__(self, root: Path, image: dict[str, Any], folder: Path, name: str, into: str = "", **capture: Any) -> None:
        """`capture` changes that part of the chart's configuration; `into`: a line of shell that the process runs first (to enter cgroups)."""
        tap, config = manifest(name)
        self.health, self.metrics = free_port(), free_port()
        config["server"]["bind_address"] = f"127.0.0.1:{self.health}"
        config["observability"]["metrics"] |= {"address": "127.0.0.1", "port": self.metrics}
        config["capture"] |= capture
        self.store = folder / "store"
        self.log = folder / "log"
        for each in ("store", "key", "config", "tmp"):
            (folder / each).mkdir(exist_ok=True, mode=0o755)
        (folder / "tmp").chmod(0o1777)
        (folder / "config/config.yaml").write_text(yaml.safe_dump(config))
        paths = {"/etc/llmsec-trace": "config", "/var/lib/llmsec-trace": "store", "/var/lib/llmsec-trace-key": "key", "/tmp": "tmp"}
        mounts = {mount["mountPath"]: folder / paths[mount["mountPath"]] for mount in tap["volumeMounts"]}
        self.inside = partial(contained, root, image, tap, mounts)  # of a command: as `kubectl exec` runs it
        command = self.inside(*image["entrypoint"], *tap["args"])
        if into:
            command = ["sh", "-c", f"{into}; exec {shlex.join(command)}"]
        self.begun = time.monotonic()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def page(self, port: int, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, refused.read().decode()
        except OSError:
            return 0, ""

    def value(self, sample: str) -> float | None:
        page = self.page(self.metrics, "/metrics")[1]
        return next((float(line.rpartition(" ")[2]) for line in page.splitlines() if line.startswith(sample + " ")), None)

    def until(self, condition: Callable[[], bool], what: str, timeout_s: float = 40) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, f"{what}:\n{self.log.read_text()}"
            time.sleep(0.05)

    def ready(self) -> float:
        """Seconds from the start."""
        self.until(lambda: self.page(self.health, "/ready")[0] == 200, "it is not ready")
        return time.monotonic() - self.begun

    def stop(self) -> float:
        begun = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        return time.monotonic() - begun


@contextmanager
def pod(root: Path, image: dict[str, Any], folder: Path, name: str = "node", into: str = "", **capture: Any) -> Iterator[Contained]:
    running = Contained(root, image, folder, name, into, **capture)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.kill()
            running.process.wait()


def family(pid: int) -> list[int]:
    """This process and all below it."""
    try:
        children = [int(each) for task in Path(f"/proc/{pid}/task").iterdir() for each in (task / "children").read_text().split()]
    except OSError:
        return []
    return [pid, *(each for child in children for each in family(child))]
