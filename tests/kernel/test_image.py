"""The image as the chart runs it: a read-only root, the chart's capabilities and no others, on a process of the host.

The root is built once, by the Dockerfile's own instructions (scripts/build-image-root): a minute and a half.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

from llmsec_tap.privileges import CAPABILITIES
from support.https_calls import ask_once
from support.image_root import contained, family, manifest, pod
from support.plain_calls import ask_plain, plain_server
from support.tls_front import Certificate
from support.tmux import terminal

Image = tuple[Path, dict[str, Any]]
ACCOUNT = "64100"


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def test_the_agent_taps_a_process_with_the_charts_rights_and_no_others(
    image: Image, echo: tuple[int, int], certificate: Certificate, tmp_path: Path
) -> None:
    pid, port = echo
    tap, _ = manifest("node")
    with pod(*image, tmp_path, all=False, pids=[pid], plain=False) as running:
        running.ready()
        for number in range(5):
            ask_once(port, certificate.cert, f"question {number}")
        running.until(lambda: running.value('llmsec_exchanges_total{kind="llm"}') == 5, "five exchanges were not counted")
        running.until(lambda: running.value("llmsec_store_rows_total") == 5, "five rows were not stored")
        warden, *others = family(running.process.pid)
        chosen = sum(1 << CAPABILITIES[f"CAP_{name}"] for name in tap["securityContext"]["capabilities"]["add"])
        assert int(status_of(warden)["CapEff"], 16) == chosen
        assert int(status_of(warden)["CapBnd"], 16) == chosen
        assert len(others) >= 3, "decoder, detection, listener"
        for each in others:
            held = status_of(each)
            assert held["CapEff"] == "0" * 16
            assert set(held["Uid"].split()) == {ACCOUNT}, held["Name"]
        assert {path.stat().st_uid for path in (running.store, *running.store.rglob("*"))} == {int(ACCOUNT)}
        assert (tmp_path / "key/fingerprint.key").stat().st_mode & 0o777 == 0o600
        with terminal(tmp_path) as shell:  # people look at it from the inside
            top = running.inside("env", "TERM=screen", "llmsec-tap", "top", "--store", "/var/lib/llmsec-trace")
            (tmp_path / "top").write_text(shlex.join(top))
            shell.keys("sh ./top; echo code $?", "Enter")
            shell.until(lambda screen: "q quit" in screen and "echo" in screen, within_s=40)
            shell.keys("q")
            shell.until(lambda screen: "\ncode 0" in screen)
        for words, expected in (
            (("report", "--since", "1h", "--output", "-"), "<dt>Exchanges</dt><dd>5</dd>"),
            (("query", "SELECT count(*) AS n FROM exchanges", "--format", "json"), '{"n":5}'),
            (("exchanges", "--format", "json"), '"question 4"'),
            (("db", "prune", "--days", "1"), "0 "),
        ):
            done = subprocess.run(
                running.inside("llmsec-analyze", *words, "--store", "/var/lib/llmsec-trace"), capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
            assert expected in done.stdout, words
        assert {path.stat().st_uid for path in (running.store, *running.store.rglob("*"))} == {int(ACCOUNT)}
        assert running.stop() < 5
        assert running.process.returncode == 0
        said = running.log.read_text()
        assert "key_not_kept" not in said
        assert "Traceback" not in said


def test_check_finds_all_that_it_needs_in_the_image(image: Image, tmp_path: Path) -> None:
    root, facts = image
    tap, _ = manifest("interfaces")
    folders = {mount["mountPath"]: tmp_path for mount in tap["volumeMounts"]}
    done = subprocess.run(contained(root, facts, tap, folders, "llmsec-tap", "check"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    verdicts = {line.split()[0] for line in done.stdout.splitlines()}
    assert verdicts == {"ok"}, done.stdout


def test_a_sidecar_reads_its_pods_interfaces(image: Image, tmp_path: Path) -> None:
    with plain_server("threads") as (_, port), pod(*image, tmp_path, "sidecar", ports=[port]) as running:
        running.ready()
        for number in range(3):
            ask_plain(port, f"question {number}")
        running.until(lambda: running.value('llmsec_exchanges_total{kind="llm"}') == 3, "three exchanges were not counted")
        assert running.stop() < 5
        assert running.process.returncode == 0


def test_no_compiler_and_nobody_elses_files_are_in_it(image: Image) -> None:
    root, facts = image
    for name in ("gcc", "cc", "clang", "pip", "pip3", "uv", "curl", "wget", "git", "make"):
        assert not [
            path for folder in ("usr/bin", "usr/local/bin", "opt/llmsec-trace/bin") for path in [root / folder / name] if path.exists()
        ], name
    assert f"llmsec:x:{ACCOUNT}:{ACCOUNT}:" in (root / "etc/passwd").read_text()
    bill = json.loads((root / "opt/llmsec-trace/sbom.cdx.json").read_text())
    assert bill["bomFormat"] == "CycloneDX"
    installed = {
        path.stem.rpartition("-")[0].lower().replace("_", "-")
        for path in root.glob("opt/llmsec-trace/lib/python3*/site-packages/*.dist-info")
    }
    stated = {component["name"] for component in bill["components"]} | {"llmsec-trace"}
    assert installed - stated == set()
    assert facts["labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
