from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pytest

from llmsec_analyzer.stored.session import QuerySession
from llmsec_tap.errors import ConfigError, StorageError


def test_json_lines(run, store):
    done = run(
        "query",
        "SELECT exchange_id, started, usage, finish_reasons, NULL AS n FROM exchanges ORDER BY started",
        "--store",
        store,
        "--format",
        "json",
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 5
    assert lines[0]["started"] == "2026-11-18T11:06:40.123456"
    assert lines[0]["usage"]["input_tokens"] == 11
    assert lines[0]["finish_reasons"] == ["tool_calls", "stop"]
    assert lines[0]["n"] is None


def test_json_values_of_every_type(store):
    from llmsec_analyzer.show.results import write_json

    out = io.StringIO()
    with QuerySession.open(store) as session:
        write_json(session.run("SELECT * FROM (SELECT 170141183460469231731687303715884105727::HUGEINT AS h, 1.50::DECIMAL(5,2) AS d, 'nan'::DOUBLE AS n, INTERVAL 90 SECOND AS i, '\\x00\\xff'::BLOB AS b, MAP {'k': 1} AS m, uuid() AS u, TIME '10:00' AS t, DATE '2026-11-24' AS day, TIMESTAMPTZ '2026-11-24 10:00+00' AS z, 'infinity'::TIMESTAMP AS inf, 1 AS a, 2 AS a)"), out)  # fmt: skip
    row = json.loads(out.getvalue(), parse_constant=pytest.fail)
    assert row["h"] == 2**127 - 1
    assert row["d"] == 1.5
    assert row["n"] is None
    assert row["m"] == {"k": 1}
    assert row["t"] == "10:00:00"
    assert row["day"] == "2026-11-24"
    assert row["z"].startswith("2026-11-24T10:00:00")
    assert (row["a"], row["a_1"]) == (1, 2)


def test_csv(run, store):
    done = run("query", "SELECT 'a,\"b\"' AS x, NULL AS y, [1, 2] AS z, true AS t, 1.5 AS f", "--store", store, "--format", "csv")
    assert done.stdout == 'x,y,z,t,f\n"a,""b""",,"[1,2]",true,1.5\n'
    assert list(csv.reader(io.StringIO(done.stdout)))[1] == ['a,"b"', "", "[1,2]", "true", "1.5"]


def test_parquet(run, store, tmp_path):
    out = tmp_path / "out.parquet"
    with out.open("wb") as file:
        done = run("query", "FROM exchanges", "--store", store, "--format", "parquet", capture_output=False, stdout=file)
    assert done.returncode == 0
    assert duckdb.sql(f"SELECT count(*), min(usage.input_tokens) FROM '{out}'").fetchall() == [(5, 11)]


def test_parquet_is_refused_on_a_terminal(store):
    leader, follower = os.openpty()
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", "from llmsec_agent.cli.analyze.app import main; main()", "query", "SELECT 1", "--store", str(store), "--format", "parquet"],
        stdout=follower, stderr=subprocess.PIPE, text=True, env=env, check=False,
    )  # fmt: skip
    os.close(leader)
    os.close(follower)
    assert done.returncode == 2
    assert "Parquet is binary" in done.stderr


def test_a_table_shows_null_fits_and_says_what_is_left_off(run, store):
    done = run("query", "SELECT range AS n, NULL AS nothing, 'é漢' AS text FROM range(1000)", "--store", store, "--max-rows", "3")
    assert done.stdout.splitlines() == [
        "n  nothing  text",
        "─  ───────  ────",
        "0  NULL     é漢",
        "1  NULL     é漢",
        "2  NULL     é漢",
        "(first 3 rows; --format json or csv gives all, LIMIT fewer)",
    ]
    assert "(no rows)" in run("query", "SELECT 1 WHERE false", "--store", store).stdout


def test_a_statement_from_standard_input(run, store):
    assert run("query", "-", "--store", store, "--format", "csv", input="SELECT 1 AS a").stdout == "a\n1\n"


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("SELEC 1", 'syntax error at or near "selec" at line 1, column 1'),
        ("SELECT modle FROM exchanges", 'Referenced column "modle" not found in FROM clause! at line 1, column 8, near \'modle\' (Candidate bindings: "model"'),
        ("SELECT 1\nFROM exchagnes", "at line 2, column 6, near 'exchagnes' (tables: exchanges, messages, tool_calls, anomalies, findings, deviations, alerts, taps)"),
        ("SELECT 1; SELECT 2", "2 statements given, not one (one SELECT"),
        ("COPY exchanges TO 'x'", "COPY is not a statement that only reads (one SELECT"),
        ("SELECT 'a\x1b[31m'::INT", "Could not convert string"),
        ("", "no statement given"),
    ],
)  # fmt: skip
def test_a_wrong_statement_is_one_line_and_exit_2(run, store, sql, said):
    done = run("query", sql, "--store", store)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert said.lower() in done.stderr.lower()
    assert "\x1b" not in done.stderr


