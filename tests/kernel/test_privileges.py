"""Who does what: the warden alone keeps capabilities, what reads traffic has another user, none of them, and a filter."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.agent import Agent, environment
from support.https_calls import ask_once
from support.tls_front import Certificate, free_port, python_server

ECHO = Path(__file__).parents[1] / "support/tls_echo.py"


@pytest.fixture
def echo(certificate: Certificate) -> Iterator[tuple[int, int]]:
    port = free_port()
    with python_server(ECHO, "threads", str(port), str(certificate.cert), str(certificate.key), port=port) as process:
        yield process.pid, port


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def is_running(pid: int) -> bool:
    try:
        return not status_of(pid)["State"].startswith("Z")
    except OSError:
        return False


def children_of(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if path.read_text().rpartition(")")[2].split()[1] == str(pid):
                found.append(int(path.parent.name))
    return found


def detector_of(agent: Agent) -> int:
    def found() -> list[int]:
        return [pid for pid in children_of(agent.process.pid) if b"llmsec_analyzer.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    agent.wait_for(lambda: bool(found()), "it has no detection process")
    return found()[0]


def test_what_reads_traffic_is_another_user_without_rights(echo: tuple[int, int], certificate: Certificate) -> None:
    pid, port = echo
    with Agent("--pid", str(pid), "--detect", "--iface", "lo", "--port", "9") as agent:
        ask_once(port, certificate.cert, "hello")
        agent.wait_for_exchanges(1)
        detector = detector_of(agent)
        agent.wait_for(lambda: status_of(detector)["Seccomp"] == "2", "detection is not confined")
        for process in (agent.decoder, detector):
            held = status_of(process)
            assert {held[name] for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")} == {"0" * 16}
            assert held["NoNewPrivs"] == "1"
            assert held["Seccomp"] == "2"
            assert "0" not in held["Uid"].split()
            assert "0" not in held["Gid"].split()
            assert held["Groups"].split() == []
        assert int(status_of(agent.process.pid)["CapEff"], 16) < 1 << 41
        listening = [str(link.readlink()) for link in Path(f"/proc/{agent.decoder}/fd").iterdir()]
        assert not any("uprobe" in link or "bpf-link" in link for link in listening), "the decoder holds no probe"


def test_the_store_is_the_decoders_and_reads_as_before(echo: tuple[int, int], certificate: Certificate, tmp_path: Path) -> None:
    pid, port = echo
    store = tmp_path / "store"
    for number in range(2):  # a new store, and one that is there
        with Agent("--pid", str(pid), "--store", str(store)) as agent:
            ask_once(port, certificate.cert, f"hello {number}")
            agent.wait_for_exchanges(1)
    owners = {path.stat().st_uid for path in (store, *store.rglob("*"))}
    assert len(owners) == 1
    assert owners != {0}
    command = [sys.executable, "-m", "llmsec_agent.cli.analyze.app", "query", "SELECT count(*) AS n FROM exchanges", "--store", str(store)]
    assert "2" in subprocess.run(command, env=environment(), capture_output=True, text=True, check=True).stdout


def test_a_store_that_root_made_before_goes_on(echo: tuple[int, int], certificate: Certificate, tmp_path: Path) -> None:
    from llmsec_tap.storage.store import create_store

    pid, port = echo
    store = tmp_path / "store"
    create_store(store)
    assert store.stat().st_uid == 0
    with Agent("--pid", str(pid), "--store", str(store)) as agent:
        ask_once(port, certificate.cert, "hello")
        agent.wait_for_exchanges(1)
    assert "stored 1 in" in agent.said
    assert {path.stat().st_uid for path in store.rglob("*")} == {store.stat().st_uid} != {0}


def test_a_folder_of_roots_that_is_no_store_is_left_alone(echo: tuple[int, int], tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("root's own")
    command = [sys.executable, "-m", "llmsec_agent.cli.tap.app", "capture", "--pid", str(echo[0]), "--store", str(tmp_path)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 4, done.stderr
    assert "is neither empty nor a store" in done.stderr
    assert tmp_path.stat().st_uid == 0


def test_through_sudo_the_store_is_the_callers(echo: tuple[int, int], certificate: Certificate, tmp_path: Path) -> None:
    pid, port = echo
    caller = 12_345
    env = {"SUDO_UID": str(caller), "SUDO_GID": str(caller)}
    with Agent("--pid", str(pid), "--store", str(tmp_path / "store"), env=env) as agent:
        ask_once(port, certificate.cert, "hello")
        agent.wait_for_exchanges(1)
        assert status_of(agent.decoder)["Uid"].split() == [str(caller)] * 4
    assert {path.stat().st_uid for path in (tmp_path / "store").rglob("*")} == {caller}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_whoever_dies_the_probes_go_and_the_observed_process_serves(
    echo: tuple[int, int], certificate: Certificate, number: signal.Signals, tmp_path: Path
) -> None:
    pid, port = echo
    for victim in ("warden", "decoder"):
        if victim == "decoder" and number == signal.SIGTERM:
            continue  # it leaves that to the warden
        with Agent("--pid", str(pid), "--store", str(tmp_path / victim)) as agent:
            ask_once(port, certificate.cert, "hello")
            agent.wait_for_exchanges(1)
            decoder = agent.decoder
            os.kill(agent.process.pid if victim == "warden" else decoder, number)
            agent.exit_code = agent.process.wait(10)
            deadline = time.monotonic() + 10
            while is_running(decoder) and time.monotonic() < deadline:
                time.sleep(0.02)
            assert not is_running(decoder), "the decoder goes on without its warden"
            assert ask_once(port, certificate.cert, "still there")[0].startswith("echo")
            if victim == "decoder":
                assert agent.exit_code == 128 + number
                assert "the decoding process was ended by signal" in agent.said
            else:
                assert "stored 1 in" in agent.said, "what it had is kept"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("delay", [0.2, 0.4, 0.6, 0.8])
def test_a_capture_that_is_ended_while_it_attaches_leaves_nothing(echo: tuple[int, int], number: signal.Signals, delay: float) -> None:
    command = [sys.executable, "-m", "llmsec_agent.cli.tap.app", "capture", "--pid", str(echo[0]), "--store", "none", "--no-detect"]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        time.sleep(delay)
        process.send_signal(number)
        assert process.stderr is not None
        said = process.stderr.read()  # to the end: the decoder has it, too
    assert "Traceback" not in said


@pytest.mark.parametrize("delay", [0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3])
def test_ctrl_c_while_it_attaches_is_not_lost(echo: tuple[int, int], delay: float) -> None:
    command = [sys.executable, "-m", "llmsec_agent.cli.tap.app", "capture", "--pid", str(echo[0]), "--store", "none", "--no-detect"]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while not children_of(process.pid):  # it has forked its decoder, and loads next
            assert process.poll() is None
            time.sleep(0.001)
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        try:
            _, said = process.communicate(timeout=30)
        finally:
            process.kill()
    assert "Traceback" not in said
    assert "Exception ignored" not in said
    assert process.returncode in (0, 130), said  # 0: it had attached before
