"""Nobody hides behind noise: the gravest findings are kept however many others there are, all are masked, what is left out is said."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsec_analyzer.engine.excess import MAX_FINDINGS, severest
from llmsec_analyzer.engine.repeats import LEAST_CHARS, shortened
from llmsec_analyzer.engine.stream import StreamScanner, scan_whole
from llmsec_analyzer.judge.exchange import ExchangeDetector
from llmsec_analyzer.judge.exchange_parts import text_parts
from llmsec_analyzer.judge.redact import redacted
from llmsec_analyzer.judge.scanner import Scanner
from llmsec_analyzer.risk import rank
from llmsec_analyzer.settings import DetectionSettings
from llmsec_tap.model import Exchange, Message, Part, Request

KEY = "AKIA2E0A8F3B244C9986"
ADDRESSES = [f"a{number}@b{number}.com" for number in range(2100)]


@pytest.fixture(scope="module")
def scanner() -> Scanner:
    return Scanner(DetectionSettings(plugins=False), lambda text: format(hash(text) & 0xFFFFFFFF, "08x"))


def exchange_of(*texts: str) -> Exchange:
    parts = [Part(type="text", content=text) for text in texts]
    request = Request(messages=[Message(role="user", parts=parts)])
    return Exchange(
        exchange_id="e", client="10.0.0.1:1", server="10.0.0.2:2", provider="openai", input_text="\n".join(texts), request=request
    )


def examined(scanner: Scanner, exchange: Exchange) -> Exchange:
    report = ExchangeDetector(scanner).examine("e", list(text_parts(exchange)))
    return redacted(report.applied(exchange), report.masks)


@pytest.mark.parametrize(
    "texts", [(" ".join(ADDRESSES) + " " + KEY,), (" ".join(ADDRESSES), KEY), (*ADDRESSES, KEY)], ids=["one", "two", "many"]
)
def test_a_key_behind_two_thousand_addresses_is_found_and_everything_is_masked(scanner, texts):
    shown = examined(scanner, exchange_of(*texts))
    assert [finding.severity for finding in shown.findings if finding.rule_id == "secret.aws_access_key_id"]
    assert shown.risk_score >= 85
    assert len(shown.findings) <= MAX_FINDINGS
    kept = sum(finding.rule_id == "email" for finding in shown.findings)
    (limit,) = (anomaly for anomaly in shown.anomalies if anomaly.name == "findings_limit")
    assert kept + sum(f"email: {len(ADDRESSES) - kept:,} more, not kept" == reason for reason in shown.risk_reasons) == kept + 1
    assert limit.count >= len(ADDRESSES) - kept
    printed = msgspec.json.encode(shown).decode()
    assert KEY not in printed
    assert not [address for address in ADDRESSES if address in printed]


def test_a_stream_keeps_what_is_grave_too(scanner):
    stream = StreamScanner(scanner.plan, "assistant")
    for address in ADDRESSES:
        stream.feed(address + " ")
    stream.feed(KEY)
    stream.close()
    assert "secret.aws_access_key_id" in {match.rule.id for match in stream.matches}
    assert stream.excess is not None
    assert stream.excess.counts["email"] + sum(match.rule.id == "email" for match in stream.matches) == len(ADDRESSES)
    assert len(stream.known_at) == len(stream.matches)


_ITEM = st.tuples(
    st.sampled_from(("info", "low", "medium", "high", "critical")), st.sampled_from("abcdef"), st.sampled_from((0.2, 0.5, 0.9))
)


@given(st.lists(_ITEM, max_size=60), st.integers(1, 20))
def test_nothing_that_is_left_out_is_graver_than_what_is_kept(items, limit):
    kept, left = severest(items, limit, lambda item: item)
    assert sorted([*kept, *left]) == sorted(items)
    assert len(kept) == min(limit, len(items))
    if left:
        least = min(rank(severity) for severity, _, _ in kept)
        assert max(rank(severity) for severity, _, _ in left) <= least
        grave = {rule for severity, rule, _ in items if rank(severity) > least}
        assert grave <= {rule for _, rule, _ in kept}


# --- repetition ------------------------------------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(st.sampled_from(("a", "ab", "AKIA", "\u200b", "xyz 123,", "é", "0123456789abcdef")), st.integers(1, 6000))
        | st.tuples(st.text(max_size=80), st.just(1)),
        max_size=8,
    )
)
@settings(max_examples=150, deadline=None)
def test_what_is_left_of_a_repetition_leads_back_to_the_text_as_sent(pieces):
    text = "".join(piece * times for piece, times in pieces)
    less = shortened(text)
    if less is None:
        return
    assert len(less.text) < len(text)
    assert all(text[less.place(at)] == char for at, char in enumerate(less.text))


@pytest.mark.parametrize("piece", ["a", " ", "ab", "QUJD", "4-", "AKIA", "\u200b", "password=", "é"])
def test_a_megabyte_of_one_thing_costs_next_to_nothing_and_what_stands_at_its_ends_is_found(scanner, piece):
    filler = piece * (1_000_000 // len(piece))
    text = f"{KEY} {filler} {KEY}"
    less = shortened(text)
    assert less is not None
    assert len(less.text) < 2 * LEAST_CHARS
    found = [(match.start, match.end) for match in scan_whole(scanner.plan, text).matches if match.rule.id == "secret.aws_access_key_id"]
    assert found[0] == (0, len(KEY))
    assert found[-1] == (len(text) - len(KEY), len(text))
