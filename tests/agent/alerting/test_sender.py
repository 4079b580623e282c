"""Alerts on their way out: nothing is lost, little is doubled, and no channel waits for another."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest

from llmsec_agent.alerting.lane import Lane, Pace, Shared
from llmsec_agent.alerting.logs import BoundedLog
from llmsec_agent.alerting.outbox import MAX_LINE_BYTES, Outbox, Unreadable
from llmsec_agent.alerting.plan import decode, encode, plan_of
from llmsec_agent.alerting.sender import send_alerts
from llmsec_agent.alerting.status import samples
from llmsec_agent.config import load_config
from llmsec_tap.counters import Snapshot
from llmsec_tap.errors import ConfigError, StorageError
from llmsec_tap.storage import StoreWriter
from support.alert_servers import Answer, receiver
from support.alerts import an_alert, lines, write_outbox
from support.journal import Said

ENV = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
PARENT = """
import sys
from llmsec_agent.alerting.plan import plan_of
from llmsec_agent.alerting.process import AlertSender
from llmsec_agent.config import load_config
from llmsec_agent.journals import journal
from llmsec_agent.kept import end
config = load_config(sys.argv[1])
sender = AlertSender.begin(plan_of(config.storage.path, config.alerting), journal())
print(sender.pid, flush=True)
for line in sys.stdin:
    if line.strip() == "poke":
        sender.poke()
    if line.strip() == "reload":
        config = load_config(sys.argv[1])
        sender.change(plan_of(config.storage.path, config.alerting))
    if line.strip() == "end":
        end([sender])
        print("ended", flush=True)
"""
OWNER = 64_123  # nobody has it
QUICK = Pace(0.01, 0.05, 0.2)


@pytest.fixture
def root(tmp_path):
    """A store as the decoder's user keeps it."""
    made = tmp_path / "store"
    StoreWriter.open(made).close()
    if os.geteuid() == 0:
        for path in (made, *made.rglob("*")):
            os.chown(path, OWNER, OWNER)
    return made


def write_config(path, root, channels):
    listed = "".join(f"    {name}: {{{settings}}}\n" for name, settings in channels.items())
    path.write_text(f"storage: {{path: {root}}}\nalerting:\n  channels:\n{listed}")
    return path


def plan(tmp_path, root, **channels):
    return plan_of(str(root), load_config(str(write_config(tmp_path / "c.yaml", root, channels)), print).alerting)


