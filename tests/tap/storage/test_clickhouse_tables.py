"""ClickHouse's tables and views are those of the one schema, and its addresses say which port is spoken."""

from __future__ import annotations

import pytest

from llmsec_tap.errors import ConfigError, StorageError
from llmsec_tap.storage.clickhouse.address import PASSWORD_VARIABLE, Node, node, parse
from llmsec_tap.storage.clickhouse.client import connect
from llmsec_tap.storage.clickhouse.migrations import migrate
from llmsec_tap.storage.clickhouse.tables import EXCHANGE_TABLE, MIGRATION_TABLE, TAP_TABLE, Keep, Layout, create_tables, keep_statements
from llmsec_tap.storage.clickhouse.views import view_statements
from llmsec_tap.storage.schema import SCHEMA_VERSION, STORED_COLUMNS, TAP_COLUMNS
from llmsec_tap.storage.views import VIEWS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("clickhouse-1", Node("clickhouse-1", 8123, secure=False)),
        ("clickhouse-1:8123", Node("clickhouse-1", 8123, secure=False)),
        ("clickhouse-1:9000", Node("clickhouse-1", 8123, secure=False, native_port=9000)),
        ("clickhouse-1:9440", Node("clickhouse-1", 8443, secure=True, native_port=9440)),
        ("db.example.org:443", Node("db.example.org", 443, secure=True)),
        ("[2001:db8::1]:8443", Node("2001:db8::1", 8443, secure=True)),
    ],
)
def test_a_node_is_spoken_to_over_http(text, expected):
    assert node(text) == expected


def test_what_is_spoken_instead_of_the_native_protocol_is_said():
    assert node("ch:9000").note == "ch:9000 is ClickHouse's native port; HTTP is spoken, on port 8123"
    assert not node("ch:8123").note


@pytest.mark.parametrize("text", ["", "a b:1", "ch:0", "ch:70000", "http://ch:8123", "ch:x", "2001:db8::1"])
def test_what_is_no_node_is_refused(text):
    with pytest.raises(ConfigError):
        node(text)


def test_an_address_is_taken_apart_and_hides_its_password(monkeypatch):
    address = parse("clickhouse://alice:s%40cret@one:9000,two/traces")
    assert [(found.host, found.port) for found in address.nodes] == [("one", 8123), ("two", 8123)]
    assert (address.username, address.password, address.database) == ("alice", "s@cret", "traces")
    assert "s@cret" not in f"{address} {address!r}"
    monkeypatch.setenv(PASSWORD_VARIABLE, "from outside")
    assert parse("clickhouse://one").password == "from outside"
    assert parse("clickhouse://one").database == "llmsec_traces"
    assert parse("clickhouses://one").nodes[0].port == 8443


@pytest.mark.parametrize("location", ["clickhouse://", "clickhouse:///db", "clickhouse://u@h/a;b", "clickhouse://u@h/a/b", "redis://h/db"])
def test_a_wrong_address_is_refused(location):
    with pytest.raises(ConfigError):
        parse(location)


def test_a_part_of_a_row_does_not_outlive_the_row():
    with pytest.raises(ConfigError, match="content would be kept for 30 days"):
        create_tables(Layout("d", keep=Keep(metadata=10, content=30)))


def columns(client, database, table):
    found = client.query(f"SELECT name, type FROM system.columns WHERE database = '{database}' AND table = '{table}'")
    return dict(found.result_rows)


def test_migrate_makes_the_columns_of_the_schema_and_is_done_once(clickhouse):
    address = parse(clickhouse.new_url())
    client, _ = connect(address, database=False)
    assert migrate(client, Layout(address.database)) == ["tables", "deviations", "alerts", "tls"]
    assert migrate(client, Layout(address.database)) == []
    stored = columns(client, address.database, EXCHANGE_TABLE)
    assert [name for name, _ in STORED_COLUMNS] == [name for name in stored if name not in {"started_key", "stored_from"}]
    assert [name for name, _ in TAP_COLUMNS] == [name for name in columns(client, address.database, TAP_TABLE) if name != "started_key"]
    for view in VIEWS:
        assert list(columns(client, address.database, view.name)) == [column.name for column in view.columns]


def test_a_column_that_an_older_version_did_not_have_is_added(clickhouse):
    address = parse(clickhouse.new_url())
    client, _ = connect(address, database=False)
    migrate(client, Layout(address.database))
    client.command(f"ALTER TABLE {address.database}.{EXCHANGE_TABLE} DROP COLUMN security_score")
    assert migrate(client, Layout(address.database)) == ["1 columns"]
    assert columns(client, address.database, EXCHANGE_TABLE)["security_score"] == "Nullable(Int64)"


def test_a_database_of_a_newer_version_is_refused(clickhouse):
    address = parse(clickhouse.new_url())
    client, _ = connect(address, database=False)
    migrate(client, Layout(address.database))
    client.command(f"INSERT INTO {address.database}.{MIGRATION_TABLE} (name, version) VALUES ('later', {SCHEMA_VERSION + 1})")
    with pytest.raises(StorageError, match="made by a newer version"):
        migrate(client, Layout(address.database))


def test_what_is_kept_how_long_can_be_said_at_once_and_later(clickhouse):
    address = parse(clickhouse.new_url())
    client, _ = connect(address, database=False)
    migrate(client, Layout(address.database, keep=Keep(90, 30, 60)))
    migrate(client, Layout(address.database, keep=Keep(80, 20, 60)))
    made = client.command(f"SHOW CREATE TABLE {address.database}.{EXCHANGE_TABLE}")
    assert f"TTL stored_from + toIntervalSecond({80 * 86_400})" in made
    assert made.count(f"TTL stored_from + toIntervalSecond({20 * 86_400})") == 9


def test_statements_of_a_cluster_are_replicated_and_distributed(clickhouse):
    layout = Layout("d", "fleet", Keep(90, 30, 30))
    client, _ = connect(parse(clickhouse.url("default")), database=False)
    for statement in (*create_tables(layout), *keep_statements(layout), *view_statements(layout)):
        client.command(f"EXPLAIN AST {statement}")  # the engine's own parser; no cluster runs here
        assert "ON CLUSTER `fleet`" in statement
    text = "\n".join(create_tables(layout))
    assert "ReplicatedReplacingMergeTree('/clickhouse/tables/{shard}/d/exchange_rows', '{replica}', stored_seq)" in text
    assert "Distributed(`fleet`, `d`, `exchange_rows_local`, cityHash64(exchange_id))" in text
