"""A key in new hands, and in several, is said once; replicas of one deployment are one workload; memory is bounded."""

from __future__ import annotations

from typing import Any

from llmsec_agent import key_use
from llmsec_agent.key_use import KeyUse, workload_of
from llmsec_tap.model import Exchange, Process
from support.exchanges import full_exchange

S = 1_000_000_000


def use(watch: KeyUse, key: str | None, pod: str, at_s: int) -> list[str]:
    process = Process(pid=1, comm="c", exe="/x", pod=pod, namespace="shop")
    exchange = full_exchange(api_key_fingerprint=key, process=process, started_ns=at_s * S, anomalies=[])
    watch.look(exchange)
    return [anomaly.name for anomaly in exchange.anomalies]


def test_the_first_workload_owns_the_key() -> None:
    watch = KeyUse()
    assert use(watch, "k", "web-7d9f6c5b4d-x2x9z", 0) == []
    assert use(watch, "k", "web-7d9f6c5b4d-aaaaa", 1) == []
    assert use(watch, "k", "batch-0", 2) == ["key_new_workload", "key_shared"]
    assert use(watch, "k", "batch-1", 3) == []
    assert use(watch, "k", "web-7d9f6c5b4d-x2x9z", 4) == []
    assert use(watch, "other", "batch-0", 4) == []
    assert use(watch, None, "batch-0", 4) == []


def test_shared_is_said_once_an_hour_and_only_where_both_use_it_then() -> None:
    watch = KeyUse()
    use(watch, "k", "a-0", 0)
    assert use(watch, "k", "b-0", 8000) == ["key_new_workload"]
    assert use(watch, "k", "a-0", 8001) == ["key_shared"]
    assert use(watch, "k", "b-0", 9000) == []
    assert use(watch, "k", "a-0", 12_000) == ["key_shared"]


def test_memory_is_bounded() -> None:
    watch = KeyUse()
    for number in range(key_use._MAX_KEYS + 50):
        use(watch, f"k{number}", "a-0", number)
    for number in range(100):
        use(watch, "one", f"{number}{'x' * 20}", number)
    assert len(watch._keys) == key_use._MAX_KEYS
    assert len(watch._keys["one"].workloads) == key_use._MAX_WORKLOADS


def test_what_an_application_sends_of_itself_says_nothing_of_keys() -> None:
    watch = KeyUse()
    use(watch, "k", "a-0", 0)
    sent = full_exchange(api_key_fingerprint="k", process=Process(pid=2, comm="python"), capture_kind="sdk", anomalies=[])
    watch.look(sent)
    assert sent.anomalies == []


def test_what_a_workload_is() -> None:
    def of(**changes: Any) -> str | None:
        return workload_of(full_exchange(**changes))

    assert of(process=Process(pid=1, comm="c", exe="/x")) == "/x"
    assert of(process=Process(pid=1, comm="c")) == "c"
    assert of(process=Process(pid=1, pod="db-12", namespace="n")) == "n/db"
    assert of(process=None, forwarded_client=None, client="10.0.0.1:5") == "10.0.0.1"


def test_it_is_a_finding() -> None:
    from llmsec_analyzer.judge.exchange_parts import NOTED, noted
    from llmsec_analyzer.rules.load import load_builtin
    from llmsec_tap.model import AnomalyCount

    exchange: Exchange = full_exchange(anomalies=[AnomalyCount(name=name, count=1) for name in NOTED])
    assert noted(exchange) == list(NOTED)
    assert set(NOTED.values()) <= {rule.id for rule in load_builtin()}
