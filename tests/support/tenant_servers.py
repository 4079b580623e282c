"""Debian's PostgreSQL and Redis for a test: of its own, in a folder of its own, on free ports."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SCHEMA = Path(__file__).parents[2] / "agent" / "llmsec_agent" / "tenants" / "schema.sql"
_NOBODY = "nobody"
_START_S = 20.0


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _binary(name: str, package: str) -> str:
    found = shutil.which(name) or next((str(path) for path in sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))), None)
    if found is None:
        pytest.skip(f"{name} is not installed (apt-get install {package})")
    return found


class PostgresServer:
    """`start` and `stop` it as often as wanted: its data stay."""

    database = "llmsec_metadata"
    user = "llmsec"

    def __init__(self, folder: Path) -> None:
        """`folder` must be reachable for every user."""
        self._initdb, self._postgres = _binary("initdb", "postgresql"), _binary("postgres", "postgresql")
        self.port = free_port()
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir()
        # It refuses to run as root.
        self._as: dict[str, int] = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam(_NOBODY)
            self._as = {"user": nobody.pw_uid, "group": nobody.pw_gid}
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        arguments = [self._initdb, "-D", str(folder / "data"), "-U", self.user, "-A", "trust", "-E", "UTF8", "--locale", "C", "--no-sync"]
        subprocess.run(arguments, check=True, capture_output=True, cwd="/", **self._as)
        self.start()
        self.run(f"CREATE DATABASE {self.database}", database="postgres")
        self.run(SCHEMA.read_text())

    def start(self) -> None:
        arguments = [self._postgres, "-D", str(self._folder / "data"), "-p", str(self.port), "-k", str(self._folder), "-F"]
        self._process = subprocess.Popen([*arguments, "-h", "127.0.0.1"], stderr=subprocess.DEVNULL, cwd="/", **self._as)
        _await(self._process, lambda: self.run("SELECT 1", database="postgres"))

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(3)  # SIGQUIT: at once
            self._process.wait(20)
            self._process = None

    def run(self, sql: str, *parameters: object, database: str | None = None) -> list[tuple[object, ...]]:
        import psycopg

        where = f"host=127.0.0.1 port={self.port} user={self.user} dbname={database or self.database} connect_timeout=2"
        with psycopg.connect(where, autocommit=True) as connection:
            cursor = connection.execute(sql, parameters or None)
            return cursor.fetchall() if cursor.description else []

    def enter(self, fingerprint: str, tenant: str, plan: str = "free", config: str | None = None) -> None:
        """A key of a tenant, who is made or changed."""
        self.run(
            "INSERT INTO tenants VALUES (%s, %s, 60, %s) ON CONFLICT (id) DO UPDATE SET plan = excluded.plan, "
            "security_config = excluded.security_config",
            *(tenant, plan, config),
        )
        self.run("INSERT INTO api_keys VALUES (%s, %s)", fingerprint, tenant)

    @property
    def statements(self) -> int:
        """Of this database, answered so far: transactions that it counts, which come a moment late."""
        rows = self.run("SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = %s", self.database, database="postgres")
        return int(str(rows[0][0]))

    def config(self) -> str:
        return f"postgres: {{host: 127.0.0.1, port: {self.port}, username: {self.user}, connection_timeout: 2s}}"


class RedisServer:
    def __init__(self, folder: Path, *arguments: str) -> None:
        self._binary = _binary("redis-server", "redis-server")
        self.port = free_port()
        folder.mkdir()
        self._folder = folder
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        arguments = [self._binary, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self._folder)]
        self._process = subprocess.Popen([*arguments, *self._arguments], stdout=subprocess.DEVNULL)
        _await(self._process, self._ping)

    def _ping(self) -> None:
        with self.client() as client:
            client.ping()

    def client(self):
        import redis

        return redis.Redis(port=self.port, password=self.password, socket_timeout=5)

    @property
    def password(self) -> str | None:
        return self._arguments[self._arguments.index("--requirepass") + 1] if "--requirepass" in self._arguments else None

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def config(self) -> str:
        return f"redis: {{nodes: ['127.0.0.1:{self.port}']}}"


def _await(process: subprocess.Popen[bytes], works) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        try:
            works()
        except Exception:
            if time.monotonic() > deadline or process.poll() is not None:
                raise
            time.sleep(0.05)
        else:
            return


@contextlib.contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    with tempfile.TemporaryDirectory(prefix="llmsec-") as parent:
        Path(parent).chmod(0o755)
        server = PostgresServer(Path(parent) / "postgres")
        try:
            yield server
        finally:
            server.stop()


@contextlib.contextmanager
def redis_server(folder: Path, *arguments: str) -> Iterator[RedisServer]:
    server = RedisServer(folder, *arguments)
    try:
        yield server
    finally:
        server.stop()
