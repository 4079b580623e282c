"""Configuration in code, in the environment and in a file: the design's names and defaults, and one clear error for all that is wrong."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from llmsec_tap.errors import ConfigError
from llmsec_trace import InstrumentationConfig, SecurityConfig, TracingConfig, instrument

DESIGN = {
    "tenant_id": None, "service_name": "llm-application", "sampling_rate": 1.0, "debug": False,
    "tracing": {"endpoint_url": "http://localhost:4318/v1/traces", "batch_size": 100, "flush_interval_seconds": 5,
                "max_queue_size": 10000, "headers": {}, "timeout_seconds": 30},
    "security": {"enabled": True, "prompt_injection_threshold": 0.8, "pii_detection_enabled": True, "real_time_analysis": True,
                 "analysis_timeout_seconds": 1},
}  # fmt: skip


def test_defaults_are_those_of_the_design() -> None:
    ours: Any = asdict(InstrumentationConfig())
    for name, value in DESIGN.items():
        assert value.items() <= ours[name].items() if isinstance(value, dict) else ours[name] == value


@pytest.mark.parametrize(
    ("variable", "text", "read", "value"),
    [
        ("LLMSEC_TENANT_ID", "company-prod", lambda c: c.tenant_id, "company-prod"),
        ("LLMSEC_SERVICE_NAME", "shop", lambda c: c.service_name, "shop"),
        ("LLMSEC_TRACING_ENDPOINT", "http://collector:4318/v1/traces", lambda c: c.tracing.endpoint_url, "http://collector:4318/v1/traces"),
        ("LLMSEC_METRICS_ENDPOINT", "http://m:1/x", lambda c: c.tracing.metrics_url, "http://m:1/x"),
        ("LLMSEC_BATCH_SIZE", "7", lambda c: c.tracing.batch_size, 7),
        ("LLMSEC_FLUSH_INTERVAL", "2", lambda c: c.tracing.flush_interval_seconds, 2),
        ("LLMSEC_SECURITY_ENABLED", "False", lambda c: c.security.enabled, False),
        ("LLMSEC_INJECTION_THRESHOLD", "0.6", lambda c: c.security.prompt_injection_threshold, 0.6),
        ("LLMSEC_PII_DETECTION", "0", lambda c: c.security.pii_detection_enabled, False),
        ("LLMSEC_SAMPLING_RATE", "0.5", lambda c: c.sampling_rate, 0.5),
        ("LLMSEC_DEBUG", "true", lambda c: c.debug, True),
        ("LLMSEC_STORE", "/tmp/x", lambda c: c.store, "/tmp/x"),
        ("LLMSEC_TENANT_ID", "  ", lambda c: c.tenant_id, None),
    ],
)
def test_each_variable_sets_its_field(variable: str, text: str, read: Callable[[InstrumentationConfig], Any], value: Any) -> None:
    assert read(InstrumentationConfig.from_env({variable: text})) == value


def test_all_wrong_variables_are_told_at_once_and_no_text_is_quoted() -> None:
    wrong = {"LLMSEC_BATCH_SIZE": "many", "LLMSEC_SAMPLING_RATE": "2", "LLMSEC_DEBUG": "perhaps", "LLMSEC_TRACING_ENDPOINT": "secret-host"}
    with pytest.raises(ConfigError) as raised:
        InstrumentationConfig.from_env(wrong)
    message = str(raised.value)
    assert [name for name in wrong if name in message] == list(wrong)
    assert "at least 0 and at most 1, not 2" in message
    assert "secret-host" not in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "text",
    [
        "tenant_id: t\ntracing:\n  batch_size: 7\n  headers: {X-Key: abc}\nsecurity:\n  enabled: false\n",
        '{"tenant_id": "t", "tracing": {"batch_size": 7, "headers": {"X-Key": "abc"}}, "security": {"enabled": false}}',
    ],
    ids=["yaml", "json"],
)
def test_a_file_may_be_yaml_or_json_and_nested(tmp_path: Path, text: str) -> None:
    path = tmp_path / "sdk.yaml"
    path.write_text(text)
    assert InstrumentationConfig.from_file(str(path)) == InstrumentationConfig(
        tenant_id="t", tracing=TracingConfig(batch_size=7, headers={"X-Key": "abc"}), security=SecurityConfig(enabled=False)
    )


def test_all_that_is_wrong_in_a_file_is_told_at_once_with_lines(tmp_path: Path) -> None:
    path = tmp_path / "sdk.yaml"
    path.write_text("tenant: t\ntracing:\n  batch_size: 0\n  batchsize: 3\nsecurity: yes\nsampling_rate: high\n")
    with pytest.raises(ConfigError) as raised:
        InstrumentationConfig.from_file(path)
    message = str(raised.value)
    assert message.startswith(f"{path}: ")
    assert "line 1" in message
    for part in ("unknown key `tenant` (did you mean tenant_id?)", "line 3: tracing.batch_size: must be at least 1", "`batchsize`",
                 "line 5: security: must be a mapping", "line 6: sampling_rate: must be a number, not str"):  # fmt: skip
        assert part in message


@pytest.mark.parametrize("text", ["- a\n", "a: [", "x: &a [*a]\n", "\0"])
def test_a_file_that_is_no_mapping_is_one_clear_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "sdk.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(str(path))):
        InstrumentationConfig.from_file(path)


def test_a_file_that_is_not_there_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        InstrumentationConfig.from_file(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: InstrumentationConfig(sampling_rate=5), "sampling_rate must be at least 0 and at most 1, not 5"),
        (lambda: InstrumentationConfig(sampling_rate=float("nan")), "sampling_rate"),
        (lambda: InstrumentationConfig(service_name=""), "service_name must not be empty"),
        (lambda: InstrumentationConfig(tracing={}), "tracing must be a TracingConfig, not dict"),
        (lambda: InstrumentationConfig(destinations=[print]), "destinations [0] must have the methods send and close"),
        (lambda: InstrumentationConfig(destinations=3), "destinations must be a list"),
        (lambda: TracingConfig(endpoint_url="localhost:4318"), "endpoint_url must be an address"),
        (lambda: TracingConfig(metrics_endpoint_url="localhost:4318"), "metrics_endpoint_url must be an address"),
        (lambda: TracingConfig(headers={"a b": "c"}), "headers has a name that no header can have"),
        (lambda: TracingConfig(headers={"a": "c\r\nd: e"}), "headers has a value of a that no header can have"),
        (lambda: TracingConfig(batch_size=True), "batch_size must be a whole number, not bool"),
        (lambda: SecurityConfig(custom_rules=[{"pattern": "("}]), "custom_rules [0] must have exactly the keys"),
        (
            lambda: SecurityConfig(custom_rules=[{"pattern": "(", "type": "x", "action": "alert"}]),
            "custom_rules [0].pattern is no regular expression",
        ),
        (lambda: SecurityConfig(policy_class=3), "policy_class must be a class"),
    ],
)
def test_wrong_values_in_code_are_one_clear_error(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        make()


def test_a_traceback_in_an_application_says_what_to_do() -> None:
    with pytest.raises(ConfigError) as caught:
        instrument(object())
    shown = "".join(traceback.format_exception(caught.value))
    assert "found no HTTP client in builtins.object" in shown
    assert "Call instrument() without an object before that client is made." in shown


@pytest.mark.parametrize(
    ("tracing", "url"),
    [
        (TracingConfig(), "http://localhost:4318/v1/metrics"),
        (TracingConfig(endpoint_url="https://otlp.example/eu/v1/traces?team=a"), "https://otlp.example/eu/v1/metrics?team=a"),
        (TracingConfig(endpoint_url="https://otlp.example/api/spans"), None),
        (TracingConfig(endpoint_url="https://otlp.example/api/spans", metrics_endpoint_url="https://m.example/x"), "https://m.example/x"),
        (TracingConfig(metrics=False), None),
        (TracingConfig(metrics=False, metrics_endpoint_url="https://m.example/x"), None),
    ],
)
def test_metrics_go_beside_the_spans_unless_told_otherwise(tracing: TracingConfig, url: str | None) -> None:
    assert tracing.metrics_url == url
