"""The live view over a capture of its own: what is drawn and when, by whom, and that nothing of it stays behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("textual", reason="the extra `top`")

from support.agent import environment
from support.https_calls import ask_once
from support.tls_front import Certificate, children, free_port, python_server
from support.tmux import Terminal, terminal

ECHO = Path(__file__).parents[1] / "support/tls_echo.py"
TOP = f"{sys.executable} -m llmsec_agent.cli.tap.app top"


def shell_of(folder: Path) -> dict[str, str]:
    return {"PYTHONPATH": environment()["PYTHONPATH"], "TMPDIR": str(folder)}


def exchanges(screen: str) -> int:
    found = re.search(r"([\d,]+) exchanges", screen)
    return int(found[1].replace(",", "")) if found else 0


def command(shell: Terminal) -> int:
    """The process of `top`, which the shell started."""
    (pid,) = children(int(shell.fact("pane_pid")))
    return pid


def capabilities(pid: int) -> int:
    found = re.search(r"CapEff:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1], 16)


def are_gone(pids: set[int]) -> bool:
    deadline = time.monotonic() + 10
    while alive := {pid for pid in pids if Path(f"/proc/{pid}").exists()}:
        if time.monotonic() > deadline:
            print(alive)
            return False
        time.sleep(0.1)
    return True


@pytest.mark.parametrize("leaving", ["q", "C-c", "SIGTERM"])
def test_a_process_is_captured_drawn_and_let_go(tmp_path: Path, certificate: Certificate, leaving: str) -> None:
    port = free_port()
    with (
        python_server(ECHO, "threads", str(port), str(certificate.cert), str(certificate.key), port=port) as server,
        terminal(tmp_path, **shell_of(tmp_path)) as shell,
    ):
        shell.keys(f"{TOP} --pid {server.pid}; echo code $?", "Enter")
        shell.until(lambda screen: "q quit" in screen)
        deadline = time.monotonic() + 30
        while not exchanges(shell.screen()):  # until the probes stand
            assert time.monotonic() < deadline
            ask_once(port, certificate.cert, "are you there")
            time.sleep(0.3)
        time.sleep(2)
        before = exchanges(shell.screen())
        ask_once(port, certificate.cert, "mail joe.smith@corp-mail.com", stream=True)
        ended = time.monotonic()
        screen = shell.until(lambda screen: exchanges(screen) == before + 1)
        print(f"ended to drawn: {time.monotonic() - ended:.2f} s")
        assert f"[{server.pid}]" in screen
        shell.until(lambda screen: "echo  " in screen)  # the model that answered
        top = command(shell)
        family = children(top)
        (drawing,) = (pid for pid in family if b"capture" not in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"))
        assert capabilities(drawing) & ~(1 << 2) == 0  # CAP_DAC_READ_SEARCH where its user could not read the program
        everyone = {top, *family, *(pid for child in family for pid in children(child))}
        if leaving == "SIGTERM":
            os.kill(top, signal.SIGTERM)
        else:
            shell.keys(leaving)
        shell.until(lambda screen: "\ncode 0" in screen)
        assert shell.fact("alternate_on") == "0"
        assert are_gone(everyone)
        assert ask_once(port, certificate.cert, "still there")[0].startswith("echo")


def test_a_drawing_that_is_killed_ends_the_capture(tmp_path: Path, certificate: Certificate) -> None:
    with terminal(tmp_path, **shell_of(tmp_path)) as shell:
        shell.keys(f"{TOP} --iface lo --port {free_port()}; echo code $?", "Enter")
        shell.until(lambda screen: "q quit" in screen)
        top = command(shell)
        family = set(children(top))
        (drawing,) = (pid for pid in family if b"capture" not in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"))
        os.kill(drawing, signal.SIGKILL)
        assert are_gone({top, *family})


def test_what_the_capture_says_is_told_after_the_screen_with_its_exit_code(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    with terminal(tmp_path, **shell_of(tmp_path)) as shell:
        shell.keys(f"{TOP} --pid {gone.pid}; echo code $?", "Enter")
        screen = shell.until(lambda screen: "\ncode 3" in screen)
        assert f"error: there is no process {gone.pid}" in screen
        assert "the capture ended with exit code 3" in screen
        assert shell.fact("alternate_on") == "0"
