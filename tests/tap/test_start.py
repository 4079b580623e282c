"""A capture places its probes before it loads what decodes and stores: the order decides how soon it sees anything."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from support.agent import ROOT, environment

# What a capture needs later, and what would stand between the command and its probes: 0.1 s and more each.
LATER = {
    *("msgspec", "duckdb", "polars", "pyarrow", "numpy", "rich", "regex", "yaml", "asyncio", "tomllib", "ssl"),
    *(
        "llmsec_tap.model",
        "llmsec_tap.pipeline",
        "llmsec_tap.dialects",
        "llmsec_tap.identity",
        "llmsec_tap.exchange",
        "llmsec_tap.wire",
        "llmsec_tap.storage",
    ),
    "llmsec_analyzer",
}


def test_probes_stand_before_anything_heavy_is_imported() -> None:
    """A process that does not exist ends the command where its probes would be placed; what it imported until then is all it needs."""
    # Without the decoder's process, which loads the rest beside this one.
    code = "import os, sys; os.fork = lambda: 4194302; sys.argv[0] = 'llmsec-tap'; from llmsec_agent.cli.tap.app import main; main()"
    command = [sys.executable, "-X", "importtime", "-c", code, "capture", "--pid", "4194303", "--backend", "core"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    imported = set(re.findall(r"^import time:.*\|\s+(\S+)$", done.stderr, re.MULTILINE))
    assert "llmsec_tap.capture.ebpf.core" in imported
    assert not imported & LATER


def test_the_record_types_are_there_for_those_who_ask() -> None:
    code = "import llmsec_tap, sys; assert 'msgspec' not in sys.modules; llmsec_tap.Exchange, llmsec_tap.Process, llmsec_tap.Usage; llmsec_tap.nothing"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    assert "module 'llmsec_tap' has no attribute 'nothing'" in done.stderr


def test_storing_loads_no_library_that_only_others_need() -> None:
    """Arrow loads pandas for arrays of Python's objects, in an environment that has it: a quarter of a second, and 50 MB of every tap."""
    code = (
        "import sys, tempfile; from llmsec_tap.storage import StoreWriter; from llmsec_tap.storage.taps import Beat, write_beat;"
        "from support.exchanges import full_exchange; folder = tempfile.mkdtemp(); writer = StoreWriter.open(folder);"
        "writer.add(full_exchange(1)); writer.flush(); write_beat(writer.store, Beat(node='n', pid=1, version='1', started_ns=1, heartbeat_ns=2)); writer.close();"
        "assert 'pyarrow' in sys.modules and 'pandas' not in sys.modules, 'pandas'"
    )
    path = os.pathsep.join((environment()["PYTHONPATH"], str(ROOT / "tests")))
    done = subprocess.run(
        [sys.executable, "-c", code], env={**environment(), "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
