"""Options and rules that hold for all tests."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator

import pytest

from support.clickhouse_front import Server, running


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the expected records of the golden captures; review the diff")
    parser.addoption("--require-kernel", action="store_true", help="A test marked `kernel` that would skip fails instead (CI as root).")


def pytest_make_parametrize_id(val: object) -> str | None:
    """Long bytes by their length: some are compressed, and carry the time at which they were made."""
    return f"{len(val)} bytes" if isinstance(val, bytes) and len(val) > 16 else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if (
        report.skipped
        and not hasattr(report, "wasxfail")
        and item.get_closest_marker("kernel")
        and item.config.getoption("--require-kernel")
    ):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"--require-kernel forbids this skip: {reason}"
    return report


@pytest.fixture(scope="session")
def clickhouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server that LLMSEC_TEST_CLICKHOUSE_URL names (`clickhouse://user:password@host`), else the real engine behind a front of ours."""
    url = os.environ.get("LLMSEC_TEST_CLICKHOUSE_URL")
    if url:
        yield Server(url)
        return
    pytest.importorskip("chdb", reason="chdb is not installed, and LLMSEC_TEST_CLICKHOUSE_URL names no server")
    with running(tmp_path_factory.mktemp("clickhouse")) as front:
        yield front
