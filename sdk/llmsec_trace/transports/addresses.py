"""Addresses as records have them: `host:port`, IPv6 in brackets."""

from __future__ import annotations

from typing import Any


def host_and_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def socket_address(address: Any) -> str | None:
    """Of getsockname() or getpeername(); None for what is no internet address."""
    if isinstance(address, tuple) and len(address) >= 2 and isinstance(address[0], str) and isinstance(address[1], int):
        return host_and_port(address[0], address[1])
    return None
