"""Both loaders, one scripted exchange, the same records; and classic probes where uprobe_multi is not used."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from llmsec_tap.capture.ebpf import events
from llmsec_tap.capture.ebpf.core import CoreLoader
from llmsec_tap.capture.ebpf.loader_api import KernelSettings, KernelTotals, Loader
from llmsec_tap.capture.ebpf.ring import Ring
from llmsec_tap.capture.probes.targets import TargetFinder
from llmsec_tap.errors import KernelError
from support.https_calls import Caller
from support.tls_front import Certificate, free_port, python_server

ECHO = Path(__file__).parents[1] / "support/tls_echo.py"


def scripted(
    loader: Loader, pid: int, port: int, certificate: Certificate, *, fast: bool = True
) -> tuple[list[tuple[Any, ...]], KernelTotals]:
    """What the loader tells of one fixed conversation: everything of each record but times, pointers and ports."""
    try:
        loader.watch(pid)
        for plan in TargetFinder(fast=fast).look(pid).plans:
            loader.attach(plan, pid)
        loader.consume()
        caller = Caller(port, certificate.cert)
        caller.ask("one")
        caller.ask("two" * 50_000, stream=True)
        caller.close()
        time.sleep(0.2)
        seen = []
        connections: dict[tuple[int, int], int] = {}
        while records := loader.consume():
            for record in records:
                event = events.decode(record)
                if event.type not in (events.DATA, events.BIND, events.CLOSE):
                    continue
                number = connections.setdefault((event.connection, event.epoch_ns), len(connections))
                addresses = events.addresses(event)
                assert addresses == (f"127.0.0.1:{port}", f"127.0.0.1:{caller.port}")
                seen.append(
                    (
                        number,
                        event.type,
                        event.direction,
                        event.flags,
                        event.offset,
                        event.call_length,
                        event.lost,
                        event.pid,
                        event.comm,
                        events.payload(record, event),
                    )
                )
        return seen, loader.totals()
    finally:
        loader.close()


@pytest.fixture
def reference(certificate: Certificate) -> Any:
    port = free_port()
    with python_server(ECHO, "threads", str(port), str(certificate.cert), str(certificate.key), port=port) as process:
        yield process.pid, port, *scripted(CoreLoader(KernelSettings(only_targets=True)), process.pid, port, certificate)


def test_the_conversation_is_whole(reference: Any) -> None:
    _, _, seen, totals = reference
    assert totals.lost_records == totals.unreadable_calls == totals.cut_calls == 0
    assert sum(len(row[-1]) for row in seen if row[1] == events.DATA) == totals.bytes
    assert seen[-1][1] == events.CLOSE


def test_exported_functions_tell_the_same_as_internal_ones(reference: Any, certificate: Certificate) -> None:
    pid, port, seen, totals = reference
    assert scripted(CoreLoader(KernelSettings(only_targets=True)), pid, port, certificate, fast=False) == (seen, totals)


def test_perf_events_tell_the_same(reference: Any, certificate: Certificate) -> None:
    pid, port, seen, totals = reference
    assert scripted(CoreLoader(KernelSettings(only_targets=True), multi=False), pid, port, certificate) == (seen, totals)


def test_following_sockets_by_system_calls_tells_the_same(reference: Any, certificate: Certificate) -> None:
    """As on kernels before 6.3, which have no tracepoints of sockets."""
    pid, port, seen, totals = reference
    assert scripted(CoreLoader(KernelSettings(only_targets=True), by_sockets=False), pid, port, certificate) == (seen, totals)


def test_a_connection_is_in_one_ring_and_connections_take_them_in_turn(reference: Any, certificate: Certificate) -> None:
    pid, port, _, _ = reference
    in_turn(CoreLoader(KernelSettings(only_targets=True, ring_bytes=1 << 20, rings=2)), pid, port, certificate)


def in_turn(loader: Loader, pid: int, port: int, certificate: Certificate) -> None:
    rings = [Ring(loader.ring_descriptor(number), loader.ring_bytes) for number in range(2)]
    try:
        loader.watch(pid)
        for plan in TargetFinder().look(pid).plans:
            loader.attach(plan, pid)
        callers = [Caller(port, certificate.cert) for _ in range(16)]
        for word in ("one", "two"):
            for caller in callers:
                caller.ask(word)
        for caller in callers:
            caller.close()
        time.sleep(0.3)
        found: list[dict[int, list[events.Event]]] = []  # of each ring, by the client's port
        for ring in rings:
            by_port: dict[int, list[events.Event]] = {}
            while records := ring.consume():
                for event in map(events.decode, records):
                    by_port.setdefault(event.remote_port, []).append(event)
            found.append(by_port)
        assert set(found[0]) | set(found[1]) == {caller.port for caller in callers}
        assert not set(found[0]) & set(found[1]), "a connection in two rings"
        assert min(len(found[0]), len(found[1])) >= 6, "not in turn"
        for by_port in found:
            for of_one in by_port.values():
                assert of_one[-1].type == events.CLOSE
                for direction in (events.READ, events.WRITE):
                    offsets = [event.offset for event in of_one if event.type == events.DATA and event.direction == direction]
                    assert len(offsets) >= 2
                    assert offsets == sorted(offsets)
        assert loader.totals().lost_records == 0
    finally:
        for ring in rings:
            ring.close()
        loader.close()


def test_the_end_of_a_process_is_in_every_ring(certificate: Certificate) -> None:
    loader = CoreLoader(KernelSettings(only_targets=True, ring_bytes=1 << 16, rings=3))
    rings = [Ring(loader.ring_descriptor(number), loader.ring_bytes) for number in range(3)]
    try:
        with subprocess.Popen(["sleep", "60"]) as process:
            loader.watch(process.pid)
            process.kill()
        for ring in rings:
            assert [(event.type, event.pid) for event in map(events.decode, ring.consume())] == [(events.EXIT, process.pid)]
    finally:
        for ring in rings:
            ring.close()
        loader.close()


def test_bcc_tells_the_same(reference: Any, certificate: Certificate) -> None:
    from llmsec_tap.capture.ebpf.bcc import BCCLoader

    pid, port, seen, totals = reference
    try:
        loader = BCCLoader(KernelSettings(only_targets=True))
    except KernelError as fault:
        if "not installed" in str(fault) or "headers" in str(fault):
            pytest.skip(f"{fault} ({fault.hint})")
        raise
    # Beside the other loader's probes: the kernel refuses two at one place that do not say the same of a counter of users.
    beside = CoreLoader(KernelSettings(only_targets=True, ring_bytes=1 << 16))
    try:
        for plan in TargetFinder().look(pid).plans:
            beside.attach(plan, pid)
        assert scripted(loader, pid, port, certificate) == (seen, totals)
    finally:
        beside.close()
    assert "bcc" in sys.modules
    in_turn(BCCLoader(KernelSettings(only_targets=True, ring_bytes=1 << 20, rings=2)), pid, port, certificate)
