"""The whole path, from captures to exchanges: what disorder must not change and what loss must show."""

from __future__ import annotations

import io
import json
import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsec_tap import limits
from llmsec_tap.capture.files.pcap import CaptureReader
from llmsec_tap.identity.credentials import fingerprinter
from llmsec_tap.model import EstimatedUsage, Exchange, to_json
from llmsec_tap.pipeline import Pipeline
from support.aws import message
from support.fixture_captures import LIVE, live_frames
from support.replay import KEY, replay
from support.wire import ACK, FIN, RST, Talk, pcap, pcapng

BODY = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: node\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
    len(BODY),
    BODY,
)


def answer(text: str) -> bytes:
    body = json.dumps(
        {
            "id": f"chatcmpl-{text}",
            "object": "chat.completion",
            "model": "m",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        }
    ).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def events(*texts: str) -> list[bytes]:
    out = []
    for text in texts:
        data = (
            b"data: "
            + json.dumps(
                {
                    "id": "c",
                    "object": "chat.completion.chunk",
                    "model": "m",
                    "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}],
                }
            ).encode()
            + b"\n\n"
        )
        out.append(b"%x\r\n%b\r\n" % (len(data), data))
    return out


STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
DONE = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


def texts(exchanges: list[Exchange]) -> list[str | None]:
    return [e.output_text for e in exchanges]


# --- pairing ---------------------------------------------------------------------------------------------------------------


def test_keep_alive_and_pipelining_pair_in_order() -> None:
    talk = Talk().open().say(0, POST).say(1, answer("one")).say(0, POST + POST).say(1, answer("two") + answer("three")).close()
    exchanges, _ = replay(pcap(talk.frames))
    assert texts(exchanges) == ["one", "two", "three"]
    assert {e.completeness for e in exchanges} == {"complete"}


@pytest.mark.parametrize("port", [80, 443, 8000, 51234])
def test_http_is_found_on_any_port_and_ports_may_limit(port: int) -> None:
    talk = Talk(server=("10.2.0.9", port)).open().say(0, POST).say(1, answer("x")).close()
    assert texts(replay(pcap(talk.frames))[0]) == ["x"]
    assert replay(pcap(talk.frames), ports=frozenset([9]))[0] == []
    assert texts(replay(pcap(talk.frames), ports=frozenset([port]))[0]) == ["x"]


def test_ipv6_and_pcapng_change_nothing_but_the_addresses() -> None:
    talk = Talk(client=("fd00::1", 40000), server=("fd00::2", 8000)).open().say(0, POST).say(1, answer("x")).close()
    (exchange,), _ = replay(pcapng(talk.frames))
    assert (exchange.client, exchange.server, exchange.output_text) == ("[fd00::1]:40000", "[fd00::2]:8000", "x")


