"""Which rule holds, for each kind of evidence; the first that does counts; the plain key leaves nowhere."""

from __future__ import annotations

from typing import Any

import pytest

from llmsec_tap.identity.tenants import Evidence, TenantRule, pseudonym, tenant_of
from llmsec_tap.model import Process

SEEN: dict[str, Any] = {
    "credential": "sk-team-a-123",
    "fingerprint": "ab" * 16,
    "headers": {"x-team": "red"},
    "deployment": "chat-eu",
    "process": Process(pid=1, comm="python3", exe="/usr/bin/python3.11", pod="web-7d9f6c5b4d-x2x9z", namespace="shop"),
    "path": "/team-a/v1/chat/completions?key=***",
    "model": "gpt-4o[beta]",
    "header_tenant": "acme",
}


def resolved(*rules: dict[str, Any], **changes: Any) -> str | None:
    return tenant_of(tuple(TenantRule(**{"tenant": "t", **rule}) for rule in rules), Evidence(**{**SEEN, **changes}))


@pytest.mark.parametrize(
    "rule",
    [
        {},
        {"api_key_fingerprint": "ab" * 16},
        {"api_key_prefix": "sk-team-a-"},
        {"deployment": "chat-*"},
        {"headers": (("x-team", "r?d"),)},
        {"process": "python3"},
        {"process": "python3.11"},
        {"process": "/usr/bin/*"},
        {"pod": "web-*"},
        {"namespace": "shop"},
        {"path": "/team-a/*"},
        {"path": "/team-a/v1/chat/completions"},
        {"model": "gpt-4o[beta]"},
        {"header_tenant": "acme"},
        {"api_key_prefix": "sk-", "model": "gpt-*", "namespace": "shop"},
    ],
)
def test_a_rule_that_holds(rule: dict[str, Any]) -> None:
    assert resolved(rule) == "t"


@pytest.mark.parametrize(
    "rule",
    [
        {"api_key_fingerprint": "cd" * 16},
        {"api_key_prefix": "sk-team-b-"},
        {"api_key_prefix": "SK-"},
        {"access_key_id": "AKIAX"},
        {"deployment": "chat"},
        {"headers": (("x-team", "blue"),)},
        {"headers": (("x-absent", "*"),)},
        {"headers": (("x-team", "red"), ("x-absent", "*"))},
        {"process": "bash"},
        {"namespace": "sho"},
        {"path": "/v1/*"},
        {"model": "gpt-4o[abc]"},
        {"model": "gpt-4ob"},
        {"api_key_prefix": "sk-", "namespace": "other"},
    ],
)
def test_a_rule_that_does_not_hold(rule: dict[str, Any]) -> None:
    assert resolved(rule) is None


def test_the_first_rule_that_holds_counts() -> None:
    assert resolved({"tenant": "no", "model": "x"}, {"tenant": "one"}, {"tenant": "two"}) == "one"


def test_nothing_is_known_of_an_exchange_without_a_request() -> None:
    nothing = dict.fromkeys(SEEN, None) | {"headers": {}}
    for name in ("api_key_prefix", "api_key_fingerprint", "pod", "path", "model", "process", "header_tenant", "deployment"):
        assert resolved({name: "*"}, **nothing) is None
    assert resolved({"tenant": "all"}, **nothing) == "all"


def test_the_access_key_id_of_a_signed_request() -> None:
    assert resolved({"access_key_id": "AKIAEXAMPLE"}, credential="AKIAEXAMPLE") == "t"


def test_a_pseudonym_is_stable_and_short() -> None:
    assert pseudonym("ab" * 16) == pseudonym("ab" * 16) == "key-abababababab"
