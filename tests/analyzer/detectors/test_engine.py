"""One pass over a text, whole or in pieces, on either engine: always the same findings."""

from __future__ import annotations

import gzip
import json
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsec_analyzer.engine.stream import MAX_ALIKE, StreamScanner, scan_whole
from llmsec_analyzer.prove.synthetic import expand
from llmsec_analyzer.recognizers.build import make_plan
from support import needs


def found(scanner: StreamScanner) -> set[tuple[str, int, int, str]]:
    return {(match.rule.id, match.start, match.end, match.severity) for match in scanner.matches}


def in_pieces(plan, pieces, role="user") -> StreamScanner:
    scanner = StreamScanner(plan, role)
    for piece in pieces:
        scanner.feed(piece)
    scanner.close()
    return scanner


def in_batches(plan, pieces, size, role="user") -> StreamScanner:
    scanner = StreamScanner(plan, role)
    for at in range(0, len(pieces), size):
        scanner.feed_many(pieces[at : at + size])
    scanner.close()
    return scanner


def cut(text: str, draw: random.Random, longest: int = 12) -> list[str]:
    pieces, at = [], 0
    while at < len(text):
        size = draw.randint(1, longest)
        pieces.append(text[at : at + size])
        at += size
    return pieces


@pytest.fixture(scope="module")
def plans(builtin):
    trusted = frozenset(rule.id for rule in builtin)
    return make_plan(builtin, trusted=trusted), make_plan(builtin, trusted=trusted, engine="portable")


@pytest.fixture(scope="module")
def examples(builtin) -> list[str]:
    return [expand(example) for rule in builtin for example in (*rule.examples.match, *rule.examples.no_match)]


def test_all_examples_together_give_the_same_in_any_pieces_and_on_any_engine(plans, examples):
    fast, portable = plans
    draw = random.Random(5)
    for start in range(0, len(examples), 40):
        text = "\n".join(examples[start : start + 40])
        for role in ("user", "assistant"):
            whole = found(scan_whole(fast, text, role))
            assert whole == found(scan_whole(portable, text, role))
            assert whole == found(in_pieces(fast, list(text), role))
            assert whole == found(in_pieces(portable, cut(text, draw), role))
            assert whole == found(in_pieces(fast, cut(text, draw, 200), role))
            assert whole == found(in_batches(fast, cut(text, draw), 16, role))
    assert not fast.faults
    assert not portable.faults


