"""The sending process: as a command over what a replay stored, and kept running by the agent's own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmsec_agent import agent
from llmsec_agent.config.endpoints import endpoint_url
from llmsec_agent.config.schema import ClickHouse, Config, Metrics, Observability, OTLPMetrics, Storage, Tracing
from llmsec_agent.delivery_metrics import TelemetryMetrics
from llmsec_agent.telemetry import plan as plans
from llmsec_agent.telemetry.plan import telemetry_plan
from llmsec_tap.counters import Snapshot
from llmsec_tap.errors import ConfigError
from llmsec_tap.storage import StoreWriter
from llmsec_tap.storage.store import Store, StoreInfo
from support.agent import ROOT, environment
from support.collector import Collector
from support.exchanges import full_exchange

CAPTURE = ROOT / "fixtures/pcap/golden"
PARENT = """
import sys, time
from llmsec_agent.config import load_config
from llmsec_agent.kept import end
from llmsec_agent.journals import journal
from llmsec_agent.telemetry.plan import telemetry_plan
from llmsec_agent.telemetry.process import TelemetrySender
config = load_config(sys.argv[1], print)
child = TelemetrySender.begin(telemetry_plan(config.storage.path, config.observability, since_ns=0), journal())
print(child.pid, flush=True)
for line in sys.stdin:
    if line.strip() == "reload":
        config = load_config(sys.argv[1], print)
        child.change(telemetry_plan(config.storage.path, config.observability))
        print("told", flush=True)
    if line.strip() == "end":
        begun = time.monotonic()
        end([child])
        print(time.monotonic() - begun, flush=True)
