"""An agent with a channel: what is in its outbox leaves from a process without rights, also after SIGHUP, and its end takes no longer for it."""

from __future__ import annotations

from pathlib import Path

from support.alert_servers import Answer, receiver
from support.alerts import an_alert, write_outbox
from support.running_agent import agent

SENT = 'llmsec_alerts_sent_total{channel="webhook",outcome="sent"}'


def test_an_agent_sends_what_is_in_its_outbox_goes_over_to_another_channel_and_ends_in_time(echo: tuple[int, int], tmp_path: Path) -> None:
    pid, _ = echo
    with receiver() as first, receiver() as second:
        with agent(tmp_path, pid, alerting={"channels": {"webhook": {"url": first.url}}}) as running:
            running.ready()
            write_outbox(running.store, an_alert(1))
            first.until(1)
            running.until(lambda: running.value(SENT) == 1, "it is not counted")
            assert running.value("llmsec_alert_sender_up") == 1
            second.answers = [Answer(status=503)]
            running.config["alerting"] = {"channels": {"webhook": {"url": second.url, "retry_attempts": 90}}}
            running.hang_up()
            running.until(lambda: "changed alerting.channels.webhook" in running.said, "the file was not read again")
            number = 2  # the first of these may still find the channel that was

            def has_come() -> bool:
                nonlocal number
                write_outbox(running.store, an_alert(number))
                number += 1
                return bool(second.posts)

            running.until(has_come, "the second channel got none")
            assert running.stop() < 6
            assert running.process.returncode == 0, running.said
