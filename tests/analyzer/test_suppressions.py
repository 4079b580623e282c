"""Suppressed findings are kept and marked, and count for nothing; what ends a suppression, and what is wrong with one, is told."""

from __future__ import annotations

import calendar
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from llmsec_agent.config import Config, Loaded
from llmsec_agent.journals import StandardError, Style
from llmsec_agent.reload import News, Reload
from llmsec_analyzer.judge.exchange_parts import Place, Report, TextPart
from llmsec_analyzer.judge.facts import FACT_KINDS, FINDING_KINDS, Facts, facts_of
from llmsec_analyzer.judge.redact import redacted
from llmsec_analyzer.judge.suppressions import MAX_TRIED, Suppressions, load_suppressions
from llmsec_analyzer.risk import risk, security_score, types_of
from llmsec_analyzer.settings import DetectionSettings
from llmsec_analyzer.worker.client import DetectionProcess
from llmsec_tap.errors import ConfigError
from llmsec_tap.model import Exchange, Finding, Location, Message, Part, Request, Response
from support.exchanges import a_finding, full_exchange
from support.journal import Said
from support.wire import Talk, pcap

TODAY = calendar.timegm((2026, 12, 1, 12, 0, 0))
FACTS = Facts(tenant="acme", model="gpt-4o", path="/v1/chat/completions", provider="openai")


def of(tmp_path: Path, *entries: str, clock: Callable[[], float] = lambda: TODAY) -> Suppressions:
    lines = "".join(f"  - {{reason: a test key, owner: sec@example.org, until: 2026-12-31, {entry}}}\n" for entry in entries)
    (tmp_path / "s.yaml").write_text(f"suppressions:\n{lines}")
    return Suppressions(load_suppressions([str(tmp_path / "s.yaml")]), clock)


@pytest.mark.parametrize(
    ("entry", "holds"),
    [
        ("fingerprint: 5e", True),
        ("fingerprint: 5f", False),
        ("rule: pii.email", True),
        ("rule: 'pii.*'", True),
        ("rule: 'pii.?mail'", True),
        ("rule: 'pii'", False),
        ("rule: 'secret.*'", False),
        ("tenant: acme", True),
        ("tenant: 'ac*'", True),
        ("tenant: other", False),
        ("place: 'request.messages[*].parts[0]'", True),
        ("place: 'request.messages[1].parts[0]'", False),
        ("place: 'response.*'", False),
        ("rule: pii.email, tenant: other", False),
        ("rule: pii.email, fingerprint: 5e, tenant: acme", True),
        ("when: \"severity <= 'low' and model matches '^gpt'\"", True),
        ("when: \"role == 'user'\"", True),
        ("when: \"role != 'user'\"", False),
        ("when: in_answer", False),
        ("when: confidence > 0.95", False),
        ("rule: 'secret.*', when: \"type == 'EMAIL'\"", False),
    ],
)
def test_an_entry_holds_where_all_that_it_says_does(tmp_path: Path, entry: str, holds: bool) -> None:
    marked = of(tmp_path, entry).marked(a_finding(), FACTS, "user")
    assert (marked.suppressed is not None) is holds
    if marked.suppressed is not None:
        assert (marked.suppressed.reason, marked.suppressed.owner, marked.suppressed.until) == (
            "a test key",
            "sec@example.org",
            "2026-12-31",
        )


@pytest.mark.parametrize("entry", ["tenant: '*'", "when: \"tenant != 'prod'\"", "when: model == null", "when: \"role != 'tool'\""])
def test_what_is_not_known_yet_suppresses_nothing(tmp_path: Path, entry: str) -> None:
    assert of(tmp_path, entry).marked(a_finding(), None).suppressed is None


def test_an_entry_ends_after_its_last_day_also_within_a_run(tmp_path: Path) -> None:
    now = [calendar.timegm((2026, 12, 31, 23, 59, 59))]
    suppressions = of(tmp_path, "rule: pii.email", clock=lambda: now[0])
    assert suppressions.marked(a_finding(), FACTS).suppressed is not None
    assert suppressions.expired() == []
    now[0] += 1
    assert suppressions.marked(a_finding(), FACTS).suppressed is None
    assert suppressions.expired() == [
        f"{tmp_path}/s.yaml:2: this suppression ended on 2026-12-31 and does nothing any longer: ask sec@example.org, or delete it"
    ]


def test_a_report_is_scored_without_what_is_suppressed(tmp_path: Path) -> None:
    kept = a_finding(
        rule_id="credit_card", type="CREDIT_CARD", severity="high", fingerprint="aa", location=Location(part="tags.a", start=0, end=1)
    )
    report = Report([a_finding(severity="critical"), kept], 99, ["pii.email: +90"])
    parts = [TextPart(Place("request.messages", 0, 0), "tool", "", "text")]
    of(tmp_path, "when: \"role == 'tool'\"").apply(report, FACTS, parts)
    assert [finding.suppressed is not None for finding in report.findings] == [True, False]
    assert (report.risk_score, report.risk_reasons) == risk([kept])
    exchange = report.applied(full_exchange())
    assert exchange.pii_types == ["CREDIT_CARD"] == types_of([kept], "pii")
    assert exchange.security_score == security_score([kept])


