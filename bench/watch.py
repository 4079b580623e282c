"""Deviations: how fast, how much memory at 100,000 subjects, and what a week of made traffic tells that is not so.

    python bench/watch.py [SUBJECTS]

Prints one JSON object: exchanges a second (one thread, CPU time), memory of the state, seconds and bytes to save it, deviations in a
week of ten tenants with days, nights and weekends in which nothing happens, by severity; how many messages 10,000 findings of one minute
become, and how fast rules of alerts are tried.
"""

from __future__ import annotations

import json
import math
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tap"), str(ROOT / "analyzer"), str(ROOT / "agent")]

from llmsec_analyzer.alerts.decide import Decider  # noqa: E402
from llmsec_analyzer.alerts.rules import Rule, compile_condition  # noqa: E402
from llmsec_analyzer.watch import saved  # noqa: E402
from llmsec_analyzer.watch.prices import Prices, price_list  # noqa: E402
from llmsec_analyzer.watch.watcher import Watcher, WatchSettings  # noqa: E402
from llmsec_tap.memory import resident_bytes  # noqa: E402
from llmsec_tap.model import Exchange, Usage  # noqa: E402

S = 1_000_000_000
MONDAY = 1_780_272_000 * S


def call(at_ns: int, who: int, tokens: int, ttft_ms: float, *, fails: bool) -> Exchange:
    return Exchange(
        exchange_id=f"{at_ns:x}", client=f"10.{who >> 16 & 255}.{who >> 8 & 255}.{who & 255}:5000", server="10.0.0.1:443",
        started_ns=at_ns - 2 * S, ended_ns=at_ns, ttft_ms=ttft_ms, provider="openai", status=500 if fails else 200, streaming=True,
        request_model="gpt-4o", input_text=f"question {at_ns}", usage=Usage(input_tokens=tokens, output_tokens=tokens // 8),
        tenant=f"tenant-{who}", api_key_fingerprint=f"key-{who}", end_user=f"user-{who}",
    )  # fmt: skip


def watcher() -> Watcher:
    return Watcher(WatchSettings(), Prices(price_list(None)))


def speed(subjects: int) -> dict[str, Any]:
    """Each caller is a tenant, a key and a client."""
    watched, before = watcher(), resident_bytes()
    exchanges = 3 * subjects
    made = [call(MONDAY + n * S // 100, n % (subjects // 3), 500, 200.0, fails=False) for n in range(exchanges)]
    held = resident_bytes()
    begun = time.process_time()
    for exchange in made:
        watched.look(exchange)
    seconds = time.process_time() - begun
    memory = resident_bytes() - held
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "watch.state"
        begun = time.process_time()
        saved.save(watched.subjects, path)
        saving, size = time.process_time() - begun, path.stat().st_size
    del before
    return {
        "subjects": len(watched.subjects), "exchanges_per_s": round(exchanges / seconds), "state_mb": round(memory / 1e6, 1),
        "save_s": round(saving, 2), "saved_mb": round(size / 1e6, 1),
    }  # fmt: skip


def week() -> dict[str, Any]:
    draw, watched = random.Random(11), watcher()
    told: Counter[str] = Counter()
    count = 0
    for minute in range(7 * 24 * 60):
        at_ns = MONDAY + minute * 60 * S
        hour, day = minute / 60 % 24, minute // 1440
        for tenant in range(10):
            peak = 9 + tenant % 5 * 2
            rate = (0.5 + tenant) * (math.exp(-(((hour - peak) / 3.5) ** 2)) + 0.08) * (0.3 if day >= 5 else 1.0)
            for number in range(round(draw.expovariate(1 / rate)) if rate > 0 else 0):
                exchange = call(
                    at_ns + number * S // 4,
                    tenant,
                    int(draw.lognormvariate(6.2, 0.8)),
                    draw.lognormvariate(5.5, 0.4),
                    fails=draw.random() < 0.01,
                )
                watched.look(exchange)
                count += 1
                told.update(f"{each.kind} {each.severity}" for each in exchange.deviations)
    return {"exchanges": count, "high": sum(n for kind, n in told.items() if kind.endswith(("high", "critical"))), "told": dict(told)}


DESIGN = ("security_score > 90", "pii_types.length > 0", "cost_multiplier > 5.0", "error_rate_5m > 0.1")


def messages(tenants: int, *, of_state: bool = False) -> int:
    """Of 10,000 exchanges with a finding (or failing) in one minute, and the windows after it."""
    decider = Decider([Rule(text, compile_condition(text), text, "high", ("slack",)) for text in DESIGN])
    told = 0
    for number in range(10_000):
        exchange = call(MONDAY + number * S * 60 // 10_000, number % tenants, 500, 200.0, fails=False)
        exchange.security_score, exchange.pii_types = (0, []) if of_state else (35, ["EMAIL"])
        told += len(decider.look(exchange, exchange.ended_ns or 0, error_rate_5m=0.9 if of_state else 0.0))
    for minute in range(1, 30):
        told += len(decider.advance(MONDAY + minute * 60 * S))
    return told


def alerts() -> dict[str, Any]:
    decider = Decider([Rule(text, compile_condition(text), text, "high", ("slack",)) for text in DESIGN])
    made = [call(MONDAY + number * S // 100, number % 100, 500, 200.0, fails=False) for number in range(30_000)]
    for exchange in made:
        exchange.security_score = 0
    begun = time.process_time()
    for exchange in made:
        decider.look(exchange, exchange.ended_ns or 0, error_rate_5m=0.0, cost_multiplier=1.0)
    seconds = time.process_time() - begun
    return {
        "messages_of_10000_findings": {f"{tenants} tenants": messages(tenants) for tenants in (1, 10, 1000)},
        "messages_of_10000_failures_of_one_tenant": messages(1, of_state=True), "rules": len(DESIGN), "exchanges_per_s": round(len(made) / seconds),
    }  # fmt: skip


def main() -> None:
    subjects = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    print(json.dumps({"speed": speed(subjects), "week": week(), "alerts": alerts()}, indent=1))


if __name__ == "__main__":
    main()
