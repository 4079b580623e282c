"""Delivery as a process of its own, and the comparison of both ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmsec_agent import deliver
from llmsec_agent.config import load_config
from llmsec_agent.delivery_metrics import DeliveryMetrics
from llmsec_tap.counters import Snapshot
from llmsec_tap.errors import ConfigError
from llmsec_tap.storage import StoreWriter, open_store
from llmsec_tap.storage.clickhouse.address import parse
from llmsec_tap.storage.clickhouse.client import connect
from llmsec_tap.storage.clickhouse.migrations import migrate
from llmsec_tap.storage.clickhouse.tables import Layout
from support.exchanges import full_exchange

ENV = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
OWNER = 64_123  # nobody has it
PARENT = """
import signal, sys, time
from llmsec_agent.config import load_config
from llmsec_agent.deliver import Deliverer, plan_of
from llmsec_agent.journals import journal
from llmsec_agent.kept import end
storage = load_config(sys.argv[1], print).storage
child = Deliverer.begin(plan_of(storage.path, storage.clickhouse), journal())
print(child.pid, flush=True)
for line in sys.stdin:
    if line.strip() == "reload":
        storage = load_config(sys.argv[1], print).storage
        print(list(child.change(plan_of(storage.path, storage.clickhouse))), flush=True)
    if line.strip() == "end":
        begun = time.monotonic()
        end([child])
        print(time.monotonic() - begun, flush=True)
time.sleep(120)
"""


@pytest.fixture
def database(clickhouse):
    address = parse(clickhouse.new_url())
    client, _ = connect(address, database=False)
    migrate(client, Layout(address.database))
    client.close()
    return address


@pytest.fixture
def config(tmp_path, database):
    node = database.nodes[0]
    path = tmp_path / "c.yaml"
    path.write_text(
        f"storage:\n  path: {tmp_path}/store\n"
        f"  clickhouse: {{nodes: ['{node.host}:{node.port}'], database: {database.database}, flush_interval: 100ms}}\n"
    )
    return path


def fill(root, *numbers):
    """As a capture leaves it: the decoder's user keeps the folder, and a part is there at once."""
    made = root.with_name(f"made-{numbers[0]}")
    with StoreWriter.open(made) as writer:
        for number in numbers:
            writer.add(full_exchange(number))
    if os.geteuid() == 0:
        for path in (made, *made.rglob("*")):
            os.chown(path, OWNER, OWNER)
    if not root.exists():
        made.rename(root)
        return
    for part in made.glob("exchanges/day=*/part-*.parquet"):
        part.rename(root / part.relative_to(made))


def count(database):
    client, _ = connect(database)
    try:
        return client.query("SELECT count() FROM exchanges").result_rows[0][0]
    finally:
        client.close()


def wait_for(condition, seconds=25):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert condition()


@contextlib.contextmanager
def parent_of(config):
    """A process that keeps a deliverer, as the agent does, and the first of the deliverer's two processes."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(config)], env=ENV, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    with parent:
        try:
            yield parent, int(parent.stdout.readline())
        finally:
            parent.send_signal(signal.SIGKILL)


def child_of(pid):
    """The second process, which the first starts."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if children and not is_gone(int(children[0])):
            return int(children[0])
        time.sleep(0.05)
    raise AssertionError(f"{pid} has no child")


def samples(root):
    return Snapshot([DeliveryMetrics(open_store(root)).samples])