def test_what_is_suppressed_is_masked_all_the_same(tmp_path: Path) -> None:
    request = Request(messages=[Message(role="user", parts=[Part(type="text", content="to jo@example.org now")])])
    exchange = full_exchange(request=request, input_text="to jo@example.org now", findings=[])
    report = Report([a_finding(location=Location(part="request.messages[0].parts[0]", start=3, end=17))])
    of(tmp_path, "rule: pii.email").apply(report, FACTS, [])
    masked = redacted(report.applied(exchange))
    assert masked.findings[0].suppressed is not None
    assert masked.input_text == "to [EMAIL] now"


def test_no_score_stays_none(tmp_path: Path) -> None:
    report = Report([a_finding()], None)
    of(tmp_path, "rule: '*'").apply(report, FACTS, [])
    assert report.risk_score is None


def test_every_fact_of_a_record_is_there() -> None:
    facts = facts_of(full_exchange())
    assert [name for name in FACT_KINDS if getattr(facts, name) is None] == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("suppressions: [{reason: a, owner: b, until: 2026-12-31}]", ":1: suppressions[0]: would suppress everything"),
        ("suppressions:\n  - {owner: b, until: 2026-12-31, rule: x}", ":2: suppressions[0]: the key `reason` is required"),
        ("suppressions:\n  - {reason: a, owner: '', until: 2026-12-31, rule: x}", ":2: suppressions[0].owner: cannot be empty"),
        ("suppressions:\n  - reason: a\n    owner: b\n    until: never\n    rule: x", ":4: suppressions[0].until: must be a day"),
        ("suppressions:\n  - {reason: a, owner: b, until: '2026-02-30', rule: x}", ":2: suppressions[0].until: must be a day"),
        ("suppressions:\n  - {reason: a, owner: b, until: 2026-12-31, rules: x}", ":2: suppressions[0]: unknown key `rules`"),
        ("suppressions:\n  - reason: a\n    owner: b\n    until: 2026-12-31\n    when: tenent == 'a'", ":5: suppressions[0].when: column 1: there is no field `tenent`"),
        ("suppress: []", ":1: unknown key `suppress`"),
        ("suppressions: 1", ":1: suppressions: must be a list"),
        ("suppressions:\n  - rule: x\n    rule: y\n    reason: a\n    owner: b\n    until: 2026-12-31", ":3: suppressions[0]: the key `rule` is given twice, first in line 2"),
        (f"suppressions:\n  - {{reason: {'a' * 1001}, owner: b, until: 2026-12-31, rule: x}}", ":2: suppressions[0].reason: is longer than 1,000 characters"),
        ("{", ":2: not YAML: "),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_suppressions([str(tmp_path / "s.yaml")])
    assert str(caught.value).startswith(f"{tmp_path}/s.yaml{message}")


def test_those_that_are_tried_on_each_finding_are_few(tmp_path: Path) -> None:
    of(tmp_path, *["fingerprint: aa"] * (MAX_TRIED + 1))
    with pytest.raises(ConfigError, match="without a fingerprint"):
        of(tmp_path, *["rule: aa"] * (MAX_TRIED + 1))


def test_many_wildcards_cost_little(tmp_path: Path) -> None:
    suppressions = of(tmp_path, "tenant: '" + "*a" * 100 + "'")
    assert suppressions.marked(a_finding(), Facts(tenant="a" * 100_000 + "b")).suppressed is None


# --- commands ---------------------------------------------------------------------------------------------------------------

CARD = "my card is 4111 1111 1111 1111"
ENTRY = "suppressions: [{reason: a test card, owner: sec, until: 2999-12-31, rule: credit_card}]"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "s.yaml").write_text(ENTRY)
    return tmp_path / "s.yaml"


def test_scan(run: Callable[..., Any], file: Path) -> None:
    done = run("scan", "--suppressions", file, "--fail-on", "low", input=CARD)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["risk_score"] == 0
    assert [finding["suppressed"] for finding in result["findings"]] == [{"reason": "a test card", "owner": "sec", "until": "2999-12-31"}]
    assert run("scan", "--fail-on", "low", input=CARD).returncode == 1


def test_one_that_has_ended_is_told_and_does_nothing(run: Callable[..., Any], file: Path) -> None:
    file.write_text(ENTRY.replace("2999", "2020"))
    done = run("scan", "--suppressions", file, "--fail-on", "low", input=CARD)
    assert done.returncode == 1
    assert f"{file}:1: this suppression ended on 2020-12-31" in done.stderr


