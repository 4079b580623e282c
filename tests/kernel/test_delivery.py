"""An agent whose records go to ClickHouse: what it saw is there, and nobody but the delivering process connects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmsec_agent.both_ends import look_at
from llmsec_agent.fleet import database_of
from llmsec_tap.journal import SILENT
from llmsec_tap.storage import open_store
from llmsec_tap.storage.clickhouse.address import Address, parse
from llmsec_tap.storage.clickhouse.client import connect
from llmsec_tap.storage.clickhouse.migrations import migrate
from llmsec_tap.storage.clickhouse.tables import Layout
from support.clickhouse_front import Server
from support.https_calls import ask_once
from support.running_agent import agent, who_connects
from support.tls_front import Certificate


def made(clickhouse: Server) -> tuple[str, Address]:
    url = clickhouse.new_url()
    client, _ = connect(parse(url), database=False)
    migrate(client, Layout(parse(url).database))
    client.close()
    return url, parse(url)


def settings(address: Address) -> dict[str, Any]:
    node = address.nodes[0]
    return {"nodes": [f"{node.host}:{node.port}"], "database": address.database, "flush_interval": "200ms"}


def test_what_it_saw_is_delivered_by_a_process_without_rights_and_balanced(
    echo: tuple[int, int], certificate: Certificate, clickhouse: Server, tmp_path: Path
) -> None:
    pid, port = echo
    (_, first), (url, second) = made(clickhouse), made(clickhouse)
    with agent(tmp_path, pid, storage={"clickhouse": settings(first)}) as running:
        running.ready()
        for number in range(5):
            ask_once(port, certificate.cert, f"question {number}")
        running.until(lambda: running.value("llmsec_delivery_rows_total") == 5, "five rows were not delivered")
        assert (running.value("llmsec_delivery_up"), running.value("llmsec_delivery_failing")) == (1, 0)
        assert list(who_connects(running.process.pid, first.nodes[0].port).values()) == ["0000000000000000"]
        running.config["storage"]["clickhouse"] = settings(second)
        running.hang_up()
        running.until(lambda: "storage.clickhouse.database" in running.said, "the file was not read again")
        running.until(lambda: running.value("llmsec_delivery_rows_total") == 10, "the second database did not get them all")
        assert "needs a restart" not in running.said
        assert "also waits for" in running.said  # the first is not forgotten by itself
        for number in range(5, 8):
            ask_once(port, certificate.cert, f"question {number}")
        running.until(lambda: running.value("llmsec_store_rows_total") == 8, "eight rows were not stored")
        assert running.stop() < 6
        assert running.process.returncode == 0, running.said
    books = look_at(open_store(running.store), database_of(None, url), SILENT).account
    assert books is not None
    assert (books.seen, books.database, books.waiting, books.lost, books.missing, books.is_settled) == (8, 8, 0, 0, 0, True)
