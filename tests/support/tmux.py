"""A real terminal of 80 x 24, of tmux, with a shell in it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from support.needs import program


class Terminal:
    """`keys` are names of tmux: `Tab`, `Enter`, `C-c`; anything else is typed."""

    def __init__(self, tmux: str, folder: Path) -> None:
        self._command = [tmux, "-S", str(folder / "tmux"), "-f", "/dev/null"]

    def run(self, *words: str) -> str:
        return subprocess.run([*self._command, *words], check=True, capture_output=True, text=True, timeout=20).stdout

    def keys(self, *keys: str) -> None:
        for key in keys:
            self.run("send-keys", "-t", "0", key)

    def screen(self, *, escapes: bool = False) -> str:
        return self.run("capture-pane", "-p", "-t", "0", *(["-e"] if escapes else []))

    def fact(self, name: str) -> str:
        """A variable of tmux, such as `alternate_on`."""
        return self.run("display-message", "-p", "-t", "0", f"#{{{name}}}").strip()

    def until(self, is_so: Callable[[str], bool], within_s: float = 20.0) -> str:
        """The screen, once it is so."""
        deadline = time.monotonic() + within_s
        while not is_so(screen := self.screen()):
            assert time.monotonic() < deadline, f"not within {within_s} s:\n{screen}"
            time.sleep(0.05)
        return screen


@contextlib.contextmanager
def terminal(folder: Path, **variables: str) -> Iterator[Terminal]:
    """A shell; root's prompts with `#`."""
    made = Terminal(program("tmux"), folder)
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "LLMSEC_STORE", "TMUX")}
    environment |= {"LC_ALL": "C.UTF-8", "COLORTERM": "truecolor"} | variables
    subprocess.run([*made._command, "new-session", "-d", "-x", "80", "-y", "24", "sh"], check=True, timeout=20, cwd=folder, env=environment)
    try:
        made.until(lambda screen: screen.startswith(("$", "#")))
        yield made
    finally:
        with contextlib.suppress(subprocess.SubprocessError):
            made.run("kill-server")
