"""The stores beside each other: exchanges stored a second, bytes an exchange, questions at growing sizes, and a long run with the store away.

    python bench/store.py write [ROWS]                 folder and ClickHouse engine: exchanges stored a second; bytes an exchange
    python bench/store.py ask [ROWS ...]               questions of docs/query.md, p50 of each, in both (default 100000 and 1000000)
    python bench/store.py hold [MINUTES [PER_SECOND]]  writes on and on (default 10 and 2000) while the database is taken away twice and
                                                       the deliverer is killed; compares both ends at the close

ClickHouse is its real engine in a process of its own (`chdb`), reached over HTTP by the client that users have. Exchanges are those of the
shipped captures, with texts, ids and times of their own. Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tap"), str(ROOT / "analyzer"), str(ROOT / "agent")]

import msgspec  # noqa: E402

from llmsec_analyzer.stored.stores import Session, open_session  # noqa: E402
from llmsec_tap.model import Exchange, Message, Part  # noqa: E402
from llmsec_tap.storage.compact import compact  # noqa: E402
from llmsec_tap.storage.store import create_store, open_store  # noqa: E402
from llmsec_tap.storage.writer import StoreWriter  # noqa: E402
from support import clickhouse_front  # noqa: E402
from support.replay import replay  # noqa: E402

BIN = Path(sys.executable).parent
FIRST_NS = 1_780_000_000 * 10**9
WORDS = [
    f"{first}{second}{third}"
    for third in ("", "na", "ri", "to")
    for first in ("be", "co", "da", "fi", "lu", "mo", "pe", "sa")
    for second in ("l", "mi", "n", "ro", "st", "ver")
]
PER_DAY = 100_000  # so many exchanges a day of made time
QUESTIONS = {
    "count": ("SELECT count(*) FROM exchanges", "SELECT count(*) FROM exchanges"),
    "models": (
        "SELECT provider, model, count(*) AS n, sum(input_tokens), sum(output_tokens) FROM exchanges GROUP BY ALL ORDER BY n DESC",
        "SELECT provider, model, count(*) AS n, sum(input_tokens), sum(output_tokens) FROM exchanges GROUP BY provider, model ORDER BY n DESC",
    ),
    "latency": (
        "SELECT model, count(*), quantile_cont(ttft_ms, 0.5), quantile_cont(ttft_ms, 0.95) FROM exchanges WHERE streaming GROUP BY model",
        "SELECT model, count(*), quantile(0.5)(ttft_ms), quantile(0.95)(ttft_ms) FROM exchanges WHERE streaming GROUP BY model",
    ),
    "slowest of a day": (
        "SELECT started, model, ttft_ms FROM exchanges WHERE day = DATE '2026-05-29' AND ttft_ms IS NOT NULL ORDER BY ttft_ms DESC LIMIT 20",
        "SELECT started, model, ttft_ms FROM exchanges WHERE day = toDate('2026-05-29') AND ttft_ms IS NOT NULL ORDER BY ttft_ms DESC LIMIT 20",
    ),
    "keys": (
        "SELECT api_key_fingerprint, provider, count(*), min(started), max(started) FROM exchanges GROUP BY ALL",
        "SELECT api_key_fingerprint, provider, count(*), min(started), max(started) FROM exchanges GROUP BY api_key_fingerprint, provider",
    ),
}


def samples() -> list[Exchange]:
    """Exchanges with language models of the shipped captures."""
    found = [exchange for file in sorted((ROOT / "fixtures/pcap/golden").glob("*.pcap")) for exchange in replay(file)[0]]
    return [exchange for exchange in found if exchange.started_ns and exchange.provider and exchange.input_text]


def made(count: int, start_ns: Callable[[int], int], first: int = 0) -> Iterator[Exchange]:
    known = samples()
    for number in range(first, first + count):
        exchange = known[number % len(known)]
        started = start_ns(number)
        shift = started - (exchange.started_ns or 0)
        times = {
            name: value + shift
            for name in exchange.__struct_fields__
            if name.endswith("_ns") and isinstance(value := getattr(exchange, name), int) and value > 10**18
        }
        draw = random.Random(number)
        asked, answered = _talk(draw, 60), _talk(draw, 120)
        yield msgspec.structs.replace(
            exchange,
            **times,
            exchange_id=f"{number:016x}{number * 2654435761 % 2**32:08x}",
            input_text=asked,
            output_text=answered,
            request=msgspec.structs.replace(exchange.request, messages=[*exchange.request.messages[:-1], _said("user", asked)]),
            response=msgspec.structs.replace(exchange.response, messages=[_said("assistant", answered)]),
        )


def _said(role: str, text: str) -> Message:
    return Message(role=role, parts=[Part(type="text", content=text)])


def _talk(draw: random.Random, words: int) -> str:
    """Some `words` words as texts have them: few often, many rarely."""
    return " ".join(WORDS[int(draw.paretovariate(0.7)) % len(WORDS)] for _ in range(draw.randrange(words // 2, words * 3 // 2)))


def spread(number: int) -> int:
    return FIRST_NS + number * (86_400 * 10**9 // PER_DAY)


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def fill(folder: Path, exchanges: list[Exchange]) -> tuple[float, float]:
    """Wall and CPU seconds to have them on the disk."""
    wall, cpu = time.perf_counter(), time.process_time()
    with StoreWriter(create_store(folder), compact_by=lambda *_: None) as writer:
        for exchange in exchanges:
            writer.add(exchange)
    return time.perf_counter() - wall, time.process_time() - cpu


def command(*words: str) -> list[str]:
    return [str(BIN / words[0]), *words[1:]]


def migrate(url: str) -> None:
    subprocess.run(command("llmsec-analyze", "db", "migrate", "--store", url), check=True, capture_output=True)


def configured(folder: Path, store: Path, url: str) -> Path:
    host, _, database = url.removeprefix("clickhouse://llmsec@").partition("/")
    file = folder / "config.yaml"
    clickhouse = {"nodes": [host], "database": database, "username": "llmsec", "flush_interval": "1s"}
    file.write_text(json.dumps({"storage": {"path": str(store), "clickhouse": clickhouse}}))
    return file


def deliver_once(config: Path) -> float:
    begun = time.perf_counter()
    done = subprocess.run(command("llmsec-tap", "deliver", "--once", "--config", str(config)), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"deliver: {done.stderr[-500:]}")
    return time.perf_counter() - begun


def write(rows: int) -> dict[str, Any]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        exchanges = list(made(rows, spread))
        wall, cpu = fill(folder / "store", exchanges)
        result: dict[str, Any] = {
            "rows": rows,
            "folder": {
                "exchanges_per_s": round(rows / wall),
                "cpu_s": round(cpu, 2),
                "bytes_each": round(size_of(folder / "store") / rows),
            },
        }
        fill(folder / "bare", [exchange.without_content() for exchange in exchanges])
        result["folder"]["bytes_each_without_content"] = round(size_of(folder / "bare") / rows)
        front = stack.enter_context(clickhouse_front.running(folder / "clickhouse"))
        url = front.new_url()
        migrate(url)
        before = size_of(folder / "clickhouse")
        seconds = deliver_once(configured(folder, folder / "store", url))
        result["clickhouse"] = {
            "exchanges_per_s": round(rows / seconds),
            "bytes_each_before_merges": round((size_of(folder / "clickhouse") - before) / rows),
        }
        with open_session(url) as session:
            result["clickhouse"]["counted"] = counted(session)
        return result


def counted(session: Session) -> int:
    return int(next(session.run("SELECT count(*) FROM exchanges").rows())[0])


def p50_ms(location: str, sql: str, times: int = 7) -> float:
    with open_session(location) as session:
        took = []
        for _ in range(times):
            begun = time.perf_counter()
            for _row in session.run(sql).rows():
                pass
            took.append(time.perf_counter() - begun)
    return round(statistics.median(took) * 1000, 1)


def ask(sizes: list[int]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        front = stack.enter_context(clickhouse_front.running(folder / "clickhouse"))
        url, store, have = front.new_url(), folder / "store", 0
        migrate(url)
        for size in sizes:
            for first in range(have, size, 100_000):
                fill(store, list(made(min(100_000, size - first), spread, first)))
            have = size
            for minutes in (10, 30):  # as a running agent does in time: parts are merged, and the originals go
                compact(open_store(store), time.time_ns() + minutes * 60 * 10**9)
            deliver_once(configured(folder, store, url))
            result[str(size)] = {
                name: {"folder_ms": p50_ms(str(store), ours), "clickhouse_ms": p50_ms(url, theirs)}
                for name, (ours, theirs) in QUESTIONS.items()
            }
    return result


def resident_mb(pid: int) -> float:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return round(int(fields["VmRSS"].split()[0]) / 1000, 1)


@contextmanager
def delivering(config: Path, log: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The process in a list, so that another may take its place."""
    held = [started(config, log)]
    try:
        yield held
    finally:
        held[0].send_signal(signal.SIGTERM)
        held[0].wait(60)


