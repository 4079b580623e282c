"""Delivery as a process of its own, and the comparison of both ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmsec_tap.storage import StoreWriter
from llmsec_tap.storage.clickhouse.address import parse
from llmsec_tap.storage.clickhouse.client import connect
from llmsec_tap.storage.clickhouse.migrations import migrate
from llmsec_tap.storage.clickhouse.tables import Layout
from support.exchanges import full_exchange

ENV = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
OWNER = 64_123  # nobody has it
PARENT = """
import sys, time
from llmsec_agent.config import load_config
from llmsec_agent.deliver import Deliverer, plan_of
from llmsec_agent.journals import journal
storage = load_config(sys.argv[1], print).storage
child = Deliverer.start(plan_of(storage.path, storage.clickhouse), journal())
print(child.pid, flush=True)
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
    with StoreWriter.open(root) as writer:
        for number in numbers:
            writer.add(full_exchange(number))


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


def is_gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_the_child_waits_for_the_folder_delivers_without_capabilities_and_ends_with_its_parent(tmp_path, config, database):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(config)], env=ENV, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent:
        try:
            pid = int(parent.stdout.readline())
            fill(tmp_path / "made", 1, 2)
            if os.geteuid() == 0:  # as a capture leaves it: the decoder's user keeps the folder
                for path in (tmp_path / "made", *(tmp_path / "made").rglob("*")):
                    os.chown(path, OWNER, OWNER)
            (tmp_path / "made").rename(tmp_path / "store")
            wait_for(lambda: count(database) == 2)
            status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
            assert int(status["CapEff"], 16) == 0
            assert os.geteuid() or status["Uid"].split()[1] == str(OWNER)
        finally:
            parent.send_signal(signal.SIGKILL)
    wait_for(lambda: is_gone(pid), 15)


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
