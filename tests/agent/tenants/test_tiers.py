"""Redis and PostgreSQL as Debian has them: what is asked when, what is written where, and what happens while one of them is away."""

from __future__ import annotations

import asyncio
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from llmsec_agent.config import load_config
from llmsec_agent.tenants.directory import RemoteDirectory
from llmsec_agent.tenants.messages import Answer
from llmsec_agent.tenants.policy import TenantContext, TenantPolicy
from llmsec_agent.tenants.resolver import TenantHelper
from llmsec_agent.tenants.tiers import TierPlan, Tiers, tier_plan
from llmsec_analyzer.settings import Sensitivity
from llmsec_tap.errors import ConfigError
from llmsec_tap.journal import Event, Journal
from support.tenant_servers import PostgresServer, RedisServer, free_port, redis_server

A, B = "a" * 32, "b" * 32


class Told:
    def __init__(self) -> None:
        self.events: list[Event] = []
        self.journal = Journal(self.events.append)

    @property
    def names(self) -> list[str]:
        return [event.name for event in self.events]


@pytest.fixture
def told() -> Told:
    return Told()


def plan(tmp_path: Path, *parts: str) -> TierPlan:
    (tmp_path / "c.yaml").write_text("storage:\n" + "".join(f"  {part}\n" for part in parts))
    storage = load_config(str(tmp_path / "c.yaml")).storage
    made = tier_plan(storage.postgres, storage.redis)
    assert made is not None
    return made


