"""`llmsec-tap agent` as it is deployed: observed over TLS, asked over HTTP, reloaded, notified, and stopped whatever its sinks do."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from llmsec_analyzer.stored.session import QuerySession
from llmsec_tap.storage import open_store
from llmsec_tap.storage.audit import entries, verify
from support.agent import environment
from support.https_calls import ask_once, ask_together
from support.running_agent import agent
from support.tls_front import Certificate


def stored(folder: Path) -> int:
    with QuerySession.open(folder) as session:
        ((count,),) = session.select("SELECT count(*) FROM exchanges").rows()
    return int(count)


def test_it_observes_and_says_so_to_everybody(echo: tuple[int, int], certificate: Certificate, tmp_path: Path) -> None:
    pid, port = echo
    with agent(tmp_path, pid) as running:
        assert "READY=1" in running.notified.recv(200).decode()
        running.ready()
        assert running.get(running.health, "/health")[0] == 200
        assert running.get(running.health, "/metrics")[0] == 404
        for number in range(7):
            ask_once(port, certificate.cert, f"question {number}", stream=number % 2 == 1)
        running.until(lambda: running.value('llmsec_exchanges_total{kind="llm"}') == 7, "seven exchanges were not counted")
        running.until(lambda: (running.value("llmsec_kernel_calls_total") or 0) > 7, "the calls were not counted")
        assert running.value("llmsec_kernel_lost_records_total") == 0
        assert "WATCHDOG=1" in running.notified.recv(200).decode()
        running.until(lambda: running.value("llmsec_store_rows_total") == 7, "seven rows were not stored")
        assert running.stop() < 4
        assert running.process.returncode == 0
        for port in (running.health, running.metrics):
            socket.create_server(("127.0.0.1", port)).close()  # free at once, for the next one
        assert stored(running.store) == 7
        with QuerySession.open(running.store) as session:
            ((node, exchanges, stopped_s, probes),) = session.select("SELECT node, exchanges, epoch(stopped), probes FROM taps").rows()
        (library,) = (probe for probe in probes if probe["reads"].startswith("OpenSSL"))
        assert "libssl" in library["target"]
        assert "SSL_read" in library["symbols"]
        assert (library["processes"], library["problem"]) == (1, None)
        assert (node, exchanges) == (socket.gethostname(), 7)
        assert time.time() - 30 < stopped_s <= time.time()


def test_a_file_that_changed_is_applied_named_or_refused(echo: tuple[int, int], certificate: Certificate, tmp_path: Path) -> None:
    with agent(tmp_path, echo[0]) as running:
        running.ready()
        running.config["observability"]["logging"] = {"format": "json"}
        running.config["capture"]["ring_size"] = "8MiB"
        running.hang_up()
        running.until(lambda: running.value('llmsec_config_reloads_total{result="accepted"}') == 1, "it was not read again")
        assert running.value("llmsec_findings_total") is None
        running.config["security"] = {"pii_detection": {"patterns": {"badge": {"regex": r"badge-\d{4}", "severity": "high"}}}}
        running.hang_up()
        running.until(lambda: running.value('llmsec_detection_reloads_total{result="accepted"}') == 1, "detection was not reloaded")
        ask_once(echo[1], certificate.cert, "this is badge-1234")
        running.until(lambda: (running.value('llmsec_findings_total{severity="high"}') or 0) > 0, "the new rule found nothing")
        running.config["nonsense"] = 1
        running.hang_up()
        running.until(lambda: running.value("llmsec_config_reload_ok") == 0, "the wrong file was not refused")
        assert running.get(running.health, "/health")[0] == 200
        said = [json.loads(line) for line in running.said.splitlines() if line.startswith("{")]
        events = {entry["event"]: entry for entry in said}
        assert [entry["changed"] for entry in said if entry["event"] == "config_reloaded"] == [
            ["observability.logging.format"],
            ["security.pii_detection.patterns"],
        ]
        assert events["restart_needed"]["keys"] == ["capture.ring_size"]
        assert "nonsense" in events["config_refused"]["message"]
        assert running.stop() < 4
    store = open_store(tmp_path / "store")
    assert not verify(store).faults
    logged = [entry for entry in entries(store) if entry.event == "configuration"]
    assert [entry.facts["state"] for entry in logged] == ["started", "reloaded", "reloaded", "refused"]
    assert "finding" in {entry.event for entry in entries(store)}


def test_several_decoders_are_one_agent(echo: tuple[int, int], certificate: Certificate, tmp_path: Path) -> None:
    """One number of each thing, one state, and a change of the file reaches all of them."""
    pid, port = echo
    with agent(tmp_path, pid, chosen={"decoders": 2}) as running:
        assert "READY=1" in running.notified.recv(200).decode()
        running.ready()
        ask_together(port, certificate.cert, [f"question {number}" for number in range(20)])
        running.until(lambda: running.value('llmsec_exchanges_total{kind="llm"}') == 20, "twenty exchanges were not counted")
        running.until(lambda: running.value("llmsec_store_rows_total") == 20, "twenty rows were not stored")
        calls = running.value("llmsec_kernel_calls_total")
        assert running.value("llmsec_kernel_bytes_total") == running.value('llmsec_decoded_bytes_total{source="tls"}')
        assert running.value('llmsec_connections_total{source="tls"}') == 20
        assert (running.value("llmsec_ready"), running.value('llmsec_sink_up{sink="store"}')) == (1, 1)
        running.config["security"] = {"pii_detection": {"patterns": {"badge": {"regex": r"badge-\d{4}", "severity": "high"}}}}
        running.hang_up()
        running.until(lambda: running.value('llmsec_detection_reloads_total{result="accepted"}') == 1, "detection was not reloaded")
        assert running.value('llmsec_config_reloads_total{result="accepted"}') == 1
        time.sleep(2)  # the slower of them has it, too
        ask_together(port, certificate.cert, [f"this is badge-{number}" for number in range(1000, 1020)])
        running.until(lambda: running.value('llmsec_exchanges_delivered_total{completeness="complete"}') == 40, "not all came")
        assert running.value('llmsec_findings_total{severity="high"}') == 20, "the new rule is not in force in both"
        assert (running.value("llmsec_kernel_calls_total") or 0) > (calls or 0)
        assert running.stop() < 5
        assert running.process.returncode == 0
        assert stored(running.store) == 40
        for port in (running.health, running.metrics):
            socket.create_server(("127.0.0.1", port)).close()


def test_a_store_that_cannot_be_written_is_a_metric_and_holds_up_nothing(
    echo: tuple[int, int], certificate: Certificate, tmp_path: Path
) -> None:
    pid, port = echo
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=0777", "tmpfs", small], check=True)
    try:
        with agent(small, pid) as running:
            running.ready()
            filler = small / "filler"
            filler.touch()
            with filler.open("wb", buffering=0) as file:
                while True:
                    try:
                        file.write(b"x" * 4096)
                    except OSError:
                        break
            for number in range(5):
                ask_once(port, certificate.cert, f"question {number}")
            running.until(lambda: running.value('llmsec_sink_up{sink="store"}') == 0, "the fault of the store is not shown")
            assert "sink store" in running.get(running.health, "/health")[1] or running.get(running.health, "/health")[0] == 200
            os.truncate(filler, 0)
            running.until(lambda: running.value("llmsec_store_rows_total") == 5, "what waited was not stored once there was room")
            assert running.value('llmsec_sink_up{sink="store"}') == 1
            assert running.stop() < 4
            assert running.process.returncode == 0
            assert stored(running.store) == 5
    finally:
        subprocess.run(["umount", "-l", small], check=True)


def test_a_wrong_file_and_a_taken_address_are_one_line(tmp_path: Path) -> None:
    def run(config: dict[str, Any]) -> tuple[int, str]:
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump(config))
        command = [sys.executable, "-m", "llmsec_agent.cli.tap.app", "agent", "--config", str(file)]
        ended = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=60)
        return ended.returncode, ended.stderr

    code, said = run({"capture": {}, "storage": {"path": str(tmp_path / "s")}})
    assert code == 2
    assert "nothing to capture" in said
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code, said = run({"capture": {"all": True}, "server": {"bind_address": address}, "storage": {"path": str(tmp_path / "s")}})
    assert code == 2
    assert said.count("\n") == 1, said
    assert f"cannot listen on {address}" in said