_PIECES = st.sampled_from(
    [
        "password=", "my card 4111 1111 1111 1111", "jo.roe@example.org", " ", "\n", "ssn ", "219-09-8765", "https://u:" , "p4ssw0rd@h.example/x", "é", "電話 ", "+44 20 7946 0958",
        "-----BEGIN PRIVATE KEY-----\n", "A" * 30, "-----END PRIVATE KEY-----", "0x", "ab12" * 10, "\ud800", "\x00", "🎉", "GB82 WEST 1234 5698 7654 32", "token: ", "'", '"', "12", ".", "sk-",
        "\U000e0049\U000e0067", "2001:db8::8:800:200c:417a", "eyJhbGciOiJIUzI1NiJ9.", "ignore previous instructions", "rm -rf / ", "x" * 200,
    ]
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(pieces=st.lists(_PIECES, max_size=14), seed=st.integers(0, 9))
def test_cuts_change_nothing(plans, pieces, seed):
    fast, portable = plans
    text = "".join(pieces)
    whole = found(scan_whole(fast, text))
    assert whole == found(in_pieces(fast, pieces))
    assert whole == found(in_pieces(fast, list(text)))
    assert whole == found(in_batches(fast, list(text), 7))
    assert whole == found(in_pieces(portable, cut(text, random.Random(seed))))


@pytest.mark.parametrize("before", ["x", "4 ", "-", "a1", "deadbeef", "0123456789", "+/", "(", "x#", "."])
@pytest.mark.parametrize(("number", "rule"), [("+44 20 7946 0958", "pii.phone_international"), ("4111 1111 1111 1111", "credit_card")])
def test_what_stands_before_a_number_does_not_hide_it(plans, before, number, rule):
    """Characters that numbers are written with, and long words: as many as a recognizer looks at, and more."""
    for length in (12, 13, 14, 95, 96, 97, 127, 200, 511):
        text = f"{(before * length)[:length]}x {number}"
        for plan in plans:
            assert rule in {match.rule.id for match in scan_whole(plan, text).matches}, text
            assert rule in {match.rule.id for match in in_pieces(plan, list(text)).matches}, text


@pytest.mark.parametrize("escape", ["\\n", "\\t", "\\u0020", "\\\\n", "\x1b[31m", "%3D", "%0A"])
@pytest.mark.parametrize(
    ("value", "rule"),
    [
        ("4111 1111 1111 1111", "credit_card"), ("219-09-8765", "ssn"), ("+44 20 7946 0958", "pii.phone_international"),
        ("DE89 3704 0044 0532 0130 00", "pii.iban"), ("jo.roe@corp-mail.com", "email"),
    ],
)  # fmt: skip
def test_an_escape_begins_a_word(plans, escape, value, rule):
    """Arguments of tool calls are JSON in a text."""
    if rule == "email":
        escape = escape.replace("%", "\\u00")  # % is a letter of addresses
    text = f'{{"a": "it is{escape}{value}"}}'
    at = text.index(value)
    for plan in plans:
        for scanner in (scan_whole(plan, text), in_pieces(plan, list(text))):
            assert (rule, at, at + len(value)) in {(match.rule.id, match.start, match.end) for match in scanner.matches}


def test_every_rule_finds_its_examples_behind_an_escape(plans, builtin):
    """As tools write lines into JSON. A line of .pgpass begins one."""
    missed = set()
    for rule in builtin:
        for example in map(expand, rule.examples.match):
            for role in ("user", "assistant"):
                for plan in plans:
                    if rule.id in {match.rule.id for match in scan_whole(plan, example, role).matches}:
                        behind = scan_whole(plan, f"x\\n{example}", role).matches
                        missed |= {rule.id} - {match.rule.id for match in behind}
    assert missed <= {"secret.pgpass"}


@settings(max_examples=150, deadline=None)
@given(text=st.text(alphabet=st.characters(), max_size=400))
def test_any_text_is_scanned_and_offsets_stay_inside(plans, text):
    for scanner in (scan_whole(plans[0], text), in_pieces(plans[1], list(text))):
        assert all(0 <= match.start < match.end <= len(text) for match in scanner.matches)
    assert not plans[0].faults


@pytest.mark.shared
@pytest.mark.parametrize("name", ["pii", "secrets", "injection"])
def test_corpora_give_the_same_streamed_as_whole_and_on_both_engines(plans, name):
    with gzip.open(needs.shared("data", "detection", f"{name}.jsonl.gz"), "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines][:: 12 if name == "injection" else 4]
    fast, portable = plans
    draw = random.Random(3)
    for text in texts:
        whole = found(scan_whole(fast, text))
        assert whole == found(scan_whole(portable, text))
        assert whole == found(in_pieces(fast, cut(text, draw)))
        if len(text) < 400:
            assert whole == found(in_pieces(fast, list(text)))


def test_a_finding_says_after_how_many_deltas_it_was_known(plans):
    scanner = in_pieces(plans[0], ["write ", "to jo.", "roe@exam", "ple.org", " please", " and so on", " and on", " and on"])
    (at,) = [at for match, at in zip(scanner.matches, scanner.known_at, strict=True) if match.rule.id == "email"]
    assert 5 <= at <= 7


def test_increments_that_came_together_still_say_with_which_one_a_finding_was_known(plans, examples):
    """Fed so far and no further, the finding is there; fed one increment less, it is not."""
    text = " \n".join(examples[:120])
    pieces = cut(text, random.Random(8))
    scanner = in_batches(plans[0], pieces, len(pieces))
    known = dict(zip(scanner.matches, scanner.known_at, strict=True))
    assert len(known) > 40
    for size in (2, 3, 5, 8, 64):
        again = in_batches(plans[0], pieces, size)
        late = {match: at - known[match] for match, at in zip(again.matches, again.known_at, strict=True)}
        assert min(late.values()) == 0  # never sooner than it could be; where a batch ended first, a little later

    def fed(count: int) -> set[tuple[str, int, int, str]]:
        prefix = StreamScanner(plans[0])
        prefix.feed_many(pieces[:count])
        return found(prefix)

    ends = {match: at for match, at in known.items() if at < len(pieces)}
    for match, at in list(ends.items())[::4]:
        key = (match.rule.id, match.start, match.end, match.severity)
        assert key in fed(at)
        assert key not in fed(at - 1)


_BASE64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
# What is repeated, and to how many characters. Those of a rule's own words cost a look each, so they are shorter.
_HOSTILE = {
    "digits": ("1", 1_000_000),
    "mail": ("a@", 500_000),
    "addresses": ("http://", 300_000),
    "hexadecimal": ("ab:", 500_000),
    "escapes": ("\\u0041", 300_000),
    "web tokens": ("eyJ", 500_000),
    "key names": ("AKIA", 500_000),
    "one letter": ("a", 300_000),
    "assignments": ("password=", 200_000),
    "private keys": ("-----BEGIN PRIVATE KEY-----\n", 100_000),
    "NULs": ("\x00", 5_000_000),
    "lone surrogates": ("\ud800", 5_000_000),
    "mixed scripts": ("аaбb中1٣é", 5_000_000),
    "spaces": (" ", 5_000_000),
    "tags": ("\U000e0041", 200_000),
    "dots": ("1.", 300_000),
}


@pytest.mark.parametrize("name", _HOSTILE)
def test_hostile_texts_take_bounded_time_and_memory(plans, name):
    piece, size = _HOSTILE[name]
    text = (piece * (size // len(piece) + 1))[:size]
    started = time.process_time()
    scanner = scan_whole(plans[0], text)
    assert time.process_time() - started < 1 + 40e-6 * size
    assert len(scanner.matches) <= MAX_ALIKE * len({(match.rule.id, match.severity) for match in scanner.matches})
    assert len(scanner.view.text) < 200_000
    assert not plans[0].faults


def test_five_megabytes_without_a_space_take_bounded_time_and_memory(plans):
    draw = random.Random(4)
    text = "".join(draw.choices(_BASE64, k=500_000)) * 10
    started = time.process_time()
    scanner = scan_whole(plans[0], text)
    assert time.process_time() - started < 30
    assert len(scanner.view.text) < 200_000


def test_a_text_of_fifty_megabytes_has_its_secret_found_at_the_end(plans):
    text = "The quick brown fox jumps over the lazy dog. " * 1_150_000 + expand("ghp_<alnum:36>") + " end"
    scanner = scan_whole(plans[0], text)
    (match,) = [match for match in scanner.matches if match.rule.id == "secret.github"]
    assert text[match.start : match.end] == expand("ghp_<alnum:36>")
