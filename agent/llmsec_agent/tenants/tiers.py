"""Redis, then PostgreSQL: whose keys are, for many keys at once. Fingerprints are all that either of them sees of a key."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

import msgspec

from llmsec_agent.config.schema import Postgres, Redis
from llmsec_agent.tenants.messages import Answer
from llmsec_agent.tenants.policy import TenantContext, stored_policy
from llmsec_tap.errors import ConfigError
from llmsec_tap.journal import Journal

if TYPE_CHECKING:
    import psycopg

_EXTRA: Final = "pip install 'llmsec-trace[tenants]'"
# The design's statement, for several keys.
_SQL: Final = """
SELECT ak.key_hash::text, tenant_id::text, plan::text, rate_limit::text, security_config::text
FROM tenants t JOIN api_keys ak ON t.id = ak.tenant_id WHERE ak.key_hash = ANY(%s)
"""
_QUERY_S: Final = 5.0
_REDIS_S: Final = 1.0
# After a failure nothing is asked for a second, then twice as long after each further one.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0
_MAX_NAME: Final = 256
_MAX_TOLD: Final = 1000

_encode = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(TenantContext)


@dataclass(frozen=True)
class TierPlan:
    """Passwords are read with the rights of whoever started the command; the process that asks may not be able to."""

    postgres: Postgres
    redis: Redis | None
    postgres_password: str = field(default="", repr=False)
    redis_password: str = field(default="", repr=False)


def tier_plan(postgres: Postgres | None, redis: Redis | None) -> TierPlan | None:
    """None where no database is named. Raises ConfigError where a password cannot be read or a library is missing."""
    if postgres is None:
        return None
    check_libraries()
    return TierPlan(
        postgres,
        redis,
        postgres.password.read() if postgres.password is not None else "",
        redis.password.read() if redis is not None and redis.password is not None else "",
    )


def check_libraries() -> None:
    """Without loading them: the process that asks does."""
    if find_spec("psycopg") is None or find_spec("redis") is None:
        raise ConfigError("tenants from PostgreSQL need the libraries psycopg and redis", _EXTRA)


class _Pause:
    """After failures: when it may be tried again. The journal hears of each reason once, and of the end of it."""

    def __init__(self, name: str, journal: Journal) -> None:
        self._name = name
        self._journal = journal
        self._until = 0.0
        self._length = 0.0
        self._said = ""

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self._until

    def failed(self, why: str) -> None:
        self._length = min(max(2 * self._length, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
        self._until = time.monotonic() + self._length
        if why != self._said:
            self._said = why
            self._journal.warning("tenants_not_asked", f"{self._name}: {why}; what is known of tenants goes on counting", tier=self._name)

    def worked(self) -> None:
        if self._said:
            self._journal.info("tenants_asked_again", f"{self._name} answers again", tier=self._name)
        self._until, self._length, self._said = 0.0, 0.0, ""


class Tiers:
    """Of one process; `look_up` is called by one task at a time."""

    def __init__(self, plan: TierPlan, journal: Journal) -> None:
        self._plan = plan
        self._journal = journal
        postgres = plan.postgres
        self._postgres_pause = _Pause(f"PostgreSQL at {postgres.host}:{postgres.port}", journal)
        self._redis_pause = _Pause("Redis", journal)
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._redis: Any = None
        self._told: set[str] = set()
        self.asked_database = False  # by the last look-up

    async def look_up(self, fingerprints: Sequence[str]) -> list[Answer]:
        """An answer for each. Never raises for what a server does."""
        found = await self.cached(fingerprints)
        rest = [name for name in fingerprints if name not in found]
        self.asked_database = False
        answers = [Answer(name, context) for name, context in found.items()]
        if rest:
            stored = await self.stored(rest)
            if stored is None:
                return answers + [Answer(name, failed=True) for name in rest]
            answers += [Answer(name, stored.get(name)) for name in rest]
            await self._cache(stored)
        return answers

    async def close(self) -> None:
        await self._disconnect()
        await self._leave_redis()

    # --- PostgreSQL -----------------------------------------------------------------------------------------------------------

    async def stored(self, fingerprints: Sequence[str]) -> dict[str, TenantContext] | None:
        """What the tables have of them; None where they cannot be asked."""
        import psycopg

        if not self._postgres_pause.is_over:
            return None
        self.asked_database = True
        settings = self._plan.postgres
        try:
            # Of a connection that the server has closed meanwhile, the first use says so.
            is_kept = self._connection is not None
            try:
                rows = await asyncio.wait_for(self._rows(fingerprints), settings.connection_timeout + _QUERY_S)
            except psycopg.OperationalError:
                if not is_kept:
                    raise
                await self._disconnect()
                rows = await asyncio.wait_for(self._rows(fingerprints), settings.connection_timeout + _QUERY_S)
        except (psycopg.Error, OSError, TimeoutError, UnicodeError) as fault:
            await self._disconnect()
            self._postgres_pause.failed(_reason(fault))
            return None
        self._postgres_pause.worked()
        return {row[0]: self._context(*row[1:]) for row in rows}

    async def _rows(self, fingerprints: Sequence[str]) -> list[tuple[Any, ...]]:
        connection = await self._connected()
        cursor = await connection.execute(_SQL, (list(fingerprints),))
        return await cursor.fetchall()

    async def _connected(self) -> psycopg.AsyncConnection[Any]:
        import psycopg

        if self._connection is None or self._connection.closed:
            settings = self._plan.postgres
            self._connection = await psycopg.AsyncConnection.connect(
                host=settings.host,
                port=settings.port,
                dbname=settings.database,
                user=settings.username,
                password=self._plan.postgres_password or None,
                connect_timeout=max(2, round(settings.connection_timeout)),
                application_name="llmsec-trace",
                options=f"-c statement_timeout={int(_QUERY_S * 1000)} -c default_transaction_read_only=on",
                client_encoding="utf8",
                autocommit=True,
            )
        return self._connection

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    def _context(self, tenant: str, plan: str | None, rate_limit: str | None, security_config: str | None) -> TenantContext:
        policy, fault = stored_policy(security_config)
        if fault and tenant not in self._told and len(self._told) < _MAX_TOLD:
            self._told.add(tenant)
            self._journal.warning("tenant_config_wrong", f"security_config of tenant {tenant[:_MAX_NAME]!r} is not used: {fault}")
        rate = int(rate_limit) if rate_limit is not None and rate_limit.isascii() and rate_limit.isdecimal() else None
        return TenantContext(tenant=tenant[:_MAX_NAME], plan=plan[:_MAX_NAME] if plan else None, rate_limit=rate, policy=policy)

    # --- Redis ----------------------------------------------------------------------------------------------------------------

    async def cached(self, fingerprints: Sequence[str]) -> dict[str, TenantContext]:
        """What Redis has of them; nothing where it cannot be asked, or where what stands there is not ours."""
        values = await self._ask_redis(lambda client: _get(client, fingerprints))
        found = {}
        for name, value in zip(fingerprints, values or (), strict=False):
            if value is not None:
                try:
                    found[name] = _decoder.decode(value)
                except (msgspec.MsgspecError, UnicodeError):
                    continue
        return found

    async def _cache(self, contexts: dict[str, TenantContext]) -> None:
        """Only keys that a tenant has: whoever makes up keys does not fill the cache of all."""
        settings = self._plan.redis
        if settings is not None and contexts:
            seconds = max(1, round(settings.default_ttl))
            await self._ask_redis(lambda client: _set(client, contexts.items(), seconds))

    async def _ask_redis(self, ask: Callable[[Any], Any]) -> Any:
        if self._plan.redis is None or not self._redis_pause.is_over:
            return None
        import redis.exceptions

        try:
            answer = await asyncio.wait_for(self._asked(ask), 3 * _REDIS_S)
        except (redis.exceptions.RedisError, OSError, TimeoutError, UnicodeError, ValueError) as fault:
            self._redis_pause.failed(_reason(fault))
            await self._leave_redis()
            return None
        self._redis_pause.worked()
        return answer

    async def _leave_redis(self) -> None:
        """Its connections may be in the middle of something; the next question makes new ones."""
        client, self._redis = self._redis, None
        if client is not None:
            # Those to the sentinels are not closed with it.
            watching = getattr(getattr(client, "connection_pool", None), "sentinel_manager", None)
            for each in (client, *(watching.sentinels if watching is not None else ())):
                with contextlib.suppress(Exception):  # it is given up whatever it says
                    await asyncio.wait_for(each.aclose(), _REDIS_S)

    async def _asked(self, ask: Callable[[Any], Any]) -> Any:
        if self._redis is None:
            assert self._plan.redis is not None
            self._redis = await _client(self._plan.redis, self._plan.redis_password)
        return await ask(self._redis)


def _name(fingerprint: str) -> str:
    return f"tenant:{fingerprint}"


async def _get(client: Any, fingerprints: Iterable[str]) -> list[bytes | None]:
    # A pipeline and not MGET: in a cluster the names lie on different nodes.
    pipeline = client.pipeline(transaction=False)
    for fingerprint in fingerprints:
        pipeline.get(_name(fingerprint))
    found: list[bytes | None] = await pipeline.execute()
    return found


async def _set(client: Any, contexts: Iterable[tuple[str, TenantContext]], seconds: int) -> None:
    pipeline = client.pipeline(transaction=False)
    for fingerprint, context in contexts:
        pipeline.set(_name(fingerprint), _encode(context), ex=seconds)
    await pipeline.execute()


async def _client(settings: Redis, password: str) -> Any:
    from redis.asyncio import Redis as Client
    from redis.asyncio import RedisCluster
    from redis.asyncio.cluster import ClusterNode
    from redis.asyncio.sentinel import Sentinel

    nodes = [(host.strip("[]"), int(port)) for host, _, port in (node.rpartition(":") for node in settings.nodes)]
    common: dict[str, Any] = {
        "password": password or None,
        "socket_timeout": _REDIS_S,
        "socket_connect_timeout": _REDIS_S,
        "ssl": settings.tls,
    }
    if settings.mode == "cluster":
        return RedisCluster(startup_nodes=[ClusterNode(host, port) for host, port in nodes], **common)
    if settings.mode == "sentinel":
        watched: Any = Sentinel
        return watched(nodes, **common).master_for(settings.master)
    return Client(host=nodes[0][0], port=nodes[0][1], **common)


def _reason(fault: BaseException) -> str:
    """In one line; a time-out has no words of its own."""
    if isinstance(fault, TimeoutError):
        return "no answer in time"
    line = " ".join(str(fault).split())
    if "does not exist" in line and "relation" in line:
        line += " (llmsec-analyze tenants schema prints the tables)"
    return (line[:300] + "…") if len(line) > 300 else line or type(fault).__name__
