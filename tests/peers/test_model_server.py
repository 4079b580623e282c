"""A real model server and real clients on loopback, captured packet by packet: we decode what the clients' own parsers saw."""

from __future__ import annotations

from typing import Any

import pytest

from llmsec_tap.model import Exchange
from support.clients import PROMPT, anthropic_calls, openai_calls
from support.model_server import model_server
from support.replay import replay
from support.sniff import can_sniff, free_port, sniff

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(not can_sniff(), reason="recording loopback traffic needs root or CAP_NET_RAW"),
    pytest.mark.filterwarnings("default"),  # the SDKs' own warnings are not ours
]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], list[Exchange]]:
    pytest.importorskip("xllamacpp", reason="the model server is in the dependency group `peers`")
    port = free_port()
    with model_server(tmp_path_factory.mktemp("model"), port) as url, sniff(port) as recording:
        seen = openai_calls(url) + anthropic_calls(url)
    assert recording.dropped == 0
    exchanges, pipeline = replay(recording.capture())
    assert pipeline.tcp.gaps == 0
    return seen, sorted(exchanges, key=lambda e: e.started_ns or 0)


def test_every_call_is_an_exchange(recorded: tuple[list[dict[str, Any]], list[Exchange]]) -> None:
    seen, exchanges = recorded
    assert [e.api for e in exchanges] == [row["api"] for row in seen]
    assert {e.provider for e in exchanges} == {"llamacpp"}


def test_what_the_clients_saw_is_what_we_decoded(recorded: tuple[list[dict[str, Any]], list[Exchange]]) -> None:
    for row, exchange in zip(*recorded, strict=True):
        label = f"{row['api']} {'streamed' if row.get('streaming') else 'whole'}"
        assert exchange.streaming == bool(row.get("streaming")), label
        if "text" in row:
            assert exchange.output_text == row["text"], label
            assert exchange.input_text == PROMPT, label
            assert exchange.completeness == "complete", label
            # An SDK stops reading at [DONE]; on a busy machine it may close before the last chunk, which resets the connection.
            assert {anomaly.name for anomaly in exchange.anomalies} <= {"tcp_reset"}, label
        if "finish" in row:
            assert exchange.finish_reasons == [row["finish"]], label
        for key, got in (
            ("in", exchange.usage.input_tokens),
            ("out", exchange.usage.output_tokens),
            ("status", exchange.status),
            ("id", exchange.response_id),
        ):
            if key in row:
                assert got == row[key], f"{label} {key}"


def test_a_stream_the_client_broke_off_is_aborted_with_what_had_come(recorded: tuple[list[dict[str, Any]], list[Exchange]]) -> None:
    ((row, exchange),) = [(r, e) for r, e in zip(*recorded, strict=True) if r.get("broken_off")]
    assert exchange.completeness == "aborted"
    assert (exchange.output_text or "").startswith(row["text_begins"])


def test_streams_have_timings(recorded: tuple[list[dict[str, Any]], list[Exchange]]) -> None:
    for exchange in recorded[1]:
        if exchange.streaming:
            assert exchange.ttft_ms is not None
            assert exchange.ttft_ms > 0
            if (exchange.response.events or 0) > 4:
                assert exchange.itl_ms_p50 is not None
                assert exchange.itl_ms_p50 <= (exchange.itl_ms_p95 or 0)


def test_the_credential_is_fingerprinted_alike_in_every_exchange(recorded: tuple[list[dict[str, Any]], list[Exchange]]) -> None:
    prints = [e.api_key_fingerprint for e in recorded[1]]
    assert len(set(prints[:8])) == 1
    assert len(set(prints[8:])) == 1
    assert prints[0] != prints[8]
    assert None not in prints
