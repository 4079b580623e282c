"""How long it takes to say whose a key is, by tier: the numbers of docs/performance.md. Needs Debian's postgresql and redis-server.

    python bench/tenants.py [KEYS]     default 1000

Memory: what a decoder does for each exchange. Redis and PostgreSQL: one question over the connection, as the resolver asks it. Answers: from a decoder's
question to the moment that the answer can be read, through the resolver's process. The database has KEYS keys of KEYS / 10 tenants beside 100,000
others. Prints one JSON object, in milliseconds.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import random
import select
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tap"), str(ROOT / "analyzer"), str(ROOT / "agent")]

from llmsec_agent.config.schema import Postgres, Redis  # noqa: E402
from llmsec_agent.tenants.directory import RemoteDirectory  # noqa: E402
from llmsec_agent.tenants.resolver import TenantHelper  # noqa: E402
from llmsec_agent.tenants.tiers import TierPlan, Tiers  # noqa: E402
from llmsec_tap.journal import SILENT  # noqa: E402
from support.tenant_servers import postgres_server, redis_server  # noqa: E402

# Above the pace of the resolver's statements, so that each question meets an idle one.
APART_S = 0.06
ASKED = 300
REPEATS = 50


def quantiles(times_ns: Iterable[int]) -> dict[str, float]:
    times = sorted(times_ns)
    found = {f"p{share}": round(times[len(times) * share // 100] / 1e6, 4) for share in (50, 95, 99)}
    return {**found, "n": len(times)}


def fill(postgres: Any, fingerprints: list[str]) -> None:
    postgres.run("INSERT INTO tenants SELECT 'tenant-' || n, 'free', 60, '{\"profile\": \"strict\"}' FROM generate_series(0, 9999) n")
    postgres.run("INSERT INTO api_keys SELECT md5(n::text), 'tenant-' || n % 10000 FROM generate_series(1, 100000) n")
    postgres.run("INSERT INTO api_keys SELECT k, 'tenant-' || n / 10 FROM unnest(%s::text[]) WITH ORDINALITY AS t(k, n)", fingerprints)
    postgres.run("ANALYZE")


async def tiers(plan: TierPlan, fingerprints: list[str]) -> dict[str, dict[str, float]]:
    asked = Tiers(plan, SILENT)
    await asked.look_up(fingerprints[:200])
    times: dict[str, list[int]] = {"redis": [], "postgres": []}
    for name in fingerprints:
        await asked.look_up([name])  # so that Redis has it
    for name in fingerprints:
        for tier, ask in (("redis", asked.cached), ("postgres", asked.stored)):
            begun = time.perf_counter_ns()
            found = await ask([name])
            times[tier].append(time.perf_counter_ns() - begun)
            assert found
    await asked.close()
    return {tier: quantiles(of) for tier, of in times.items()}


def answers(plan: TierPlan, fingerprints: list[str]) -> tuple[dict[str, float], RemoteDirectory]:
    helper = TenantHelper.start(plan, SILENT)
    directory = RemoteDirectory(helper.sockets)
    while directory.whose("0" * 32).mark is not None:  # it starts and connects
        select.select(helper.sockets, (), ())
    times = []
    for name in fingerprints:
        time.sleep(APART_S)
        begun = time.perf_counter_ns()
        directory.expect(name)
        select.select(helper.sockets, (), ())
        known = directory.whose(name)
        times.append(time.perf_counter_ns() - begun)
        assert known.tenant is not None, known
    return quantiles(times), directory


def memory(directory: RemoteDirectory, fingerprints: list[str]) -> dict[str, float]:
    times = []
    for _ in range(REPEATS):
        for name in fingerprints:
            begun = time.perf_counter_ns()
            known = directory.whose(name)
            times.append(time.perf_counter_ns() - begun)
            assert known.tenant is not None
    return quantiles(times)


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    choose = random.Random(1)
    fingerprints = [f"{choose.getrandbits(128):032x}" for _ in range(count)]
    with tempfile.TemporaryDirectory() as folder, postgres_server() as postgres, redis_server(Path(folder) / "redis") as redis:
        fill(postgres, fingerprints)
        database = Postgres(host="127.0.0.1", port=postgres.port, username=postgres.user)
        cache = Redis(nodes=(f"127.0.0.1:{redis.port}",))
        result: dict[str, Any] = {"ms": asyncio.run(tiers(TierPlan(database, cache), fingerprints))}
        asked = fingerprints[:ASKED]
        result["ms"]["answer_by_redis"], directory = answers(TierPlan(database, cache), asked)
        result["ms"]["memory"] = memory(directory, asked)
        result["ms"]["answer_by_postgres"], _ = answers(TierPlan(database, None), asked)
        result["machine"] = {"cpus": os.cpu_count(), "load": os.getloadavg()[0], "python": platform.python_version()}
    print(json.dumps(result))


main()