def started(config: Path, log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as out:
        return subprocess.Popen(command("llmsec-tap", "deliver", "--config", str(config)), stdout=out, stderr=out)


def hold(minutes: float, per_second: int) -> dict[str, Any]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        front = stack.enter_context(clickhouse_front.running(folder / "clickhouse"))
        url, store = front.new_url(), folder / "store"
        migrate(url)
        writer = StoreWriter(create_store(store))
        config = configured(folder, store, url)
        memory: list[dict[str, float]] = []
        happened: list[str] = []
        with delivering(config, folder / "log") as process:
            begun = time.monotonic()
            ends = begun + minutes * 60
            # Away from 20 to 35 and from 55 to 70 hundredths of the time; the deliverer is killed at 45.
            plan = [(0.2, "away"), (0.35, "back"), (0.45, "kill"), (0.55, "away"), (0.7, "back")]
            plan = sorted((begun + share * minutes * 60, what) for share, what in plan)
            sent, minute = 0, begun
            source = made(1 << 62, lambda _: time.time_ns())
            while (now := time.monotonic()) < ends:
                for _ in range(int((now - begun) * per_second) - sent):
                    writer.add(next(source))
                    sent += 1
                writer.tick(time.monotonic_ns())
                while plan and plan[0][0] <= now:
                    what = plan.pop(0)[1]
                    happened.append(f"{what} at {now - begun:.0f} s")
                    if what in ("away", "back"):
                        front.fail("refuse" if what == "away" else "none", 1 << 30 if what == "away" else 0)
                    else:
                        process[0].kill()
                        process[0].wait()
                        process[0] = started(config, folder / "log")
                if now >= minute:
                    minute += 60
                    memory.append({"writer_mb": resident_mb(os.getpid()), "deliverer_mb": resident_mb(process[0].pid)})
                time.sleep(0.02)
            writer.close()
            deadline = time.monotonic() + 120
            with open_session(url) as session:
                while (there := counted(session)) < sent and time.monotonic() < deadline:
                    time.sleep(2)
        verified = subprocess.run(
            command("llmsec-analyze", "db", "verify", "--store", str(store), "--to", url), capture_output=True, text=True, check=False
        )
        return {
            "minutes": minutes, "sent": sent, "stored": writer.stats.stored, "in_clickhouse": there, "happened": happened,
            "memory": memory, "verify": (verified.returncode, verified.stdout[-600:] + verified.stderr[-300:]),
        }  # fmt: skip


def main() -> None:
    words = sys.argv[1:] or [""]
    if words[0] == "write":
        result = write(int(words[1]) if len(words) > 1 else 100_000)
    elif words[0] == "ask":
        result = ask([int(word) for word in words[1:]] or [100_000, 1_000_000])
    elif words[0] == "hold":
        result = hold(float(words[1]) if len(words) > 1 else 10, int(words[2]) if len(words) > 2 else 2000)
    else:
        raise SystemExit(__doc__)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