def test_interim_responses_head_and_upgrades() -> None:
    upgrade = b"GET /socket HTTP/1.1\r\nHost: chat.internal\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
    talk = Talk().open().say(0, POST).say(1, b"HTTP/1.1 100 Continue\r\n\r\n").say(1, answer("x"))
    talk.say(0, b"HEAD / HTTP/1.1\r\n\r\n").say(1, b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n")
    talk.say(0, upgrade).say(1, b"HTTP/1.1 101 Switching Protocols\r\n\r\n\x81\x05hello").say(0, b"\x81\x85GET / HTTP/1.1\r\n\r\n").close()
    exchanges, pipeline = replay(pcap(talk.frames))
    assert [(e.method, e.status) for e in exchanges] == [("POST", 200), ("HEAD", 200), ("GET", 101)]
    assert dict(pipeline.anomalies) == {}
    assert dict(pipeline.protocols) == {"websocket": 1}


def test_what_is_inside_a_tunnel_is_found_out_by_its_first_bytes() -> None:
    talk = (
        Talk().open().say(0, b"CONNECT api.openai.com:443 HTTP/1.1\r\nHost: api.openai.com:443\r\n\r\n").say(1, b"HTTP/1.1 200 OK\r\n\r\n")
    )
    talk.say(0, b"\x16\x03\x01\x02\0garbage").say(1, b"\x16\x03\x03garbage").close()
    exchanges, pipeline = replay(pcap(talk.frames))
    assert [(e.method, e.status, e.is_connection) for e in exchanges] == [("CONNECT", 200, False), (None, None, True)]
    assert set(pipeline.anomalies) == {"tls_malformed", "tls_unread"}
    assert dict(pipeline.protocols) == {"tls": 1}


def test_plain_http_inside_a_tunnel_is_read() -> None:
    talk = Talk().open().say(0, b"CONNECT model:8000 HTTP/1.1\r\nHost: model:8000\r\n\r\n").say(1, b"HTTP/1.1 200 OK\r\n\r\n")
    exchanges, _ = replay(pcap(talk.say(0, POST).say(1, answer("hello")).close().frames))
    assert [(e.method, e.status, e.output_text) for e in exchanges] == [("CONNECT", 200, None), ("POST", 200, "hello")]


def test_a_refused_connect_opens_no_tunnel() -> None:
    """A proxy that asks for credentials: what follows on the connection is HTTP still."""
    refusal = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 6\r\n\r\nlog in"
    talk = Talk().open().say(0, b"CONNECT api.openai.com:443 HTTP/1.1\r\nHost: api.openai.com:443\r\n\r\n").say(1, refusal)
    exchanges, pipeline = replay(pcap(talk.say(0, POST).say(1, answer("hello")).close().frames))
    assert [(e.method, e.status, e.output_text) for e in exchanges] == [("CONNECT", 407, None), ("POST", 200, "hello")]
    assert dict(pipeline.anomalies) == {}


@pytest.mark.parametrize(
    ("first", "name"),
    [
        (b"\0" * 5000, "unknown"),
        (b"EHLO x\r\n" * 1000, "unknown"),
    ],
)
def test_other_protocols_are_counted_by_name(first: bytes, name: str) -> None:
    exchanges, pipeline = replay(pcap(Talk().open().say(0, first).close().frames))
    assert exchanges == []
    assert dict(pipeline.protocols) == {name: 1}


def test_a_proxy_protocol_preamble_is_passed_over() -> None:
    talk = Talk().open().say(0, b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" + POST).say(1, answer("x")).close()
    assert texts(replay(pcap(talk.frames))[0]) == ["x"]


def test_an_early_answer_keeps_the_request() -> None:
    talk = Talk().open().say(0, POST[:-20]).say(1, answer("early")).say(0, POST[-20:]).close()
    (exchange,), _ = replay(pcap(talk.frames))
    assert (exchange.input_text, exchange.output_text, exchange.completeness) == ("hi", "early", "complete")


# --- ends ------------------------------------------------------------------------------------------------------------------


def test_midstream_join_finds_the_next_messages() -> None:
    talk = Talk().open().say(0, POST).say(1, answer("one")).say(0, POST).say(1, answer("two")).close()
    joined = [frame for frame in talk.frames if len(frame[1]) > 60][2:]
    exchanges, _ = replay(pcap(joined))
    assert [(e.output_text, e.completeness) for e in exchanges] == [("two", "complete")]


def test_an_answer_without_its_request_is_midstream() -> None:
    talk = Talk().open().say(0, POST).say(1, answer("one")).close()
    (exchange,), _ = replay(pcap([frame for frame in talk.frames if b"HTTP/1.1 200" in frame[1]]))
    assert (exchange.output_text, exchange.completeness, exchange.provider) == ("one", "midstream", "openai_compatible")
    assert exchange.server == "10.2.0.9:8000"


@pytest.mark.parametrize(("side", "flags"), [(0, FIN | ACK), (0, RST), (1, RST | ACK), (1, FIN | ACK)])
def test_a_stream_that_is_broken_off_is_aborted_with_what_had_come(side: int, flags: int) -> None:
    talk = Talk().open().say(0, POST).say(1, STREAM_HEAD, *events("a", "b")).close(side, flags)
    (exchange,), _ = replay(pcap(talk.frames))
    assert (exchange.output_text, exchange.completeness, exchange.streaming) == ("ab", "aborted", True)


def test_a_capture_that_ends_inside_a_stream_is_truncated() -> None:
    talk = Talk().open().say(0, POST).say(1, STREAM_HEAD, *events("a", "b"))
    (exchange,), _ = replay(pcap(talk.frames))
    assert (exchange.output_text, exchange.completeness) == ("ab", "truncated")


def test_done_completes_a_stream_without_its_last_chunk() -> None:
    talk = Talk().open().say(0, POST).say(1, STREAM_HEAD, *events("a"), DONE[:19]).close(1)
    (exchange,), _ = replay(pcap(talk.frames))
    assert (exchange.output_text, exchange.completeness) == ("a", "complete")


def test_a_request_without_answer() -> None:
    (exchange,), _ = replay(pcap(Talk().open().say(0, POST).close().frames))
    assert (exchange.status, exchange.completeness, [a.name for a in exchange.anomalies]) == (None, "aborted", ["http_no_response"])


# --- loss ------------------------------------------------------------------------------------------------------------------


def without(talk: Talk, needle: bytes) -> bytes:
    kept = [frame for frame in talk.frames if needle not in frame[1]]
    assert len(kept) == len(talk.frames) - 1
    return pcap(kept)


def test_a_lost_event_is_a_gap_and_both_sides_are_kept() -> None:
    talk = Talk().open().say(0, POST).say(1, STREAM_HEAD, *events("a", "b", "LOST", "c"), DONE).close()
    (exchange,), pipeline = replay(without(talk, b"LOST"))
    assert (exchange.output_text, exchange.completeness) == ("abc", "gapped")
    assert ("tcp_gap", 1) in [(a.name, a.count) for a in exchange.anomalies]
    assert pipeline.tcp.gaps == 1


def test_a_gap_inside_a_long_text_keeps_both_sides() -> None:
    body = b'{"model":"m","messages":[{"role":"user","content":"' + b"".join(b"<%06d>" % n for n in range(800)) + b'"}]}'
    long = POST.replace(b"Content-Length: %d" % len(BODY), b"Content-Length: %d" % len(body)).replace(BODY, body)
    talk = Talk().open().say(0, long).say(1, answer("".join(f"[{n:06d}]" for n in range(800)))).close()
    (exchange,), _ = replay(pcap([f for f in talk.frames if b"<000300>" not in f[1] and b"[000300]" not in f[1]]))
    assert exchange.completeness == "gapped"
    for text, mark in ((exchange.input_text, "<000000>"), (exchange.output_text, "[000000]")):
        assert text is not None
        assert text.startswith(mark)
        assert text.endswith(mark.replace("000000", "000799"))
        assert mark.replace("000000", "000300") not in text


def test_a_lost_answer_is_never_replaced_by_the_next_one() -> None:
    talk = Talk().open().say(0, POST).say(1, answer("LOST")).say(0, POST).say(1, answer("two")).say(0, POST).say(1, answer("three")).close()
    exchanges, _ = replay(without(talk, b"LOST"))
    assert [(e.output_text, e.completeness) for e in exchanges] == [(None, "gapped"), ("two", "complete"), ("three", "complete")]


def test_the_last_answer_lost_is_a_gap_not_an_abort() -> None:
    talk = Talk().open().say(0, POST).say(1, answer("LOST")).close()
    (exchange,), _ = replay(without(talk, b"LOST"))
    assert (exchange.status, exchange.completeness) == (None, "gapped")


def test_a_lost_request_leaves_its_answer_alone() -> None:
    lost = POST.replace(b'"hi"', b'"LO"').replace(b"Host: node", b"Host: LOST")
    talk = Talk().open().say(0, POST).say(1, answer("one")).say(0, lost).say(1, answer("two")).say(0, POST).say(1, answer("three")).close()
    exchanges, _ = replay(without(talk, b"Host: LOST"))
    found = {e.output_text: e for e in exchanges}
    assert (found["one"].completeness, found["three"].completeness) == ("complete", "complete")
    assert found["two"].completeness in ("midstream", "gapped")
    assert found["two"].input_text is None


def test_without_any_one_packet_what_is_complete_is_right_and_its_own_exchange_is_not() -> None:
    """The shipped capture of a real server, each packet left out in turn."""

    def facts(exchange: Exchange) -> tuple[object, ...]:
        return exchange.output_text, exchange.usage, exchange.finish_reasons, exchange.input_text, exchange.ttft_ms

    frames = live_frames()
    whole = replay(pcap(frames))[0]
    said = {(e.client, e.started_ns): facts(e) for e in whole if e.completeness == "complete"}
    broken_off = {int(e.client.rpartition(":")[2]) for e in whole if e.completeness != "complete"}
    tried = 0
    for at, (_, frame) in enumerate(frames):
        complete = [e for e in replay(pcap(frames[:at] + frames[at + 1 :]))[0] if e.completeness == "complete"]
        for exchange in complete:
            assert facts(exchange) == said[exchange.client, exchange.started_ns], f"packet {at}"
        data = frame[34 + (frame[46] >> 4) * 4 :]
        closing = (
            data.endswith((b"0\r\n\r\n", b"0\r\n")) or data == b"\r\n" or b"[DONE]" in data
        )  # behind the stream's own last event nothing is missing
        if data and not closing and not broken_off & set(struct.unpack(">HH", frame[34:38])):
            tried += 1
            assert len(complete) < len(said), f"packet {at}"
    assert tried > 50


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_lost_packets_never_make_a_complete_exchange_wrong(data: st.DataObject) -> None:
    talk = Talk(mss=data.draw(st.integers(20, 400)))
    talk.open().say(0, POST).say(1, STREAM_HEAD, *events("alpha", "beta", "gamma"), DONE).say(0, POST).say(1, answer("delta")).say(0, POST)
    talk.say(1, STREAM_HEAD, *events("one", "two"), DONE).close()
    lost = data.draw(st.sets(st.integers(0, len(talk.frames) - 1), min_size=1, max_size=4))
    exchanges, _ = replay(pcap([frame for at, frame in enumerate(talk.frames) if at not in lost]))
    for exchange in exchanges:
        if exchange.completeness == "complete":
            assert exchange.output_text in ("alphabetagamma", "delta", "onetwo")


@given(st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_disorder_changes_nothing(rng: random.Random) -> None:
    frames = live_frames()
    expected = sorted(strip_times(e) for e in replay(pcap(frames))[0])
    times = [ts for ts, _ in frames]
    order = list(range(len(frames)))
    for at in range(3, len(frames) - 1):
        if rng.random() < 0.2 and same_direction(frames[order[at]][1], frames[order[at + 1]][1]):
            order[at], order[at + 1] = order[at + 1], order[at]
    mixed = [frames[at][1] for at in order]
    doubled = [(ts, frame) for ts, frame in zip(times, mixed, strict=True) for _ in range(1 + (rng.random() < 0.1))]
    assert sorted(strip_times(e) for e in replay(pcap(doubled))[0]) == expected


def same_direction(a: bytes, b: bytes) -> bool:
    """Two data segments of one direction of one connection, neither opening nor closing it."""
    return a[26:38] == b[26:38] and not (a[47] | b[47]) & 7


def strip_times(exchange: Exchange) -> str:
    return repr(
        (
            exchange.client,
            exchange.path,
            exchange.output_text,
            exchange.finish_reasons,
            exchange.usage,
            exchange.completeness,
            exchange.tool_calls,
        )
    )


# --- bounds ----------------------------------------------------------------------------------------------------------------


def test_bodies_are_bounded_and_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_BODY_BYTES", 1000)
    long = answer("x" * 5000)
    (exchange,), pipeline = replay(pcap(Talk().open().say(0, POST).say(1, long).close().frames))
    assert (exchange.completeness, [a.name for a in exchange.anomalies]) == ("truncated", ["http_body_limit"])
    assert pipeline.account.held == 0


def test_the_same_capture_gives_the_same_records() -> None:
    first, _ = replay(LIVE)
    again, _ = replay(LIVE)
    assert [to_json(e) for e in first] == [to_json(e) for e in again]
    assert len({e.exchange_id for e in first}) == len(first)


def test_more_pipelined_requests_than_the_limit_keep_their_answers() -> None:
    count = 2 * limits.MAX_PIPELINED_REQUESTS
    say = b"".join(answer(f"a{number}") for number in range(count))
    exchanges, _ = replay(pcap(Talk(mss=60_000).open().say(0, POST * count).say(1, say).close().frames))
    assert [e.output_text for e in exchanges] == [f"a{number}" for number in range(count)]
    assert {e.completeness for e in exchanges} == {"complete"}


def test_what_a_client_sends_outside_of_messages_is_on_a_record() -> None:
    exchanges, pipeline = replay(pcap(Talk().open().say(0, POST).say(1, answer("a")).say(0, b"junk that is no head\r\n").close().frames))
    assert [[a.name for a in e.anomalies] for e in exchanges] == [[], ["http_bad_head", "http_no_response"]]
    assert pipeline.anomalies["http_bad_head"] == 1


# --- what the record says -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [0, 1])
def test_a_stream_that_ends_inside_an_event_says_so(missing: int) -> None:
    """The stop reason had come: without a word of it, what was cut behind would pass for nothing."""
    said = [
        ("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "Hello."}}),
        ("messageStop", {"stopReason": "end_turn"}),
        ("metadata", {"usage": {"inputTokens": 1, "outputTokens": 2}}),
    ]
    body = b"".join(
        message({":message-type": "event", ":event-type": name, ":content-type": "application/json"}, json.dumps(value).encode())
        for name, value in said
    )
    body = body[: len(body) - missing]
    asked = b'{"messages":[{"role":"user","content":[{"text":"Hi"}]}]}'
    head = b"POST /model/m/converse-stream HTTP/1.1\r\nHost: node\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
    answered = b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.amazon.eventstream\r\nContent-Length: %d\r\n\r\n%b"
    talk = Talk().open().say(0, head % (len(asked), asked)).say(1, answered % (len(body), body)).close()
    (exchange,), _ = replay(pcap(talk.frames))
    assert (exchange.api, exchange.output_text, exchange.finish_reasons) == ("bedrock.converse", "Hello.", ["end_turn"])
    assert [anomaly.name for anomaly in exchange.anomalies] == ["stream_unterminated"] * missing


def test_an_estimator_is_asked_before_the_record_is_handed_on() -> None:
    def estimate(exchange: Exchange) -> None:
        exchange.usage_estimated = EstimatedUsage(output_tokens=7, tokenizer="mine")

    exchanges: list[Exchange] = []
    pipeline = Pipeline(exchanges.append, fingerprinter(KEY), estimate=estimate, shield=False)
    run(pipeline, pcap(Talk().open().say(0, POST).say(1, answer("hello")).close().frames))
    assert [exchange.usage_estimated for exchange in exchanges] == [EstimatedUsage(output_tokens=7, tokenizer="mine")]


def test_an_estimator_that_fails_costs_its_estimate_only() -> None:
    def estimate(exchange: Exchange) -> None:
        raise ValueError(exchange.output_text)

    exchanges: list[Exchange] = []
    defects: list[str] = []
    pipeline = Pipeline(exchanges.append, fingerprinter(KEY), estimate=estimate, on_defect=defects.append)
    run(pipeline, pcap(Talk().open().say(0, POST).say(1, answer("hello")).close().frames))
    assert texts(exchanges) == ["hello"]
    assert defects == ["tokens"]


def run(pipeline: Pipeline, capture: bytes) -> None:
    CaptureReader(pipeline).read_stream(io.BytesIO(capture), "memory")
    pipeline.close()
