"""A realtime session over WebSocket inside TLS, live: deflated by both sides, one record for each answer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support import realtime_echo
from support.agent import Agent
from support.tls_front import Certificate, free_port, wait_for_port

pytest.importorskip("websockets", reason="in the dependency group `peers`")


def test_a_realtime_session_of_a_server_that_is_tapped(certificate: Certificate) -> None:
    port, script = free_port(), str(Path(realtime_echo.__file__))
    ends = [str(port), certificate.cert, certificate.key]
    with subprocess.Popen([sys.executable, script, "serve", *ends]) as server:
        try:
            wait_for_port(port, server)
            with Agent("--pid", str(server.pid)) as agent:
                subprocess.run([sys.executable, script, "call", *ends], check=True, timeout=60)
                rows = agent.wait_for_exchanges(realtime_echo.CALLS, api="openai.realtime")
        finally:
            server.kill()
    assert sorted((row["input_text"], row["output_text"], row["framing"], row["completeness"]) for row in rows) == sorted(
        (f"call {n}", f"echo call {n}", "websocket", "complete") for n in range(realtime_echo.CALLS)
    )
