"""kill -9 of a writer at random and at chosen points, with a reader polling meanwhile."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from llmsec_tap.storage import create_store

RANDOM_KILLS = 40
ROUNDS_PER_POINT = 3

# One process that has everything imported and forks a writer for each kill: a fork takes a millisecond, a start 300.
NURSERY = """
import os, random, signal, stat, sys, time
from pathlib import Path
import llmsec_tap.storage.parquet
from llmsec_tap.model import Exchange, Message, Part, Request, Response, AnomalyCount
from llmsec_tap.storage import StoreWriter, publish
from llmsec_tap.storage.store import create_store

root, seed = sys.argv[1], int(sys.argv[2])
chance = random.Random(seed)

def exchange(number):
    texts = [Part(type="text", content=f"{number} " * 50)]
    return Exchange(
        exchange_id=f"x{number}", client="a:1", server="b:2", started_ns=1_795_000_000_000_000_000 + number, input_text=str(number),
        request=Request(messages=[Message(role="user", parts=texts)] * 3),
        response=Response(messages=[Message(role="assistant", parts=texts)]),
        anomalies=[AnomalyCount(name="n", count=number + 1)],
    )

def write(first, acks):
    writer = StoreWriter(create_store(root))
    number = first
    while True:
        for _ in range(7):
            writer.add(exchange(number))
            number += 1
        writer.flush()
        os.write(acks, (number).to_bytes(8, "big"))

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def arm(point, countdown):
    def after(function, where):
        left = [countdown]
        def called(*arguments):
            if function is os.fsync and stat.S_ISDIR(os.fstat(arguments[0]).st_mode):
                return function(*arguments)  # the folder's, after the rename: its point is another
            left[0] -= 1
            if left[0]:
                return function(*arguments)
            if where == "half":
                os_write(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
            elif where == "after":
                function(*arguments)
            die()
        return called
    os_write = os.write
    if point == "half written":
        publish.os = Proxy(write=after(os.write, "half"))
    elif point == "before fsync":
        publish.os = Proxy(fsync=after(os.fsync, "before"))
    elif point == "before rename":
        publish.os = Proxy(fsync=after(os.fsync, "after"))
    elif point == "after rename":
        publish._sync_folder = after(publish._sync_folder, "before")

class Proxy:
    def __init__(self, **changed):
        self.__dict__.update(changed)
    def __getattr__(self, name):
        return getattr(os, name)

number = 0
for line in sys.stdin:
    point, _, countdown = line.strip().partition(":")
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        if point != "random":
            arm(point, int(countdown))
        write(number, send)
    os.close(send)
    if point == "random":
        time.sleep(float(countdown))
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    data = b""
    while chunk := os.read(receive, 65536):
        data += chunk
    os.close(receive)
    acked = int.from_bytes(data[-8:], "big") if data else number
    print(acked - number, flush=True)
    number = acked + 7  # what was published but not acknowledged is stored too
"""

# What every stored exchange must have with it.
WHOLE = """
    SELECT count(*), count(DISTINCT exchange_id),
        count(*) FILTER (len("request".messages) = 3 AND len("response".messages) = 1 AND anomalies[1].count = input_text::BIGINT + 1
                         AND "request".messages[3].parts[1].content = repeat(input_text || ' ', 50))
    FROM exchanges
"""


def test_no_kill_is_seen_by_a_reader(root, reader, record_property):
    seed = random.SystemRandom().randrange(2**32)
    chance = random.Random(seed)
    points = [f"random:{chance.uniform(0.005, 0.08):.4f}" for _ in range(RANDOM_KILLS)]
    points += [
        f"{point}:{chance.randint(1, 6)}"
        for point in ("half written", "before fsync", "before rename", "after rename")
        for _ in range(ROUNDS_PER_POINT)
    ]
    chance.shuffle(points)
    create_store(root)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    nursery = subprocess.Popen(
        [sys.executable, "-c", NURSERY, str(root), str(seed)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=env
    )
    assert nursery.stdin is not None
    assert nursery.stdout is not None
    acked = reads = last = 0
    killed_with_remains = 0
    try:
        for point in points:
            nursery.stdin.write(point.encode() + b"\n")
            os.set_blocking(nursery.stdout.fileno(), False)
            answer = b""
            while not answer.endswith(b"\n"):
                ((count, ids, whole),) = reader.rows(WHOLE)
                assert count == ids == whole, (seed, point)
                assert count >= last, (seed, point)
                last = count
                reads += 1
                answer += nursery.stdout.read() or b""
                assert nursery.poll() is None, seed
            acked += int(answer)
            killed_with_remains += bool(list(root.rglob(".*.tmp")))
    finally:
        nursery.stdin.close()
        nursery.wait()
        nursery.stdout.close()
    assert reader.count() >= acked > 0
    assert killed_with_remains >= 3 * ROUNDS_PER_POINT  # the chosen points do fall inside a write
    create_store(root)
    assert not list(root.rglob("*.tmp"))
    record_property("kills", len(points))
    record_property("reads", reads)
    print(f"{len(points)} kills, {reads} reads, {acked} rows acknowledged, {reader.count()} stored, {killed_with_remains} left remains")


@pytest.mark.parametrize("delay", [0.0, 0.3, 0.8, 1.2])
def test_a_killed_compaction_loses_and_doubles_nothing(root, reader, make_exchange, delay):
    from llmsec_tap.storage import StoreWriter
    from llmsec_tap.storage.compact import compact, compact_apart

    store = create_store(root)
    writer = StoreWriter(store, flush_rows=5)
    for number in range(200):
        writer.add(make_exchange(number))
    writer.flush()
    process = compact_apart(store, time.time_ns() + 10**12)
    time.sleep(delay)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert reader.rows("SELECT count(*), count(DISTINCT exchange_id) FROM exchanges") == [(200, 200)]
    compact(store, time.time_ns(), settled_ns=-(10**12), grace_ns=-(10**12))
    compact(store, time.time_ns(), settled_ns=-(10**12), grace_ns=-(10**12))
    assert reader.rows("SELECT count(*), count(DISTINCT exchange_id) FROM exchanges") == [(200, 200)]
    assert len(reader.parts()) <= 2
