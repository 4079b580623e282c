"""Servers shared by the live tests: a real model server behind nginx, started once."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.agent import Agent
from support.image_root import build
from support.model_server import model_server
from support.needs import program
from support.tls_front import Certificate, Nginx, free_port, make_certificate, nginx, python_server

ECHO = Path(__file__).parents[1] / "support/tls_echo.py"


def reason_not_to_run() -> str | None:
    if os.geteuid() != 0:
        return "live capture needs root"
    if not Path("/sys/kernel/btf/vmlinux").exists():
        return "the kernel has no BTF"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = reason_not_to_run()
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.kernel)
            item.add_marker(pytest.mark.filterwarnings("default"))
            if reason is not None:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    program("openssl")
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="session")
def model_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("xllamacpp", reason="the model server is in the dependency group `peers`")
    with model_server(tmp_path_factory.mktemp("model"), free_port()) as url:
        yield url


@pytest.fixture(scope="session")
def front(tmp_path_factory: pytest.TempPathFactory, certificate: Certificate, model_url: str) -> Iterator[Nginx]:
    program("nginx", "nginx-light")
    with nginx(tmp_path_factory.mktemp("nginx"), certificate, model_url) as running:
        yield running


@pytest.fixture(scope="module")
def everything() -> Iterator[Agent]:
    """One tap on all processes of the host."""
    with Agent("--all") as agent:
        yield agent


@pytest.fixture(scope="session")
def go_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    go = program("go", "golang-go")
    folder = tmp_path_factory.mktemp("go")
    built = folder / "go_calls"
    source = Path(__file__).parents[1] / "support/callers/go_calls.go"
    env = {**os.environ, "GOCACHE": str(folder / "cache"), "GO111MODULE": "off", "CGO_ENABLED": "0"}
    subprocess.run([go, "build", "-o", built, source], check=True, env=env, capture_output=True)
    return built


@pytest.fixture
def echo(certificate: Certificate) -> Iterator[tuple[int, int]]:
    """A server that says what it was told, seven characters an event with pauses between; its process id and port."""
    port = free_port()
    with python_server(ECHO, "asyncio-slow", str(port), str(certificate.cert), str(certificate.key), port=port) as process:
        yield process.pid, port


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The image's root file system and what scripts/build-image-root said of it. LLMSEC_IMAGE_ROOT names one that is there: FOLDER, FOLDER.json."""
    program("mmdebstrap")
    kept = os.environ.get("LLMSEC_IMAGE_ROOT")
    if kept:
        yield Path(kept), json.loads(Path(f"{kept}.json").read_text())
        return
    root = tmp_path_factory.mktemp("image") / "root"
    yield root, build(root)
    subprocess.run(["rm", "-rf", "--one-file-system", root], check=True)
