"""The Debian package on a Debian: installed, run under the unit's restrictions, upgraded, removed, purged."""

from __future__ import annotations

import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmsec_analyzer.stored.session import QuerySession
from support.agent import ROOT
from support.https_calls import ask_once
from support.image_root import mounted
from support.needs import program
from support.tls_front import Certificate, free_port
from support.unit import APPLIED, BY_MOUNTS, ELSEWHERE, directives, restricted

KEPT_BY_DPKG = (
    "/var/lib/dpkg",
    "/var/log",
    "/var/cache",
    "/etc/passwd",
    "/etc/group",
    "/etc/shadow",
    "/etc/gshadow",
    "/etc/subuid",
    "/etc/subgid",
)
_CHANGING = """
set -e
mount --make-rprivate /
mount -t proc proc "$1/proc"
mount --rbind /sys "$1/sys"
mount --rbind /dev "$1/dev"
root=$1; shift
exec chroot "$root" "$@"
"""


def changing(root: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run as root in the root, which may be written; it must do."""
    done = subprocess.run(["unshare", "--mount", "sh", "-c", _CHANGING, "sh", root, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture
def debian(image: tuple[Path, dict[str, Any]], tmp_path: Path) -> Iterator[Path]:
    """A Debian with Python and libbpf and nothing of ours: the image's root, changed in a layer of its own."""
    layer, merged = tmp_path / "layer", tmp_path / "merged"
    for folder in (layer, merged):
        folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", layer], check=True)
    try:
        for folder in (layer / "upper", layer / "work"):
            folder.mkdir()
        options = f"lowerdir={image[0]},upperdir={layer}/upper,workdir={layer}/work"
        subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", merged], check=True)
        try:
            changing(merged, "sh", "-ec", "rm -rf /opt/* /var/lib/llmsec-trace* /etc/llmsec-trace; userdel llmsec")
            yield merged
        finally:
            subprocess.run(["umount", "--lazy", merged], check=True)
    finally:
        subprocess.run(["umount", "--lazy", layer], check=True)


def files_of(root: Path) -> set[str]:
    shown = subprocess.run(["find", root, "-xdev", "-printf", "/%P\\n"], capture_output=True, text=True, check=True).stdout
    return {line for line in shown.splitlines() if not line.startswith(KEPT_BY_DPKG)}


def install(root: Path, image: Path, version: str) -> str:
    package = root / "var/cache/llmsec.deb"
    subprocess.run([ROOT / "scripts/build-deb", image, package, version], check=True, capture_output=True)
    said = changing(root, "dpkg", "--install", "/var/cache/llmsec.deb").stdout
    package.unlink()
    return said


def page(port: int, path: str) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            text: str = answer.read().decode()
            return text
    except OSError:
        return ""


def test_every_restriction_of_the_unit_is_tried_or_named() -> None:
    assert set(directives()) == APPLIED | BY_MOUNTS | ELSEWHERE


def test_it_installs_runs_restricted_upgrades_and_leaves_nothing(
    debian: Path, image: tuple[Path, dict[str, Any]], echo: tuple[int, int], certificate: Certificate, tmp_path: Path
) -> None:
    program("systemd-analyze", "systemd")
    before = files_of(debian)
    said = install(debian, image[0], "0.1.0")
    assert "ok    attach" in said
    assert said.rstrip().splitlines()[-1].startswith("next: ")
    pid, port = echo
    health, metrics = free_port(), free_port()
    file = debian / "etc/llmsec-trace/config.yaml"
    config = yaml.safe_load(file.read_text())
    config["capture"] |= {"all": False, "pids": [pid], "plain": False}
    config["server"]["bind_address"] = f"127.0.0.1:{health}"
    config["observability"]["metrics"]["port"] = metrics
    config["sdk"] = {"socket": "/run/llmsec/sdk.sock"}
    file.write_text(yaml.safe_dump(config))
    changing(debian, "install", "-d", "-m", "0700", "/var/lib/llmsec-trace-key")  # StateDirectory=
    changing(debian, "install", "-d", "-m", "0755", "/run/llmsec")  # RuntimeDirectory=
    writable = ["/var/lib/llmsec-trace", "/var/lib/llmsec-trace-key", "/run/llmsec"]
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    temporary.chmod(0o1777)
    pairs = [word for path in writable for word in (f"{debian}{path}", path)] + [str(temporary), "/tmp"]
    service = directives()
    checked = mounted(debian, pairs, restricted(service["ExecStartPre"].split()))
    done = subprocess.run(checked, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    log = tmp_path / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(mounted(debian, pairs, restricted(service["ExecStart"].split())), stdout=out, stderr=out)
    try:

        def until(text: str, where: int, path: str) -> None:
            deadline = time.monotonic() + 30
            while text not in page(where, path):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)

        until('"ok"', health, "/ready")
        for number in range(4):
            ask_once(port, certificate.cert, f"question {number}, mail me at anna.schmidt@example.org")
        until("llmsec_store_rows_total 4.0", metrics, "/metrics")
        until("llmsec_detection_up 1.0", metrics, "/metrics")
        until("llmsec_sdk_receiver_up 1.0", metrics, "/metrics")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in log.read_text()
    assert "warning" not in log.read_text().lower()
    store = debian / "var/lib/llmsec-trace"
    with QuerySession.open(store) as session:
        assert list(session.select("SELECT count(*), sum(len(findings)) > 0 FROM exchanges").rows()) == [(4, True)]

    said = install(debian, image[0], "0.1.1")
    assert "next: " not in said
    assert yaml.safe_load(file.read_text()) == config, "an upgrade keeps the configuration"
    assert (store / "store.json").exists()
    changing(debian, "dpkg", "--remove", "llmsec-trace")
    assert not (debian / "opt/llmsec-trace").exists()
    assert file.exists()
    assert (store / "store.json").exists()
    changing(debian, "dpkg", "--purge", "llmsec-trace")
    assert files_of(debian) - before == set()
    assert before - files_of(debian) <= {"/opt"}, "dpkg removes it where it is empty"
    assert "llmsec" not in (debian / "etc/passwd").read_text() + (debian / "etc/group").read_text()
