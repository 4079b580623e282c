"""Where a ClickHouse server is, and which of its ports is spoken to.

ClickHouse has one port for its own protocol (9000, with TLS 9440) and one for HTTP (8123, 8443). HTTP is what is spoken here, so an address
that names a native port means the HTTP port of the same host, and whoever opens it is told so.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit

from llmsec_tap.errors import ConfigError

PASSWORD_VARIABLE: Final = "LLMSEC_CLICKHOUSE_PASSWORD"  # noqa: S105 - its name
DEFAULT_DATABASE: Final = "llmsec_traces"
DEFAULT_USER: Final = "llmsec"
_HTTP: Final = 8123
_HTTPS: Final = 8443
_HTTP_OF_NATIVE: Final = {9000: _HTTP, 9440: _HTTPS}
_SECURE_PORTS: Final = frozenset({_HTTPS, 9440, 443})
_SCHEMES: Final = {"clickhouse": None, "clickhouses": True, "clickhouse+http": False, "clickhouse+https": True}
_EXAMPLE: Final = "write clickhouse://user@host/database"
_HOST = re.compile(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]")


@dataclass(frozen=True)
class Node:
    """One server: `port` is that of HTTP. `native_port` is what was written, where that was the other protocol's."""

    host: str
    port: int
    secure: bool
    native_port: int | None = None

    def __str__(self) -> str:
        return f"{'https' if self.secure else 'http'}://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @property
    def note(self) -> str:
        """What is spoken instead of what was written; empty where that is the same."""
        if self.native_port is None:
            return ""
        return f"{self.host}:{self.native_port} is ClickHouse's native port; HTTP is spoken, on port {self.port}"


@dataclass(frozen=True)
class Address:
    """A database on the first of its nodes that answers. The password is never shown."""

    nodes: tuple[Node, ...]
    database: str = DEFAULT_DATABASE
    username: str = DEFAULT_USER
    password: str = ""

    def __repr__(self) -> str:
        return f"Address({self})"

    def __str__(self) -> str:
        return f"clickhouse://{self.username}@{','.join(f'{node.host}:{node.port}' for node in self.nodes)}/{self.database}"


def is_clickhouse(location: object) -> bool:
    return isinstance(location, str) and location.split("://", 1)[0] in _SCHEMES and "://" in location


def node(text: str, *, secure: bool | None = None) -> Node:
    """`host`, `host:port` or `[v6]:port`. TLS by the port where `secure` does not say. ConfigError for anything else."""
    found = re.fullmatch(rf"({_HOST.pattern})(?::(\d{{1,5}}))?", text.strip())
    if not found:
        raise ConfigError(f"{text.strip()!r} is not `host:port` of a ClickHouse server", "for example clickhouse-1:8123")
    written = int(found[2]) if found[2] else (_HTTPS if secure else _HTTP)
    if not 0 < written < 65_536:
        raise ConfigError(f"{text.strip()!r}: no such port", "ClickHouse's HTTP port is 8123, with TLS 8443")
    port = _HTTP_OF_NATIVE.get(written, written)
    return Node(found[1].strip("[]"), port, written in _SECURE_PORTS if secure is None else secure, written if port != written else None)


def nodes(texts: Sequence[str]) -> tuple[Node, ...]:
    return tuple(node(text) for text in texts)


def parse(location: str) -> Address:
    """`clickhouse://[user[:password]@]host[:port][,host…]/database`; the password else from LLMSEC_CLICKHOUSE_PASSWORD. Raises ConfigError."""
    scheme, _, rest = location.partition("://")
    if scheme not in _SCHEMES:
        raise ConfigError(f"no support for a store at {scheme}://", "give a folder, or clickhouse://user@host/database, with --store")
    authority, _, path = rest.partition("/")
    credentials, _, hosts = authority.rpartition("@")
    if not hosts:
        raise ConfigError(f"{scheme}:// names no host", _EXAMPLE)
    database = unquote(urlsplit(f"//x/{path}").path.strip("/")) or DEFAULT_DATABASE
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,127}", database):
        raise ConfigError(f"{database!r} is not a name of a database", _EXAMPLE)
    user, _, password = credentials.partition(":")
    return Address(
        nodes=tuple(node(host, secure=_SCHEMES[scheme]) for host in hosts.split(",")),
        database=database,
        username=unquote(user) or DEFAULT_USER,
        password=unquote(password) or os.environ.get(PASSWORD_VARIABLE, ""),
    )
