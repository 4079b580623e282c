from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmsec_tap.model import Exchange
from llmsec_tap.storage import StoreWriter
from support.exchanges import a_finding, full_exchange


@pytest.fixture
def make_exchange() -> Callable[..., Exchange]:
    return full_exchange


@pytest.fixture
def fill(tmp_path: Path) -> Callable[..., Path]:
    """Write exchanges to a store; returns its folder."""

    def write(*exchanges: Exchange) -> Path:
        with StoreWriter.open(tmp_path / "store") as writer:
            for exchange in exchanges:
                writer.add(exchange)
        return tmp_path / "store"

    return write


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five exchanges: numbers 0 to 4, one second apart. For tests that only read."""
    root = tmp_path_factory.mktemp("shared") / "store"
    with StoreWriter.open(root) as writer:
        for number in range(5):
            writer.add(full_exchange(number * 1000, error_type=None, completeness="complete"))
    return root


@pytest.fixture
def run() -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command as a user starts it."""

    def start(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "NO_COLOR": "1"}
        env.pop("LLMSEC_STORE", None)
        env |= options.pop("env", {})
        return subprocess.run(  # noqa: PLW1510 - in the options
            [sys.executable, "-c", "from llmsec_agent.cli.analyze.app import main; main()", *map(str, arguments)],
            env=env,
            **{"capture_output": True, "text": True, "check": False, "timeout": 60, **options},
        )

    return start


@pytest.fixture(scope="session")
def build_exchange() -> Callable[..., Exchange]:
    return full_exchange


@pytest.fixture(scope="session")
def build_finding() -> Callable[..., Any]:
    return a_finding