def with_tiers(made: TierPlan, journal: Journal, use: Callable[[Tiers], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        tiers = Tiers(made, journal)
        try:
            return await use(tiers)
        finally:
            await tiers.close()

    return asyncio.run(run())


def look_up(made: TierPlan, journal: Journal, *fingerprints: str) -> dict[str, Answer]:
    answers: list[Answer] = with_tiers(made, journal, lambda tiers: tiers.look_up(fingerprints))
    return {answer.fingerprint: answer for answer in answers}


def test_a_row_is_the_tenant_of_its_key(tmp_path: Path, postgres: PostgresServer, told: Told) -> None:
    config = {"profile": "strict", "confidence_threshold": 0.4, "content": "redacted", "alert_threshold": "high", "theirs": [1]}
    postgres.enter(A, "acme", "gold", json.dumps(config))
    found = look_up(plan(tmp_path, postgres.config()), told.journal, A, B)
    policy = TenantPolicy(content="redacted", sensitivity=Sensitivity(profile="strict", confidence_threshold=0.4), alert_threshold="high")
    assert found == {A: Answer(A, TenantContext(tenant="acme", plan="gold", rate_limit=60, policy=policy)), B: Answer(B)}


@pytest.mark.parametrize("config", ['{"content": "some"}', '{"confidence_threshold": 7}', '["x"]', '{"profile": 1}'])
def test_a_security_config_that_cannot_be_used_is_said_once_and_the_tenant_stays(
    tmp_path: Path, postgres: PostgresServer, told: Told, config: str
) -> None:
    postgres.enter(A, "acme", "gold", config)

    async def twice(tiers: Tiers) -> list[Answer]:
        await tiers.look_up([A])
        return await tiers.look_up([A])

    (answer,) = with_tiers(plan(tmp_path, postgres.config()), told.journal, twice)
    assert answer.context == TenantContext(tenant="acme", plan="gold", rate_limit=60)
    assert told.names == ["tenant_config_wrong"]


def test_what_redis_has_is_not_asked_of_the_database_and_a_made_up_key_is_not_written_there(
    tmp_path: Path, postgres: PostgresServer, redis: RedisServer, told: Told
) -> None:
    postgres.enter(A, "acme")
    made = plan(tmp_path, postgres.config(), redis.config())
    asked: list[bool] = []

    async def thrice(tiers: Tiers) -> list[Answer]:
        for names in ([A, B], [A], [B]):
            answers = await tiers.look_up(names)
            asked.append(tiers.asked_database)
        return answers

    with_tiers(made, told.journal, thrice)
    assert asked == [True, False, True]
    client = redis.client()
    assert client.keys() == [b"tenant:" + A.encode()]
    assert 290 < client.ttl("tenant:" + A) <= 300
    assert b"acme" in client.get("tenant:" + A)
    client.close()


@pytest.mark.parametrize("value", ["", "{}", "no json", '{"tenant": 7}', "\udcff"])
def test_what_is_not_ours_in_redis_is_passed_over(
    tmp_path: Path, postgres: PostgresServer, redis: RedisServer, told: Told, value: str
) -> None:
    postgres.enter(A, "acme")
    with redis.client() as client:
        client.set("tenant:" + A, value.encode(errors="surrogateescape"))
    found = look_up(plan(tmp_path, postgres.config(), redis.config()), told.journal, A)
    assert found[A].context == TenantContext(tenant="acme", plan="free", rate_limit=60)


def test_a_database_that_is_away_is_said_once_and_asked_again_after_a_while(
    tmp_path: Path, postgres: PostgresServer, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    postgres.enter(A, "acme")

    async def through(tiers: Tiers) -> list[list[Answer]]:
        before = await tiers.look_up([A])
        postgres.stop()
        away = [await tiers.look_up([A]) for _ in range(3)]
        asked = tiers.asked_database
        postgres.start()
        monkeypatch.setattr("llmsec_agent.tenants.tiers._Pause.is_over", True)
        return [before, away[0], away[2], await tiers.look_up([A]), [Answer("", failed=asked)]]

    before, first, last, after, asked = with_tiers(plan(tmp_path, postgres.config()), told.journal, through)
    assert before == after
    assert first == last == [Answer(A, failed=True)]
    assert not asked[0].failed  # it is left alone after a failure
    assert told.names == ["tenants_not_asked", "tenants_asked_again"]


def test_a_connection_that_the_server_has_closed_is_made_anew(tmp_path: Path, postgres: PostgresServer, told: Told) -> None:
    postgres.enter(A, "acme")

    async def through(tiers: Tiers) -> list[Answer]:
        await tiers.look_up([A])
        postgres.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'llmsec-trace'")
        return await tiers.look_up([A])

    (answer,) = with_tiers(plan(tmp_path, postgres.config()), told.journal, through)
    assert answer.context is not None
    assert told.names == []


def test_redis_that_is_away_costs_the_cache_only(tmp_path: Path, postgres: PostgresServer, told: Told) -> None:
    postgres.enter(A, "acme")
    found = look_up(plan(tmp_path, postgres.config(), f"redis: {{nodes: ['127.0.0.1:{free_port()}']}}"), told.journal, A)
    assert found[A].context is not None
    assert told.names == ["tenants_not_asked"]


def test_no_server_answers_in_time(tmp_path: Path, told: Told) -> None:
    """One that accepts and says nothing."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        made = plan(
            tmp_path, f"postgres: {{host: 127.0.0.1, port: {port}, connection_timeout: 2s}}", f"redis: {{nodes: ['127.0.0.1:{port}']}}"
        )
        begun = time.monotonic()
        found = look_up(made, told.journal, A)
    assert found == {A: Answer(A, failed=True)}
    assert time.monotonic() - begun < 15


def test_the_tables_are_missing(tmp_path: Path, postgres: PostgresServer, told: Told) -> None:
    found = look_up(plan(tmp_path, postgres.config().replace("}", ", database: postgres}")), told.journal, A)
    assert found[A].failed
    assert "llmsec-analyze tenants schema" in told.events[0].text


def test_the_second_of_several_hosts_answers_when_the_first_does_not(tmp_path: Path, postgres: PostgresServer, told: Told) -> None:
    postgres.enter(A, "acme")
    config = postgres.config().replace("127.0.0.1", "'127.0.0.77,127.0.0.1'")
    assert look_up(plan(tmp_path, config), told.journal, A)[A].context is not None


def test_redis_with_a_password_and_a_wrong_one(
    tmp_path: Path, postgres: PostgresServer, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    postgres.enter(A, "acme")
    with redis_server(tmp_path / "redis", "--requirepass", "correct horse") as server:
        config = server.config().replace("}", ", password: 'env:REDIS_PASSWORD'}")
        for password, names in (("correct horse", []), ("wrong", ["tenants_not_asked"])):
            monkeypatch.setenv("REDIS_PASSWORD", password)
            made = plan(tmp_path, postgres.config(), config)
            assert password not in repr(made)
            assert look_up(made, told.journal, A)[A].context is not None
            assert told.names == names
            assert password not in str(told.events)


def test_a_cluster(tmp_path: Path, postgres: PostgresServer, told: Told) -> None:
    postgres.enter(A, "acme")
    postgres.enter(B, "other")
    # Its bus listens at its port plus 10,000 otherwise, which may be beyond the last one.
    with (
        redis_server(tmp_path / "redis", "--cluster-enabled", "yes", "--cluster-port", str(free_port())) as server,
        server.client() as client,
    ):
        client.execute_command("CLUSTER ADDSLOTSRANGE", "0", "16383")
        deadline = time.monotonic() + 20
        while b"cluster_state:ok" not in client.execute_command("CLUSTER INFO") and time.monotonic() < deadline:
            time.sleep(0.05)
        made = plan(tmp_path, postgres.config(), server.config().replace("redis: {", "redis: {mode: cluster, "))
        look_up(made, told.journal, A, B)
        assert sorted(client.keys()) == [b"tenant:" + A.encode(), b"tenant:" + B.encode()]
        postgres.run("TRUNCATE tenants CASCADE")
        assert {answer.context.tenant for answer in look_up(made, told.journal, A, B).values() if answer.context} == {"acme", "other"}
    assert told.names == []


def test_a_primary_that_sentinels_know(tmp_path: Path, postgres: PostgresServer, redis: RedisServer, told: Told) -> None:
    postgres.enter(A, "acme")
    file = tmp_path / "sentinel.conf"
    file.write_text(f"sentinel monitor mymaster 127.0.0.1 {redis.port} 1\n")
    port = free_port()
    with subprocess.Popen(["redis-server", str(file), "--sentinel", "--port", str(port)], stdout=subprocess.DEVNULL) as sentinel:
        try:
            deadline = time.monotonic() + 20
            while True:
                try:
                    import socket

                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
            look_up(plan(tmp_path, postgres.config(), f"redis: {{mode: sentinel, nodes: ['127.0.0.1:{port}']}}"), told.journal, A)
        finally:
            sentinel.kill()
    with redis.client() as client:
        assert client.keys() == [b"tenant:" + A.encode()]
    assert told.names == []


def test_a_missing_library_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match="need the libraries") as raised:
        plan(tmp_path, "postgres: {host: h}")
    assert "llmsec-trace[tenants]" in raised.value.hint


# --- the process that asks ----------------------------------------------------------------------------------------------------


@pytest.fixture
def helped(tmp_path: Path, postgres: PostgresServer) -> Callable[..., TenantHelper]:
    """`(decoders)`: a resolver in a process of its own, as the agent starts it."""

    def start(decoders: int = 1, *others: str) -> TenantHelper:
        # Behind the filter, names are looked up, too.
        made = plan(tmp_path, *(part.replace("127.0.0.1", "localhost") for part in (postgres.config(), *others)))
        return TenantHelper.start(made, Journal(lambda _event: None), decoders=decoders)

    return start


def ended(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if os.waitpid(pid, os.WNOHANG) != (0, 0):
            return True
        time.sleep(0.02)
    return False


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_the_process_that_asks_has_no_rights_answers_each_and_ends_with_the_last_of_them(
    helped: Callable[..., TenantHelper], postgres: PostgresServer
) -> None:
    postgres.enter(A, "acme")
    helper = helped(2)
    first, second = (RemoteDirectory([sock], wait_s=20) for sock in helper.sockets)
    assert first.whose(A) == ("acme", None)
    status = Path(f"/proc/{helper.pid}/status").read_text()
    assert "CapEff:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    assert "Seccomp:\t2" in status
    if os.geteuid() == 0:
        assert "Uid:\t0\t" not in status
    helper.sockets[0].close()
    assert second.whose(A) == ("acme", None)
    assert second.whose(B) == (None, None)
    helper.sockets[1].close()
    assert ended(helper.pid)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_with_its_rights_given_up_it_reaches_redis_too(
    helped: Callable[..., TenantHelper], postgres: PostgresServer, redis: RedisServer
) -> None:
    postgres.enter(A, "acme")
    helper = helped(1, redis.config())
    assert RemoteDirectory(helper.sockets, wait_s=20).whose(A) == ("acme", None)
    with redis.client() as client:
        assert client.keys() == [b"tenant:" + A.encode()]
    helper.sockets[0].close()
    assert ended(helper.pid)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_flood_of_made_up_keys_is_a_few_statements(helped: Callable[..., TenantHelper], postgres: PostgresServer) -> None:
    helper = helped()
    directory = RemoteDirectory(helper.sockets)
    postgres.enter(A, "acme")
    time.sleep(1.5)  # PostgreSQL counts what is over
    before = postgres.statements
    begun = time.monotonic()
    for number in range(50_000):
        directory.whose(f"{number:032x}")
    directory.expect(A)
    while directory.whose(A).tenant is None and time.monotonic() - begun < 30:
        select.select(helper.sockets, (), (), 0.1)
    took = time.monotonic() - begun
    assert directory.whose(A) == ("acme", None)
    time.sleep(1.5)
    assert postgres.statements - before <= took / 0.05 + 20
    helper.sockets[0].close()
    assert ended(helper.pid)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_what_is_no_fingerprint_is_not_asked_for_and_garbage_ends_it(helped: Callable[..., TenantHelper]) -> None:
    helper = helped()
    directory = RemoteDirectory(helper.sockets, wait_s=0.5)
    assert directory.whose("' OR 1=1 --") == (None, "tenant_unresolved")
    helper.sockets[0].send(b"\xc1garbage")
    assert ended(helper.pid)
    helper.sockets[0].close()
