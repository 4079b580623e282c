"""Seconds of the differential test: what real servers read, the tap reads or marks. `run.py` goes on for as long as one likes."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from differential.judge import judge
from differential.real_servers import Servers, real_servers
from differential.requests import make

pytestmark = pytest.mark.peers
_SECONDS = 8.0
# How messages are framed is searched by run.py alone, until the parser below takes all that servers take.
_KINDS = ("json", "charset", "coding", "path", "type", "form")
# Each of these once differed.
_KNOWN = (10986, 15651)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with real_servers(tmp_path_factory.mktemp("servers")) as started:
        if not started.ports:
            pytest.skip("; ".join(f"{name}: {why}" for name, why in started.missing.items()))
        yield started


def test_what_servers_read_is_read_or_marked(servers: Servers) -> None:
    until = time.monotonic() + _SECONDS
    taken = 0
    for seed in (*_KNOWN, *range(1_000_000, 1_000_000 + 100_000)):
        if time.monotonic() > until:
            break
        verdict = judge(make(seed, _KINDS), servers)
        taken += bool(verdict.taken)
        assert not verdict.missed, f"seed {seed} ({' '.join(verdict.sample.steps)}): {verdict.missed} read {verdict.sample.raw[:500]!r}"
    assert taken > 20
