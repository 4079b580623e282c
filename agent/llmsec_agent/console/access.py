"""Who may see what: a login, a role for each user, and what every answer says to the browser.

viewer: figures and names, no content. analyst: content, too, and each look at it is in the audit log. admin: an analyst who may also change things.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import os
import secrets
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, get_args
from urllib.parse import urlsplit

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
_MOST_SESSIONS: Final = 10_000
SECRET_HEADER: Final = "x-llmsec-proxy-secret"  # noqa: S105 - its name
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
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
class Proxy:
    """One in front that logs people in. It is believed from `address` alone, and only with its `secret` where it has one."""

    address: Address
    header: str
    role_header: str | None = None
    secret: str | None = None

    def is_peer(self, connection: HTTPConnection) -> bool:
        try:
            peer = plain(ipaddress.ip_address(connection.client.host if connection.client else ""))
        except ValueError:
            return False
        return peer == self.address and (
            self.secret is None or hmac.compare_digest(_only(connection, SECRET_HEADER).encode(), self.secret.encode())
        )

    def user(self, connection: HTTPConnection) -> User | None:
        """The one that the proxy names. A header that came twice names nobody: one of the two may be the user's own."""
        name = _only(connection, self.header)
        if not name or len(name) > 128 or not self.is_peer(connection):
            return None
        named = _only(connection, self.role_header) if self.role_header is not None else ""
        return User(name, next((role for role in ROLES if role == named), "viewer"))


def _only(connection: HTTPConnection, header: str) -> str:
    values = connection.headers.getlist(header)
    try:
        return values[0].encode("latin-1").decode() if len(values) == 1 else ""
    except UnicodeDecodeError:
        return ""


def plain(address: Address) -> Address:
    """As IPv4, what a socket of both kinds shows in IPv6."""
    return getattr(address, "ipv4_mapped", None) or address


@dataclass(frozen=True)
class Access:
    """`token` is a password without a name, of role admin. `passwords`: hashes and roles by name."""

    token: str | None = None
    passwords: Mapping[str, tuple[str, Role]] = field(default_factory=dict)
    proxy: Proxy | None = None
    is_for_proxy: bool = False  # what others send would come in the clear
    hosts: frozenset[str] | None = None  # names that the console is called by; None: any
    public: str | None = None  # its name on the far side of a proxy

    def check(self, name: str, password: str) -> User | None:
        """The user whose password this is. Takes the same time for a name that is not known."""
        if not name and self.token is not None and hmac.compare_digest(password.encode(), self.token.encode()):
            return User("token", "admin")
        stored, role = self.passwords.get(name, (_NOBODY, "viewer"))
        return User(name, role) if matches(password, stored) and name in self.passwords else None

    def is_called(self, host: str) -> bool:
        return self.hosts is None or name_of(host) in self.hosts


def name_of(host: str) -> str | None:
    """Of a Host header, without the port; None for what is none."""
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        return None
    return name.rstrip(".") if name is not None else None


class Sessions:
    """Who is logged in, by the id in a cookie: until a log-out, for eight hours, and as long as the process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._held: OrderedDict[str, tuple[User, float]] = OrderedDict()
        self._lock = threading.Lock()

    def begin(self, user: User) -> str:
        name = secrets.token_hex(16)
        with self._lock:
            self._held[name] = user, self._clock() + SESSION_S
            while len(self._held) > _MOST_SESSIONS:
                self._held.popitem(last=False)
        return name

    def user(self, name: object) -> User | None:
        with self._lock:
            user, end = self._held.get(name, (None, 0.0)) if isinstance(name, str) else (None, 0.0)
        return user if self._clock() < end else None

    def end(self, name: object) -> None:
        with self._lock:
            if isinstance(name, str):
                self._held.pop(name, None)


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


def is_user_name(name: str) -> bool:
    """Whether a line of the file can begin with it, and is read as that."""
    return name == name.strip() and name.isprintable() and not name.startswith("#") and ":" not in name and 0 < len(name) <= 128


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
    """A file's text, or what a pipe gives."""
    try:
        with Path(path).open("rb") as file:
            facts = os.fstat(file.fileno())
            # Of root, /dev/null and /etc/passwd are its own, and must stay as they are.
            if not (stat.S_ISREG(facts.st_mode) or stat.S_ISFIFO(facts.st_mode)):
                raise ConfigError(f"{path} is no file", "name a file of your own that nobody else may read (mode 600)")
            if stat.S_IMODE(facts.st_mode) & 0o077:
                raise ConfigError(f"{path} may be read by others", "name a file of your own that nobody else may read (mode 600)")
            return file.read(_MAX_USERS_BYTES).decode()
    except (OSError, ValueError) as fault:
        reason = fault.strerror if isinstance(fault, OSError) else "it is not text"
        raise ConfigError(f"cannot read {path}: {reason}", "name a file of your own") from None


def user_of(request: Request) -> User | None:
    user = request.scope.get("state", {}).get("user")
    return user if isinstance(user, User) else None


class Guard:
    """Around all pages: the host that was asked for, the user, and the headers that keep a browser safe."""

    def __init__(self, app: ASGIApp, access: Access, sessions: Sessions) -> None:
        self._app = app
        self._access = access
        self._sessions = sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        proxy = self._access.proxy
        if self._access.is_for_proxy and (proxy is None or not proxy.is_peer(connection)):
            await _refuse(send, 403, b"This console is reached through its proxy.")
            return
        if not self._access.is_called(connection.headers.get("host", "")):
            # A page of somebody else whose name leads here (DNS rebinding) would have the browser ask in this user's name.
            await _refuse(send, 421, b"This console is not called by that name; serve --public-name NAME adds one.")
            return
        user = proxy.user(connection) if proxy is not None else None
        scope.setdefault("state", {})["user"] = user or self._sessions.user((scope.get("session") or {}).get("id"))

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if "cache-control" not in headers:
                    headers["cache-control"] = "no-store"
            await send(message)

        await self._app(scope, receive, with_headers)


async def _refuse(send: Send, status: int, text: bytes) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), *((name.encode(), value.encode()) for name, value in HEADERS.items())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text})
