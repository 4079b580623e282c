"""The documents say what the code does: queries run, columns and fields agree."""

from __future__ import annotations

import re
from pathlib import Path

import duckdb
import msgspec
import pytest

from llmsec_analyzer.stored.session import QuerySession
from llmsec_tap import model
from llmsec_tap.storage import StoreWriter
from llmsec_tap.storage.schema import EXCHANGE_COLUMNS, PART, REQUEST, RESPONSE, StructOf, sql_type
from llmsec_tap.storage.taps import Beat, write_beat
from llmsec_tap.storage.views import VIEWS

DOCS = Path(__file__).parents[2] / "docs"
QUERIES = re.findall(r"```sql\n(.*?)```", (DOCS / "query.md").read_text(), re.DOTALL)
STRUCTS = [kind for kind in vars(model).values() if isinstance(kind, type) and issubclass(kind, msgspec.Struct)]


@pytest.fixture(scope="module")
def lively(tmp_path_factory, build_exchange):
    """A store in which every question of the docs has an answer."""
    root = tmp_path_factory.mktemp("docs") / "store"
    ask = model.Request(
        messages=[model.Message(role="user", parts=[model.Part(type="text", content="What is the weather in Malmö?")])],
        parameters={"temperature": 1},
    )
    with StoreWriter.open(root) as writer:
        writer.add(build_exchange(1))
        writer.add(build_exchange(2, request=ask, error_type=None))
        write_beat(writer.store, Beat(node="node-1", pid=1, version="1", started_ns=1, heartbeat_ns=1))  # a tap that died
    return root


@pytest.mark.parametrize("sql", QUERIES)
def test_every_query_of_the_docs_runs_and_finds_something(lively, sql):
    with QuerySession.open(lively) as session:
        rows = list(session.run(sql).rows())
    assert rows, sql


def test_there_are_queries():
    assert len(QUERIES) >= 12


def section(text: str, title: str, level: str) -> list[list[str]]:
    """The rows of the table under a heading."""
    found = re.search(rf"^{level} {title}\n(.*?)(?=^#|\Z)", text, re.DOTALL | re.MULTILINE)
    assert found, f"no section {title}"
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in found[1].splitlines() if line.startswith("| ")]
    return rows[1:]


@pytest.mark.parametrize("view", VIEWS, ids=[view.name for view in VIEWS])
def test_columns_comments_and_documents_agree(store, view):
    documented = section((DOCS / "formats" / "store.md").read_text(), view.name, "###")
    assert [row[0] for row in documented] == [column.name for column in view.columns]
    assert [row[1].strip("`") for row in documented] == [column.type for column in view.columns]
    assert [row[2] for row in documented] == [column.comment for column in view.columns]
    connection = duckdb.connect(str(store / "llmsec.duckdb"), read_only=True)
    try:
        actual = connection.execute(
            "SELECT column_name, data_type, comment FROM duckdb_columns() WHERE table_name = ? ORDER BY column_index", [view.name]
        ).fetchall()
    finally:
        connection.close()
    assert [(name, plain(kind), comment) for name, kind, comment in actual] == [
        (column.name, plain(column.type), column.comment) for column in view.columns
    ]


def plain(kind: str) -> str:
    """DuckDB quotes field names only where it must."""
    return kind.replace('"', "")


@pytest.mark.parametrize("kind", STRUCTS, ids=[kind.__name__ for kind in STRUCTS])
def test_every_field_of_the_record_is_documented(kind):
    title = "Fields" if kind is model.Exchange else kind.__name__
    rows = section((DOCS / "formats" / "exchange.md").read_text(), title, "##")
    assert [row[0] for row in rows] == list(kind.__struct_fields__)
    assert all(row[1] and row[3] for row in rows)


def test_the_store_has_a_column_for_every_field_of_the_record():
    assert [name for name, _ in EXCHANGE_COLUMNS] == list(model.Exchange.__struct_fields__)
    for struct, kind in ((model.Part, PART), (model.Request, REQUEST), (model.Response, RESPONSE)):
        assert [name for name, _ in kind.fields] == list(struct.__struct_fields__)
    columns = dict(EXCHANGE_COLUMNS)
    for name, struct in (("usage", model.Usage), ("usage_estimated", model.EstimatedUsage), ("process", model.Process)):
        kind = columns[name]
        assert isinstance(kind, StructOf)
        assert [field for field, _ in kind.fields] == list(struct.__struct_fields__)


def test_types_are_written_as_duckdb_writes_them():
    assert duckdb.sql(f"SELECT typeof(NULL::{sql_type(REQUEST)})").fetchall()[0][0].replace('"', "") == plain(sql_type(REQUEST))
