"""What the live view knows, by tables: rates over a minute, requests that are out, the latest, bounds, hostile names."""

from __future__ import annotations

import msgspec
import pytest

from llmsec_agent.events import Ended as ToldEnd
from llmsec_agent.events import Event as Told
from llmsec_agent.events import Feed, to_line
from llmsec_agent.top.board import MAX_LATEST, Board, sorted_rates
from llmsec_agent.top.facts import AlertFacts, Deviated, Ended, ExchangeFacts, Lost, event_of
from llmsec_agent.top.texts import totals
from llmsec_agent.top.windows import MAX_NAMES, OTHERS, Sample, Windows
from llmsec_tap.errors import SourceError
from llmsec_tap.model import Usage
from llmsec_tap.visible import visible
from support.exchanges import a_finding, full_exchange
from support.hostile import HOSTILE

NOW = 1_795_000_000_000_000_000
SECOND = 1_000_000_000


def board() -> Board:
    return Board(NOW, monotonic=lambda: 0)


def test_a_minute_is_counted_and_then_forgotten() -> None:
    windows = Windows(NOW - 3600 * SECOND)
    for number in range(60):
        windows.add(
            "a",
            Sample(input_tokens=10, output_tokens=20, ttft_ms=float(number), is_error=number % 4 == 0, risk=number),
            NOW + number * SECOND,
        )
    (rates,) = windows.rates(NOW + 59 * SECOND)
    assert (rates.count, rates.requests, rates.input_tokens, rates.output_tokens) == (60, 1.0, 10.0, 20.0)
    assert (rates.ttft_p50_ms, rates.ttft_p95_ms, rates.error_share, rates.risk) == (29.0, 56.0, 0.25, 59)
    assert not list(windows.rates(NOW + 200 * SECOND))


def test_names_beyond_the_bound_count_as_others_and_idle_ones_make_room() -> None:
    windows = Windows(NOW)
    for number in range(MAX_NAMES + 50):
        windows.add(windows.name_of(f"n{number}", NOW), Sample(), NOW)
    rates = {one.name: one.count for one in windows.rates(NOW)}
    assert len(rates) == MAX_NAMES + 1
    assert rates[OTHERS] == 50
    later = NOW + 100 * SECOND
    assert windows.name_of("new", later) == "new"
    assert len(windows._steps) <= MAX_NAMES + 1


def test_times_are_bounded_and_still_give_quantiles() -> None:
    windows = Windows(NOW)
    for number in range(10_000):
        windows.add("a", Sample(ttft_ms=float(number % 100)), NOW)
    (rates,) = windows.rates(NOW)
    assert len(windows._steps["a"][0].times) <= 32
    assert rates.ttft_p50_ms is not None
    assert 20 <= rates.ttft_p50_ms <= 80


def test_an_exchange_is_open_from_its_request_to_its_end_and_findings_come_between() -> None:
    shown, exchange = board(), full_exchange(1)
    lines: list[Told] = []
    feed = Feed(lines.append, content=True)
    feed.started(exchange)
    feed.found(a_finding(exchange_id=exchange.exchange_id, at_output_token=7, severity="high"))
    for told in lines:
        shown.take(event_of(to_line(told)))
    (rates,) = shown.processes.rates(shown.now_ns)
    assert (rates.name, rates.open, rates.count) == ("python[4242] shop/web-1", 1, 0)
    assert [(line.kind, line.is_open, line.note) for line in shown.latest()] == [
        ("finding", False, "HIGH pii.email at token 7 a***@example.org"),
        ("exchange", True, "open"),
    ]
    at_ns = shown.now_ns + SECOND
    shown.take(event_of(to_line(ToldEnd(ts_ns=at_ns, exchange_id=exchange.exchange_id, exchange=exchange))))
    (rates,) = shown.processes.rates(shown.now_ns)
    assert (rates.open, rates.count, rates.error_share) == (0, 1, 1.0)
    assert shown.open == 0
    assert (shown.latest()[0].kind, shown.latest()[0].input_tokens, shown.latest()[0].risk) == ("exchange", "11", 17)
    assert shown.damaged == 1


def test_an_estimate_is_marked_and_losses_add_up() -> None:
    shown, exchange = board(), full_exchange(1, usage=Usage())
    shown.take(event_of(to_line(ToldEnd(ts_ns=NOW, exchange_id=exchange.exchange_id, exchange=exchange))))
    assert (shown.latest()[0].input_tokens, shown.latest()[0].output_tokens) == ("~21", "~22")
    for _ in range(2):
        shown.take(Lost(ts_ns=NOW, what="llmsec_kernel_lost_records_total", count=3))
    assert shown.lost == {"llmsec_kernel_lost_records_total": 6}


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_names_steer_nothing(hostile: str) -> None:
    shown = board()
    exchange = full_exchange(1, response_model=hostile, tenant=hostile, error_type=hostile)
    shown.take(event_of(to_line(ToldEnd(ts_ns=NOW, exchange_id="1", exchange=exchange))))
    (line,) = shown.latest()
    drawn = line.model + line.tenant + line.note + next(shown.models.rates(NOW)).name
    assert not any(ord(char) < 32 or 0x7F <= ord(char) < 0xA0 or (0x2000 < ord(char) <= 0x206F and char != "…") for char in drawn)


