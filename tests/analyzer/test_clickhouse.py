"""Questions to ClickHouse: the same views, the same answers as from a folder, and nothing but reading."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import pytest
from starlette.testclient import TestClient

from llmsec_agent.console import asking as console_asking
from llmsec_agent.console.access import Access, hashed
from llmsec_agent.console.app import console
from llmsec_agent.top.facts import UsageFacts
from llmsec_agent.top.sources import _looked, facts_of
from llmsec_analyzer.stored import alerts as found_alerts
from llmsec_analyzer.stored import deviations as found_deviations
from llmsec_analyzer.stored import exchanges as listing
from llmsec_analyzer.stored import findings as found_findings
from llmsec_analyzer.stored.stores import open_session
from llmsec_tap import model
from llmsec_tap.errors import ConfigError, StorageError
from llmsec_tap.model import to_json
from llmsec_tap.storage import StoreWriter, audit, create_store
from llmsec_tap.storage.clickhouse.address import parse
from llmsec_tap.storage.clickhouse.client import connect
from llmsec_tap.storage.clickhouse.migrations import migrate
from llmsec_tap.storage.clickhouse.tables import Layout
from llmsec_tap.storage.taps import Beat, write_beat
from support.clickhouse_front import copy_folder
from support.journal import Said

DOCS = Path(__file__).parents[2] / "docs"
QUERIES = [re.findall(r"```sql\n(.*?)```", (DOCS / name).read_text(), re.DOTALL) for name in ("query.md", "query-clickhouse.md")]
OVERVIEW = "SUMMARIZE exchanges"


@pytest.fixture(scope="module")
def both(tmp_path_factory, build_exchange, build_finding, clickhouse):
    """A folder and a database with the same exchanges: a full one, an empty one, one without a start, one stored twice."""
    root = tmp_path_factory.mktemp("both") / "store"
    ask = model.Request(
        messages=[model.Message(role="user", parts=[model.Part(type="text", content="What is the weather in Malmö?")])],
        parameters={"temperature": 1},
    )
    with StoreWriter.open(root) as writer:
        writer.add(build_exchange(1))
        writer.add(
            build_exchange(2, request=ask, error_type=None, ttft_ms=99.25, findings=[build_finding(finding_id="aa", severity="high")])
        )
        writer.add(build_exchange(3, started_ns=None, process=None, usage=model.Usage(), rate_limit=None, findings=[]))
        writer.add(model.Exchange(exchange_id="ff" * 16, client="a:1", server="b:2"))
        writer.add(build_exchange(7_200_000, status=500, request_model="o1[mini]", response_model=None))
        write_beat(writer.store, Beat(node="node-1", pid=1, version="1", started_ns=1, heartbeat_ns=1))
    with StoreWriter.open(root) as writer:
        writer.add(build_exchange(1, tenant="later"))
    url = clickhouse.new_url()
    client, _ = connect(parse(url), database=False)
    migrate(client, Layout(parse(url).database))
    copy_folder(root, url)
    return root, url


def answers(store, sql):
    with open_session(store) as session:
        return sorted((tuple(map(plain, row)) for row in session.run(sql).rows()), key=repr)


def plain(value):
    return round(value, 9) if isinstance(value, float) else value


def test_every_documented_query_has_its_twin():
    assert len(QUERIES[0]) == len(QUERIES[1]) >= 16


@pytest.mark.parametrize(("duck", "click"), [pair for pair in zip(*QUERIES, strict=True) if OVERVIEW not in pair[0]])
def test_both_engines_answer_alike(both, duck, click):
    folder, url = both
    expected = answers(folder, duck)
    assert expected, duck
    assert answers(url, click) == expected


def test_an_overview_names_every_column(both):
    folder, url = both
    assert [row[0] for row in answers(url, QUERIES[1][-1])] == [row[0] for row in answers(folder, OVERVIEW)]


@pytest.mark.parametrize("view", ["exchanges", "messages", "tool_calls", "anomalies", "findings", "deviations", "alerts", "taps"])
def test_views_hold_the_same_rows(both, view):
    folder, url = both
    rows = answers(folder, f"SELECT * FROM {view}")
    assert rows
    assert [tuple(map(without_nulls, row)) for row in answers(url, f"SELECT * FROM {view}")] == [
        tuple(map(without_nulls, row)) for row in rows
    ]


def without_nulls(value):
    """An absent struct, list and value alike: ClickHouse has no null for the first two."""
    if isinstance(value, dict):
        return {name: kept for name, item in value.items() if (kept := without_nulls(item)) is not None} or None
    if isinstance(value, list):
        return [without_nulls(item) for item in value] or None
    return plain(value)


def test_whole_records_come_back_as_they_were(both):
    records = []
    for store in both:
        with open_session(store) as session:
            records.append([json.loads(to_json(exchange)) for exchange in listing.records(session, listing.Filter())])
    assert len(records[0]) == 5
    assert records[0] == records[1]


@pytest.mark.parametrize(
    "wanted",
    [
        {},
        {"model": "gpt-4*"},
        {"model": "o1[m*"},
        {"model": "gpt_4*"},
        {"status": 500},
        {"has_error": True},
        {"tenant": "later"},
        {"since_ns": 1_795_000_000_000_000_000, "limit": 2},
    ],
)
def test_lists_are_the_same(both, wanted):
    rows = []
    for store in both:
        with open_session(store) as session:
            result = listing.listed(session, listing.Filter(**wanted))
            rows.append((result.names, list(result.rows())))
    assert rows[0] == rows[1]


def test_alerts_and_deviations_are_the_same(both):
    got = []
    for store in both:
        with open_session(store) as session:
            wanted = found_alerts.AlertFilter(rule="cost_*", key="*team-a", priority="medium", since_ns=1)
            alerts = list(found_alerts.stored_alerts(session, wanted))
            deviations = list(found_deviations.stored_deviations(session, found_deviations.DeviationFilter(severity="low", kind="c*")))
            got.append((alerts, deviations, found_alerts.find_alert(session, "a"), found_alerts.find_alert(session, "zz")))
    assert got[0] == got[1]
    assert [(row["alert_id"], row["state"], row["count"]) for row in got[0][0]] == [("a1", "firing", 1)]
    assert len(got[0][2][1]) > 1
    assert got[0][3] is None


@pytest.mark.parametrize(
    "wanted",
    [
        {},
        {"severity": "high"},
        {"rule": "pii.*"},
        {"rule": "x*"},
        {"exchange": "0000"},
        {"since_ns": 1_795_000_000_000_000_000},
        {"limit": 1},
    ],
)
def test_findings_are_the_same(both, wanted):
    rows = []
    for store in both:
        with open_session(store) as session:
            rows.append(
                list(found_findings.stored_findings(session, found_findings.FindingFilter(**wanted), lambda finding, _facts: finding))
            )
    assert rows[0] == rows[1]


def test_one_exchange_and_one_finding_by_how_their_ids_begin(both):
    for store in both:
        with open_session(store) as session:
            assert listing.find(session, "00000002").exchange_id == f"{2:08x}{'ab' * 12}"
            assert found_findings.find_finding(session, "aa")[0].severity == "high"
            with pytest.raises(ConfigError, match="no exchange"):
                listing.find(session, "'%")


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO exchange_rows (exchange_id) VALUES ('x')",
        "DROP TABLE exchange_rows",
        "ALTER TABLE exchange_rows DELETE WHERE 1",
        "SELECT 1 SETTINGS readonly = 0",
        "SET readonly = 0",
        "CREATE TABLE x (a Int8) ENGINE = Memory",
    ],
)
def test_the_server_refuses_what_is_not_reading(both, sql):
    with open_session(both[1]) as session, pytest.raises(ConfigError):
        list(session.run(sql).rows())


@pytest.mark.parametrize(
    ("sql", "said"),
    [("SELEC 1", "Syntax error"), ("SELECT modle FROM exchanges", "modle"), ("SELECT 1 FROM nope", "tables: exchanges, messages"), ("SELECT count() FROM exchanges WHERE status = {a:Int64}", "a")],
)  # fmt: skip
def test_a_wrong_statement_is_one_line(run, both, sql, said):
    done = run("query", sql, "--store", both[1])
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
    assert "version 2" not in done.stderr


def test_commands_read_it(run, both):
    url = both[1]
    assert run("query", "SELECT count() AS n FROM exchanges", "--store", url, "--format", "csv").stdout == "n\n5\n"
    assert run("exchanges", "--store", url, "--limit", "2").stdout.count("\n") == 4
    assert "What is " in run("exchanges", "show", "00000001", "--store", url).stdout
    assert run("findings", "--store", url, "--format", "jsonl", "--severity", "high").stdout.count("\n") == 1


def test_a_server_that_is_not_there_is_one_line_and_exit_4(run):
    done = run("query", "SELECT 1", "--store", "clickhouse://u@127.0.0.1:1/db")
    assert (done.returncode, done.stdout) == (4, "")
    assert (
        done.stderr == "error: http://127.0.0.1:1: connection refused (is it running, and is that its HTTP port (8123, with TLS 8443)?)\n"
    )


def test_a_database_that_was_not_made_says_how_it_is(run, clickhouse):
    done = run("query", "SELECT 1", "--store", clickhouse.new_url())
    assert done.returncode == 4
    assert "llmsec-analyze db migrate" in done.stderr


def test_db_migrate_makes_it(run, clickhouse):
    url = clickhouse.new_url()
    assert "made tables" in run("db", "migrate", "--store", url).stderr
    assert "up to date" in run("db", "migrate", "--store", url).stderr
    assert run("query", "SELECT count() AS n FROM exchanges", "--store", url, "--format", "csv").stdout == "n\n0\n"


def test_a_wrong_password_is_said_and_not_shown(run, clickhouse, tmp_path):
    if not clickhouse.is_front:
        pytest.skip("the front's own refusal")
    done = run("query", "SELECT 1", "--store", clickhouse.url("default"), env={"LLMSEC_CLICKHOUSE_PASSWORD": "wrong one"})
    assert done.returncode == 2
    assert "refuses the user" in done.stderr
    assert "wrong one" not in done.stderr


def test_what_answers_garbage_is_a_storage_error(tmp_path):
    import http.server
    import threading

    class Garbage(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.send_response(200)
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"\xff<ht>")

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Garbage)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(StorageError):
            open_session(f"clickhouse://u@127.0.0.1:{server.server_address[1]}/db")
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    "page",
    [
        "/?since=all", "/exchanges", "/exchanges?tenant=later", "/exchanges?rule=*", "/exchanges?text=malm", "/exchanges?since=2020-01-01&has_error=1", "/exchanges?process=python",
        "/findings?since=all", "/findings?since=all&by=tenant", "/findings?since=all&by=fingerprint", "/alerts?since=all", "/deviations?since=all", "/tenants?since=all", "/workloads?since=all", "/taps",
        "/exchanges.csv",
    ],
)  # fmt: skip
def test_the_console_shows_the_same(both, page):
    shown = []
    for location in both:
        app = console(str(location), "store", Access("x" * 20), Said(), is_secure=False)
        with TestClient(app, base_url="http://127.0.0.1") as browser:
            browser.get("/login?token=" + "x" * 20)
            answer = browser.get(page)
        assert answer.status_code == 200, answer.text
        shown.append(re.sub(r'name="csrf" value="\w+"|As of <time.*', "", answer.text))
    assert shown[0] == shown[1]


def test_the_console_shows_a_conversation_of_a_database(both):
    app = console(both[1], "store", Access("x" * 20), Said(), is_secure=False)
    with TestClient(app, base_url="http://127.0.0.1") as browser:
        browser.get("/login?token=" + "x" * 20)
        found = re.findall(r'href="/exchanges/(\w{32})"', browser.get("/exchanges").text)
        pages = [browser.get(f"/exchanges/{one}") for one in found]
    assert {page.status_code for page in pages} == {200}
    assert sum("Malmö" in page.text for page in pages) == 4
    # What somebody acknowledged is kept in a folder.
    assert not any('value="acknowledge"' in page.text for page in pages)


def test_looks_at_a_database_are_in_the_audit_log_of_a_folder(both, tmp_path):
    kept = create_store(tmp_path / "kept")
    promises = []
    for log in (None, kept):
        access = Access("x" * 20, {"vera": (hashed("correct horse"), "viewer")})
        app = console(both[1], "store", access, Said(), is_secure=False, log=log)
        with TestClient(app, base_url="http://127.0.0.1") as browser:
            browser.get("/login?token=" + "x" * 20)
            found = re.search(r'href="(/exchanges/\w{32})"', browser.get("/exchanges").text)[1]
            browser.get(found)
            browser.post("/login", data={"name": "vera", "password": "correct horse"})
            promises.append("written to the audit log" in browser.get(found).text)
    assert promises == [False, True]
    entries = [(entry.event, entry.facts["user"], entry.facts.get("page")) for entry in audit.entries(kept)]
    assert entries == [("login", "token", None), ("query", "token", "exchanges"), ("query", "token", "exchange"), ("login", "vera", None)]


def test_the_terminal_view_follows_both(both):
    seen = []
    for location in both:
        with open_session(location) as session:
            rows, losses = _looked(session, 0)
        seen.append((sorted(map(facts_of, rows), key=lambda facts: facts.exchange_id), losses))
    for folder, database in zip(*(facts for facts, _ in seen), strict=True):
        # A structure of which nothing is known is none in a database.
        empty = database.usage is None and folder.usage == UsageFacts()
        assert (msgspec.structs.replace(folder, usage=None) if empty else folder) == database
    assert seen[0][1] == seen[1][1]
    assert any(facts.process is not None for facts in seen[0][0])
    assert any(facts.findings for facts in seen[0][0])


def test_questions_of_pages_share_sessions(both, monkeypatch):
    opened = []
    monkeypatch.setattr(console_asking, "open_session", lambda *given: opened.append(1) or open_session(*given))
    asking = console_asking.Asking(both[1], Said())
    for _ in range(5):
        assert asking.ask(lambda session: next(iter(session.select("SELECT count(*) FROM exchanges").rows()))[0]) == 5
    with pytest.raises(ConfigError):
        asking.ask(lambda session: list(session.run("SELECT nothing").rows()))
    asking.ask(lambda session: list(session.select("SELECT 1").rows()))
    assert len(opened) == 2  # one that failed is not used again
    asking.close()
