"""What a query may not do. Each escape is tried through QuerySession, on a real store."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from llmsec_analyzer.stored.read_only import check_read_only
from llmsec_analyzer.stored.session import QuerySession
from llmsec_tap.errors import ConfigError, LLMSecError

READING = [
    "SELECT 1",
    "select count(*) from exchanges;",
    "-- comment\nSELECT 1 /* ; DROP */;",
    "FROM exchanges",
    "FROM exchanges SELECT model LIMIT 1",
    "TABLE exchanges",
    "VALUES (1), (2)",
    "WITH a AS (SELECT 1) FROM a",
    "WITH RECURSIVE t AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM t WHERE n < 3) FROM t",
    "SELECT 1 UNION ALL SELECT 2",
    "DESCRIBE exchanges",
    "DESCRIBE SELECT 1",
    "SHOW TABLES",
    "SHOW ALL TABLES",
    "SUMMARIZE messages",
    "EXPLAIN SELECT 1",
    "EXPLAIN ANALYZE SELECT count(*) FROM exchanges",
    "EXPLAIN (FORMAT json) SELECT 1",
    "EXPLAIN (ANALYZE, FORMAT json) SELECT 1",
    "/* c */ EXPLAIN -- d\n ANALYZE /* e */ SELECT 1",
    "EXPLAIN (SELECT 1)",
    "PIVOT exchanges ON provider USING count(*)",
    "PIVOT exchanges ON provider IN ('openai') USING count(*)",
    "FROM (PIVOT exchanges ON provider USING count(*))",
    "UNPIVOT (SELECT 1 AS a, 2 AS b) ON a, b",
    "SELECT * FROM range(3)",
    "SELECT unnest([1, 2])",
    'SELECT j.value FROM exchanges, json_each("request".parameters) j',
    "SELECT column_name FROM duckdb_columns() WHERE table_name = 'exchanges'",
    "SELECT table_name FROM information_schema.columns LIMIT 1",
    "SELECT 'COPY x TO y; ATTACH z' AS text",
    "SELECT $$;$$",
    "SELECT regexp_matches(output_text, 'a;b') FROM exchanges",
    "SELECT list_transform([1], lambda x: x + 1)",
    "SELECT now()",
]  # fmt: skip


@pytest.mark.parametrize("sql", READING)
def test_reading_is_allowed(store, sql):
    with QuerySession.open(store) as session:
        list(session.run(sql).rows())


WRITING = [
    "COPY (SELECT 1) TO '{out}'",
    "COPY exchanges TO '{out}'",
    "WITH x AS (COPY (SELECT 1) TO '{out}') FROM x",
    "SELECT * FROM exchanges WHERE model IN (WITH x AS (COPY (SELECT 1) TO '{out}') FROM x)",
    "SELECT (WITH x AS (COPY (SELECT 1) TO '{out}') SELECT count(*) FROM x)",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{out}'",
    "EXPLAIN (ANALYZE) COPY (SELECT 1) TO '{out}'",
    "/* SELECT */ EXPLAIN /* SELECT */ ANALYZE /* SELECT */ COPY (SELECT 1) TO '{out}'",
    "EXPLAIN ANALYZE WITH x AS (COPY (SELECT 1) TO '{out}') FROM x",
    "COPY (PIVOT exchanges ON provider) TO '{out}'",
    "FROM (PIVOT (WITH x AS (COPY (SELECT 1 a, 2 b) TO '{out}') FROM x) ON a)",
    "WITH w AS (COPY (SELECT 1) TO '{out}'), p AS (PIVOT exchanges ON provider) FROM w",
    "SELECT * FROM query('WITH x AS (COPY (SELECT 1) TO ''{out}'') FROM x')",
    "FROM \"query\"('WITH x AS (COPY (SELECT 1) TO ''{out}'') FROM x')",
    "FROM (PIVOT (FROM query('WITH x AS (COPY (SELECT 1 a) TO ''{out}'') FROM x')) ON Count)",
    "FROM (PIVOT (FROM \"query\" ('WITH x AS (COPY (SELECT 1 a) TO ''{out}'') FROM x')) ON Count)",
    "FROM json_execute_serialized_sql('{{}}')",
    "EXPORT DATABASE '{out}'",
    "ATTACH '{out}'",
    "ATTACH ':memory:' AS m",
    "CREATE TABLE t (a INT)",
    "CREATE TEMP TABLE t AS SELECT 1",
    "CREATE VIEW v AS SELECT 1",
    "CREATE OR REPLACE MACRO m() AS 1",
    "CREATE SECRET s (TYPE s3)",
    "DROP VIEW exchanges",
    "INSERT INTO exchanges VALUES (1)",
    "WITH x AS (INSERT INTO exchanges VALUES (1)) FROM x",
    "WITH x AS (DELETE FROM exchanges RETURNING 1) FROM x",
    "UPDATE exchanges SET model = 'x'",
    "DELETE FROM exchanges",
    "MERGE INTO exchanges USING (SELECT 1) ON true WHEN MATCHED THEN DELETE",
    "INSTALL httpfs",
    "LOAD httpfs",
    "LOAD '{out}'",
    "PRAGMA version",
    "PRAGMA enable_profiling",
    "CALL pragma_version()",
    "SET threads = 1",
    "RESET threads",
    "SET lock_configuration = false",
    "SET enable_external_access = true",
    "USE memory",
    "CHECKPOINT",
    "VACUUM",
    "BEGIN",
    "PREPARE p AS SELECT 1",
    "EXECUTE p",
    "FROM enable_logging(storage_path = '{out}')",
    "FROM enable_profiling(save_location = '{out}')",
    "SELECT 1; SELECT 2",
    "SELECT 1; COPY (SELECT 1) TO '{out}'",
    "SELECT 1 /* */; -- x\n COPY (SELECT 1) TO '{out}'",
    "SELECT 1;;COPY (SELECT 1) TO '{out}'",
    "",
    "  ;; -- nothing",
    "SELEC 1",
    "EXPLAIN",
    "EXPLAIN EXPLAIN SELECT 1",
]  # fmt: skip


@pytest.mark.parametrize("inside", [True, False], ids=["into the store", "elsewhere"])
@pytest.mark.parametrize("sql", WRITING)
def test_all_else_is_refused_and_leaves_no_trace(store, tmp_path, sql, inside):
    out = (store / "exchanges" / "day=2026-11-18" if inside else tmp_path) / "part-out.parquet"
    before = snapshot(tmp_path, store)
    with QuerySession.open(store) as session, pytest.raises(ConfigError) as caught:
        list(session.run(sql.format(out=out)).rows())
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    assert snapshot(tmp_path, store) == before


def snapshot(*folders: Path) -> list[tuple[str, int, int]]:
    return sorted((str(path), path.stat().st_size, path.stat().st_mtime_ns) for folder in folders for path in folder.rglob("*"))


REACHING = [
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM read_blob('/proc/self/environ')",
    "SELECT * FROM '/etc/passwd'",
    "FROM '{outside}'",
    'FROM "{outside}"',
    "FROM read_parquet('{outside}')",
    "FROM read_json('{root}/store.json')",
    "FROM read_json('{root}/exchanges/../store.json')",
    "FROM '{root}/store.json'",
    "FROM '{root}/exchanges/../store.json'",
    "SELECT * FROM glob('/etc/*')",
    "SELECT * FROM glob('{root}/*')",
    "SELECT * FROM sniff_csv('/etc/passwd')",
    "SELECT * FROM parquet_metadata('{outside}')",
    "SELECT * FROM read_duckdb('{root}/llmsec.duckdb')",
    "SELECT getenv('HOME')",
    "SELECT * FROM 'https://example.org/x.parquet'",
    "SELECT * FROM read_csv('http://127.0.0.1:9/x')",
    "SELECT * FROM 's3://bucket/x.parquet'",
    "SELECT * FROM duckdb_secrets()",
    "SELECT * FROM query('SELECT 1')",
    "SELECT * FROM query_table('/etc/passwd')",
    "SELECT * FROM store",
    "SELECT * FROM session",
    "SELECT * FROM python_map_function(1)",
    "DESCRIBE SELECT * FROM read_text('/etc/passwd')",
    "SUMMARIZE '{outside}'",
    "EXPLAIN SELECT * FROM read_text('/etc/passwd')",
    "EXPLAIN ANALYZE SELECT * FROM '{outside}'",
    "PIVOT (FROM read_text('/etc/passwd')) ON filename",
    "PIVOT '{outside}' ON a",
    "WITH x AS (SELECT * FROM read_text('/etc/passwd')) FROM x",
    "SELECT (SELECT content FROM read_text('/etc/passwd'))",
    "SELECT * FROM exchanges WHERE EXISTS (FROM read_text('/etc/passwd'))",
    "SELECT * FROM exchanges, LATERAL (FROM read_text('/etc/passwd'))",
    "SELECT * FROM main.read_text('/etc/passwd')",
    "SELECT * FROM \"READ_TEXT\"('/etc/passwd')",
]  # fmt: skip


@pytest.mark.parametrize("sql", REACHING)
def test_nothing_outside_the_store_can_be_read(store, tmp_path, sql):
    import pyarrow as pa
    import pyarrow.parquet as pq

    outside = tmp_path / "outside.parquet"
    pq.write_table(pa.table({"a": [1]}), outside)
    with QuerySession.open(store) as session, pytest.raises(LLMSecError):
        list(session.run(sql.format(root=store, outside=outside)).rows())


def test_the_lock_holds_without_the_parser_check(store, tmp_path):
    """The second wall: what DuckDB itself refuses on this connection."""
    with QuerySession.open(store) as session:
        for sql in (
            "SELECT * FROM read_text('/etc/passwd')",
            f"COPY (SELECT 1) TO '{tmp_path}/x'",
            f"ATTACH '{tmp_path}/x.db'",
            "INSTALL httpfs",
            "LOAD httpfs",
            "SET enable_external_access = true",
            "SET allowed_directories = ['/']",
        ):
            with pytest.raises(LLMSecError):
                list(session.select(sql).rows())
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "x.db").exists()


def test_a_symbolic_link_to_a_store_is_followed_but_opens_nothing_else(store, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(store)
    with QuerySession.open(link) as session:
        assert list(session.run("SELECT count(*) FROM exchanges").rows()) == [(5,)]
        with pytest.raises(LLMSecError):
            list(session.run(f"FROM '{link}/store.json'").rows())


def test_a_deeply_nested_statement_is_refused_or_run_but_never_crashes():
    for sql in ("SELECT " + "(" * 3000 + "1" + ")" * 3000, "SELECT 1" + " + 1" * 20_000, "SELECT " + "[" * 900 + "]" * 900):
        with contextlib.suppress(ConfigError):
            check_read_only(sql)


def test_no_spill_file_is_written_beside_the_user(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with QuerySession.open(store) as session:
        list(session.run("SELECT * FROM range(300000) ORDER BY hash(range)").rows())
    assert list(tmp_path.iterdir()) == []
