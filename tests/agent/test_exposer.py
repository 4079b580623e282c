"""The process that listens: what it answers, what it refuses, and that neither its clients nor a silent decoder hold it up."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from llmsec_agent.exposer import Exposer, State, TLSFiles, answer_state
from llmsec_agent.metrics import CATALOGUE, exposition, metric_of
from llmsec_agent.traffic import Traffic
from llmsec_tap.counters import Sample
from llmsec_tap.errors import ConfigError
from llmsec_tap.model import Exchange
from support.needs import program
from support.tls_front import free_port, make_certificate

GOOD = State(ready=True, healthy=True, reasons=[], samples=[Sample("llmsec_store_rows_total", 7)])


@contextmanager
def exposer(state: Callable[[], State] | None, tls: TLSFiles | None = None) -> Iterator[int]:
    """Both kinds of pages on one port; with no state the decoder never answers."""
    port = free_port()
    running = Exposer.start({("127.0.0.1", port): ("/health", "/ready", "/metrics")}, tls)
    try:
        if state is not None:
            answer_state(running.sockets[0], state)
        yield port
    finally:
        running.sockets[0].shutdown(socket.SHUT_RDWR)
        running.sockets[0].close()
        os.waitpid(running.pid, 0)


def get(port: int, path: str, **headers: str) -> tuple[int, str, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, response.headers["Content-Type"], response.read().decode()
    finally:
        connection.close()


def test_it_says_what_the_decoder_says() -> None:
    with exposer(lambda: GOOD) as port:
        assert get(port, "/health")[0] == 200
        assert get(port, "/ready")[0] == 200
        status, kind, page = get(port, "/metrics")
        assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
        values = {sample.name: sample.value for family in text_string_to_metric_families(page) for sample in family.samples}
        assert values == {"llmsec_up": 1.0, "llmsec_store_rows_total": 7.0}
        assert get(port, "/metrics", Accept="application/openmetrics-text; version=1.0.0")[2].endswith("# EOF\n")


@pytest.mark.parametrize("path", ["/", "/admin/config", "/metrics/", "/../etc/passwd", "/health/x"])
def test_nothing_else_is_served(path: str) -> None:
    with exposer(lambda: GOOD) as port:
        assert get(port, path)[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "TRACE", "CONNECT"])
def test_only_questions_are_answered(method: str) -> None:
    with exposer(lambda: GOOD) as port, socket.create_connection(("127.0.0.1", port), 10) as client:
        client.sendall(f"{method} /metrics HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert b" 501 " in client.recv(4096)


def test_a_failing_decoder_says_why() -> None:
    state = State(ready=False, healthy=False, reasons=["sink store: disk full"], samples=[])
    with exposer(lambda: state) as port:
        for path in ("/health", "/ready"):
            status, _, body = get(port, path)
            assert status == 503
            assert json.loads(body) == {"status": "failing", "reasons": ["sink store: disk full"]}


def test_a_decoder_that_does_not_answer_is_an_answer() -> None:
    with exposer(None) as port:
        begun = time.monotonic()
        assert get(port, "/health")[0] == 503
        assert get(port, "/metrics")[0] == 503
        assert time.monotonic() - begun < 15


def test_it_ends_with_the_decoder() -> None:
    port = free_port()
    running = Exposer.start({("127.0.0.1", port): ("/health",)}, None)
    running.sockets[0].close()
    deadline = time.monotonic() + 15
    while os.waitpid(running.pid, os.WNOHANG) == (0, 0):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_clients_that_say_nothing_do_not_hold_up_others() -> None:
    with exposer(lambda: GOOD) as port:
        silent = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(20)]
        silent[0].sendall(b"GET /health HT")
        assert get(port, "/health")[0] == 200
        for client in silent:
            client.close()


def test_it_asks_the_decoder_at_most_once_a_second() -> None:
    asked = []

    def state() -> State:
        asked.append(time.monotonic())
        return GOOD

    with exposer(state) as port:
        threads = [threading.Thread(target=get, args=(port, "/metrics")) for _ in range(30)]
        begun = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(asked) <= 2 + int(time.monotonic() - begun)


def test_an_address_in_use_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            Exposer.start({("127.0.0.1", port): ("/health",)}, None)


def test_tls_and_clients_with_certificates(tmp_path: Path) -> None:
    files = make_certificate(tmp_path)
    with exposer(lambda: GOOD, TLSFiles(str(files.cert), str(files.key), "required", str(files.cert))) as port:
        context = ssl.create_default_context(cafile=str(files.cert))
        context.check_hostname = False
        with pytest.raises((ssl.SSLError, OSError)):
            _get_over_tls(port, context)
        context.load_cert_chain(files.cert, files.key)
        assert b" 200 OK" in _get_over_tls(port, context)


def _get_over_tls(port: int, context: ssl.SSLContext) -> bytes:
    with socket.create_connection(("127.0.0.1", port), 10) as plain, context.wrap_socket(plain) as client:
        client.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        return client.recv(4096)


def test_a_certificate_that_cannot_be_read_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"server\.tls: cannot use"):
        Exposer.start({("127.0.0.1", free_port()): ("/health",)}, TLSFiles(str(tmp_path / "no.pem"), str(tmp_path / "no.key")))


# --- metrics ----------------------------------------------------------------------------------------------------------------


def exchange(number: int, **fields: object) -> Exchange:
    values = {"provider": "openai", "request_model": f"model-{number}", "operation": "chat", "started_ns": 0, "ended_ns": 2 * 10**9}
    return Exchange(exchange_id=str(number), client="c", server="s", **{**values, **fields})  # type: ignore[arg-type]


def test_names_that_clients_choose_do_not_make_more_series_than_are_bounded() -> None:
    traffic = Traffic()
    for number in range(10_000):
        traffic.observe(exchange(number, error_type=f"error-{number}", status=500))
    assert len(list(traffic.samples())) < 600
    assert sum(sample.value for sample in traffic.samples() if sample.name == "llmsec_requests_total") == 10_000


@pytest.mark.parametrize("name", ["a\nb", 'a"b\\', "\ud800", "ü" * 1000, "", "le", "{}"])
def test_any_name_gives_a_page_that_parses(name: str) -> None:
    traffic = Traffic()
    traffic.observe(exchange(1, request_model=name, error_type=name))
    page = exposition(traffic.samples())[0].decode()
    assert {metric_of(sample.name) for family in text_string_to_metric_families(page) for sample in family.samples} <= set(CATALOGUE)


def test_what_is_no_traffic_of_a_model_is_not_counted_as_such() -> None:
    traffic = Traffic()
    traffic.observe(exchange(1, provider=None))
    assert list(traffic.samples()) == []


def test_promtool_accepts_the_page() -> None:
    promtool = program("promtool", "prometheus")
    traffic = Traffic()
    for number in range(3):
        traffic.observe(exchange(number))
    checked = subprocess.run([promtool, "check", "metrics"], input=exposition(traffic.samples())[0], capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr + checked.stdout


def test_every_sample_that_a_component_says_is_in_the_catalogue() -> None:
    root = Path(__file__).parents[2]
    said: set[str] = set()
    for package in ("tap/llmsec_tap", "analyzer/llmsec_analyzer", "agent/llmsec_agent"):
        for file in (root / package).rglob("*.py"):
            said |= set(re.findall(r'(?:Sample|by_label)\(\s*"([a-z_]+)"', file.read_text(encoding="utf-8")))
    assert len(said) > 40
    assert {metric_of(name) for name in said} <= set(CATALOGUE)
