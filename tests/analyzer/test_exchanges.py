from __future__ import annotations

import json

import pytest

from llmsec_analyzer.stored.exchanges import parse_time
from llmsec_tap.errors import ConfigError
from llmsec_tap.model import AnomalyCount, EstimatedUsage, Message, OtherText, Part, Request, Response, Usage, to_json

HOSTILE = "red \x1b[31m title \x1b]0;owned\x07 \x9b2J back\x08space cr\rover \u202egnp.exe \u2066x\u2069 tag\U000e0041 zero\u200bwidth"


def listed(run, root, *arguments):
    done = run("exchanges", *arguments, "--store", root, "--format", "json")
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_newest_first_and_limited(run, store):
    records = listed(run, store)
    assert [record["response_id"] for record in records] == [f"chatcmpl-{number * 1000}" for number in (4, 3, 2, 1, 0)]
    assert len(listed(run, store, "--limit", "2")) == 2


def test_json_is_the_record_that_replay_writes(run, fill, make_exchange):
    exchange = make_exchange(7, findings=[])
    root = fill(exchange)
    done = run("exchanges", "--store", root, "--format", "json")
    assert done.stdout.encode() == to_json(exchange) + b"\n"
    assert run("exchanges", "show", exchange.exchange_id, "--store", root, "--format", "json").stdout == done.stdout


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, request):
    from llmsec_tap.storage import StoreWriter

    full_exchange = request.getfixturevalue("build_exchange")
    root = tmp_path_factory.mktemp("mixed") / "store"
    second = 1_000_000_000
    with StoreWriter.open(root) as writer:
        for number, changes in enumerate(
            [
                {"request_model": "gpt-4o", "provider": "openai", "tenant": "a", "status": 200, "error_type": None, "completeness": "complete"},
                {"request_model": "gpt-4o-mini", "response_model": None, "provider": "openai", "tenant": "b", "status": 429, "error_type": None},
                {"request_model": "claude", "response_model": "claude-opus", "provider": "anthropic", "api": "anthropic.messages", "error_type": "overloaded"},
                {"request_model": "m[1]", "response_model": None, "provider": "vllm", "started_ns": None, "error_type": None, "status": None},
            ]
        ):  # fmt: skip
            writer.add(full_exchange(number, **{"started_ns": 1_795_000_000 * second + number * 3600 * second, **changes}))
    return root


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        ([], [2, 1, 0, 3]),
        (["--model", "gpt-4o"], [0]),
        (["--model", "gpt*"], [1, 0]),
        (["--model", "claude-opus"], [2]),
        (["--model", "m[1]"], [3]),
        (["--provider", "openai"], [1, 0]),
        (["--api", "anthropic.messages"], [2]),
        (["--tenant", "b"], [1]),
        (["--status", "429"], [1]),
        (["--has-error"], [2, 1]),
        (["--completeness", "complete"], [0]),
        (["--completeness", "gapped", "--provider", "openai"], [1]),
        (["--since", "2026-11-18T12:06:40"], [2, 1]),
        (["--since", "2026-11-18T13:06:40+01:00"], [2, 1]),
        (["--until", "2026-11-18T12:06:40Z"], [0]),
        (["--since", "2026-11-18", "--until", "2026-11-19"], [2, 1, 0]),
        (["--model", "' OR 1=1 --"], []),
    ],
)
def test_filters(run, mixed, options, numbers):
    assert [int(record["response_id"].removeprefix("chatcmpl-")) for record in listed(run, mixed, *options)] == numbers


def test_the_table(run, mixed):
    done = run("exchanges", "--store", mixed)
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["id", "started", "ms", "provider", "model", "status", "in", "out", "note", "input"]
    assert len(lines) == 6
    assert "overloaded" in lines[2]
    assert "NULL" in lines[5]


def test_the_table_marks_estimates_of_tokens(run, fill, make_exchange):
    stated = Usage(input_tokens=None, output_tokens=12)
    root = fill(make_exchange(1, usage=stated, usage_estimated=EstimatedUsage(input_tokens=15, output_tokens=16)))
    _, _, row = run("exchanges", "--store", root).stdout.splitlines()
    assert "  ~15   12" in row


def test_show_prints_the_conversation(run, store):
    done = run("exchanges", "show", "00000000ab", "--store", store)
    assert done.returncode == 0, done.stderr
    for line in (
        "2026-11-18 11:06:40.123 UTC  10.0.0.1:40000 -> [2001:db8::1]:443  complete",
        "HTTP/1.1 POST /v1/chat/completions?key=*** -> 200 sse",
        "tokens: in 11, out 12, cached 13, cache write 14, reasoning 15",
        "times: total 900.0 ms, first token 250.5 ms, between tokens p50 1.2 ms, p95 4.8 ms, speed 33.3 tokens/s",
        "--- system",
        "  Be brief.",
        "--- assistant (choice 0) [tool_calls]",
        "  [call get_weather call_1]",
        '  {"city": "Malmö"}',
        "  [result of f]",
        "  [blob image image/png 1234 bytes]",
        "anomalies: tcp_gap x2, sse_bad_json x1",
        "tools offered: get_weather, x",
        "--- elsewhere: $.documents[0].text",
        "  A document about Malmö.",
    ):
        assert line in done.stdout.splitlines()


