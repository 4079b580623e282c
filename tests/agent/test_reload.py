"""SIGHUP and where records go: what is gone over to, what needs a restart, and a password that cannot be read changes nothing."""

from __future__ import annotations

import msgspec
import pytest

from llmsec_agent.agent import _redeliver, _style
from llmsec_agent.config import load_all
from llmsec_agent.deliver import Deliverer, plan_of
from llmsec_agent.journals import StandardError
from llmsec_agent.reload import News, Reload

BEFORE = "storage: {clickhouse: {nodes: ['ch:8123'], password: 'file:PASSWORD'}}\n"


class Control:
    def __init__(self):
        self.sent = []

    def send(self, data):
        self.sent.append(msgspec.msgpack.decode(data))


@pytest.fixture
def reload(tmp_path):
    """Changes the file and hangs up; what the log said, what went to the delivering process, and whether the file was accepted."""
    password = tmp_path / "password"
    password.write_text("one")
    password.chmod(0o600)
    file = tmp_path / "c.yaml"
    file.write_text(BEFORE.replace("PASSWORD", str(password)))
    loaded = load_all(str(file), print)
    control, told, said = Control(), [], []
    plan = plan_of(loaded.config.storage.path, loaded.config.storage.clickhouse)
    deliverer = Deliverer(0, control, plan)
    journal = StandardError(_style(loaded.config))
    journal._write = said.append
    reloading = Reload(
        loaded, lambda: load_all(str(file)), _style, journal, lambda _: [], told.append, lambda new: _redeliver(deliverer, None, new)
    )

    def change(text=None, secret="one"):
        said.clear()
        control.sent.clear()
        if text is not None:
            file.write_text(text.replace("PASSWORD", str(password)))
        if secret is None:
            password.unlink()
        else:
            password.write_text(secret)
        reloading()
        return {event.name: event.text for event in said}, list(control.sent), msgspec.msgpack.decode(told[-1], type=News).is_accepted

    return change


def test_what_did_not_change_is_not_begun_anew_and_no_change_of_the_secret_is_seen_where_there_is_none(reload):
    said, sent, accepted = reload()
    assert (sent, accepted) == ([], True)
    assert "restart_needed" not in said


def test_another_database_and_another_password_are_gone_over_to(reload):
    said, sent, _ = reload(BEFORE.replace("ch:8123", "other:8123"))
    assert sent[0][0]["nodes"] == ["other:8123"]
    assert sent[0][1] == "one"
    assert "storage.clickhouse.nodes" in said["config_reloaded"]
    assert "restart_needed" not in said
    _, sent, _ = reload(secret="two")
    assert sent[0][1] == "two"


def test_what_somebody_else_has_to_do_is_said(reload):
    said, _, _ = reload(BEFORE.replace("password", "ttl: {content_days: 3}, password"))
    assert "db migrate" in said["restart_needed"]
    said, sent, accepted = reload("storage: {path: /var/lib/llmsec-trace}\n")
    assert (sent, accepted) == ([], True)
    assert said["restart_needed"] == "needs a restart: storage.clickhouse"


def test_a_password_that_cannot_be_read_changes_nothing(reload):
    said, sent, accepted = reload(BEFORE.replace("ch:8123", "other:8123"), secret=None)
    assert (sent, accepted) == ([], False)
    assert "stays in force" in said["config_refused"]
