"""Commands whose standard input or output is closed say so in one line, and no file takes the number of either."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.agent import environment

CAPTURE = str(Path(__file__).parents[2] / "fixtures/pcap/golden/gzip-stream-flushed-per-event.pcap")


def run_with_closed(number: int, command: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The shell closes it, as a user would: `subprocess` only can by a function between fork and exec."""
    words = [sys.executable, "-m", f"llmsec_agent.cli.{command}.app", *arguments]
    closed = "exec 0<&-" if number == 0 else "exec 1>&-"
    return subprocess.run(
        ["sh", "-c", f'{closed}; exec "$@"', "sh", *words], env=environment(), cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    "arguments",
    [("scan",), ("query", "-"), ("replay", "-"), ("tenants", "fingerprint"), ("serve", "--add-user", "somebody:viewer")],
    ids=" ".join,
)
def test_closed_standard_input(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = run_with_closed(0, "analyze", tmp_path, *arguments)
    assert done.returncode == 3
    assert "error: standard input is closed (" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments", [("scan", "text"), ("exchanges", "--store", "store"), ("report", "--store", "store"), ("--help",)], ids=" ".join
)
def test_closed_standard_output(arguments: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "text").write_text("a text\n")
    subprocess.run(
        [sys.executable, "-m", "llmsec_agent.cli.analyze.app", "replay", CAPTURE, "--store", "store", "--no-detect"],
        env=environment(), cwd=tmp_path, capture_output=True, check=True,
    )  # fmt: skip
    done = run_with_closed(1, "analyze", tmp_path, *arguments)
    assert (done.returncode, done.stderr.splitlines()) == (
        4,
        ["error: standard output is closed (Send it to a file, a pipe or /dev/null.)"],
    )


def test_what_a_replay_cannot_print_goes_to_no_file(tmp_path: Path) -> None:
    done = run_with_closed(1, "analyze", tmp_path, "replay", CAPTURE, "--store", "store", "--no-detect", "--format", "jsonl")
    assert done.returncode == 4
    assert "standard output: 1 exchanges NOT PRINTED" in done.stderr
    listed = subprocess.run(
        [sys.executable, "-m", "llmsec_agent.cli.analyze.app", "exchanges", "--store", "store", "--format", "json"],
        env=environment(), cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert len(listed.stdout.splitlines()) == 1


def test_the_tap_says_so_too(tmp_path: Path) -> None:
    done = run_with_closed(1, "tap", tmp_path, "targets", "--pid", str(os.getpid()))
    assert done.returncode == 4
    assert "error: standard output is closed" in done.stderr
