"""Decoders of one tap: who starts when, whose turn it is at standard output, and what their counts are together."""

from __future__ import annotations

import os
import select
import time
import traceback
from collections.abc import Callable

from llmsec_agent.exposer import State, state_together
from llmsec_agent.metrics import CATALOGUE, together
from llmsec_agent.siblings import Sibling, Siblings
from llmsec_agent.sinks.standard_output import StandardOutput
from llmsec_tap.counters import Histogram, Sample
from llmsec_tap.model import Exchange


def forked(siblings: Siblings, number: int, run: Callable[[Sibling], object]) -> int:
    pid = os.fork()
    if not pid:
        code = 1
        try:
            code = 0 if run(siblings.sibling(number)) else 2
        except BaseException:  # noqa: BLE001 - said here, and the exit code is 1
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def code_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_the_others_go_on_when_the_first_lets_them() -> None:
    siblings = Siblings(3)
    waiting = [forked(siblings, number, Sibling.await_first) for number in (1, 2)]
    time.sleep(0.2)
    assert all(os.waitpid(pid, os.WNOHANG) == (0, 0) for pid in waiting)
    first = siblings.sibling(0)
    first.let_others_go()
    first.collect(0)
    assert [code_of(pid) for pid in waiting] == [0, 0]


def test_they_end_where_the_first_has_ended_before() -> None:
    siblings = Siblings(2)
    first = forked(siblings, 0, lambda _: True)
    second = forked(siblings, 1, lambda sibling: not sibling.await_first())
    siblings.close()
    assert [code_of(first), code_of(second)] == [0, 0]


def test_the_first_collects_what_the_others_hand_in_and_knows_who_did_not() -> None:
    siblings = Siblings(4)
    counts = [Sample("llmsec_gaps_total", 7, (("source", "tls"),))] * 20_000  # more than a socket holds

    def hand_in(sibling: Sibling) -> bool:
        sibling.hand_in(counts)
        return True

    pids = [forked(siblings, 1, hand_in), forked(siblings, 2, lambda _: True), forked(siblings, 3, lambda _: time.sleep(60))]
    first = siblings.sibling(0)
    begun = time.monotonic()
    assert first.collect(1.5) == [counts, None, None]
    assert time.monotonic() - begun < 5
    os.kill(pids[2], 9)
    assert [code_of(pid) for pid in pids] == [0, 0, -9]


def printing(letter: bytes) -> Callable[[Exchange], bytes]:
    return lambda _: letter


LINES, LENGTH = 60, 20_000


def test_lines_of_two_processes_stay_whole() -> None:
    """Longer than a pipe takes at once, so that without turns they mix nearly always."""
    siblings = Siblings(2)
    read, write = os.pipe()

    def print_lines(sibling: Sibling) -> bool:
        letter = b"ab"[sibling.number : sibling.number + 1]
        out = StandardOutput(printing(letter), header=None, on_reader_gone=lambda: None, descriptor=write, turn=sibling.output_turn)
        items = [letter * LENGTH + b"\n"] * LINES
        while items:
            del items[: out.write(items[:5])]
        return True

    pids = [forked(siblings, number, print_lines) for number in range(2)]
    siblings.close()
    os.close(write)
    with os.fdopen(read, "rb") as file:
        lines = file.read().split(b"\n")[:-1]
    assert [code_of(pid) for pid in pids] == [0, 0]
    assert len(lines) == 2 * LINES
    whole = [line for line in lines if line in (b"a" * LENGTH, b"b" * LENGTH)]
    assert len(whole) == 2 * LINES


def test_a_turn_is_kept_until_the_line_is_out_and_goes_with_its_process() -> None:
    siblings = Siblings(2)
    read, write = os.pipe()
    os.set_blocking(read, False)

    def begin_a_line(sibling: Sibling) -> bool:
        out = StandardOutput(printing(b"a"), header=None, on_reader_gone=lambda: None, descriptor=write, turn=sibling.output_turn)
        assert out.write([b"a" * 1_000_000]) == 0  # the pipe is full
        time.sleep(60)
        return True

    pid = forked(siblings, 0, begin_a_line)
    second = siblings.sibling(1)
    turn = second.output_turn
    assert turn is not None
    deadline = time.monotonic() + 10
    while not (taken := len(os.read(read, 10) if poll(read) else b"")):
        assert time.monotonic() < deadline
    assert taken
    assert not turn.take(0.1)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    assert turn.take(1.0)
    second.hand_in([])
    os.close(read)
    os.close(write)


def poll(descriptor: int) -> bool:
    return bool(select.select([descriptor], (), (), 0.1)[0])


def test_counts_of_several_are_one_number_each() -> None:
    histogram = Histogram((1.0,))
    histogram.observe(0.5)
    parts = [
        [
            Sample("llmsec_gaps_total", gaps, (("source", "tls"),)),
            Sample("llmsec_kernel_calls_total", 100),
            Sample("llmsec_sink_up", up, (("sink", "store"),)),
            Sample("llmsec_degradation_level", level),
            *histogram.samples("llmsec_request_duration_seconds"),
            *only,
        ]
        for gaps, up, level, only in (
            (1, 1, 0, ()),
            (2, 0, 2, ()),
            (3, 1, 1, (Sample("llmsec_findings_total", 4, (("severity", "low"),)),)),
        )
    ]
    assert {(name, labels): value for name, value, labels in together(parts)} == {
        ("llmsec_gaps_total", (("source", "tls"),)): 6,
        ("llmsec_kernel_calls_total", ()): 100,  # each decoder is told the same of the one kernel half
        ("llmsec_sink_up", (("sink", "store"),)): 0,
        ("llmsec_degradation_level", ()): 2,
        ("llmsec_request_duration_seconds_bucket", (("le", "1"),)): 3,
        ("llmsec_request_duration_seconds_bucket", (("le", "+Inf"),)): 3,
        ("llmsec_request_duration_seconds_sum", ()): 1.5,
        ("llmsec_request_duration_seconds_count", ()): 3,
        ("llmsec_findings_total", (("severity", "low"),)): 4,
    }
    assert together(parts[:1]) == parts[0]


def test_a_gauge_that_is_a_state_is_not_added_up() -> None:
    added = {name for name, metric in CATALOGUE.items() if metric.kind == "gauge" and metric.joined == "sum"}
    assert not {name for name in added if not name.endswith(("_bytes", "_exchanges", "_connections", "_keys", "_windows"))}


def test_a_tap_is_ready_when_all_are_and_says_which_is_not() -> None:
    good, bad = State(ready=True, healthy=True, reasons=[], samples=[]), State(ready=False, healthy=True, reasons=["stopping"], samples=[])
    assert state_together([good, good]) == good
    assert state_together([good, bad]) == State(ready=False, healthy=True, reasons=["decoder 1: stopping"], samples=[])
    assert state_together([bad]) is bad
