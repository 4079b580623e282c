"""Options and rules that hold for all tests."""

from __future__ import annotations

from collections.abc import Generator

import pytest


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
