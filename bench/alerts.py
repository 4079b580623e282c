"""Alerts: from the append to the outbox to the bytes at a local HTTP server, while another channel is broken.

    python bench/alerts.py [ALERTS]

Prints one JSON object: milliseconds at p50, p99 and most, of alerts that come one by one, and alerts a second of a thousand at once.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / name) for name in ("tap", "analyzer", "agent", "tests")]

import msgspec  # noqa: E402

from llmsec_agent.alerting.plan import ChannelPlan, SenderPlan  # noqa: E402
from llmsec_agent.alerting.process import AlertSender  # noqa: E402
from llmsec_agent.config.channels import Webhook  # noqa: E402
from llmsec_agent.kept import end  # noqa: E402
from llmsec_tap import privileges  # noqa: E402
from llmsec_tap.journal import SILENT  # noqa: E402
from llmsec_tap.storage import StoreWriter  # noqa: E402
from support.alert_servers import Answer, receiver  # noqa: E402
from support.alerts import an_alert, write_outbox  # noqa: E402

BURST = 1_000


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    with tempfile.TemporaryDirectory() as folder, receiver() as server, receiver() as broken:
        broken.answers = [Answer(status=503, wait_s=0.2)]
        root = Path(folder) / "store"
        StoreWriter.open(root).close()
        user = privileges.unprivileged_user()
        if user is not None:
            for path in (root, *root.rglob("*")):
                os.chown(path, user.uid, user.gid)
        plan = ChannelPlan("webhook", Webhook(url=server.url))
        other = replace(plan, name="slack", settings=Webhook(url=broken.url))  # any channel: it only has to fail
        sender = AlertSender.begin(SenderPlan(str(root), (plan, other)), SILENT)
        try:
            write_outbox(root, an_alert(0))
            server.until(1, 30)
            took = []
            for number in range(1, count + 1):
                alert = an_alert(number, channels=["webhook", "slack"] if number % 10 == 0 else ["webhook"])
                begun = time.monotonic()
                write_outbox(root, alert)
                sender.poke()
                took.append((server.until(number + 1)[-1].at - begun) * 1000)
                time.sleep(0.02)
            begun = time.monotonic()
            write_outbox(root, b"".join(msgspec.json.encode(an_alert(number)) + b"\n" for number in range(BURST)))
            sender.poke()
            burst = server.until(count + 1 + BURST, 120)[-1].at - begun
        finally:
            end([sender])
    took.sort()
    found = {
        "alerts": count,
        "p50_ms": round(took[len(took) // 2], 2),
        "p99_ms": round(took[int(len(took) * 0.99)], 2),
        "most_ms": round(took[-1], 2),
        "burst_alerts_per_s": round(BURST / burst),
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
