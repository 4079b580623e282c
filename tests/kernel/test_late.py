"""Programs that start under the tap with a library that no process had before."""

from __future__ import annotations

import shutil
from pathlib import Path

from llmsec_tap.capture.probes.selection import Selection
from llmsec_tap.journal import Event, Journal
from support.observing import TLSObjects, observing

LIBRARY = Path("/usr/lib/x86_64-linux-gnu/libssl.so.3")
COMM = "latecomer"


def test_how_late_the_probes_came_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    shutil.copy(LIBRARY, folder)
    said: list[Event] = []
    with observing(Selection(comms=(COMM,)), Journal(said.append)) as tap:
        for is_new in (True, False):
            with TLSObjects(tmp_path, COMM, folder) as caller:
                pid = caller.process.pid
                tap.until(
                    lambda pid=pid: (
                        any(plan.shown == str(folder / LIBRARY.name) for plan in tap.observed._attachments.plans)
                        and pid in tap.observed._attachments.pids
                    ),
                    "it was not probed",
                )
                told = [event.facts for event in said if event.name == "attached_late"]
                late_ms = tap.observed.late_ms(pid)
                assert (late_ms is not None) == is_new, "the second one found its library probed"
                if is_new:
                    assert told == [{"pid": pid, "file": str(folder / LIBRARY.name), "late_ms": late_ms}]
                    assert 0 <= late_ms < 5000