def is_gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_the_child_waits_for_the_folder_delivers_without_capabilities_and_ends_with_its_parent(tmp_path, config, database):
    with parent_of(config) as (parent, pid):
        try:
            fill(tmp_path / "store", 1, 2)
            wait_for(lambda: count(database) == 2)
            worker = child_of(pid)
            for process in (pid, worker):
                status = dict(line.split(":\t", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines() if ":\t" in line)
                assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
                assert status["NoNewPrivs"] == "1"
                assert os.geteuid() or status["Uid"].split()[1] == str(OWNER)
        finally:
            parent.send_signal(signal.SIGKILL)
    wait_for(lambda: is_gone(pid) and is_gone(worker), 15)


def test_a_kill_of_the_worker_costs_a_start_and_loses_and_doubles_nothing(tmp_path, config, database):
    fill(tmp_path / "store", 0)
    with parent_of(config) as (_, pid):
        wait_for(lambda: count(database) == 1)
        for number in range(1, 40):
            fill(tmp_path / "store", number)
            if number in (10, 25):
                worker = child_of(pid)
                os.kill(worker, signal.SIGKILL)
        wait_for(lambda: count(database) == 40, 60)
        wait_for(lambda: samples(tmp_path / "store").get("llmsec_delivery_restarts_total") == 2)
        found = samples(tmp_path / "store")
        assert found.get("llmsec_delivery_up") == 1
        assert (found.get("llmsec_delivery_waiting_rows"), found.get("llmsec_delivery_lost_rows_total")) == (0, 0)
        assert not is_gone(pid)
    client, _ = connect(database)
    assert client.query("SELECT count(), uniqExact(exchange_id) FROM exchanges").result_rows == [(40, 40)]
    client.close()


def test_another_plan_is_gone_over_to_and_the_end_takes_little_time(tmp_path, config, database, clickhouse):
    fill(tmp_path / "store", 1)
    with parent_of(config) as (parent, pid):
        wait_for(lambda: count(database) == 1)
        other = parse(clickhouse.new_url())
        client, _ = connect(other, database=False)
        migrate(client, Layout(other.database))
        client.close()
        assert parent.stdin is not None
        assert parent.stdout is not None

        def say(word):
            parent.stdin.write(word + "\n")
            parent.stdin.flush()
            return parent.stdout.readline().strip()

        worker = child_of(pid)
        assert say("reload") == "[]"
        text = config.read_text()
        config.write_text(
            text.replace(database.database, other.database).replace("flush_interval", "ttl: {content_days: 3}, flush_interval")
        )
        assert "db migrate" in say("reload")
        wait_for(lambda: count(other) == 1)
        assert child_of(pid) != worker
        os.kill(child_of(pid), signal.SIGSTOP)  # as one that waits for a slow server
        assert float(say("end")) < 4
        wait_for(lambda: is_gone(pid), 5)


def test_signals_to_all_processes_of_a_service_leave_the_end_to_the_agent(tmp_path, config, database):
    fill(tmp_path / "store", 1)
    with parent_of(config) as (_, pid):
        wait_for(lambda: count(database) == 1)
        for process in (child_of(pid), pid):
            os.kill(process, signal.SIGTERM)
        fill(tmp_path / "store", 2)
        wait_for(lambda: count(database) == 2)
        assert not is_gone(pid)


def test_verify_compares_both_ends(tmp_path, config, database):
    root = tmp_path / "store"
    fill(root, 1, 2, 3)

    def run(program, *arguments):
        command = f"from llmsec_agent.cli.{program}.app import main; main()"
        return subprocess.run(
            [sys.executable, "-c", command, *arguments, "--config", str(config)],
            env=ENV,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    before = run("analyze", "db", "verify")
    assert before.returncode == 4
    assert "3 exchanges of the folder are not in the database" in before.stderr
    assert run("tap", "deliver", "--once").returncode == 0
    after = run("analyze", "db", "verify")
    assert after.returncode == 0, after.stderr
    assert "3 exchanges, of which 3 are in" in after.stderr
    client, _ = connect(database)
    client.command(f"ALTER TABLE exchange_rows DELETE WHERE exchange_id = '{full_exchange(2).exchange_id}' SETTINGS mutations_sync = 1")
    client.close()
    lost = run("analyze", "db", "verify")
    assert lost.returncode == 4
    assert full_exchange(2).exchange_id in lost.stderr


def test_a_missing_library_is_one_line_before_anything_is_started(config, monkeypatch):
    monkeypatch.setattr(deliver, "_LIBRARIES", ("clickhouse_connect", "no_such_library"))
    storage = load_config(str(config), print).storage
    with pytest.raises(ConfigError, match="needs its libraries") as raised:
        deliver.plan_of(storage.path, storage.clickhouse)
    assert "[clickhouse]" in raised.value.hint
