"""What a test needs of the host; it skips, and says what to install, where that is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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


def shared(*parts: str) -> Path:
    """A file or folder of the corpora that the tests marked `shared` read. They are not in the repository: LLMSEC_SHARED names their folder."""
    folder = os.environ.get("LLMSEC_SHARED")
    if not folder:
        pytest.skip("LLMSEC_SHARED does not name the folder of the recorded corpora")
    path = Path(folder).joinpath(*parts)
    if not path.exists():
        pytest.skip(f"LLMSEC_SHARED has no {'/'.join(parts)}")
    return path
