"""The whole configuration: what is taken, what is refused and where, and which of several values counts."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmsec_agent.config import files, load_config, names, read_config
from llmsec_agent.config.schema import Config
from llmsec_agent.config.secret import Secret
from llmsec_agent.config.show import as_json, as_yaml
from llmsec_analyzer.typed_files import FileError, bare, dotted, keys, struct_type
from llmsec_tap.errors import ConfigError

ROOT = Path(__file__).parents[3]
ORIGINAL = ROOT / "fixtures" / "config" / "original.yaml"


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("LLMSEC_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(files, "DEFAULT_FILE", tmp_path / "etc" / "config.yaml")


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "c.yaml") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def faults(path: str, **more) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read_config(path, **more)
    return caught.value.lines()


# --- the original design's file ---------------------------------------------------------------------------------------------


def test_the_original_file_loads_as_it_is_and_every_path_only_key_gets_a_note():
    loaded = read_config(str(ORIGINAL))
    noted = {dotted(note.where): note.text for note in loaded.notes}
    for key in (
        "server.max_connections", "server.keep_alive_timeout", "server.read_timeout", "server.write_timeout", "server.max_request_size",
        "server.max_header_size", "backends.vllm-cluster.load_balancer", "backends.vllm-cluster.connection_pool",
        "backends.vllm-cluster.retry_policy", "backends.vllm-cluster.circuit_breaker", "backends.openai.timeout", "routing.rules[0].backend",
    ):  # fmt: skip
        assert noted[key].startswith("a tap "), key
    for key in ("routing",):
        assert noted[key].startswith("not in this version yet: "), key
    # Jaeger takes OTLP in place of the protocol that this port had.
    (jaeger,) = [text for where, text in noted.items() if where.startswith("observability.tracing")]
    assert jaeger.startswith("spans go to http://jaeger:4318/v1/traces by OTLP")
    # Tenants are asked for, over one connection.
    assert not {"storage.postgres", "storage.redis"} & noted.keys()
    assert noted["storage.postgres.max_connections"].startswith("one process asks")
    assert "maxmemory" in noted["storage.redis.max_memory_usage"]
    config = loaded.config
    assert config.security.prompt_injection.model.confidence_threshold == 0.8
    assert config.observability.metrics.port == 9090
    assert config.observability.tracing.endpoint == "jaeger:14268"
    assert config.storage.clickhouse is not None
    assert config.storage.clickhouse.flush_interval == 5.0
    assert config.storage.redis is not None
    assert config.storage.redis.max_memory_usage == 2_000_000_000
    assert config.alerting.channels.pagerduty is not None
    assert repr(config.alerting.channels.pagerduty.routing_key) == "Secret(file:/secrets/pagerduty-key)"


def test_the_sidecars_short_forms_are_taken(write):
    config = load_config(
        write(
            "routing: {default_backend: openai}\nbackends: {openai: {type: openai, base_url: 'https://api.openai.com/v1'}}\n"
            "security: {prompt_injection: {enabled: true, confidence_threshold: 0.8}}\nlogging: {level: warn}\n"
        )
    )
    assert config.security.prompt_injection.model.confidence_threshold == 0.8
    assert config.observability.logging.level == "warn"


# --- what is wrong ------------------------------------------------------------------------------------------------------------

WRONG = [
    ("alerting: {chanels: 1}", "c.yaml:1: alerting: unknown key `chanels` (did you mean channels?)"),
    ("storage:\n  clickhouse:\n    nodes: 5\n", "c.yaml:3: storage.clickhouse.nodes: must be a list"),
    ("storage: {clickhouse: {nodes: []}}", "storage.clickhouse.nodes: cannot be empty"),
    ("storage: {clickhouse: {}}", "storage.clickhouse: the key `nodes` is required"),
    ("security:\n  anomaly_detection: {cost_treshold: 3}", "c.yaml:2: security.anomaly_detection: unknown key `cost_treshold` (did you mean"),
    ("anomaly_detection: {}", "unknown key `anomaly_detection` (it belongs to another section: security.anomaly_detection)"),
    ("security: {prompt_injection: {ml_model: {confidence_threshold: 1.7}}}", "security.prompt_injection.ml_model.confidence_threshold: must be from 0 to 1, not 1.7"),
    ("security: {prompt_injection: {confidence_threshold: -0.1}}", "security.prompt_injection.confidence_threshold: must be from 0 to 1"),
    ("security: {budget: {share: -3}}", "security.budget.share: must be more than 0 and at most 1, not -3"),
    ("security: {budget: {share: .nan}}", "must be a finite number"),
    ("security: {pii_detection: {patterns: {ssn: {action: block}}}}", "security.pii_detection.patterns.ssn.action: a tap is not in the path and cannot block"),
    ("security: {pii_detection: {patterns: {ssn: {action: alert_and_redct}}}}", "did you mean alert_and_redact?"),
    ("server: {max_connections: 0}", "server.max_connections: must be at least 1, not 0"),
    ("server: {bind_address: ''}", "server.bind_address: cannot be empty"),
    ("sdk: {socket: 'run/x'}", "sdk.socket: must be a path from / on"),
    ("sdk: {socket: /" + "x" * 107 + "}", "of 107 bytes at most"),
    ("sdk: {mode: '66'}", "sdk.mode: must be three octal digits"),
    ("server: {bind_address: 'nowhere'}", "server.bind_address: must be host:port"),
    ("server: {read_timeout: 60}", "server.read_timeout: must be a duration with its unit"),
    ("server: {max_request_size: 50XB}", "server.max_request_size: must be a size with its unit"),
    ("server: {tls: {enabled: true}}", "server.tls: the key `cert_file` is required"),
    ("server:\n  tls:\n    cert_file: x\n", "c.yaml:3: server.tls.cert_file: is given, but server.tls.enabled is false"),
    ("server: {tls: {client_auth: required}}", "server.tls.client_auth: is given, but server.tls.enabled is false"),
    ("server: {tls: {enabled: false, client_ca_file: x}}", "server.tls.client_ca_file: is given, but server.tls.enabled is false"),
    ("capture: {ring_size: 10MiB}", "capture.ring_size: must be a power of two"),
    ("capture: {memory_cap: 1MiB}", "capture.memory_cap: must be at least 192MiB, not 1MiB"),
    ("capture: {ports: [70000]}", "capture.ports[0]: must be from 1 to 65535"),
    ("capture: {fast_probes: maybe}", "capture.fast_probes: must be true or false or auto"),
    ("capture: {decoders: many}", "capture.decoders: must be a whole number or auto"),
    ("security: {output: {sensitive_tools: [5]}}", "security.output.sensitive_tools[0]: must be text or a mapping"),
    ("capture: {all: 'yes'}", "capture.all: must be true or false"),
    ("backends: {a: {type: openai}}", "backends.a: needs base_url or endpoints"),
    ("backends: {a: {type: opnai, base_url: x}}", "did you mean openai?"),
    ("backends: {vllm: {type: vllm, base_url: x}}\nrouting: {default_backend: vlm}", "routing.default_backend: there is no backend of this name (did you mean vllm?)"),
    ("alerting: {rules: [{name: a, condition: risk_score > 1, channels: [slack]}]}", "alerting.channels.slack is not given"),
    ("alerting: {channels: {webhook: {url: 'http://h'}}, rules: [{name: a, condition: tenant > 1, channels: [webhook]}]}", "alerting.rules[0].condition: column 8: `>` cannot stand between text and a number"),
    ("alerting: {channels: {webhook: {url: 'http://h'}}, rules: [{name: a, condition: risk_scor > 1, channels: [webhook]}]}", "column 1: there is no field `risk_scor` (did you mean risk_score?)"),
    ("alerting: {channels: {webhook: {url: 'http://h'}}, rules: [{name: a b, condition: risk_score > 1, channels: [webhook]}]}", "alerting.rules[0].name: must be of letters"),
    ("alerting: {channels: {webhook: {url: 'http://h'}}, rules: [{name: tenant_threshold, condition: risk_score > 1, channels: [webhook]}]}", "is the name of the rule behind"),
    ("alerting: {channels: {webhook: {url: 'http://h'}}, rules: [{name: a, condition: risk_score > 1, channels: [webhook], dedup: [tenent]}]}", "alerting.rules[0].dedup[0]: alerts cannot be told apart by this (did you mean tenant?)"),
    ("alerting: {tenant_channels: {acme: [slak]}}", "alerting.tenant_channels.acme[0]: is no channel of alerting.channels"),
    (
        "alerting: {channels: {email: {smtp_host: h, from_address: a@b.example}}}",
        "alerting.channels.email: the key `to` is required: a list of recipients",
    ),
    ("alerting: {channels: {email: {smtp_host: h, from_address: a@b.example, to: ['x, y@z']}}}", "email.to[0]: is no mail address"),
    (
        "alerting: {channels: {email: {smtp_host: h, tls: none, username: u, password: 'env:P', from_address: a@b.example, to: [c@d.example]}}}",
        "a password would be sent in clear",
    ),
    ("alerting: {channels: {slack: {}}}", "alerting.channels.slack: the key `webhook_url` is required"),
    ("alerting: {channels: {pagerduty: {}}}", "alerting.channels.pagerduty: the key `routing_key` is required"),
    ("alerting: {channels: {webhook: {url: 'ftp://a/b'}}}", "alerting.channels.webhook.url: must be an address with http"),
    ("alerting: {channels: {webhook: {url: 'https://u:hunter2@a/b'}}}", "credentials do not stand in an address"),
    ("alerting: {channels: {slack: {webhook_url: 'https://hooks.slack.com/services/T0/B0/hunter2'}}}", "write env:NAME or file:/path"),
    ("observability: {metrics: {port: 8080}}", "must not be the port of server.bind_address"),
    ("observability: {metrics: {port: 1, prometheus: {port: 2}}}", "are one key"),
    ("storage: {path: a}\nstorage: {path: b}", "c.yaml:2: the key `storage` is given twice, first in line 1"),
    ("observability:\n  metrics:\n    prometheus: {prt: 1}", "c.yaml:3: observability.metrics: unknown key `prt` (did you mean port?)"),
    ("observability: {metrics: {prometheus: {prometheus: {prometheus: 1}}}}", "observability.metrics: unknown key `prometheus`"),
    ("observability: {metrics: {prometheus: 5}}", "unknown key `prometheus`"),
    ("1: 2", "unknown key `…`"),
    ("tenants: {default: 5}", "tenants.default: must be text: put it in quotes"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "said"), WRONG)
def test_what_is_wrong_is_named_with_its_place_and_what_may_be_meant(write, text, said):
    lines = faults(write(text))
    assert len(lines) == 1 or "cert_file" in said, lines
    assert said in lines[0]
    assert "hunter2" not in lines[0]


def test_all_faults_are_told_at_once_and_in_one_sentence_of_the_design(write):
    path = write(
        "server: {max_connections: 0}\nsecurity:\n  prompt_injection: {confidence_threshold: 2}\n  budget: {shar: 1}\ncaptur: {}\n"
    )
    assert [line.split(" ")[0].rsplit(":", 2)[1] for line in faults(path)] == ["1", "3", "4", "5"]
    with pytest.raises(FileError, match=r"^Config validation failed: .*max_connections.*, .*captur"):
        load_config(path)


def test_a_backend_may_have_any_name(write):
    text = 'backends: {"*": {type: openai, base_url: x, retry_policy: {backoff: linear}}}'
    policy = load_config(write(text)).backends["*"].retry_policy
    assert policy is not None
    assert policy.backoff_strategy == "linear"


def test_a_file_of_nothing_but_faults_is_bounded(write):
    lines = faults(write("".join(f"key{number}: 1\n" for number in range(20_000))))
    assert len(lines) == 51
    assert "19,950 more" in lines[-1]


def test_places_are_found_in_time_that_grows_with_the_file_only(write):
    begun = time.process_time()
    path = write("backends:\n" + "".join(f"  b{number}: {{type: openai, base_url: x, timeout: 1s}}\n" for number in range(8_000)))
    assert len(read_config(path).notes) == 1
    assert time.process_time() - begun < 15  # about 2 s; when each place was looked for from the beginning, 40 s


def test_a_missing_file_and_a_broken_one_say_so_in_the_words_of_the_design(write, tmp_path):
    assert faults(str(tmp_path / "none.yaml"))[0].startswith(f"Failed to read config file '{tmp_path}/none.yaml': No such file")
    assert faults(write("a: [", "x.yaml"))[0].startswith(f"Failed to parse config: {tmp_path}/x.yaml:")
    assert "x.toml:2: not TOML" in faults(write("a = 1\nb =\n", "x.toml"))[0]
    assert "x.json:2: not JSON" in faults(write('{"a":\n}', "x.json"))[0]


# --- formats --------------------------------------------------------------------------------------------------------------------

SAME = {
    "c.yaml": "capture:\n  ports: [80]\n  ring_size: 32MiB\nserver:\n  bind_address: 'x:1'\n",
    "c.json": '{\n\t"capture": {"ports": [80], "ring_size": "32MiB"},\n\t"server": {"bind_address": "x:1"}}',
    "c.toml": '[capture]\nports = [80]\nring_size = "32MiB"\n[server]\nbind_address = "x:1"\n',
}
BAD = {
    "c.yaml": ("server:\n  tls:\n    enabled: 5\n", 3),
    "c.json": ('{"server":\n {"tls":\n {"enabled": 5}}}', 3),
    "c.toml": ("[server.tls]\n\nenabled = 5\n", 3),
}


@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize("suffix", [True, False])
def test_yaml_json_and_toml_say_the_same(write, name, suffix):
    config = load_config(write(SAME[name], name if suffix else "config"))
    assert config.capture.ports == (80,)
    assert config.capture.ring_size == 32 << 20
    assert config.server.bind_address == "x:1"


def test_the_listener_is_switched_off_by_a_word(write):
    assert load_config(write("server: {bind_address: none}\n")).server.bind_address == "none"


@pytest.mark.parametrize("name", BAD)
def test_faults_have_lines_in_every_format(write, name):
    text, line = BAD[name]
    assert f"{name}:{line}: server.tls.enabled: must be true or false" in faults(write(text, name))[0]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(alphabet='ab[]{}=:.,"\n0-#&*security', max_size=80), st.sampled_from(["f", "f.toml", "f.json", "f.yaml"]))
def test_any_text_is_a_configuration_or_one_error(tmp_path, text, name):
    (tmp_path / name).write_text(text)
    with contextlib.suppress(ConfigError):
        load_config(str(tmp_path / name))


# --- which value counts ----------------------------------------------------------------------------------------------------------

VARIABLES = {
    "LLMSEC_BIND_ADDRESS": ("0.0.0.0:81", "server.bind_address", "0.0.0.0:81"),
    "LLMSEC_CLICKHOUSE_NODES": (" a:1 , b:2 ", "storage.clickhouse.nodes", ("a:1", "b:2")),
    "LLMSEC_TENANT_ID": ("tenant-123", "tenants.default", "tenant-123"),
    "LLMSEC_SERVICE_NAME": ("s", "observability.tracing.service_name", "s"),
    "LLMSEC_TRACING_ENDPOINT": ("http://c:4318/v1/traces", "observability.tracing.endpoint", "http://c:4318/v1/traces"),
    "LLMSEC_BATCH_SIZE": ("50", "observability.tracing.batch_size", 50),
    "LLMSEC_FLUSH_INTERVAL": ("7", "observability.tracing.flush_interval", 7.0),
    "LLMSEC_SECURITY_ENABLED": ("false", "security.enabled", False),
    "LLMSEC_INJECTION_THRESHOLD": ("0.65", "security.prompt_injection.model.confidence_threshold", 0.65),
    "LLMSEC_PII_DETECTION": ("False", "security.pii_detection.enabled", False),
    "LLMSEC_SAMPLING_RATE": ("0.5", "observability.tracing.sampling.default_rate", 0.5),
    "LLMSEC_DEBUG": ("true", "observability.logging.level", "debug"),
    "LLMSEC_STORE": ("/s", "storage.path", "/s"),
    "LLMSEC_USER": ("nobody", "capture.user", "nobody"),
}


def at(config, path: str):
    for step in path.split("."):
        config = getattr(config, step)
    return config


@pytest.mark.parametrize("name", VARIABLES)
def test_each_variable_sets_its_key(name):
    text, path, value = VARIABLES[name]
    loaded = read_config(None, environment={name: text})
    assert at(loaded.config, path) == value
    assert loaded.origins[path] == f"environment {name}"


def test_the_table_has_every_variable():
    assert {*names.variables(), names.DEBUG_VARIABLE} == set(VARIABLES)


@pytest.mark.parametrize(
    ("name", "text"),
    [("LLMSEC_INJECTION_THRESHOLD", "much"), ("LLMSEC_BATCH_SIZE", "0"), ("LLMSEC_SECURITY_ENABLED", "maybe"), ("LLMSEC_DEBUG", "loud")],
)
def test_a_wrong_variable_is_named(name, text):
    assert f"environment {name}: " in faults(None, environment={name: text})[0]


def test_flags_beat_the_environment_which_beats_the_file_and_each_says_so(write):
    path = write("storage:\n  path: /file\n  flush_interval: 2s\nserver: {bind_address: 'f:1'}\n")
    environment = {"LLMSEC_STORE": "/environment", "LLMSEC_BIND_ADDRESS": "e:2"}
    loaded = read_config(path, flags={"storage.path": ("--store", "/flag")}, environment=environment)
    assert loaded.config.storage.path == "/flag"
    assert loaded.config.server.bind_address == "e:2"
    assert loaded.config.storage.flush_interval == 2.0
    assert loaded.origins["storage.path"] == "flag --store"
    assert loaded.origins["server.bind_address"] == "environment LLMSEC_BIND_ADDRESS"
    assert loaded.origins["storage.flush_interval"] == f"{path}:3"
    assert "storage.content" not in loaded.origins


def test_the_file_is_found_by_option_variables_and_default(write, monkeypatch):
    option, first, second = (write(f"storage: {{path: {name}}}", f"{name}.yaml") for name in ("option", "first", "second"))
    default = files.DEFAULT_FILE
    default.parent.mkdir()
    assert read_config(None).file is None
    default.write_text("storage: {path: default}")
    assert load_config(None).storage.path == "default"
    monkeypatch.setenv("LLMSEC_CONFIG_PATH", second)
    assert load_config(None).storage.path == "second"
    monkeypatch.setenv("LLMSEC_CONFIG", first)
    assert load_config(None).storage.path == "first"
    assert load_config(option).storage.path == "option"


def test_a_default_file_of_another_user_is_a_note_and_a_named_one_an_error(monkeypatch):
    files.DEFAULT_FILE.parent.mkdir()
    files.DEFAULT_FILE.write_text("storage: {path: default}")
    monkeypatch.setattr("llmsec_agent.config.load.is_readable", lambda path: False)
    said: list[str] = []
    assert load_config(None, said.append).storage.path == Config().storage.path
    assert "not readable" in said[0]
    if os.geteuid():
        files.DEFAULT_FILE.chmod(0)
        assert "Permission denied" in faults(str(files.DEFAULT_FILE))[0]


# --- secrets ------------------------------------------------------------------------------------------------------------------------


def test_a_secret_is_read_where_it_is_used_and_shown_nowhere(write, tmp_path, monkeypatch):
    (tmp_path / "key").write_text("hunter2\n")
    (tmp_path / "key").chmod(0o600)
    monkeypatch.setenv("REDIS", "hunter2")
    text = (
        f"storage:\n  clickhouse: {{nodes: ['a:1'], password_file: {tmp_path}/key}}\n  redis: {{nodes: ['a:1'], password: 'env:REDIS'}}\n"
    )
    loaded = read_config(write(text))
    clickhouse, redis = loaded.config.storage.clickhouse, loaded.config.storage.redis
    assert clickhouse is not None
    assert redis is not None
    assert clickhouse.password is not None
    assert redis.password is not None
    assert clickhouse.password.read() == redis.password.read() == "hunter2"
    assert "hunter2" not in repr(loaded) + as_json(loaded) + "\n".join(as_yaml(loaded))
    assert "hunter2" not in str(vars(Secret)) + f"{clickhouse.password}"


@pytest.mark.parametrize(("mode", "said"), [(0o644, "every user"), (0o600, "")])
def test_a_secret_that_everybody_can_read_is_a_note(write, tmp_path, mode, said):
    (tmp_path / "key").write_text("hunter2")
    (tmp_path / "key").chmod(mode)
    notes = read_config(write(f"alerting: {{channels: {{pagerduty: {{service_key_file: {tmp_path}/key}}}}}}")).notes
    found = [note for note in notes if dotted(note.where) == "alerting.channels.pagerduty.service_key_file"]
    assert [said in note.text for note in found] == ([True] if said else [])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.write_bytes(b"x" * 70_000), "larger than"),
        (lambda path: path.write_bytes(b"\xff"), "not UTF-8"),
        (lambda path: path.write_text("hunter2\nX-Other: 1"), "control characters"),
        (lambda path: path.write_text("\n"), "empty"),
        (os.mkfifo, "not a regular file"),
        (lambda path: None, "No such file"),
    ],
)
def test_a_secret_file_that_is_none_is_refused_without_what_it_says(tmp_path, make, said):
    make(tmp_path / "key")
    with pytest.raises(ConfigError, match=said) as caught:
        Secret(f"file:{tmp_path}/key").read()
    assert "hunter2" not in str(caught.value)


# --- show -------------------------------------------------------------------------------------------------------------------------------


def test_what_is_shown_is_a_file_that_means_the_same(write):
    loaded = read_config(str(ORIGINAL))
    again = read_config(write("\n".join(as_yaml(loaded)) + "\n"))
    assert msgspec.to_builtins(again.config, enc_hook=repr) == msgspec.to_builtins(loaded.config, enc_hook=repr)


def test_show_masks_credentials_in_addresses(write):
    text = "observability: {tracing: {endpoint: 'http://jo:hunter2@c:4318/v1?token=hunter2'}}\n"
    loaded = read_config(write(text))
    assert "hunter2" not in as_json(loaded) + "\n".join(as_yaml(loaded))


def test_every_key_says_what_it_is():
    for where, _, kind, facts in keys(struct_type(Config)):
        assert facts.get("doc"), dotted(where)
        assert bare(kind)[0] is kind


PLACES = [where for where, _, _, _ in keys(struct_type(Config))] + [tuple(name.split(".")) for name in names.ALIASES]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["", "x", "30s", "16MiB", "a:1", "env:X", "auto", "openai", "(?i)x"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["name", "url", "regex", "path", "x"]), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(PLACES), VALUES), max_size=6))
def test_any_values_at_any_keys_are_a_configuration_that_can_be_shown_or_errors(tmp_path, chosen):
    tree: dict = {}
    for where, value in chosen:
        at = tree
        for step in where[:-1]:
            at = at.setdefault(str(step), {}) if isinstance(at, dict) else {}
        if isinstance(at, dict):
            at[str(where[-1])] = value
    (tmp_path / "any.json").write_text(json.dumps(tree))
    try:
        loaded = read_config(str(tmp_path / "any.json"), environment={})
    except ConfigError as fault:
        said = fault.lines()
        assert all(line.isprintable() for line in said)
        return
    (tmp_path / "shown.yaml").write_text("\n".join(as_yaml(loaded)))
    again = read_config(str(tmp_path / "shown.yaml"), environment={})
    assert msgspec.to_builtins(again.config, enc_hook=repr) == msgspec.to_builtins(loaded.config, enc_hook=repr)
