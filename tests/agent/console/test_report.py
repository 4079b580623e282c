"""The report: the same figures as SQL, nothing that runs or loads, and one line for what cannot be."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from llmsec_analyzer.stored.session import QuerySession
from llmsec_tap.model import Exchange, Finding, Location, Taxonomy, Usage
from llmsec_tap.storage import StoreWriter, audit, create_store
from support.agent import environment

START = 1_790_000_000_000_000_000
HOUR = 3_600_000_000_000


def exchange(number: int) -> Exchange:
    finding = Finding(
        finding_id=f"f{number}", rule_id="secret.key", rule_version="1", category="secret", type="key", severity="high", confidence=0.9,
        location=Location(part="request.messages[0].parts[0]", start=0, end=2), preview="<script>alert(1)</script>", fingerprint="abc",
        taxonomy=Taxonomy(owasp_llm_2025="LLM02", mitre_atlas="AML.T0055"), explanation="why",
    )  # fmt: skip
    return Exchange(
        exchange_id=f"{number:032x}", client="10.0.0.1:1", server="10.0.0.2:2", started_ns=START + number * HOUR, ended_ns=START + number * HOUR + 1, provider="openai",
        api="openai.chat", method="POST", path="/v1/chat/completions", status=500 if number % 5 == 0 else 200, request_model="<img src=x onerror=alert(1)>",
        tenant="a" if number % 2 else "b", usage=Usage(input_tokens=10, output_tokens=number), cost_usd=0.25, risk_score=number, findings=[finding] if number % 3 == 0 else [],
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("report") / "store"
    writer = StoreWriter(create_store(root))
    for number in range(20):
        writer.add(exchange(number))
    writer.close()
    return root


def run(*options: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llmsec_agent.cli.analyze.app", "report", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment(), cwd=cwd)


def figure(text: str, name: str) -> str:
    found = re.search(rf"<dt>{re.escape(name)}</dt><dd>([^<]*)</dd>", text)
    assert found is not None, name
    return found[1]


@pytest.mark.parametrize(
    ("options", "condition"),
    [
        ((), "true"),
        (("--tenant", "a"), "tenant = 'a'"),
        (("--since", "2026-09-22"), f"started_ns >= {1_790_035_200_000_000_000}"),
        (("--until", "2026-09-21T20:00", "--tenant", "b"), f"started_ns < {1_790_020_800_000_000_000} AND tenant = 'b'"),
    ],
)
def test_figures_are_those_of_sql(folder: Path, options: tuple[str, ...], condition: str) -> None:
    done = run("--store", str(folder), *options)
    assert done.returncode == 0, done.stderr
    with QuerySession.open(folder) as session:
        among = f"exchange_id IN (SELECT exchange_id FROM exchanges WHERE {condition})"
        (by_sql,) = session.run(
            f"""SELECT count(*), sum(input_tokens), sum(output_tokens), sum(cost_usd), count(*) FILTER (WHERE status >= 400), max(risk_score),
                (SELECT count(*) FROM findings WHERE {among}) FROM exchanges WHERE {condition}"""
        ).rows()
    assert by_sql[0]
    shown = [
        figure(done.stdout, name) for name in ("Exchanges", "Tokens in", "Tokens out", "Cost, US dollars", "Errors", "Highest risk", "high")
    ]
    assert [float(value) for value in shown] == [float(value) for value in by_sql]
    assert f'<td>LLM02</td><td class="number">{by_sql[6]}</td>' in done.stdout


class Loads(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [
            f"{tag} {name}"
            for name, value in attrs
            if name.startswith("on") or (name in ("src", "href") and not str(value).startswith("data:image/svg+xml;base64,"))
        ]
        if tag in ("script", "link", "iframe", "object"):
            self.found.append(tag)


def test_it_runs_nothing_and_loads_nothing(folder: Path) -> None:
    text = run("--store", str(folder)).stdout
    assert Loads(text).found == []
    assert text.count("data:image/svg+xml;base64,") == 5
    assert "default-src 'none'" in text
    assert "&lt;script&gt;alert(1)" in text  # a preview, as text


def test_without_content_findings_are_only_counted(folder: Path) -> None:
    text = run("--store", str(folder), "--no-content").stdout
    assert "alert(1)&lt;/script" not in text
    assert figure(text, "high") == "7"


def test_it_is_in_the_audit_log(folder: Path) -> None:
    run("--store", str(folder), "--tenant", "a")
    last = list(audit.entries(create_store(folder)))[-1]
    assert (last.event, last.facts["command"], last.facts["tenant"]) == ("export", "report", "a")


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed (apt-get install chromium)")
def test_a_browser_prints_it(folder: Path, tmp_path: Path) -> None:
    done = run("--store", str(folder), "--output", "report.pdf", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF-")
    assert (tmp_path / "report.pdf").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("options", "code", "error"),
    [
        (("--store", "nowhere"), 4, "is not a store"),
        (("--since", "soon"), 2, "is not a valid time"),
        (("--output", "/nonexistent/report.html"), 4, "cannot write"),
    ],
)
def test_what_cannot_be_is_one_line(folder: Path, tmp_path: Path, options: tuple[str, ...], code: int, error: str) -> None:
    done = run(*(("--store", str(folder)) if "--store" not in options else ()), *options, cwd=tmp_path)
    assert done.returncode == code
    assert error in done.stderr
    assert len(done.stderr.splitlines()) == 1