def test_no_store_is_exit_4(run, tmp_path):
    done = run("query", "SELECT 1", "--store", tmp_path / "absent")
    assert done.returncode == 4
    assert done.stderr == f"error: {tmp_path}/absent is not a store (give the folder that a capture or replay wrote, with --store)\n"
    assert list(tmp_path.iterdir()) == []


def test_the_store_may_come_from_the_environment(run, store):
    assert run("query", "SELECT count(*) AS n FROM exchanges", "--format", "csv", env={"LLMSEC_STORE": str(store)}).stdout == "n\n5\n"


def test_queries_run_while_somebody_holds_the_database(run, fill, make_exchange):
    root = fill(make_exchange(1))
    holder = duckdb.connect(str(root / "llmsec.duckdb"))
    try:
        assert run("query", "SELECT count(*) AS n FROM exchanges", "--store", root, "--format", "csv").stdout == "n\n1\n"
    finally:
        holder.close()


def test_a_damaged_part_is_named_in_one_line_and_the_rest_is_read(run, fill, make_exchange):
    root = fill(make_exchange(1))
    (part,) = root.glob("exchanges/day=*/part-*")
    part.write_bytes(part.read_bytes()[:200])
    done = run("query", "SELECT count(*) FROM exchanges", "--store", root)
    assert (done.returncode, done.stdout.split()[-1]) == (0, "0")
    assert done.stderr.count("\n") == 1
    assert f"{part} is damaged" in done.stderr


def start(store, *arguments, **options):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.Popen(
        [sys.executable, "-c", "from llmsec_agent.cli.analyze.app import main; main()", "query", *arguments, "--store", str(store)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, **options,
    )  # fmt: skip


@pytest.mark.parametrize("output", ["json", "csv", "table"])
def test_a_closed_pipe_is_silent(store, output):
    process = start(store, "SELECT range, repeat('x', 100) AS t FROM range(3000000)", "--format", output, "--max-rows", "100000")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(30) == 0
    assert process.stderr.read() == b""
    process.stderr.close()


@pytest.mark.parametrize(
    "sql", ["SELECT count(*) FROM range(100000000000) a", "SELECT range, 'x' FROM range(100000000000)"], ids=["computing", "streaming"]
)
def test_interrupt_is_exit_130_and_silent(store, sql):
    process = start(store, sql, "--format", "json", preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    with process:
        try:
            is_computing(process.pid)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert said == b""


def is_computing(pid):
    """Wait until the statement runs: DuckDB has made its threads and used time."""
    deadline = time.monotonic() + 60
    while len(list(Path(f"/proc/{pid}/task").iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.0)


def test_a_large_result_streams_in_constant_memory(store):
    script = (
        "import resource, sys; from llmsec_analyzer.stored.session import QuerySession; from llmsec_analyzer.show.results import write_json\n"
        "class Sink:\n"
        "    size = 0\n"
        "    def isatty(self): return False\n"
        "    def writelines(self, lines): self.size += sum(map(len, lines))\n"
        "sink = Sink()\n"
        "with QuerySession.open(sys.argv[1]) as session:\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "    write_json(session.run(\"SELECT range AS n, repeat('x', 1000) AS t FROM range(300000)\"), sink)\n"
        "print(sink.size // 1000000, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", script, str(store)], env=env, capture_output=True, text=True, check=True)
    megabytes, growth = map(int, done.stdout.split())
    assert megabytes > 300
    assert growth < 100


def test_frame_is_a_polars_frame(store):
    with QuerySession.open(store) as session:
        frame = session.frame("SELECT model, count(*) AS n FROM exchanges GROUP BY model")
        assert frame.to_dicts() == [{"model": "gpt-4o-2024-08-06", "n": 5}]
        with pytest.raises(ConfigError):
            session.frame("COPY exchanges TO 'x'")


def test_not_a_store_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError):
        QuerySession.open(tmp_path)


def test_csv_for_a_spreadsheet_holds_no_formula(run, store):
    sql = "SELECT '=1+1' AS \"@name\", '-2+3' AS b, -5 AS c, 'plain' AS d, chr(9) || '=x' AS e"
    safe = run("query", sql, "--store", store, "--format", "csv", "--csv-safe").stdout
    assert list(csv.reader(io.StringIO(safe))) == [["'@name", "b", "c", "d", "e"], ["'=1+1", "'-2+3", "-5", "plain", "'\t=x"]]
    plain = run("query", sql, "--store", store, "--format", "csv").stdout
    assert list(csv.reader(io.StringIO(plain)))[1] == ["=1+1", "-2+3", "-5", "plain", "\t=x"]
