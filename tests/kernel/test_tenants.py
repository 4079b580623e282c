"""Tenants of a database in a live capture: asked for by a process beside the decoder, known when the answer has ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmsec_analyzer.stored.session import QuerySession
from llmsec_tap.identity.credentials import fingerprinter
from support.https_calls import Caller
from support.running_agent import agent
from support.tenant_servers import PostgresServer, postgres_server
from support.tls_front import Certificate

KEY = "sk-live-0123456789"
BODY = b'{"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}'


def ask(port: int, certificate: Certificate) -> None:
    caller = Caller(port, certificate.cert)
    headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
    caller.connection.request("POST", "/v1/chat/completions", BODY, headers)
    assert caller.connection.getresponse().read()
    caller.close()


@pytest.fixture(scope="module")
def postgres():
    with postgres_server() as server:
        yield server


@pytest.mark.parametrize("decoders", [1, 2])
def test_the_agent_knows_whose_a_key_is(
    echo: tuple[int, int], certificate: Certificate, tmp_path: Path, postgres: PostgresServer, decoders: int
) -> None:
    (tmp_path / "key").write_bytes(bytes(range(32)))
    (tmp_path / "key").chmod(0o600)
    postgres.run("TRUNCATE tenants CASCADE")
    postgres.enter(fingerprinter(bytes(range(32)))(KEY), "acme", config='{"content": "none"}')
    database = {"host": "127.0.0.1", "port": postgres.port, "username": postgres.user}
    env = {"LLMSEC_FINGERPRINT_KEY_FILE": str(tmp_path / "key")}
    with agent(tmp_path, echo[0], env=env, chosen={"decoders": decoders}, storage={"postgres": database}) as running:
        running.ready()

        def is_known() -> bool:
            ask(echo[1], certificate)
            return (running.value('llmsec_tenant_lookups_total{result="known"}') or 0) > 3

        running.until(is_known, "the tenant is not known")
        # Without the database, what is known goes on counting.
        postgres.stop()
        try:
            before = running.value('llmsec_tenant_lookups_total{result="known"}') or 0
            ask(echo[1], certificate)
            running.until(lambda: (running.value('llmsec_tenant_lookups_total{result="known"}') or 0) > before, "it is not known any more")
        finally:
            postgres.start()
        running.stop()
        assert running.process.returncode == 0, running.said
    with QuerySession.open(running.store) as session:
        sql = "SELECT tenant, input_text FROM exchanges WHERE NOT list_contains(list_transform(anomalies, lambda a: a.name), 'tenant_unresolved')"
        rows = set(session.select(sql).rows())
    assert rows == {("acme", None)}
