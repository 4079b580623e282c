"""The account: it is never over its limit, whoever holds most gives first, and at the end nothing is held."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsec_tap import limits
from llmsec_tap.account import Account, Entry, Holding
from llmsec_tap.identity.credentials import fingerprinter
from llmsec_tap.model import Exchange
from llmsec_tap.pipeline import Pipeline
from llmsec_tap.wire.packet import LINKTYPE_ETHERNET
from support.replay import KEY
from support.wire import Talk


def sheds(account: Account, key: str) -> Holding:
    holding = account.open(key)
    holding.shed = lambda: holding.reserve(-holding.held) and None
    return holding


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3), st.integers(1, 400)), max_size=200))
@settings(max_examples=200, deadline=None)
def test_never_over_the_limit_and_small_shares_stay_whole(asks: list[tuple[int, int, int]]) -> None:
    account = Account(1000)
    holdings = {(client, number): sheds(account, str(client)) for client in range(10) for number in range(4)}
    whole = account.open("honest")
    assert whole.reserve(80)
    for client, number, size in asks:
        holdings[client, number].reserve(size)
        assert account.held <= account.limit
        assert whole.held == 80
    for holding in holdings.values():
        holding.close()
    whole.close()
    assert account.held == 0
    assert not account._shares


def test_the_one_who_holds_most_is_cut_and_not_the_one_who_asks() -> None:
    account = Account(1000)
    greedy, honest = sheds(account, "greedy"), sheds(account, "honest")
    assert greedy.reserve(950)
    assert honest.reserve(100)
    assert (greedy.held, honest.held) == (0, 100)
    assert greedy.reserve(700)
    assert not greedy.reserve(300)
    assert greedy.held == 700


def test_an_entry_counts_in_steps_and_is_nothing_after_a_refusal() -> None:
    account = Account(10_000)
    entry = Entry(account.open("a").reserve)
    assert entry.set(500)
    assert account.held == 0
    assert entry.set(5000)
    assert entry.set(5100)
    assert account.held == 5000
    assert not entry.set(20_000)
    assert (account.held, entry.size) == (0, 0)


# --- the whole path ----------------------------------------------------------------------------------------------------


def post(body: bytes, *headers: str) -> bytes:
    lines = ["POST /v1/chat/completions HTTP/1.1", "Host: node", "Content-Type: application/json", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def chat(text: str) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": text}]}).encode()


ANSWER = json.dumps(
    {"object": "chat.completion", "model": "m", "choices": [{"index": 0, "message": {"role": "assistant", "content": "yes"}}]}
)
SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n%bTransfer-Encoding: chunked\r\n\r\n"
BIG = 3_000_000


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


ATTACKS: dict[str, Callable[[Talk], object]] = {
    "prompts that wait": lambda talk: talk.say(0, post(gzip.compress(chat("y" * BIG)), "Content-Encoding: gzip")),
    "many messages": lambda talk: talk.say(
        0, post(gzip.compress(json.dumps({"messages": [{"role": "user", "content": "a"}] * 6000}).encode()), "Content-Encoding: gzip")
    ),
    "bodies": lambda talk: talk.say(0, post(b"x" * BIG)[:-1]),
    "bodies of small pieces": lambda talk: setattr(talk, "mss", 2) or talk.say(0, post(b"x" * 20_000)[:-1]),
    "heads": lambda talk: talk.say(0, b"POST / HTTP/1.1\r\nX: " + b"a" * 900_000),
    "request lines": lambda talk: talk.say(0, b"POST /" + b"a" * 900_000),
    "lines of events": lambda talk: talk.say(0, post(chat("q"))).say(
        1, SSE % b"Content-Encoding: gzip\r\n" + chunk(gzip.compress(b"data: " + b"x" * BIG))
    ),
    "empty data lines": lambda talk: talk.say(0, post(chat("q"))).say(1, SSE % b"" + chunk(b"data:\n" * 200_000)),
    "texts": lambda talk: talk.say(0, post(chat("q"))).say(
        1,
        SSE % b""
        + chunk(b"data: " + json.dumps({"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": "é€" * 500_000}}]}).encode() + b"\n\n"),
    ),
    "array elements": lambda talk: talk.say(
        0, post(b'{"contents":[]}').replace(b"/v1/chat/completions", b"/v1beta/models/g:streamGenerateContent")
    ).say(1, b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b'[{"a":"' + b"x" * BIG)),
    "out of order": lambda talk: [talk.segment(0, 16, b"z" * 1000, seq=talk.seq[0] + 10 + 2000 * n) for n in range(1000)],
    "pipelined": lambda talk: talk.say(0, post(chat("q")) * 500),
    "nothing": lambda talk: None,
}  # fmt: skip


def run(talks: list[Talk], cap: int) -> tuple[list[Exchange], Pipeline, int]:
    exchanges: list[Exchange] = []
    pipeline = Pipeline(exchanges.append, fingerprinter(KEY), shield=False, memory_cap_bytes=cap)
    handle = pipeline.handler(LINKTYPE_ETHERNET)
    peak = 0
    for ts, frame in sorted((frame for talk in talks for frame in talk.frames), key=lambda known: known[0]):
        handle(ts, frame, 0, len(frame), len(frame))
        peak = max(peak, pipeline.account.held)
    pipeline.close()
    return exchanges, pipeline, peak


@pytest.mark.parametrize("name", ATTACKS)
def test_other_clients_stay_whole_and_nothing_is_held_at_the_end(name: str) -> None:
    """Twenty connections of two attackers, each far over its share, and between them a client with an ordinary conversation."""
    talks = []
    for number in range(20):
        talk = Talk(client=(f"10.66.0.{number % 2}", 10_000 + number), step_ns=1_000_000, mss=60_000).open()
        ATTACKS[name](talk)
        talks.append(talk)
    honest = Talk(client=("10.1.0.7", 40_000), step_ns=3_000_000, mss=60_000).open()
    for number in range(10):
        honest.say(0, post(chat(f"question {number} " + "w" * 20_000))).say(
            1, b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(ANSWER), ANSWER.encode())
        )
    exchanges, pipeline, peak = run([*talks, honest.close()], 32 * limits.MIB)
    whole = [exchange for exchange in exchanges if exchange.client.startswith("10.1.0.7")]
    assert [exchange.completeness for exchange in whole] == ["complete"] * 10
    assert all(exchange.output_text == "yes" and not exchange.anomalies for exchange in whole)
    assert pipeline.account.held == pipeline.account.fixed == 0
    assert peak <= pipeline.account.limit + 4 * limits.MIB  # what is being cut is read and handed on first
    cut = [exchange for exchange in exchanges if any(anomaly.name == "memory_limit" for anomaly in exchange.anomalies)]
    assert all(exchange.completeness != "complete" for exchange in cut)
