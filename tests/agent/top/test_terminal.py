"""The live view in a real terminal: over a store that grows, over events that are piped in, without colours, and what refuses to begin."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

pytest.importorskip("textual", reason="the extra `top`")

from llmsec_agent.events import Ended, to_line
from llmsec_tap.storage import StoreWriter, audit, create_store
from support.exchanges import a_finding
from support.hostile import HOSTILE, exchange
from support.tls_front import children
from support.tmux import Terminal, terminal

TOP = f"{sys.executable} -m llmsec_agent.cli.tap.app top"


def fill(root: Path, *names: str) -> list[str]:
    """Exchanges that end now, with models of these names; their ids."""
    now, made = time.time_ns(), []
    writer = StoreWriter(create_store(root))
    for number, name in enumerate(names):
        one = exchange(number + 1)
        made.append(f"{now // 1_000_000:012x}{number:020x}")
        writer.add(
            msgspec.structs.replace(
                one, exchange_id=made[-1], started_ns=now - 10**9, ended_ns=now, ttft_ms=250.0, request_model=name,
                findings=[a_finding(exchange_id=made[-1], severity="high")],
            )
        )  # fmt: skip
    writer.close()
    return made


def begin(shell: Terminal, command: str) -> None:
    shell.keys(f"{command}; echo code $?", "Enter")
    shell.until(lambda screen: "q quit" in screen)


def code(screen: str) -> str:
    """The exit code, once the command has ended."""
    found = re.search(r"^code (\d+)", screen, re.MULTILINE)
    return found[1] if found else ""


def back(shell: Terminal) -> None:
    """An escape that is followed at once by a key is another key (Alt). Of some fifty on a loaded machine one was not taken: a user presses again."""
    shell.until(lambda screen: "Esc: back" in screen)
    pressed = 0.0

    def is_back(screen: str) -> bool:
        nonlocal pressed
        if "Esc: back" in screen and time.monotonic() - pressed > 5:
            shell.keys("Escape")
            pressed = time.monotonic()
        return "Esc: back" not in screen and "q quit" in screen

    shell.until(is_back)


def is_clean(shell: Terminal) -> None:
    """The screen from before is back, with its cursor, and no mouse is reported."""
    assert [shell.fact(name) for name in ("alternate_on", "cursor_flag", "mouse_any_flag")] == ["0", "1", "0"]
    shell.keys("echo typed", "Enter")
    shell.until(lambda screen: re.search("(?<!echo )typed", screen) is not None)


def test_a_growing_store_is_followed_and_keys_work(tmp_path: Path) -> None:
    root = tmp_path / "store"
    fill(root, "gpt-4o")
    with terminal(tmp_path, COLUMNS="80", LINES="24") as shell:  # as some shells export it
        begin(shell, f"{TOP} --store store")
        screen = shell.until(lambda screen: "gpt-4o" in screen)
        assert all(len(line) <= 80 for line in screen.splitlines())
        assert "lost 0" in screen
        assert "HIGH" in screen
        began = time.monotonic()
        (exchange_id,) = fill(root, "a-new-model")
        shell.until(lambda screen: screen.count("a-new-model") >= 2, 10)
        print(f"written to drawn: {time.monotonic() - began:.2f} s")
        shell.keys("Tab", "Tab", "Enter")
        shell.until(lambda screen: f"exchange {exchange_id}" in screen)
        assert [entry.facts["exchange_id"] for entry in audit.entries(create_store(root)) if entry.facts.get("command") == "top"] == [
            exchange_id
        ]
        back(shell)
        shell.keys("/", "gpt", "Enter")
        shell.until(lambda screen: "only 'gpt'" in screen and "a-new-model" not in screen)
        shell.run("resize-window", "-t", "0", "-x", "120", "-y", "40")
        shell.until(lambda screen: any(len(line) > 80 for line in screen.splitlines()) and "gpt-4o" in screen)
        shell.keys("q")
        shell.until(lambda screen: code(screen) == "0")
        is_clean(shell)


def test_ctrl_c_leaves_as_q_does(tmp_path: Path) -> None:
    fill(tmp_path / "store", "m")
    with terminal(tmp_path) as shell:
        begin(shell, f"{TOP} --store store")
        shell.keys("C-c")
        shell.until(lambda screen: code(screen) == "0")
        is_clean(shell)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_the_terminal_as_it_was(tmp_path: Path, number: signal.Signals) -> None:
    fill(tmp_path / "store", "m")
    with terminal(tmp_path) as shell:
        begin(shell, f"{TOP} --store store")
        (pid,) = children(int(shell.fact("pane_pid")))
        os.kill(pid, number)
        shell.until(lambda screen: code(screen) == "0")
        is_clean(shell)


@pytest.mark.parametrize("kind", ["xterm-256color", "vt100", "linux"])
def test_without_colour_no_sequence_sets_one(tmp_path: Path, kind: str) -> None:
    fill(tmp_path / "store", "[red]m[/red]", "m2")
    with terminal(tmp_path, NO_COLOR="1") as shell:
        begin(shell, f"TERM={kind} {TOP} --store store")
        shell.until(lambda screen: "[red]m[/red]" in screen)
        codes = {code for found in re.findall(r"\x1b\[([\d;:]*)m", shell.screen(escapes=True)) for code in re.split("[;:]", found)}
        assert codes <= {"", "0", "1", "2", "3", "4", "7", "22", "23", "24", "27", "39", "49"}
        assert "7" in codes  # the cursor is still seen


def test_hostile_names_draw_nothing_but_themselves(tmp_path: Path) -> None:
    fill(tmp_path / "store", *HOSTILE[4:6], "\x1b[2J\x1b]0;owned\x07", "\u202eabc", "漢字" * 30)
    with terminal(tmp_path) as shell:
        begin(shell, f"{TOP} --store store")
        screen = shell.until(lambda screen: "\\x1b" in screen)
        assert not any(char in screen for char in "\u202e\u200b\x9b")
        assert "owned" not in shell.fact("pane_title")
        shell.keys("q")
        shell.until(lambda screen: code(screen) == "0")


def test_events_are_read_from_a_pipe_and_a_wrong_line_is_said(tmp_path: Path) -> None:
    now = time.time_ns()
    one = msgspec.structs.replace(exchange(7, "how are you"), ended_ns=now)
    lines = [to_line(Ended(ts_ns=now, exchange_id=one.exchange_id, exchange=one)), b"no event"]
    (tmp_path / "events").write_bytes(b"\n".join(lines) + b"\n")
    with terminal(tmp_path) as shell:
        shell.keys(f"(cat events; sleep 60) | {TOP} -", "Enter")
        screen = shell.until(lambda screen: "model-1" in screen and "line 2" in screen)
        assert "not a line of --format events" in screen
        shell.keys("Tab", "Tab", "Enter")
        shell.until(lambda screen: "how are you" in screen)
        shell.keys("Escape")
        shell.until(lambda screen: "req/s" in screen)
        shell.keys("q")
        shell.until(lambda screen: shell.fact("alternate_on") == "0")
        shell.keys("C-c")  # ends the sleep
        is_clean(shell)


def test_the_end_of_events_leaves_them_to_be_read(tmp_path: Path) -> None:
    (tmp_path / "events").write_bytes(b"")
    with terminal(tmp_path) as shell:
        shell.keys(f"{TOP} - < events; echo code $?", "Enter")
        shell.until(lambda screen: "standard input has ended" in screen)
        shell.keys("q")
        shell.until(lambda screen: code(screen) == "0")


@pytest.mark.parametrize(
    ("words", "kind", "said"),
    [
        ("--store missing", "xterm", "code 4"),
        ("--store store", "dumb", "error: the live view cannot draw on a terminal of the kind 'dumb'"),
        ("", "xterm", "error: nothing to watch"),
        ("- --all", "xterm", "error: `-` reads the events of another capture"),
        ("events", "xterm", "error: top takes `-` or nothing"),
        ("-", "xterm", "error: `-` reads events, and standard input is a terminal"),
        ("--store store > out", "xterm", "and standard output is none"),
        ("--store store < /dev/null", "xterm", "and standard input is none"),
    ],
)
def test_what_cannot_begin_says_why(tmp_path: Path, words: str, kind: str, said: str) -> None:
    create_store(tmp_path / "store")
    with terminal(tmp_path) as shell:
        shell.keys(f"TERM={kind} {TOP} {words}; echo code $?", "Enter")
        screen = shell.until(lambda screen: code(screen) != "")
        assert said in screen.replace("\n", "")
        assert "Traceback" not in screen
        assert "code 2" in screen or said == "code 4"


def test_without_a_terminal_it_is_one_line_and_exit_2(tmp_path: Path) -> None:
    ran = subprocess.run(
        [*TOP.split(), "--store", str(tmp_path)],
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        start_new_session=True,
    )
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (2, "", 1)
    assert "needs a terminal" in ran.stderr


def test_without_textual_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "textual.py").write_text("raise ImportError('no', name='textual')\n")
    with terminal(tmp_path, PYTHONPATH=os.pathsep.join((str(tmp_path), *filter(None, (os.environ.get("PYTHONPATH"),))))) as shell:
        shell.keys(f"{TOP} --store x; echo code $?", "Enter")
        screen = shell.until(lambda screen: code(screen) != "")
        assert "the live view needs the package textual (pip install 'llmsec-trace[top]')" in screen.replace("\n", "")
        assert "code 2" in screen
