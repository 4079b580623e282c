"""What a test needs of the host; it skips, and says what to install, where that is missing."""

from __future__ import annotations

import shutil

import pytest


def program(name: str, package: str | None = None) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (apt-get install {package or name})")
    return found
