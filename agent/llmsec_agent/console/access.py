"""Who may see what: a login, a role for each user, and what every answer says to the browser.

viewer: figures and names, no content. analyst: content, too, and each look at it is in the audit log. admin: an analyst who may also change things.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, get_args

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmsec_tap.errors import ConfigError

Role = Literal["viewer", "analyst", "admin"]
ROLES: Final[tuple[Role, ...]] = get_args(Role)
_MAX_USERS_BYTES: Final = 1 << 20
_SCRYPT: Final = {"n": 1 << 14, "r": 8, "p": 1}
_MAX_PASSWORD: Final = 1024
SESSION_S: Final = 8 * 3600
HEADERS: Final = {
    "content-security-policy": (
        "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # with no-referrer, browsers send forms of the console's own with `Origin: null`
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


@dataclass(frozen=True)
class User:
    name: str
    role: Role

    def may(self, role: Role) -> bool:
        return ROLES.index(self.role) >= ROLES.index(role)


@dataclass(frozen=True)
class Access:
    """`token` is a password without a name, of role admin. `passwords`: hashes and roles by name. `header` is believed from `proxy` alone."""

    token: str | None = None
    passwords: Mapping[str, tuple[str, Role]] = field(default_factory=dict)
    header: str | None = None
    proxy: ipaddress.IPv4Address | ipaddress.IPv6Address | None = None
    hosts: frozenset[str] | None = None  # names that the console is called by; None: any

    def check(self, name: str, password: str) -> User | None:
        """The user whose password this is. Takes the same time for a name that is not known."""
        if not name and self.token is not None and hmac.compare_digest(password.encode(), self.token.encode()):
            return User("token", "admin")
        stored, role = self.passwords.get(name, (_NOBODY, "viewer"))
        return User(name, role) if matches(password, stored) and name in self.passwords else None

    def by_proxy(self, connection: HTTPConnection) -> User | None:
        """The user that a proxy in front names, `name` or `name:role`."""
        if self.header is None or self.proxy is None or connection.client is None:
            return None
        try:
            peer = ipaddress.ip_address(connection.client.host)
        except ValueError:
            return None
        name, _, role = connection.headers.get(self.header, "").partition(":")
        if peer != self.proxy or not name or len(name) > 128:
            return None
        return User(name, next((known for known in ROLES if known == role), "viewer"))


def hashed(password: str) -> str:
    """For a file of users."""
    salt = secrets.token_bytes(16)
    return f"scrypt${base64.b64encode(salt).decode()}${base64.b64encode(_scrypt(password, salt)).decode()}"


def matches(password: str, stored: str) -> bool:
    try:
        kind, salt, digest = stored.split("$")
        return kind == "scrypt" and hmac.compare_digest(_scrypt(password, base64.b64decode(salt)), base64.b64decode(digest))
    except ValueError:
        return False


def _scrypt(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(password[:_MAX_PASSWORD].encode(), salt=salt, maxmem=64 << 20, dklen=32, **_SCRYPT)


_NOBODY: Final = f"scrypt${base64.b64encode(bytes(16)).decode()}${base64.b64encode(bytes(32)).decode()}"


def read_token(path: str) -> str:
    """The first line of a file that only its owner may read. Raises ConfigError."""
    token = _private(path).split("\n", 1)[0].strip()
    if len(token) < 16:
        raise ConfigError(f"{path}: a token has 16 characters at least", "openssl rand -hex 16 makes one")
    return token


def read_users(path: str) -> dict[str, tuple[str, Role]]:
    """Lines `name:role:hash`, as `llmsec-analyze serve --add-user` prints them. Raises ConfigError."""
    users: dict[str, tuple[str, Role]] = {}
    for number, line in enumerate(_private(path).splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, rest = line.strip().partition(":")
        named, _, stored = rest.partition(":")
        role = next((known for known in ROLES if known == named), None)
        if not name or role is None or stored.count("$") != 2 or not stored.startswith("scrypt$"):
            raise ConfigError(
                f"{path}, line {number}: expected name:role:hash, the role one of {', '.join(ROLES)}", "serve --add-user NAME prints one"
            )
        users[name] = stored, role
    if not users:
        raise ConfigError(f"{path} has no user", "serve --add-user NAME prints a line for it")
    return users


def _private(path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            if stat.S_IMODE(Path(path).stat().st_mode) & 0o077:
                raise ConfigError(f"{path} may be read by others", f"chmod 600 {path}")
            return file.read(_MAX_USERS_BYTES).decode()
    except (OSError, ValueError) as fault:
        reason = fault.strerror if isinstance(fault, OSError) else "it is not text"
        raise ConfigError(f"cannot read {path}: {reason}", "name a file of your own") from None


def user_of(request: Request) -> User | None:
    user = request.scope.get("state", {}).get("user")
    return user if isinstance(user, User) else None


class Guard:
    """Around all pages: the host that was asked for, the user, and the headers that keep a browser safe."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        if self._access.hosts is not None and connection.headers.get("host", "").rpartition(":")[0].strip("[]") not in self._access.hosts:
            # A page of somebody else whose name leads here (DNS rebinding) would have the browser ask in this user's name.
            await _refuse(send, 421, b"This console is not called by that name.")
            return
        scope.setdefault("state", {})["user"] = self._access.by_proxy(connection) or _of_session(scope)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if "cache-control" not in headers:
                    headers["cache-control"] = "no-store"
            await send(message)

        await self._app(scope, receive, with_headers)


def _of_session(scope: Scope) -> User | None:
    session = scope.get("session") or {}
    name, role = session.get("name"), session.get("role")
    return User(name, role) if isinstance(name, str) and role in ROLES else None


async def _refuse(send: Send, status: int, text: bytes) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), *((name.encode(), value.encode()) for name, value in HEADERS.items())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text})
