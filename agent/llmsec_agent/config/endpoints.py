"""Addresses of collectors, as people write them and as OTLP takes them."""

from __future__ import annotations

import re
from typing import Final, Literal
from urllib.parse import urlsplit, urlunsplit

Protocol = Literal["http", "grpc"]
Signal = Literal["traces", "metrics"]

# Ports of Jaeger's own protocols, which it takes no longer: it takes OTLP instead.
_JAEGER_PORTS: Final = frozenset((6831, 6832, 14250, 14267, 14268))
_OTLP_PORTS: Final[dict[Protocol, int]] = {"http": 4318, "grpc": 4317}
_HOST_PORT: Final = re.compile(r"(\[[0-9A-Fa-f:.%a-z]+\]|[A-Za-z0-9_.-]+):([0-9]{1,5})")


def endpoint_url(text: str, protocol: Protocol, signal: Signal) -> str:
    """As OTLP takes it: `host:port` of a Jaeger agent becomes its OTLP port, and an address without a path gets the signal's. It may hold a
    user and a password still.

    Raises ValueError with a sentence for what is no address.
    """
    found = _HOST_PORT.fullmatch(text)
    if found is not None:
        host, port = found[1], int(found[2])
        if not 0 < port <= 65_535:
            raise ValueError("the port must be between 1 and 65535")
        text = f"http://{host}:{_OTLP_PORTS[protocol] if port in _JAEGER_PORTS else port}"
    try:
        parts = urlsplit(text)
        port_is_good = parts.port is None or 0 < parts.port <= 65_535
    except ValueError:
        port_is_good = False
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_good or any(char <= " " for char in text):
        raise ValueError("must be http://host:port/path, https://…, or host:port")
    path = "" if protocol == "grpc" else f"/v1/{signal}" if parts.path in ("", "/") else parts.path
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query if path else "", ""))
