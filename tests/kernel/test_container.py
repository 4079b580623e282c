"""`--container`: processes of a container, wherever runtimes put its cgroup."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.agent import Agent
from support.containers import ECHO, GROUPS, ID, LIBRARY, contained, group, hierarchies
from support.https_calls import ask_once
from support.needs import program
from support.tls_front import Certificate, free_port, python_server


@pytest.mark.parametrize("is_late", [False, True], ids=["running", "started-later"])
@pytest.mark.parametrize("runtime", GROUPS)
@pytest.mark.parametrize("version", hierarchies())
def test_a_container_is_captured_and_nothing_else(
    certificate: Certificate, tmp_path: Path, version: str, runtime: str, is_late: bool
) -> None:
    program("unshare", "util-linux")
    assert LIBRARY.exists(), "the copy in the container is made of it"
    outside_port = free_port()
    with (
        python_server(ECHO, "threads", str(outside_port), str(certificate.cert), str(certificate.key), port=outside_port),
        group(hierarchies()[version], GROUPS[runtime]) as entered,
    ):
        agent = Agent("--container", ID[:12])
        if is_late:
            with agent, contained(entered, tmp_path, certificate) as (inside, port):
                agent.wait_for_probes(LIBRARY.resolve())  # the container's: the host's own is found under /lib
                talk_and_check(agent, certificate, inside, port, outside_port)
        else:
            with contained(entered, tmp_path, certificate) as (inside, port), agent:
                talk_and_check(agent, certificate, inside, port, outside_port)


def talk_and_check(agent: Agent, certificate: Certificate, inside: int, port: int, outside_port: int) -> None:
    maps = Path(f"/proc/{inside}/maps").read_text()
    inodes = {int(line.split()[4]) for line in maps.splitlines() if line.endswith(str(LIBRARY.resolve()))}
    assert inodes
    assert LIBRARY.stat().st_ino not in inodes, "it runs the host's library"
    asked = {}
    for number in range(13):
        asked[f"contained {number}"] = ask_once(port, certificate.cert, f"contained {number}", stream=number % 2 == 1)
        ask_once(outside_port, certificate.cert, f"outside {number}")
    rows = agent.wait_for_exchanges(13)
    assert [row["input_text"] for row in rows] == list(asked), "in their order, and none of the host's"
    for row in rows:
        text, client = asked[row["input_text"]]
        assert row["output_text"] == text
        assert row["client"] == f"127.0.0.1:{client}"
        assert row["completeness"] == "complete", row["anomalies"]
        assert row["process"]["container_id"] == ID
        assert row["process"]["pid"] == inside
