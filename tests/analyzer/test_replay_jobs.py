"""`replay --jobs N` gives what one job gives: the same exchanges in the same order, the same counts, the same exit code."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from support.wire import START_NS, Talk, pcap

GOLDEN = Path(__file__).parents[2] / "fixtures" / "pcap" / "golden"
ANSWER = b'{"object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}]}'
REPLY = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(ANSWER) + ANSWER


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "key").write_bytes(bytes(range(32)))
    (tmp_path / "key").chmod(0o600)
    return {"LLMSEC_FINGERPRINT_KEY_FILE": str(tmp_path / "key")}


def interleaved(count: int, *, requests: int = 2, gap_ns: int = 0) -> bytes:
    """Connections at once: some end, some are reset, some go on to the end of the capture, some lost a segment."""
    chance = random.Random(7)
    frames: list[tuple[int, bytes]] = []
    for number in range(count):
        talk = Talk(
            client=("10.0.0.1", 20_000 + number),
            now_ns=START_NS + chance.randrange(200) * 1_000_000,
            step_ns=chance.randrange(1, 9) * 300_000,
        )
        talk.open()
        for turn in range(requests):
            body = json.dumps(
                {"model": "gpt-4o", "messages": [{"role": "user", "content": f"question {number} {turn} " + "x" * 3000}]}
            ).encode()
            head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(
                body
            )
            talk.say(0, head + body).say(1, REPLY)
            talk.now_ns += gap_ns
        if number % 3 == 0:
            talk.close()
        if number % 7 == 0:
            del talk.frames[5]
        frames += talk.frames
    return pcap(sorted(frames, key=lambda frame: frame[0]))


def replayed(run: Any, env: dict[str, str], *arguments: Any) -> tuple[list[dict[str, Any]], list[str], int]:
    done = run("replay", *arguments, "--format", "jsonl", "--store", "none", env=env, timeout=200)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    for row in rows:  # ids of findings are drawn
        for finding in row["findings"]:
            finding.pop("finding_id", None)
    counts = [re.sub(r"[0-9.]+ s, \d+ MB at most", "", line) for line in done.stderr.splitlines() if "packets" in line]
    return rows, counts, done.returncode


def test_many_connections_of_one_file(run: Any, env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "c.pcap").write_bytes(interleaved(60))
    one = replayed(run, env, tmp_path / "c.pcap", "--no-detect")
    assert len(one[0]) >= 100
    for jobs in (2, 3):
        assert replayed(run, env, tmp_path / "c.pcap", "--no-detect", "--jobs", jobs, "--memory-cap", 1024) == one


def test_connections_that_only_time_ends(run: Any, env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "c.pcap").write_bytes(interleaved(20, gap_ns=2_000_000_000_000))
    one = replayed(run, env, tmp_path / "c.pcap", "--no-detect")
    assert replayed(run, env, tmp_path / "c.pcap", "--no-detect", "--jobs", 2) == one


def test_a_folder_of_captures_with_detection(run: Any, env: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "captures"
    folder.mkdir()
    for path in sorted(GOLDEN.glob("*.pcap*"))[:12]:
        shutil.copy(path, folder)
    (folder / "notes.txt").write_text("no capture")
    (folder / "a.pcap").write_bytes(interleaved(8))
    one = replayed(run, env, folder)
    assert len(one[0]) > 10
    assert replayed(run, env, folder, "--jobs", 2) == one


def test_a_damaged_file_is_said_once_and_ends_the_command_as_with_one_job(run: Any, env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "c.pcap").write_bytes(interleaved(6)[:-50])
    one = replayed(run, env, tmp_path / "c.pcap", "--no-detect")
    assert one[2] == 3
    assert replayed(run, env, tmp_path / "c.pcap", "--no-detect", "--jobs", 2) == one
    done = run("replay", tmp_path / "c.pcap", "--no-detect", "--store", "none", "--jobs", "2", env=env)
    assert sum("cut" in line for line in done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("-", "--jobs", "2"), "--jobs reads files"),
        (("x.pcap", "--jobs", "2", "--format", "events"), "--jobs reads files"),
        (("x.pcap", "--jobs", "8", "--memory-cap", "512"), "memory cap"),
    ],
)
def test_what_does_not_go_together(run: Any, env: dict[str, str], tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    done = run("replay", *arguments, "--store", "none", cwd=tmp_path, env=env, input="")
    assert done.returncode == 2
    assert says in done.stderr


def test_a_store_has_what_one_job_stores(run: Any, env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "c.pcap").write_bytes(interleaved(20))
    for jobs in (1, 2):
        run("replay", tmp_path / "c.pcap", "--no-detect", "--format", "none", "--store", tmp_path / f"s{jobs}", "--jobs", jobs, env=env)
    sql = "SELECT * FROM exchanges ORDER BY exchange_id"
    one, two = (run("query", "--store", tmp_path / f"s{jobs}", "--format", "json", sql).stdout for jobs in (1, 2))
    assert one == two
    assert one.count("\n") >= 35
