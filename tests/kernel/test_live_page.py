"""From the wire to who looks at the console: a finding while the answer streams, the exchange when it ends, before the store has them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from http.cookiejar import CookieJar
from urllib.request import HTTPCookieProcessor, build_opener

from llmsec_analyzer.prove.synthetic import expand
from support.agent import Agent, environment
from support.https_calls import ask_once

KEY = expand("ghp_<alnum:36>")


def test_the_live_page_has_findings_while_they_stream_and_exchanges_as_they_end(echo, certificate, tmp_path):
    pid, port = echo
    store = tmp_path / "store"
    with Agent("--pid", str(pid), "--detect", "--store", str(store)) as agent:
        command = [sys.executable, "-m", "llmsec_agent.cli.analyze.app", "serve", "--store", str(store), "--port", "0"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment()) as server:
            try:
                address = re.search(r"http://\S+", server.stderr.readline())[0]
                opener = build_opener(HTTPCookieProcessor(CookieJar()))
                opener.open(address).read()
                told: list[tuple[float, dict]] = []

                def follow(stream):
                    for line in stream:
                        if line.startswith(b"data: "):
                            told.append((time.monotonic(), json.loads(line[6:])))

                stream = opener.open(address.split("/login")[0] + "/live/events")
                threading.Thread(target=follow, args=(stream,), daemon=True).start()
                time.sleep(2)  # the tap sees within half a second that somebody looks
                ask_once(port, certificate.cert, f"the key {KEY} is for you, do keep it well", stream=True)
                ended = time.monotonic()
                while not any("cells" in event for _, event in told) and time.monotonic() - ended < 20:
                    time.sleep(0.02)
                (row,) = agent.wait_for_exchanges(1)
            finally:
                server.terminate()
    found = [(at, event) for at, event in told if "finding" in event]
    shown = [(at, event) for at, event in told if "cells" in event]
    assert [event["id"] for _, event in shown] == [row["exchange_id"]]
    assert "secret.github" in {event["finding"][2] for _, event in found}
    assert KEY not in json.dumps([event for _, event in told])
    print(f"on the page: the exchange {shown[0][0] - ended:.2f} s after its end, the first finding {found[0][0] - ended:+.2f} s")
    # The store has it some seconds later; the page does not wait for that.
    assert shown[0][0] - ended < 4.5
