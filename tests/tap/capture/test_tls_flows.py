"""From records to exchanges, without a kernel: order, loss, reuse, late sockets, and the queue in between."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from llmsec_tap import limits
from llmsec_tap.capture.ebpf import events
from llmsec_tap.capture.ebpf.loader_api import ConnectionLoss
from llmsec_tap.capture.files.pcapng import FlowWriter, PcapngWriter
from llmsec_tap.capture.host.process import Facts, ProcessTable
from llmsec_tap.capture.live.flows import TLSFlows
from llmsec_tap.capture.live.queue import BatchQueue
from llmsec_tap.clock import Clock
from llmsec_tap.identity.credentials import fingerprinter
from llmsec_tap.model import Exchange
from llmsec_tap.pipeline import Pipeline
from support.http2 import HELLO, SERVER_HELLO, Side
from support.http2 import request as http2_request
from support.http2 import response as http2_response
from support.replay import KEY, replay

BODY = b'{"model":"m","messages":[{"role":"user","content":"%s"}]}'
ANSWER = b'{"id":"c","object":"chat.completion","model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"%s"},"finish_reason":"stop"}]}'


def record(kind: int = events.DATA, payload: bytes = b"", **fields: Any) -> bytes:
    values: dict[str, Any] = dict.fromkeys(events.Event._fields, 0) | {
        "version": events.VERSION,
        "type": kind,
        "length": len(payload),
        "call_length": len(payload),
        "connection": 0x1000,
        "epoch_ns": 1,
        "pid": 1 << 30,
        "inode": 5,
        "family": events.AF_INET,
        "local": bytes([10, 0, 0, 1]) + bytes(12),
        "remote": bytes([10, 0, 0, 2]) + bytes(12),
        "local_port": 8443,
        "remote_port": 50000,
        "comm": b"server",
    }
    return events.HEADER.pack(*(values | fields).values()) + payload


class Tap:
    def __init__(self, recorder: FlowWriter | None = None, facts: Facts | None = None) -> None:
        self.exchanges: list[Exchange] = []
        self.pipeline = Pipeline(self.exchanges.append, fingerprinter(KEY), shield=False)
        self.now = 1_000
        self.wall = 1_700_000_000_000_000_000
        clock = Clock(lambda: self.now, lambda: self.wall + self.now)
        self.flows = TLSFlows(
            self.pipeline.open_flow, ProcessTable(facts=(lambda _pid: facts) if facts is not None else None), clock, recorder
        )
        self.counts = self.flows.counts["tls"]
        self.offsets: dict[tuple[int, int, int], int] = {}

    def say(self, direction: int, data: bytes, *, lose: bool = False, **fields: Any) -> None:
        key = (fields.get("connection", 0x1000), fields.get("epoch_ns", 1), direction)
        offset = self.offsets.get(key, 0)
        self.offsets[key] = offset + len(data)
        self.now += 1_000_000
        if not lose:
            self.feed(record(payload=data, direction=direction, offset=offset, ts_ns=self.now, **fields))

    def feed(self, raw: bytes) -> None:
        self.flows.feed(raw, events.decode(raw))

    def end(self, **fields: Any) -> None:
        key = fields.get("connection", 0x1000), fields.get("epoch_ns", 1)
        final = struct.pack("=QQ", *(self.offsets.get((*key, direction), 0) for direction in (events.READ, events.WRITE)))
        self.feed(record(events.CLOSE, final, ts_ns=self.now, **fields))


def request(text: bytes) -> bytes:
    body = BODY % text
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    )


def answer(text: bytes) -> bytes:
    body = ANSWER % text
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body


def anomalies(exchange: Exchange) -> set[str]:
    return {anomaly.name for anomaly in exchange.anomalies}


def test_the_side_is_decided_by_who_asks() -> None:
    server, client = Tap(), Tap()
    for tap, asks in ((server, events.READ), (client, events.WRITE)):
        tap.say(asks, request(b"hi"))
        tap.say(1 - asks, answer(b"hello"))
        tap.end()
    (one,), (two,) = server.exchanges, client.exchanges
    assert (one.client, one.server) == ("10.0.0.2:50000", "10.0.0.1:8443")
    assert (two.client, two.server) == ("10.0.0.1:8443", "10.0.0.2:50000")
    for exchange in (one, two):
        assert (exchange.input_text, exchange.output_text, exchange.completeness) == ("hi", "hello", "complete")
        assert exchange.process is not None
        assert exchange.process.comm == "server"
        assert exchange.anomalies == []


def test_a_plain_socket_is_a_connection_of_its_own_kind() -> None:
    tap, kinds = Tap(), []
    opener = tap.flows._opener
    tap.flows._opener = lambda facts: (kinds.append(facts.kind), opener(facts))[1]
    for connection in (0x1000, events.PLAIN_SOCKET | 0x1000):
        tap.say(events.READ, request(b"hi"), connection=connection)
        tap.say(events.WRITE, answer(b"hello"), connection=connection)
    assert kinds == ["tls", "plain"]
    for counts in tap.flows.counts.values():
        assert (counts.opened, counts.open, counts.bytes) == (1, 1, len(request(b"hi") + answer(b"hello")))
    tap.flows.close()
    assert len(tap.exchanges) == 2


def test_bytes_that_never_stood_in_memory_are_missing_at_their_place() -> None:
    tap = Tap()
    tap.say(events.READ, request(b"hi"))
    whole = answer(b"hello")
    head = whole[: whole.index(b"\r\n\r\n") + 4]
    tap.say(events.WRITE, head)
    missing = len(whole) - len(head)
    tap.now += 1
    tap.feed(record(ts_ns=tap.now, direction=events.WRITE, offset=len(head), call_length=missing, flags=events.UNREADABLE, length=0))
    tap.offsets[0x1000, 1, events.WRITE] += missing
    tap.say(events.READ, request(b"again"))
    tap.say(events.WRITE, answer(b"whole"))
    tap.end()
    first, second = tap.exchanges
    assert (first.input_text, first.output_text, first.completeness) == ("hi", None, "gapped")
    assert "ebpf_unreadable" in anomalies(first)
    assert (second.input_text, second.output_text, second.completeness) == ("again", "whole", "complete")
    assert tap.counts.gap_bytes == missing


@pytest.mark.parametrize("lost", [events.READ, events.WRITE])
def test_a_lost_record_makes_the_exchange_gapped(lost: int) -> None:
    tap = Tap()
    asked, told = request(b"a" * 400), answer(b"b" * 400)
    for direction, data in ((events.READ, asked), (events.WRITE, told)):
        for at in range(0, len(data), 200):
            tap.say(direction, data[at : at + 200], lose=direction == lost and at == 200, lost=1 if at > 200 and direction == lost else 0)
    tap.end()
    (exchange,) = tap.exchanges
    assert exchange.completeness == "gapped"
    assert "ebpf_dropped" in anomalies(exchange)
    assert (tap.counts.gaps, tap.counts.gap_bytes) == (1, 200)


def test_a_loss_at_the_very_end_is_told_by_the_close() -> None:
    tap = Tap()
    data = answer(b"b" * 400)
    tap.say(events.READ, request(b"a"))
    tap.say(events.WRITE, data[:300])
    tap.say(events.WRITE, data[300:], lose=True)
    tap.end(lost=1)
    (exchange,) = tap.exchanges
    assert exchange.completeness == "gapped"


def test_a_loss_on_a_connection_that_stays_silent_is_told_by_the_kernels_table() -> None:
    tap = Tap()
    data = answer(b"b" * 400)
    tap.say(events.READ, request(b"a"))
    tap.say(events.WRITE, data[:300])
    tap.flows.lost([ConnectionLoss(1 << 30, 0x1000, 1, 1, len(request(b"a")), len(data))])
    tap.flows.lost([ConnectionLoss(1 << 30, 0x1000, 1, 1, len(request(b"a")), len(data))])
    tap.flows.close()
    (exchange,) = tap.exchanges
    assert exchange.completeness == "gapped"
    assert tap.counts.gaps == 1


def test_a_call_beyond_the_limit_is_cut_and_said_so() -> None:
    tap = Tap()
    tap.say(events.READ, request(b"a"))
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100000000\r\n\r\n"
    tap.say(events.WRITE, head, flags=events.CUT, call_length=events.MAX_CALL_BYTES + 500)
    tap.flows.close()
    (exchange,) = tap.exchanges
    assert "ebpf_cut" in anomalies(exchange)
    assert tap.counts.gap_bytes == 500


def test_one_object_used_twice_is_two_connections() -> None:
    tap = Tap()
    for epoch, user in ((1, b"alice"), (2, b"bob")):
        tap.say(events.READ, request(user), epoch_ns=epoch)
    tap.say(events.WRITE, answer(b"for bob"), epoch_ns=2)
    tap.end(epoch_ns=2)
    alice, bob = tap.exchanges
    assert (alice.input_text, alice.output_text, alice.completeness) == ("alice", None, "aborted")
    assert (bob.input_text, bob.output_text, bob.completeness) == ("bob", "for bob", "complete")


def test_a_connection_waits_for_its_socket() -> None:
    tap = Tap()
    tap.say(events.WRITE, request(b"hi"), inode=0)
    assert tap.counts.opened == 0
    tap.feed(record(events.BIND, ts_ns=tap.now))
    tap.say(events.READ, answer(b"hello"))
    tap.end()
    (exchange,) = tap.exchanges
    assert exchange.client == "10.0.0.1:8443"
    assert exchange.anomalies == []


def test_a_socket_that_is_never_told_leaves_the_addresses_unknown() -> None:
    tap = Tap()
    tap.say(events.WRITE, request(b"hi"), inode=0)
    tap.now += limits.SOCKET_WAIT_NS
    tap.flows.tick()
    tap.say(events.READ, answer(b"hello"), inode=0)
    tap.end(inode=0)
    (exchange,) = tap.exchanges
    assert (exchange.client, exchange.server, exchange.output_text) == ("0.0.0.0:0", "0.0.0.0:0", "hello")
    assert anomalies(exchange) == {"ebpf_no_socket"}


@pytest.mark.parametrize(("flags", "late_ms", "is_marked"), [(0, 40, True), (0, None, False), (events.FRESH, 40, False)])
def test_what_the_tap_came_too_late_for_is_marked_once(flags: int, late_ms: int | None, is_marked: bool) -> None:
    """On the first connection that began unseen, and not on one whose beginning was seen."""
    tap = Tap(facts=Facts("server", None, None, late_ms))
    for number in (1, 2):
        tap.say(events.WRITE, request(b"hi"), epoch_ns=number, flags=flags)
        tap.say(events.READ, answer(b"hello"), epoch_ns=number, flags=flags)
        tap.end(epoch_ns=number)
    first, second = tap.exchanges
    assert anomalies(first) == ({"tap_attached_late"} if is_marked else set())
    assert anomalies(second) == set()


def test_joining_in_the_middle() -> None:
    tap = Tap()
    tap.say(events.WRITE, b'me":"rest of an answer"}')
    tap.say(events.READ, request(b"next"))
    tap.say(events.WRITE, answer(b"whole"))
    tap.end()
    assert [exchange.output_text for exchange in tap.exchanges if exchange.completeness == "complete"] == ["whole"]


def test_another_protocol_is_named() -> None:
    tap = Tap()
    tap.say(events.READ, b"\x16\x03\x01\x02\x00\x01", flags=events.FRESH)
    tap.say(events.WRITE, bytes(100), flags=events.FRESH)
    tap.end()
    assert [exchange.is_connection for exchange in tap.exchanges] == [True]
    assert dict(tap.pipeline.protocols) == {"tls": 1}


@pytest.mark.parametrize("server_first", [False, True])
def test_http2_is_read_whoever_speaks_first(*, server_first: bool) -> None:
    tap, client, server = Tap(), Side(), Side()
    call, whole = request(b"hi").partition(b"\r\n\r\n")[2], answer(b"whole").partition(b"\r\n\r\n")[2]
    hellos = [(events.READ, HELLO), (events.WRITE, SERVER_HELLO)]
    for direction, data in reversed(hellos) if server_first else hellos:
        tap.say(direction, data)
    tap.say(events.READ, client.headers(1, http2_request()) + client.data(1, call, ends=True))
    tap.say(events.WRITE, server.headers(1, http2_response()) + server.data(1, whole, ends=True))
    tap.end()
    assert [(e.input_text, e.output_text, e.http_version, e.completeness) for e in tap.exchanges] == [("hi", "whole", "2", "complete")]


def test_the_end_of_a_process_closes_its_connections() -> None:
    tap = Tap()
    tap.say(events.READ, request(b"hi"))
    tap.feed(record(events.EXIT, ts_ns=tap.now))
    assert tap.flows.open_connections == 0
    assert [exchange.completeness for exchange in tap.exchanges] == ["aborted"]


def test_the_quiet_ones_are_shed_first() -> None:
    tap = Tap()
    for connection in (1, 2, 3):
        tap.say(events.READ, request(b"%d" % connection), connection=connection)
    tap.say(events.WRITE, answer(b"still here"), connection=1)
    assert tap.flows.shed(2) == [(2, 1, 1 << 30), (3, 1, 1 << 30)]
    tap.end(connection=1)
    given_up = [exchange for exchange in tap.exchanges if "tap_overload" in anomalies(exchange)]
    assert sorted(exchange.input_text or "" for exchange in given_up) == ["2", "3"]


@pytest.mark.parametrize("ipv6", [False, True])
def test_written_files_replay_to_the_same_exchanges(tmp_path: Path, ipv6: bool) -> None:
    file = tmp_path / "out.pcapng"
    writer = PcapngWriter(str(file))
    tap = Tap(FlowWriter(writer))
    fields: dict[str, Any] = {"family": events.AF_INET6, "local": bytes(15) + b"\1", "remote": bytes(15) + b"\2"} if ipv6 else {}
    for number in range(3):
        tap.say(events.READ, request(b"q%d" % number), **fields)
        data = answer(b"z" * 150_000)
        tap.say(events.WRITE, data[:100], **fields)
        tap.say(events.WRITE, data[100:], **fields)
    tap.end(**fields)
    writer.close()
    replayed, pipeline = replay(file)
    for exchange in tap.exchanges:
        exchange.process, exchange.capture_kind = None, "file"
    assert len(replayed) == 3
    assert replayed == tap.exchanges
    assert pipeline.tcp.gaps == 0


def test_a_gap_is_a_gap_in_the_written_file_too(tmp_path: Path) -> None:
    file = tmp_path / "out.pcapng"
    writer = PcapngWriter(str(file))
    tap = Tap(FlowWriter(writer))
    data = answer(b"y" * 1000)
    tap.say(events.READ, request(b"q"))
    tap.say(events.WRITE, data[:400])
    tap.say(events.WRITE, data[400:500], lose=True)
    tap.say(events.WRITE, data[500:], lost=1)
    tap.end(lost=1)
    writer.close()
    (replayed,), pipeline = replay(file)
    assert replayed.completeness == "gapped"
    assert pipeline.tcp.gap_bytes == 100


# --- the queue --------------------------------------------------------------------------------------------------------


def drain(queue: BatchQueue) -> list[bytes]:
    out: list[bytes] = []
    while isinstance(item := queue.get(0), list):
        out += item
    return out


def test_the_queue_leaves_out_new_connections_first_then_all() -> None:
    queue = BatchQueue(max_bytes=10_000, shed_bytes=5_000)
    old = [record(payload=b"o" * 1000, connection=1) for _ in range(5)]
    queue.put(old)
    queue.put([record(payload=b"n" * 1000, connection=2)])
    queue.put([record(payload=b"o" * 1000, connection=1)])
    kept = drain(queue)
    assert [events.decode(raw).connection for raw in kept] == [1] * 6
    assert (queue.left_out_connections, queue.left_out_records, queue.left_out_bytes) == (1, 1, 1000)
    assert queue.left_out() == [(2, 1, 1 << 30)]
    assert queue.left_out() == []
    queue.put([record(payload=b"n", connection=2)])
    assert drain(queue) == [], "left out until it ends, although there is room again"
    queue.put([record(events.CLOSE, bytes(16), connection=2), record(payload=b"n", connection=2, epoch_ns=2)])
    assert len(drain(queue)) == 2
    for _ in range(20):
        queue.put([record(payload=b"o" * 1000, connection=1)])
    assert queue.bytes <= 10_000 + 1128
    assert queue.left_out_connections == 2


def test_the_memory_watch_stops_new_connections() -> None:
    queue = BatchQueue()
    queue.put([record(payload=b"1", connection=1)])
    queue.shed_all_new = True
    queue.put([record(payload=b"1", connection=1), record(payload=b"2", connection=2)])
    assert [events.decode(raw).connection for raw in drain(queue)] == [1, 1]


def test_blocks_of_packets_wait_for_room() -> None:
    queue = BatchQueue(max_bytes=1000)
    assert queue.put_call(lambda: None, 900)
    assert not queue.put_call(lambda: None, 900)
    assert callable(queue.get(0))
    assert queue.put_call(lambda: None, 900)


@pytest.mark.parametrize("step_s", [-86_400, -3, 3, 7_200, 10**9])
def test_a_wall_clock_that_is_set_closes_no_connection_and_moves_no_record(step_s: int) -> None:
    tap = Tap()
    tap.say(events.WRITE, request(b"hi"))
    began = tap.wall + tap.now
    tap.wall += step_s * 1_000_000_000
    tap.flows.tick()
    assert tap.flows.open_connections == 1
    tap.say(events.READ, answer(b"hello"))
    tap.end()
    (exchange,) = tap.exchanges
    assert exchange.completeness == "complete"
    assert exchange.started_ns == began
    assert exchange.ended_ns is not None
    assert 0 < exchange.ended_ns - began < 10_000_000


def test_a_machine_that_slept_closes_what_was_silent_for_too_long() -> None:
    tap = Tap()
    tap.say(events.WRITE, request(b"hi"))
    tap.now += limits.IDLE_TIMEOUT_NS  # the clock goes on while the machine sleeps
    tap.flows.tick()
    assert tap.flows.open_connections == 0
