"""`llmsec-analyze replay` as its user meets it: output, summary, bad input, signals, a full disk."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llmsec_tap.storage import create_store
from support.agent import ROOT, environment
from support.fixture_captures import LIVE, live_frames
from support.wire import Talk, pcap

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(run: Run) -> Run:
    """Detection has tests of its own; here its start would take most of the time."""

    def start(command: str, *arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
        return run(command, *arguments, *(["--no-detect"] if command == "replay" else []), **options)

    return start


@pytest.fixture
def state(tmp_path: Path) -> dict[str, str]:
    return {"XDG_STATE_HOME": str(tmp_path / "state")}


def test_jsonl_has_one_object_per_exchange_with_the_documented_names(run: Run, tmp_path: Path, state: dict[str, str]) -> None:
    result = run("replay", LIVE, "--store", tmp_path / "store", "--format", "jsonl", env=state)
    assert result.returncode == 0
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    seen = [json.loads(line) for line in (LIVE.parent / "llama-server.jsonl").read_text().splitlines()]
    assert [row["api"] for row in rows] == [call["api"] for call in seen]
    for row, call in zip(rows, seen, strict=True):
        if "text" in call:
            assert row["output_text"] == call["text"]
    assert {
        "exchange_id",
        "client",
        "server",
        "started_ns",
        "ttft_ms",
        "usage",
        "completeness",
        "anomalies",
        "request",
        "response",
    } <= rows[0].keys()
    assert f"{len(live_frames())} packets" in result.stderr
    assert "10 exchanges (10 with a language model)" in result.stderr
    assert "stored 10 in" in result.stderr


def test_replaying_twice_does_not_double_anything(run: Run, tmp_path: Path, state: dict[str, str]) -> None:
    store = tmp_path / "store"
    counts = []
    for files in ([LIVE], [LIVE], [LIVE, LIVE]):
        assert run("replay", *files, "--store", store, "--format", "none", env=state).returncode == 0
        sql = "SELECT (SELECT count(*) FROM exchanges), (SELECT count(*) FROM messages), (SELECT count(*) FROM anomalies)"
        counts.append(run("query", sql, "--store", store, "--format", "csv").stdout.splitlines()[1])
    assert counts[0].startswith("10,2")
    assert len(set(counts)) == 1


def test_table_shows_what_matters_and_no_control_characters(run: Run, tmp_path: Path, state: dict[str, str]) -> None:
    result = run("replay", LIVE, "--store", "none", env=state)
    lines = result.stdout.splitlines()
    assert lines[0].split()[:3] == ["time", "provider", "model"]
    assert len(lines) == 11
    assert "aborted" in result.stdout
    assert all(char.isprintable() for line in lines for char in line)
    assert not (tmp_path / "llmsec-data").exists()


def test_without_content_nothing_said_is_printed_or_stored(run: Run, tmp_path: Path, state: dict[str, str]) -> None:
    result = run("replay", LIVE, "--store", tmp_path / "store", "--no-content", "--format", "jsonl", env=state)
    assert "naïve" not in result.stdout
    assert "passive taps" not in result.stdout
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert all(row["output_text"] is None and not row["request"].get("messages") for row in rows)
    assert rows[0]["usage"]["output_tokens"] == 12
    everything = run("query", "SELECT * FROM exchanges", "--store", tmp_path / "store", "--format", "json").stdout
    assert "passive taps" not in everything


def test_standard_input_gzip_and_several_files(run: Run, tmp_path: Path, state: dict[str, str]) -> None:
    plain = tmp_path / "plain.pcap"
    plain.write_bytes(gzip.decompress(LIVE.read_bytes()))
    for data in (LIVE.read_bytes(), plain.read_bytes()):
        command = [sys.executable, "-m", "llmsec_agent.cli.analyze.app", "replay", "-", "--store", "none", "--format", "jsonl"]
        result = subprocess.run(command, input=data, capture_output=True, check=True, env={**os.environ, **state})
        assert result.stdout.count(b"\n") == 10
    other = tmp_path / "other.pcap"
    request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    other.write_bytes(pcap(Talk().open().say(0, request).say(1, b"HTTP/1.1 204 No\r\n\r\n").close().frames))
    result = run("replay", plain, other, "--store", "none", "--format", "jsonl", env=state)
    assert len(result.stdout.splitlines()) == 11


def test_port_limits_what_is_read(run: Run, state: dict[str, str]) -> None:
    result = run("replay", LIVE, "--port", "1", "--store", "none", "--format", "jsonl", env=state)
    assert (result.returncode, result.stdout) == (0, "")
    assert run("replay", LIVE, "--port", "0", env=state).returncode == 2


def test_tokens_are_estimated_where_the_server_states_none(run: Run, tmp_path: Path, state: dict[str, str]) -> None:
    pytest.importorskip("bpe_openai", reason="in the extra `tokens`")
    body = b'{"model":"gpt-4o","messages":[{"role":"user","content":"hello world"}]}'
    answer = b'{"id":"c","object":"chat.completion","model":"gpt-4o","choices":[{"index":0,"message":{"role":"assistant","content":"hello there, world"},"finish_reason":"stop"}]}'
    talk = (
        Talk()
        .open()
        .say(0, b"POST /v1/chat/completions HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    )
    talk.say(1, b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(answer), answer)).close()
    file = tmp_path / "a.pcap"
    file.write_bytes(pcap(talk.frames))
    (row,) = [json.loads(line) for line in run("replay", file, "--store", "none", "--format", "jsonl", env=state).stdout.splitlines()]
    assert row["usage"]["input_tokens"] is None
    assert row["usage_estimated"] == {"input_tokens": 9, "output_tokens": 4, "tokenizer": "o200k_base"}


def test_a_tokenizer_file_counts_for_any_model(run: Run, tmp_path: Path, state: dict[str, str]) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="in the extra `tokens`")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    result = run("replay", LIVE, "--store", "none", "--format", "jsonl", "--tokenizer", tmp_path / "tokenizer.json", env=state)
    estimates = [row["usage_estimated"] for row in map(json.loads, result.stdout.splitlines()) if row["usage_estimated"]]
    assert estimates
    assert {estimate["tokenizer"] for estimate in estimates} == {"tokenizer.json"}
    (tmp_path / "bad.json").write_text("{}")
    for bad in ("bad.json", "none.json"):
        result = run("replay", LIVE, "--store", "none", "--tokenizer", tmp_path / bad, env=state)
        assert result.returncode == 2
        assert len(result.stderr.splitlines()) == 1


# --- bad input ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.mkdir(), "no captures in this folder"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(b"GET / HTTP/1.1\r\n" * 50), "is not a capture file"),
        (lambda path: path.write_bytes(b"\xd4\xc3\xb2\xa1"), "cut inside the file header"),
    ],
    ids=["missing", "folder", "empty", "text", "magic only"],
)  # fmt: skip
def test_what_cannot_be_read_is_one_line_and_exit_3(
    make: Callable[[Path], object], said: str, run: Run, tmp_path: Path, state: dict[str, str]
) -> None:
    path = tmp_path / "input"
    make(path)
    result = run("replay", path, "--store", "none", "--format", "jsonl", env=state)
    assert result.returncode == 3
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert said in errors[0]
    assert str(path) in errors[0]
    assert "Traceback" not in result.stderr


def test_a_cut_capture_gives_all_before_the_cut_and_the_other_files(run: Run, tmp_path: Path, state: dict[str, str]) -> None:
    data = gzip.decompress(LIVE.read_bytes())
    cut = tmp_path / "cut.pcap"
    cut.write_bytes(data[: len(data) // 2 + 3])
    result = run("replay", cut, LIVE, "--store", tmp_path / "store", "--format", "jsonl", env=state)
    assert result.returncode == 3
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert 12 < len(rows) < 20
    assert "truncated" in {row["completeness"] for row in rows}
    assert "cut in the middle of a packet" in result.stderr


def test_hostile_names_and_bytes_do_not_reach_the_terminal(run: Run, tmp_path: Path, state: dict[str, str]) -> None:
    result = run("replay", tmp_path / "a\x1b[31m\nb.pcap", "--store", "none", env=state)
    assert result.returncode == 3
    assert "\x1b" not in result.stderr


def test_usage_errors_exit_2(run: Run, state: dict[str, str]) -> None:
    assert run("replay", env=state).returncode == 2
    assert run("replay", LIVE, "--format", "xml", env=state).returncode == 2
    assert run("replay", LIVE, "--store", "clickhouse://a@b/c", env=state).returncode == 2


def test_an_unwritable_store_exits_4_and_still_prints(run: Run, tmp_path: Path, state: dict[str, str]) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("x")
    result = run("replay", LIVE, "--store", blocker, "--format", "jsonl", env=state)
    assert result.returncode in (2, 4)
    assert len([line for line in result.stderr.splitlines() if line.startswith("error:")]) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="a small file system of its own needs root")
def test_a_full_disk_exits_4_counts_what_is_lost_and_prints_everything(run: Run, tmp_path: Path, state: dict[str, str]) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(small)], check=True)
    try:
        assert run("replay", LIVE, "--store", small / "store", "--format", "none", env=state).returncode == 0
        with (small / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            while filler.write(b"x" * 4096):
                pass
        result = run("replay", LIVE, "--store", small / "store", "--format", "jsonl", env=state)
        assert result.returncode == 4
        assert len(result.stdout.splitlines()) == 10
        assert "10 NOT STORED" in result.stderr
        assert len([line for line in result.stderr.splitlines() if line.startswith("error:")]) == 1
        stored = run("query", "SELECT count(*) FROM exchanges", "--store", small / "store", "--format", "csv")
        assert stored.stdout.splitlines()[1] == "10"
    finally:
        subprocess.run(["umount", str(small)], check=True)


# --- signals -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_completes_stores_and_sums_up_what_was_read(
    number: signal.Signals, run: Run, tmp_path: Path, state: dict[str, str]
) -> None:
    store = tmp_path / "store"
    command = [sys.executable, "-m", "llmsec_agent.cli.analyze.app", "replay", "-", "--store", str(store), "--format", "jsonl"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **state})
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(gzip.decompress(LIVE.read_bytes())[:-2000])
    process.stdin.flush()
    seen = b"".join(process.stdout.readline() for _ in range(8))  # shown as it comes, not when the pipe ends
    process.send_signal(number)
    try:
        out, err = process.communicate(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    out = seen + out
    assert process.returncode == 130
    assert out.count(b"\n") >= 9
    assert b"interrupted" in err
    assert b"Traceback" not in err
    stored = run("query", "SELECT count(*) FROM exchanges", "--store", store, "--format", "csv")
    assert int(stored.stdout.splitlines()[1]) == out.count(b"\n")


def test_a_closed_pipe_is_quiet(state: dict[str, str]) -> None:
    command = f"{sys.executable} -m llmsec_agent.cli.analyze.app replay {LIVE} {LIVE} --store none --format jsonl | head -n 1"
    result = subprocess.run(command, shell=True, capture_output=True, env={**os.environ, **state}, check=False)
    assert result.stdout.count(b"\n") == 1
    assert b"Traceback" not in result.stderr
    assert b"error" not in result.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be called through sudo")
def test_through_sudo_the_store_is_the_callers(tmp_path: Path) -> None:
    """A new store, and one of the caller's own; a store of root's stays root's."""
    caller, capture = 12_345, next(iter(sorted((ROOT / "fixtures/pcap").rglob("*.pcap"))))
    for name, owner in (("new", None), ("own", caller), ("roots", 0)):
        store = tmp_path / name
        if owner is not None:
            create_store(store)
            for path in (store, *store.rglob("*")):
                os.chown(path, owner, owner)
        command = [
            sys.executable,
            "-m",
            "llmsec_agent.cli.analyze.app",
            "replay",
            str(capture),
            "--store",
            str(store),
            "--no-detect",
            "--format",
            "none",
        ]
        subprocess.run(command, env={**environment(), "SUDO_UID": str(caller)}, check=True, capture_output=True)
        assert {path.stat().st_uid for path in (store, *store.rglob("*"))} == {0 if owner == 0 else caller}