time.sleep(120)
"""
OWNER = 64_123  # nobody has it


def configured(path, store, endpoint, protocol="http", more=""):
    path.write_text(
        f"storage: {{path: {store}}}\n"
        "observability:\n"
        f"  tracing: {{enabled: true, endpoint: '{endpoint}', protocol: {protocol}, flush_interval: 100ms, sampling: {{default_rate: 1.0}}{more}}}\n"
        f"  metrics: {{otlp: {{endpoint: '{endpoint}', protocol: {protocol}, interval: 1s}}}}\n"
    )
    return path


def command(*arguments):
    variables = {**environment()}
    variables.pop("LLMSEC_STORE")
    return subprocess.run([sys.executable, "-m", *arguments], env=variables, capture_output=True, text=True, check=False, timeout=120)


def wait_for(condition, seconds=25):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert condition()


def fill(root, *numbers):
    made = root.with_name(f"made-{numbers[0]}")
    with StoreWriter.open(made) as writer:
        for number in numbers:
            writer.add(full_exchange(number))
    if os.geteuid() == 0:
        for path in (made, *made.rglob("*")):
            os.chown(path, OWNER, OWNER)
    if not root.exists():
        made.rename(root)
        return
    for part in made.glob("exchanges/day=*/part-*.parquet"):
        part.rename(root / part.relative_to(made))


def told(collector):
    """Spans the collector has: a process that was killed between sending and noting it sends them again, under the same ids."""
    return len({span.span_id for span in collector.spans})


def child_of(pid):
    found = []

    def look():
        found[:] = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return bool(found)

    wait_for(look)
    return int(found[0])


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_what_a_replay_stored_is_sent_by_the_command_once(tmp_path, protocol):
    capture = next(iter(sorted(CAPTURE.glob("*.pcap*"))))
    store = tmp_path / "store"
    replayed = command("llmsec_agent.cli.analyze.app", "replay", str(capture), "--store", str(store), "--format", "none")
    assert replayed.returncode in (0, 1), replayed.stderr
    with Collector() as collector:
        config = configured(tmp_path / "c.yaml", "/nowhere", getattr(collector, protocol), protocol)
        for _ in range(2):
            sent = command("llmsec_agent.cli.tap.app", "telemetry", "--config", str(config), "--store", str(store), "--once")
            assert (sent.returncode, sent.stdout) == (0, ""), sent.stderr
        assert collector.spans
        assert len({span.span_id for span in collector.spans}) == len(collector.spans)
        assert {span.attributes["llmsec.capture.kind"] for span in collector.spans} == {"file"}
        assert collector.points("gen_ai.client.operation.duration")


def test_a_collector_that_is_away_is_an_exit_code_and_one_line(tmp_path):
    fill(tmp_path / "store", 1)
    config = configured(tmp_path / "c.yaml", tmp_path / "store", "http://127.0.0.1:9")
    sent = command("llmsec_agent.cli.tap.app", "telemetry", "--config", str(config), "--once")
    assert sent.returncode == 4
    assert [line for line in sent.stderr.splitlines() if "takes no spans" in line]
    assert "Traceback" not in sent.stderr
    assert len(sent.stderr.splitlines()) <= 2


def test_without_a_collector_the_command_says_what_to_set(tmp_path):
    (tmp_path / "c.yaml").write_text("{}")
    sent = command("llmsec_agent.cli.tap.app", "telemetry", "--config", str(tmp_path / "c.yaml"))
    assert sent.returncode == 2
    assert "observability.tracing.enabled" in sent.stderr


def test_the_child_is_without_rights_is_started_again_and_goes_over_to_another_plan(tmp_path):
    with Collector() as first, Collector() as second:
        config = configured(tmp_path / "c.yaml", tmp_path / "store", first.http)
        parent = subprocess.Popen(
            [sys.executable, "-c", PARENT, str(config)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert parent.stdout is not None
        assert parent.stdin is not None
        with parent:
            try:
                keeper = int(parent.stdout.readline())
                fill(tmp_path / "store", 1, 2)
                wait_for(lambda: told(first) == 2)
                worker = child_of(keeper)
                for process in (keeper, worker):
                    status = dict(
                        line.split(":\t", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines() if ":\t" in line
                    )
                    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
                    assert os.geteuid() or status["Uid"].split()[1] == str(OWNER)
                os.kill(worker, signal.SIGKILL)
                wait_for(lambda: child_of(keeper) != worker)
                fill(tmp_path / "store", 3)
                wait_for(lambda: told(first) == 3)
                wait_for(
                    lambda: (
                        Snapshot(
                            [TelemetryMetrics(Store(tmp_path / "store", StoreInfo(schema_version=2, created="", migrations=[]))).samples]
                        ).get("llmsec_telemetry_restarts_total")
                        == 1
                    )
                )
                configured(config, tmp_path / "store", second.grpc, "grpc", ", service_name: another")
                parent.stdin.write("reload\n")
                parent.stdin.flush()
                wait_for(lambda: told(second) == 3)
                assert {span.resource["service.name"] for span in second.spans} == {"another"}
                fill(tmp_path / "store", 4)
                parent.stdin.write("end\n")
                parent.stdin.flush()
                assert parent.stdout.readline() == "told\n"
                assert float(parent.stdout.readline()) < 4
                assert told(second) == 4  # what waited is sent at the end
            finally:
                parent.kill()


@pytest.mark.parametrize(
    ("text", "protocol", "signal_name", "url"),
    [
        ("jaeger:14268", "http", "traces", "http://jaeger:4318/v1/traces"),
        ("jaeger:14268", "grpc", "traces", "http://jaeger:4317"),
        ("collector:4318", "http", "metrics", "http://collector:4318/v1/metrics"),
        ("[2001:db8::1]:4317", "grpc", "traces", "http://[2001:db8::1]:4317"),
        ("https://c.example/", "http", "traces", "https://c.example/v1/traces"),
        ("https://c.example/otlp/v1/traces?x=1", "http", "traces", "https://c.example/otlp/v1/traces?x=1"),
        ("https://c.example:4317/v1/traces", "grpc", "traces", "https://c.example:4317"),
    ],
)
def test_addresses_are_taken_as_people_write_them(text, protocol, signal_name, url):
    assert endpoint_url(text, protocol, signal_name) == url


@pytest.mark.parametrize(
    "text", ["", "jaeger", "ftp://c", "http://", "http://c:0", "http://c:99999", "c:0", "c:70000", "http://a b", "http://[::1"]
)
def test_what_is_no_address_is_refused_with_the_key(text):
    with pytest.raises(ConfigError, match=r"observability\.tracing\.endpoint: "):
        telemetry_plan("store", Observability(tracing=Tracing(enabled=True, endpoint=text)))


def test_without_the_libraries_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(plans, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs the libraries of OpenTelemetry") as raised:
        telemetry_plan("store", Observability(metrics=Metrics(otlp=OTLPMetrics())))
    assert "llmsec-trace[otlp]" in raised.value.hint


def test_the_library_is_not_loaded_by_what_captures():
    code = (
        "import sys, llmsec_agent.agent, llmsec_agent.capture_run, llmsec_agent.traffic, llmsec_agent.exposer\n"
        "print([name for name in sys.modules if name.startswith(('opentelemetry', 'grpc'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class Recorder:
    def __init__(self):
        self.plans = []

    def change(self, plan):
        self.plans.append(plan)
        return ()


def test_a_reload_with_a_wrong_collector_changes_nothing_and_a_right_one_both(tmp_path):
    deliverer, telemetry = Recorder(), Recorder()
    clickhouse = ClickHouse(nodes=("localhost:9000",))

    def of(endpoint, enabled=True):
        return Config(
            storage=Storage(clickhouse=clickhouse), observability=Observability(tracing=Tracing(enabled=enabled, endpoint=endpoint))
        )

    with pytest.raises(ConfigError):
        agent._resend(deliverer, None, telemetry, of("ftp://collector"))
    assert (deliverer.plans, telemetry.plans) == ([], [])
    assert agent._resend(deliverer, None, telemetry, of("http://collector:4318")) == []
    assert (len(deliverer.plans), [str(plan.spans) for plan in telemetry.plans]) == (1, ["http://collector:4318/v1/traces"])
    assert "needs a restart" in agent._resend(deliverer, None, telemetry, of("http://collector", enabled=False))[0]
    assert "needs a restart" in agent._resend(deliverer, None, None, of("http://collector"))[0]
