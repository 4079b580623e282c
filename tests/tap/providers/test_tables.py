"""One format for every table of who serves what, and no row that can never win."""

from __future__ import annotations

import re

import pytest

from llmsec_tap.dialects.registry import DIALECTS
from llmsec_tap.providers import answers, headers, hosts, paths
from llmsec_tap.providers.mark import Mark

TABLES: dict[str, tuple[Mark, ...]] = {
    f"{module.__name__.rpartition('.')[2]}.{name}": value
    for module in (answers, headers, hosts, paths)
    for name, value in vars(module).items()
    if name.isupper() and isinstance(value, tuple) and all(isinstance(row, Mark) for row in value)
}
NAME = re.compile(r"[a-z0-9]+([._][a-z0-9]+)*")


def test_the_tables_are_found() -> None:
    assert sorted(TABLES) == [
        "answers.ANTHROPIC_IDS",
        "answers.CHOICE_FIELDS",
        "answers.FIELDS",
        "answers.FINGERPRINTS",
        "answers.IDS",
        "headers.REQUEST_HEADERS",
        "headers.RESPONSE_HEADERS",
        "hosts.PATTERNS",
        "hosts.WITH_PATH",
        "paths.PATHS",
    ]


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_rows_have_a_name_for_the_provider_and_stand_once(table: tuple[Mark, ...]) -> None:
    assert [row.provider for row in table if not NAME.fullmatch(row.provider)] == []
    keys = [(row.where, row.pattern) for row in table]
    assert len(keys) == len(set(keys))
    # A row that takes any value leaves nothing to a later row for the same place.
    taken: set[str] = set()
    for row in table:
        assert row.where not in taken, row
        if not row.pattern:
            taken.add(row.where)


def test_exact_hosts_are_bare_and_have_a_provider() -> None:
    for host, provider in hosts.EXACT.items():
        assert hosts.bare_host(host) == host
        assert NAME.fullmatch(provider)
        assert hosts.provider_of_host(host, "/v1/x") == provider


def test_servers_that_name_themselves_are_in_the_tables() -> None:
    named = {row.provider for row in headers.RESPONSE_HEADERS if row.where == "server"}
    assert named == headers.MODEL_SERVERS
    assert {dialect.default_provider for dialect in DIALECTS} >= headers.MODEL_SERVERS


@pytest.mark.parametrize(
    ("answer", "provider"),
    [
        ({"id": "gen-1", "provider": "Groq"}, "openrouter"),
        ({"id": "gen-1"}, None),
        ({"id": "infinity-0aa"}, "infinity"),
        ({"id": "embd-0123456789abcdef"}, "vllm"),
        ({"id": "embd-short"}, None),
        ({"id": "msg_bdrk_1"}, "aws.bedrock"),
        ({"system_fingerprint": "vllm-0.11"}, "vllm"),
        ({"system_fingerprint": "fp_ollama2"}, None),
        ({"system_fingerprint": "b4567-abc1234x"}, None),
        ({"choices": [{"matched_stop": 2}]}, "sglang"),
        ({"choices": [{"index": 0}, {"matched_stop": 2}]}, None),
        ({"choices": [1]}, None),
        ({"id": 7, "system_fingerprint": [], "metadata": [], "choices": {}}, None),
        ({"timings": 0, "id": "infinity-0aa"}, "llamacpp"),
    ],
)
def test_answers(answer: dict[str, object], provider: str | None) -> None:
    assert answers.provider_of_answer(answer) == provider


@pytest.mark.parametrize(
    ("identity", "provider"),
    [
        ("msg_01" + "A" * 22, "anthropic"),
        ("msg_01" + "A" * 23, None),
        ("msg_vrtx_1", "gcp.vertex_ai"),
        ("msg_bdrk_1", "aws.bedrock"),
        ("chatcmpl-1", "vllm"),
        ("", None),
    ],
)
def test_ids_of_anthropic_messages(identity: str, provider: str | None) -> None:
    assert answers.provider_of_anthropic_id(identity) == provider


def test_the_answer_is_believed_before_the_request() -> None:
    assert headers.provider_of_headers({"openai-project": "p"}, {"x-goog-api-key": "k"}) == "openai"
    assert headers.provider_of_headers({}, {"x-goog-api-key": "k"}) == "gcp.gemini"
    assert headers.provider_of_headers({"server": "nginx"}, {}) is None
