"""The record of a connection that cannot be read: who spoke with whom, for how long and how much."""

from __future__ import annotations

from llmsec_tap.exchange.assembly import Context
from llmsec_tap.exchange.ids import RequestDigest
from llmsec_tap.model import TLS, AnomalyCount, Exchange
from llmsec_tap.providers.hosts import provider_of_host
from llmsec_tap.wire.flow import Flow


def connection_record(flow: Flow, client: str, server: str, ended_ns: int, tls: TLS, context: Context) -> Exchange:
    """One record for the whole connection. Its provider is whoever serves the name that the client asked for, if that is known."""
    return Exchange(
        exchange_id=RequestDigest().exchange_id(client, server, flow.opened_ns, 0, context.fingerprint),
        client=client,
        server=server,
        started_ns=flow.opened_ns,
        ended_ns=ended_ns,
        provider=provider_of_host(tls.server_name, "/v1/") if tls.server_name else None,
        process=flow.process,
        tls=tls,
        completeness="midstream" if flow.is_midstream else "unreadable",
        anomalies=[AnomalyCount(name="tls_unread", count=1)],
        forwarded_client=flow.proxied,
        capture_kind=flow.kind or context.origin.kind,
        node=context.origin.node,
    )