def test_config_check(run: Callable[..., Any], file: Path, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("security: {suppressions: [s.yaml]}")
    assert "0 errors, 0 notes" in run("config", "check", tmp_path / "c.yaml").stdout
    file.write_text(ENTRY.replace("2999", "2020"))
    assert "ended on 2020-12-31" in run("config", "check", tmp_path / "c.yaml").stdout
    file.write_text(ENTRY.replace("rule:", "rul:"))
    done = run("config", "check", tmp_path / "c.yaml")
    assert (done.returncode, "unknown key `rul`" in done.stderr) == (2, True)
    file.unlink()
    assert "cannot be read" in run("config", "check", tmp_path / "c.yaml").stderr


# --- in the detection process -------------------------------------------------------------------------------------------------


def test_in_the_detection_process_nobody_is_told_of_it(tmp_path: Path) -> None:
    entry = "{reason: a test card, owner: sec, until: 2999-12-31, rule: credit_card, tenant: acme}"
    (tmp_path / "s.yaml").write_text(f"suppressions:\n  - {entry}\n  - {entry.replace('2999', '2020')}")
    settings = DetectionSettings(plugins=False, suppressions=(str(tmp_path / "s.yaml"),))
    told: list[Finding] = []
    out: list[Exchange] = []
    journal = Said()
    detection = DetectionProcess(
        settings, b"k" * 32, out.append, may_wait=True, journal=journal, fail_on="low", on_early=told.append, early_from="info"
    )
    detection.await_ready()
    for number, tenant in enumerate(("acme", "other")):
        message = Message(role="user", parts=[Part(type="text", content=CARD)])
        answer = Message(
            role="assistant", parts=[Part(type="text", content="no: 5555 5555 5555 4444 it is, and nothing else that you say")]
        )
        exchange = Exchange(
            exchange_id=f"e{number}",
            client="10.0.0.1:1",
            server="s:1",
            provider="openai",
            tenant=tenant,
            request=Request(messages=[message]),
            ended_ns=1,
        )
        detection.ask(exchange)
        detection.drain()
        listener = detection.listener(SimpleNamespace(exchange_id=exchange.exchange_id))  # type: ignore[arg-type]
        for piece in ("no: 5555 5555 ", "5555 4444 it", " is, and nothing else", " that you say"):
            listener.delta(1, "text", 0, piece)
        whole = msgspec.structs.replace(exchange, response=Response(messages=[answer]))
        listener.finished(whole)
        detection.add(whole)
        detection.drain()
        assert detection.failed is (tenant == "other")
    detection.close()
    assert {finding.exchange_id for finding in told} == {"e1"}
    assert {finding.location.part for finding in told} == {"request.messages[0].parts[0]", "response.messages[0].parts[0]"}
    assert [[finding.suppressed is not None for finding in exchange.findings] for exchange in out] == [[True, True], [False, False]]
    assert out[0].risk_score == 0
    assert detection.summary()[0].endswith("; suppressed 2")
    assert [event.name for event in journal.events] == ["suppression_ended"]


def test_a_replay_with_a_file_of_an_option(run: Callable[..., Any], file: Path, tmp_path: Path) -> None:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": CARD}]}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    answer = b'{"object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}]}'
    reply = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer
    (tmp_path / "c.pcap").write_bytes(pcap(Talk().open().say(0, head + body).say(1, reply).close().frames))
    plain = ("replay", tmp_path / "c.pcap", "--store", "none", "--fail-on", "low", "--format", "events")
    done = run(*plain, "--suppressions", file)
    assert (done.returncode, "; suppressed 1" in done.stderr) == (0, True)
    assert [json.loads(line)["event"] for line in done.stdout.splitlines()] == ["exchange_started", "exchange"]
    assert run(*plain).returncode == 1
    file.write_text("suppressions: [{}]")
    done = run(*plain, "--suppressions", file)
    assert (done.returncode, "the key `reason` is required" in done.stderr, "Traceback" in done.stderr) == (2, True, False)


def test_a_file_that_changed_under_its_name_is_read_at_a_reload() -> None:
    told: list[News] = []
    loaded = Loaded(Config(security=DetectionSettings(suppressions=("s.yaml",))), None, {}, ())
    style = Style()
    journal = StandardError(style)
    Reload(
        loaded, lambda: loaded, lambda _: style, journal, lambda _: [], lambda data: told.append(msgspec.msgpack.decode(data, type=News))
    )()
    assert told[0].security == loaded.config.security


def test_the_example_of_the_docs_is_right(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "detection.md").read_text()
    (example,) = re.findall(r"```yaml\n(suppressions:\n.*?)```", page, re.DOTALL)
    (tmp_path / "s.yaml").write_text(example)
    assert len(load_suppressions([str(tmp_path / "s.yaml")])) == 4
    for name in (*FACT_KINDS, *FINDING_KINDS):
        assert f"`{name}`" in page
