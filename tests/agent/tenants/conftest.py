from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.tenant_servers import PostgresServer, RedisServer, postgres_server, redis_server


@pytest.fixture(scope="session")
def _server() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


@pytest.fixture
def postgres(_server: PostgresServer) -> PostgresServer:
    """With no tenant in it."""
    _server.run("TRUNCATE tenants CASCADE")
    return _server


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path / "redis") as server:
        yield server
