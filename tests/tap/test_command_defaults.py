"""Constants that a command repeats so as not to import their module."""

from __future__ import annotations

from llmsec_agent.cli.tap import capture
from llmsec_tap.storage import DEFAULT_STORE


def test_the_default_store_is_that_of_the_storage_package() -> None:
    assert capture.DEFAULT_STORE == DEFAULT_STORE