def test_show_takes_store_before_or_after_and_says_what_is_ambiguous(run, store):
    assert run("exchanges", "--store", store, "show", "00000000").returncode == 0
    done = run("exchanges", "show", "0000", "--store", store)
    assert done.returncode == 2
    assert done.stderr.startswith("error: more than one exchange has an id that begins with '0000' (one of 00000000ab")
    done = run("exchanges", "show", "ff", "--store", store)
    assert (done.returncode, done.stdout) == (2, "")
    assert "no exchange with an id that begins with 'ff'" in done.stderr
    assert run("exchanges", "show", "%", "--store", store).returncode == 2
    assert run("exchanges", "show", "", "--store", store).returncode == 2


def test_content_cannot_steer_the_terminal(run, fill, make_exchange, build_finding):
    message = Message(role=HOSTILE, finish_reason=HOSTILE, parts=[Part(type=kind, content=HOSTILE, name=HOSTILE, id=HOSTILE, arguments=HOSTILE, uri=HOSTILE) for kind in ("text", "tool_call", "tool_call_response", "reasoning", HOSTILE)] + [Part(type="uri", uri=HOSTILE, mime_type=HOSTILE)])  # fmt: skip
    fields = ("client", "server", "provider", "api", "operation", "method", "path", "http_version", "request_model", "response_model", "input_text", "error_type", "tenant", "api_key_fingerprint")  # fmt: skip
    root = fill(
        make_exchange(
            1,
            **dict.fromkeys(fields, HOSTILE),
            finish_reasons=[HOSTILE],
            anomalies=[AnomalyCount(name=HOSTILE, count=1)],
            findings=[build_finding(rule_id=HOSTILE, preview=HOSTILE)],
            other_texts=[OtherText(path=HOSTILE, text=HOSTILE)],
            request=Request(messages=[message], parameters={HOSTILE: HOSTILE}),
            response=Response(messages=[message], error_message=HOSTILE),
        )
    )
    for arguments in (
        ["exchanges", "show", "00000001", "--store", root],
        ["exchanges", "--store", root],
        ["query", "FROM exchanges", "--store", root],
        ["query", "FROM messages", "--store", root],
    ):
        done = run(*arguments)
        assert done.returncode == 0, done.stderr
        assert set(done.stdout) & set("\x1b\x07\x9b\x08\r\u202e\u2066\u2069\u200b\U000e0041") == set()
        assert "\\x1b[31m" in done.stdout


def test_content_cannot_pass_for_our_own_lines(run, fill, make_exchange):
    fake = Message(role="user", parts=[Part(type="text", content="hi\n\n--- assistant\nanomalies: none")])
    root = fill(make_exchange(1, request=Request(messages=[fake])))
    out = run("exchanges", "show", "00000001", "--store", root).stdout
    assert "  --- assistant" in out.splitlines()
    assert "--- assistant" not in [line for line in out.splitlines() if "choice" not in line]


def test_an_exchange_without_anything(run, fill):
    from llmsec_tap.model import Exchange

    root = fill(Exchange(exchange_id="bare", client="a:1", server="b:2"))
    done = run("exchanges", "show", "bare", "--store", root)
    assert done.stdout == "exchange bare\ntime unknown  a:1 -> b:2  complete\n\nno messages: content was not stored, or none was seen\n"


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("2h", 10**18 - 7200 * 10**9),
        ("30m", 10**18 - 1800 * 10**9),
        ("0s", 10**18),
        ("1970-01-02", 86_400 * 10**9),
        ("1970-01-01T00:00:00.000001+00:00", 1000),
    ],
)
def test_times(text, ns):
    assert parse_time(text, "--since", now_ns=10**18) == ns


@pytest.mark.parametrize("text", ["yesterday", "2x", "", "-1h", "2026-13-01"])
def test_wrong_times(text):
    with pytest.raises(ConfigError, match="--since"):
        parse_time(text, "--since")


def test_usage_errors_exit_2(run, store):
    for arguments in (
        ["exchanges", "--since", "yesterday", "--store", store],
        ["exchanges", "--completeness", "x", "--store", store],
        ["exchanges", "--limit", "0", "--store", store],
        ["exchanges", "--nonsense"],
        ["nonsense"],
        ["query"],
    ):
        assert run(*arguments).returncode == 2, arguments