@contextlib.contextmanager
def keeping(config):
    """A process that keeps a sender, as the agent does; what the sender is told, and the pid of the first of its processes."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(config)],
        env=ENV,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with parent:
        try:

            def tell(word):
                parent.stdin.write(word + "\n")
                parent.stdin.flush()

            yield parent, int(parent.stdout.readline()), tell
        finally:
            parent.kill()


def worker_of(pid):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if children:
            return int(children[0])
        time.sleep(0.02)
    raise AssertionError("no worker")


def until(condition, seconds=15):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()


def test_an_alert_leaves_at_a_poke_without_capabilities_and_is_counted(tmp_path, root):
    with receiver() as server:
        config = write_config(tmp_path / "c.yaml", root, {"webhook": f"url: {server.url}/hook"})
        with keeping(config) as (_, pid, tell):
            write_outbox(root, an_alert(1))
            server.until(1)
            status = dict(line.split(":\t", 1) for line in Path(f"/proc/{worker_of(pid)}/status").read_text().splitlines() if ":\t" in line)
            assert (int(status["CapEff"], 16), status["NoNewPrivs"]) == (0, "1")
            took = []
            for number in range(2, 8):
                begun = time.monotonic()
                write_outbox(root, an_alert(number))
                tell("poke")
                took.append(server.until(number)[-1].at - begun)
            assert sorted(took)[3] < 0.2, took
            until(lambda: len(lines(root / "alerts/sent-0.jsonl")) == 7)
            sent = lines(root / "alerts/sent-0.jsonl")[0]
            assert (sent["alert_id"], sent["channel"], sent["attempt"], sent["outcome"], sent["error"]) == ("a1", "webhook", 1, "sent", "")
            until(lambda: Snapshot([lambda: samples(root)]).get("llmsec_alerts_sent_total", channel="webhook", outcome="sent") == 7)
            assert Snapshot([lambda: samples(root)]).get("llmsec_alert_sender_up") == 1
            tell("end")
    assert all(path.stat().st_mode & 0o077 == 0 for path in (root / "alerts").iterdir() if not path.name.startswith("outbox"))


def test_kills_lose_nothing_and_double_at_most_the_one_in_hand_under_the_same_id(tmp_path, root):
    with receiver() as server:
        server.answers = [Answer(wait_s=0.01)]
        config = write_config(tmp_path / "c.yaml", root, {"webhook": f"url: {server.url}/hook"})
        with keeping(config) as (_, pid, _tell):
            for number in range(60):
                write_outbox(root, an_alert(number), file=f"outbox-{number // 10:03}.jsonl")
            for seen in (5, 25):
                server.until(seen, 30)
                os.kill(worker_of(pid), signal.SIGKILL)
                until(lambda: worker_of(pid) and True)
            until(lambda: len({post.json["data"]["alert_id"] for post in server.posts}) == 60, 30)
            time.sleep(0.3)
    ids = [post.json["data"]["alert_id"] for post in server.posts]
    assert sorted(set(ids), key=lambda text: int(text[1:])) == [f"a{number}" for number in range(60)]
    assert len(ids) <= 62
    assert len({post.headers["webhook-id"] for post in server.posts}) == 60


def test_a_broken_channel_delays_no_other(tmp_path, root):
    with receiver() as well, receiver() as broken:
        broken.answers = [Answer(status=503, wait_s=0.3)]
        (tmp_path / "hook").write_text(f"{broken.url}/services/T0/B0/hunter2\n")
        config = write_config(
            tmp_path / "c.yaml", root, {"webhook": f"url: {well.url}", "slack": f"webhook_url_file: {tmp_path}/hook, retry_attempts: 50"}
        )
        with keeping(config) as (parent, _, tell):
            for number in range(30):
                write_outbox(root, an_alert(number, channels=["slack", "webhook"]))
            tell("poke")
            begun = time.monotonic()
            well.until(30, 8)
            assert time.monotonic() - begun < 8
            broken.until(1)
            until(lambda: Snapshot([lambda: samples(root)]).get("llmsec_alert_channel_failing", channel="slack") == 1)
            assert Snapshot([lambda: samples(root)]).get("llmsec_alert_channel_failing", channel="webhook") == 0
            broken.answers = [Answer()]
            until(lambda: any(line["outcome"] == "sent" and line["channel"] == "slack" for line in lines(root / "alerts/sent-0.jsonl")), 20)
            parent.kill()
            said = parent.stderr.read()
    assert "hunter2" not in said + "".join(path.read_text() for path in (root / "alerts").iterdir())


def test_hostile_lines_are_counted_named_and_passed_over(tmp_path, root):
    good = an_alert(1)
    given = msgspec.json.encode(good)
    huge = [given.replace(b'"count":1', b'"count":1' + b"0" * 6_000), given.replace(b'"value":6.0', b'"value":1e999')]
    bad = [
        *(line + b"\n" for line in huge),
        b"\n",
        b"{}\n",
        b"[" * 5000 + b"\n",
        b'"' + b"x" * MAX_LINE_BYTES * 3 + b'"\n',
        b"\xff\xfe\n",
        b'{"alert_id": 1}\n',
        b"null\n",
    ]
    for line in bad:
        write_outbox(root, line, good)
    write_outbox(root, b'{"alert_id": "torn')
    said = Said()
    with receiver() as server:
        assert send_alerts(plan(tmp_path, root, webhook=f"url: {server.url}", syslog="host: 127.0.0.1, port: 1"), said, once=True) == 0
        assert len(server.posts) == len(bad)
    assert Snapshot([lambda: samples(root)]).get("llmsec_alerts_unreadable_total") == len(bad)
    assert sum(event.name == "alert_unreadable" for event in said.events) == len(bad)
    assert any("longer than 64 KiB" in text and "outbox-001.jsonl, byte" in text for text in said.texts)


def test_what_a_channel_refuses_is_a_dead_letter_at_once_and_what_fails_is_tried_again(tmp_path, root):
    with receiver() as server:
        server.answers = [Answer(503), Answer(429, headers=(("Retry-After", "0"),)), Answer(), Answer(400, b"invalid_payload"), Answer()]
        write_outbox(root, an_alert(1), an_alert(2), an_alert(3))
        assert send_alerts(plan(tmp_path, root, webhook=f"url: {server.url}"), Said(), once=True, pace=QUICK) == 4
        assert [post.json["data"]["alert_id"] for post in server.posts] == ["a1", "a1", "a1", "a2", "a3"]
        # The cursor is behind them all.
        assert send_alerts(plan(tmp_path, root, webhook=f"url: {server.url}"), Said(), once=True) == 0
        assert len(server.posts) == 5
    found = [(line["alert_id"], line["attempt"], line["outcome"]) for line in lines(root / "alerts/sent-0.jsonl")]
    assert found == [("a1", 1, "retry"), ("a1", 2, "retry"), ("a1", 3, "sent"), ("a2", 1, "dead"), ("a3", 1, "sent")]
    (dead,) = lines(root / "alerts/dead-webhook.jsonl")
    assert (dead["alert"]["alert_id"], dead["error"]) == ("a2", "answered 400: invalid_payload")


def test_attempts_are_bounded_and_a_channel_that_fails_is_left_alone_for_a_while(tmp_path, root):
    """Alerts that wait for the breaker do not die of it."""
    with receiver() as server:
        server.answers = [Answer(500)]
        write_outbox(root, *(an_alert(number) for number in range(3)))
        begun = time.monotonic()
        send_alerts(plan(tmp_path, root, webhook=f"url: {server.url}, retry_attempts: 2"), Said(), once=True, pace=QUICK)
        assert len(server.posts) == 9
        # After the fifth failure each attempt waits for the breaker.
        assert time.monotonic() - begun > 4 * QUICK.pause_s * 0.9
    assert [line["attempt"] for line in lines(root / "alerts/sent-0.jsonl") if line["outcome"] == "dead"] == [3, 3, 3]


def test_the_end_does_not_wait_for_a_channel_that_fails_and_the_next_run_sends(tmp_path, root):
    write_outbox(root, an_alert(1))
    with receiver() as server:
        server.answers = [Answer(503)]
        config = write_config(tmp_path / "c.yaml", root, {"webhook": f"url: {server.url}, retry_attempts: 100"})
        with keeping(config) as (parent, pid, tell):
            server.until(1)
            begun = time.monotonic()
            tell("end")
            assert parent.stdout.readline() == "ended\n"
            assert time.monotonic() - begun < 4
        server.answers = [Answer()]
        until(lambda: not Path(f"/proc/{pid}").exists())
        assert send_alerts(plan(tmp_path, root, webhook=f"url: {server.url}"), Said(), once=True) == 0
        assert lines(root / "alerts/sent-0.jsonl")[-1]["outcome"] == "sent"


def test_a_reload_goes_over_to_other_channels(tmp_path, root):
    with receiver() as first, receiver() as second:
        config = write_config(tmp_path / "c.yaml", root, {"webhook": f"url: {first.url}"})
        with keeping(config) as (_, _pid, tell):
            write_outbox(root, an_alert(1))
            first.until(1)
            write_config(config, root, {"webhook": f"url: {second.url}"})
            tell("reload")
            deadline = time.monotonic() + 10
            number = 2
            while not second.posts and time.monotonic() < deadline:
                write_outbox(root, an_alert(number))
                number += 1
                time.sleep(0.3)
            assert second.posts
            until(lambda: len(first.posts) + len(second.posts) == number - 1)


def test_two_senders_of_one_folder_are_refused(tmp_path, root):
    with receiver() as server:
        config = write_config(tmp_path / "c.yaml", root, {"webhook": f"url: {server.url}"})
        with keeping(config):
            write_outbox(root, an_alert(1))
            server.until(1)
            with pytest.raises(StorageError, match="another process sends its alerts"):
                send_alerts(plan(tmp_path, root, webhook=f"url: {server.url}"), Said(), once=True)


def test_a_channel_whose_code_fails_loses_that_alert_only(tmp_path, root):
    class Faulty:
        def send(self, message):
            if message.alert.alert_id == "a1":
                raise KeyError("hunter2")

    write_outbox(root, an_alert(1), an_alert(2))
    said = Said()
    folder = root / "alerts"
    shared = Shared(folder, BoundedLog(folder / "sent-0.jsonl", 1 << 20), Unreadable(), said, content=False)
    Lane("webhook", Faulty(), shared, attempts=3).run(once=True)
    assert [(line["alert_id"], line["outcome"]) for line in lines(folder / "sent-0.jsonl")] == [("a1", "dead"), ("a2", "sent")]
    assert "hunter2" not in "".join(said.texts)


def test_files_that_were_deleted_unread_are_said(root):
    write_outbox(root, an_alert(1), file="outbox-001.jsonl")
    outbox = Outbox(root / "alerts", "slack")
    for entry in outbox.entries():
        outbox.done(entry, save=True)
    (root / "alerts/outbox-001.jsonl").unlink()
    write_outbox(root, an_alert(9), file="outbox-005.jsonl")
    again = Outbox(root / "alerts", "slack")
    assert [entry.alert.alert_id for entry in again.entries()] == ["a9"]
    assert again.missed == 3


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"outbox-001.jsonl": -5}', b'{"outbox-001.jsonl": 99999999999}', b"\xff", b'{"../x": 1}']
)
def test_a_damaged_cursor_sends_again_rather_than_not(root, content):
    write_outbox(root, an_alert(1))
    (root / "alerts/cursor-slack.json").write_bytes(content)
    assert len(list(Outbox(root / "alerts", "slack").entries())) == 1


def test_links_pipes_and_folders_in_place_of_an_outbox_are_passed_over(root, tmp_path):
    write_outbox(root, an_alert(1))
    folder = root / "alerts"
    (folder / "outbox-002.jsonl").symlink_to("/etc/passwd")
    os.mkfifo(folder / "outbox-003.jsonl")
    (folder / "outbox-004.jsonl").mkdir()
    assert len(list(Outbox(folder, "slack").entries())) == 1


def test_logs_stay_within_their_bound(tmp_path):
    log = BoundedLog(tmp_path / "dead-slack.jsonl", 20_000)
    threads = [threading.Thread(target=lambda: [log.append({"x": "y" * 100}) for _ in range(500)]) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert set(sizes) <= {"dead-slack.jsonl", "dead-slack.1.jsonl"}
    assert sum(sizes.values()) <= 20_500


def test_a_plan_comes_over_the_socket_as_it_is_and_shows_no_secret(tmp_path, root):
    (tmp_path / "key").write_text("hunter2-key\n")
    (tmp_path / "t").write_text("{{ title }}")
    made = plan(
        tmp_path,
        root,
        webhook=f"url: 'https://a.example/x', token_file: {tmp_path}/key, template: t",
        email="smtp_host: h, from_address: a@b, to: [c@d]",
    )
    assert decode(made, encode(made)) == made
    assert made.channels[1].secrets == {"token": "hunter2-key"}
    assert "hunter2" not in repr(made)


@pytest.mark.parametrize(
    ("channel", "settings", "fault"),
    [
        ("slack", "webhook_url_file: {folder}/none", "No such file"),
        ("slack", "webhook_url_file: {folder}/text", "webhook_url: what the secret holds is no address"),
        ("webhook", "url: 'https://a.example', template: {folder}/none", "alerting.channels.webhook.template"),
        ("webhook", "url: 'https://a.example', ca_file: {folder}/text", "no certificates in PEM form"),
        ("webhook", "url: 'https://a.example', ca_file: {folder}", "not a regular file"),
    ],
)
def test_what_cannot_be_read_is_one_line_before_anything_starts(tmp_path, root, channel, settings, fault):
    (tmp_path / "text").write_text("hunter2 is no address\n")
    with pytest.raises(ConfigError, match=fault) as caught:
        plan(tmp_path, root, **{channel: settings.format(folder=tmp_path)})
    assert "hunter2" not in str(caught.value)


def test_the_command_sends_as_the_owner_of_the_folder_and_says_what_could_not_be_sent(tmp_path, root):
    write_outbox(root, an_alert(1), an_alert(2))
    command = "from llmsec_agent.cli.tap.app import main; main()"

    def deliver(*more):
        return subprocess.run(
            [sys.executable, "-c", command, "deliver", "--alerts", *more], env=ENV, capture_output=True, text=True, check=False
        )

    with receiver() as server:
        config = write_config(tmp_path / "c.yaml", root, {"webhook": f"url: {server.url}"})
        server.answers = [Answer(), Answer(404, b"gone")]
        ran = deliver("--once", "--config", str(config))
        assert ran.returncode == 4, ran.stderr
        assert "alert a2 was not sent to webhook: answered 404: gone" in ran.stderr
        assert deliver("--once", "--config", str(config)).returncode == 0
        assert len(server.posts) == 2
    if os.geteuid() == 0:
        assert {path.stat().st_uid for path in (root / "alerts").iterdir()} == {OWNER}
    none = tmp_path / "none.yaml"
    none.write_text(f"storage: {{path: {root}}}\n")
    assert "no channel to send alerts to" in deliver("--once", "--config", str(none)).stderr
    assert deliver("--once", "--config", str(config), "--store", str(tmp_path / "nothing")).returncode == 4
