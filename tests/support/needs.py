"""What a test needs of the host; it skips, and says what to install, where that is missing."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


def program(name: str, package: str | None = None) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (apt-get install {package or name})")
    return found


@contextmanager
def idle_node(node: str) -> Iterator[None]:
    """A node that does nothing, for a tap to find its program by."""
    with subprocess.Popen([node, "-e", "setInterval(() => {}, 1000)"]) as process:
        try:
            yield
        finally:
            process.kill()
