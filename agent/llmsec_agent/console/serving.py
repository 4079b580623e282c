"""Serving the console: where it listens, and with what rights."""

from __future__ import annotations

import ipaddress
import secrets
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from llmsec_agent.console.access import SECRET_HEADER, Access, Proxy, name_of, plain, read_token, read_users
from llmsec_tap.errors import ConfigError

_LOCAL = frozenset(("127.0.0.1", "localhost", "::1"))


@dataclass(frozen=True)
class ServeSettings:
    """As the command line has them."""

    store: str
    host: str = "127.0.0.1"
    port: int = 8765
    certificate: str | None = None
    key: str | None = None
    token_file: str | None = None
    users_file: str | None = None
    header: str | None = None
    role_header: str | None = None
    proxy: str | None = None
    secret_file: str | None = None
    public: str | None = None


def access_of(settings: ServeSettings) -> tuple[Access, str | None]:
    """Who may come in, and the token that was made for this run where none is configured. Raises ConfigError where that is not safe."""
    is_local = _is_local(settings.host)
    if bool(settings.certificate) != bool(settings.key):
        raise ConfigError("--tls-cert and --tls-key belong together", "name both")
    proxy = _proxy_of(settings)
    if not is_local:
        if not settings.certificate and proxy is None:
            raise ConfigError(
                f"{settings.host} may be reached by others, so it needs TLS", "--tls-cert and --tls-key, or a proxy with --trusted-header"
            )
        if not (settings.token_file or settings.users_file or proxy):
            raise ConfigError(f"{settings.host} may be reached by others, so it needs a login", "--token-file, --users or --trusted-header")
    public = name_of(settings.public) if settings.public is not None else None
    if settings.public is not None and (not public or "/" in settings.public):
        raise ConfigError(f"--public-name: {settings.public!r} is no name of a host", "such as console.example.org")
    # Elsewhere it has more names than it knows, and no page of another name has its cookie.
    hosts = _LOCAL | {settings.host.lower()} | ({public} if public else set()) if is_local else None
    made = None
    token = read_token(settings.token_file) if settings.token_file else None
    users = read_users(settings.users_file) if settings.users_file else {}
    if token is None and not users and proxy is None:
        token = made = secrets.token_urlsafe(24)
    return Access(token, users, proxy, not is_local and not settings.certificate, hosts, public), made


def _proxy_of(settings: ServeSettings) -> Proxy | None:
    if bool(settings.header) != bool(settings.proxy):
        raise ConfigError("--trusted-header is believed from --trusted-proxy alone", "name both")
    if settings.header is None or settings.proxy is None:
        if settings.role_header or settings.secret_file:
            raise ConfigError("--trusted-role-header and --trusted-secret are a proxy's", "name --trusted-proxy and --trusted-header too")
        return None
    try:
        address = plain(ipaddress.ip_address(settings.proxy))
    except ValueError:
        raise ConfigError(f"--trusted-proxy: {settings.proxy!r} is no address", "such as 10.0.0.5") from None
    if address.is_loopback and not settings.secret_file:
        raise ConfigError(
            f"--trusted-proxy {settings.proxy}: everybody on this host could send its header",
            f"--trusted-secret FILE, whose first line the proxy sends as {SECRET_HEADER}",
        )
    secret = read_token(settings.secret_file) if settings.secret_file else None
    return Proxy(address, settings.header, settings.role_header, secret)


def _is_local(host: str) -> bool:
    if host in _LOCAL:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def address_of(settings: ServeSettings, port: int) -> str:
    """What a browser opens."""
    return f"{'https' if settings.certificate else 'http'}://{f'[{settings.host}]' if ':' in settings.host else settings.host}:{port}/"


def cookie_of(settings: ServeSettings, port: int) -> str:
    """Cookies know no port, and several consoles of one host would log each other out. With TLS, the prefix keeps other hosts of a domain from setting it."""
    return f"{'__Host-' if settings.certificate else ''}llmsec-{port}"


def listen(settings: ServeSettings) -> socket.socket:
    """Raises ConfigError."""
    try:
        family, kind, number, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, number)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(64)  # who opens the address that is printed waits for the first answer, and is not refused
    except OSError as fault:
        raise ConfigError(
            f"cannot listen on {settings.host} port {settings.port}: {fault.strerror}", "--port takes another one, 0 any"
        ) from None
    return listener


def tls_of(settings: ServeSettings) -> ssl.SSLContext | None:
    """Of certificate and key, read now: they may be for root alone, whose rights are dropped. Raises ConfigError."""
    if settings.certificate is None or settings.key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(Path(settings.certificate), Path(settings.key))
    except (OSError, ssl.SSLError) as fault:
        raise ConfigError(
            f"cannot use {settings.certificate} with {settings.key}: {fault.strerror or fault}", "a chain and its key, PEM"
        ) from None
    return context