@pytest.mark.parametrize("hostile", [*HOSTILE, "A\x1b]0;PWNED\x07\x1b[31mB\u202eC" + "x" * 10_000])
def test_what_events_call_losses_deviations_and_alerts_steers_nothing(hostile: str) -> None:
    shown = board()
    shown.take(Lost(ts_ns=NOW, what=hostile, count=5))
    shown.take(Deviated(ts_ns=NOW, kind=hostile, severity="high", exchange_id="x", subject=hostile))
    shown.take(Deviated(ts_ns=NOW, kind="kind", severity="high", exchange_id="x", explanation=hostile))
    shown.take(AlertFacts(ts_ns=NOW, rule=hostile, priority=hostile))
    texts = [*shown.lost, totals(shown), *(text for line in shown.latest() for text in (line.note, line.severity, line.key))]
    assert [text for text in texts if visible(text) != text or len(text) > 1000] == []


def test_names_of_losses_leave_room_for_the_totals() -> None:
    shown = board()
    for number in range(100):
        shown.take(Lost(ts_ns=NOW, what=f"{number:02}" + "x" * 10_000, count=2))
    assert totals(shown) == f"LOST 00{'x' * 29}… 2 others 198  partial 0  unscanned 0 | 0 exchanges  0 errors  0 findings  open 0"
    shown.lost = {"not stored": 7, "looks cut short": 0, "lost records": 1200}
    assert totals(shown).startswith("LOST not stored 7 lost records 1,200  partial")


def test_ids_are_bounded() -> None:
    with pytest.raises(SourceError):
        event_of(b'{"event":"finding","ts_ns":1,"finding_id":"f","rule_id":"r","severity":"high","exchange_id":"' + b"x" * 201 + b'"}')


def ending(shown: Board, number: int, ts_ns: int) -> None:
    shown.take(Ended(ts_ns=ts_ns, exchange=ExchangeFacts(exchange_id=str(number), provider="openai", request_model="m")))


def test_an_event_that_is_ahead_counts_as_of_now_and_moves_nothing() -> None:
    shown = Board(NOW, reach_ns=60 * SECOND, monotonic=lambda: 0)
    for number, ahead_s in enumerate((90, 0, 9_000_000_000)):
        ending(shown, number, NOW + ahead_s * SECOND)
    assert shown.now_ns == NOW
    assert next(shown.models.rates(NOW)).count == 3
    assert [line.at_ns - NOW for line in shown.latest()] == [9_000_000_000 * SECOND, 0, 90 * SECOND]


@pytest.mark.parametrize("at", [0, 1])
def test_events_that_are_played_move_now_to_this_machines_clock_at_most(at: int) -> None:
    shown = Board(monotonic=lambda: 0, clock=lambda: NOW)
    times = [NOW - 5 * SECOND, NOW - SECOND, NOW]
    times.insert(at, 2**63 - 1)
    for number, ts_ns in enumerate(times):
        ending(shown, number, ts_ns)
    assert shown.now_ns == NOW
    assert next(shown.models.rates(shown.now_ns)).count == 4


def test_the_latest_are_bounded_newest_first_and_filtered() -> None:
    shown = board()
    for number in range(MAX_LATEST + 20):
        exchange = full_exchange(number, response_model=f"model-{number}")
        shown.take(event_of(to_line(ToldEnd(ts_ns=NOW, exchange_id=exchange.exchange_id, exchange=exchange))))
    assert len(shown.latest()) == MAX_LATEST
    assert shown.latest()[0].model == f"model-{MAX_LATEST + 19}"
    assert [line.model for line in shown.latest("MODEL-519")] == ["model-519"]


def test_rates_are_sorted_and_filtered() -> None:
    windows = Windows(NOW)
    for name, times, risk in (("b", 3, 1), ("a", 1, 90), ("c", 2, 5)):
        for _ in range(times):
            windows.add(name, Sample(risk=risk), NOW)
    rates = list(windows.rates(NOW))
    assert [one.name for one in sorted_rates(rates, "rate")] == ["b", "c", "a"]
    assert [one.name for one in sorted_rates(rates, "risk")] == ["a", "c", "b"]
    assert [one.name for one in sorted_rates(rates, "name", "B")] == ["b"]


@pytest.mark.parametrize("line", [b"", b"{}", b"[" * 100_000, b"\xff", b'{"event": "exchange", "ts_ns": "x"}', b'{"event": "none"}'])
def test_what_is_no_event_is_one_clear_fault(line: bytes) -> None:
    with pytest.raises(SourceError, match="not a line of --format events"):
        event_of(line)


def test_a_file_of_events_is_played_as_of_its_own_time() -> None:
    shown = Board(monotonic=lambda: 0)
    exchange = msgspec.structs.replace(full_exchange(1))
    shown.take(event_of(to_line(ToldEnd(ts_ns=NOW - 10**17, exchange_id="1", exchange=exchange))))
    assert shown.now_ns == NOW - 10**17
    assert next(shown.models.rates(shown.now_ns)).count == 1
