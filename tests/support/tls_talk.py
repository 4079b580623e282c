"""Real TLS between OpenSSL and OpenSSL, as the bytes that each side sent, and the key log of it."""

from __future__ import annotations

import datetime as dt
import socket
import ssl
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from support.recording_relay import Relay
from support.wire import Talk

NAME = "api.openai.com"


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of NAME and its key."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    chain, secret = folder / "cert.pem", folder / "key.pem"
    chain.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption())
    )
    return chain, secret


@dataclass
class Recorded:
    """`pieces` are (side, bytes) in their order; side 0 is the client."""

    pieces: list[tuple[int, bytes]] = field(default_factory=list)
    keys: bytes = b""

    def frames(self) -> list[tuple[int, bytes]]:
        talk = Talk(server=("10.2.0.9", 443)).open()
        for side, data in self.pieces:
            talk.say(side, data)
        return talk.close().frames


def in_memory(
    folder: Path,
    messages: list[tuple[int, bytes]],
    *,
    version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    ciphers: str | None = None,
    connections: int = 1,
    logged: int | None = None,
) -> list[Recorded]:
    """Connections one after the other that carry `messages`; later ones resume the first one's session. `logged`: so many are in the log."""
    chain, secret = certificate(folder)
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    server.load_cert_chain(chain, secret)
    server.minimum_version = server.maximum_version = version
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    for context in (server, client):
        context.set_alpn_protocols(["http/1.1"])
        if ciphers:
            context.set_ciphers(f"{ciphers}:@SECLEVEL=0")
    log = folder / "keys.log"
    log.unlink(missing_ok=True)
    client.keylog_filename = str(log)
    found, session = [], None
    for number in range(connections):
        recorded = Recorded()
        to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
        from_client, from_server = ssl.MemoryBIO(), ssl.MemoryBIO()
        ends = (
            client.wrap_bio(to_client, from_client, server_hostname=NAME, session=session),
            server.wrap_bio(to_server, from_server, server_side=True),
        )
        ways = ((0, from_client, to_server), (1, from_server, to_client))

        def pump(recorded: Recorded = recorded, ways: tuple[tuple[int, ssl.MemoryBIO, ssl.MemoryBIO], ...] = ways) -> None:
            for side, source, target in ways:
                if data := source.read():
                    recorded.pieces.append((side, data))
                    target.write(data)

        waiting = {0, 1}
        while waiting:
            for side in sorted(waiting):
                try:
                    ends[side].do_handshake()
                    waiting.discard(side)
                except ssl.SSLWantReadError:
                    pass
            pump()
        for side, data in messages:
            ends[side].write(data)
            pump()
            left = len(data)
            while left:
                left -= len(ends[1 - side].read(left))
        session = session or ends[0].session
        assert number == 0 or ends[0].session_reused
        recorded.keys = log.read_bytes() if logged is None or number < logged else b""
        if logged is not None and number + 1 >= logged:
            client.keylog_filename = None
        found.append(recorded)
    return found


Play = Callable[[subprocess.Popen[bytes], subprocess.Popen[bytes]], None]


def between_programs(folder: Path, serve: list[str], asks: list[tuple[list[str], Play]]) -> list[Recorded]:
    """One `openssl s_server`, and an `s_client` for each of `asks`, through a relay that records; `play` types at both."""
    chain, secret = certificate(folder)
    log, port = folder / "keys.log", _free_port()
    found: list[Recorded] = []
    with (
        subprocess.Popen(
            ["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-cert", str(chain), "-key", str(secret), *serve],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as server,
    ):
        _wait_for(port)
        try:
            for ask, play in asks:
                log.unlink(missing_ok=True)
                with (
                    Relay(port) as relay,
                    subprocess.Popen(
                        [
                            "openssl",
                            "s_client",
                            "-connect",
                            f"127.0.0.1:{relay.port}",
                            "-servername",
                            NAME,
                            "-keylogfile",
                            str(log),
                            *ask,
                            "-no_ign_eof",
                        ],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.DEVNULL,
                    ) as client,
                ):
                    try:
                        play(server, client)
                        assert client.stdin is not None
                        client.stdin.close()  # an end that is not said makes the server forget the session
                        client.wait(5)
                    finally:
                        client.kill()
                found.append(Recorded(relay.said[0], log.read_bytes()))
        finally:
            server.kill()
    return found


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _wait_for(port: int) -> None:
    """By the kernel's table: a connection would be the one that the server serves."""
    for _ in range(500):
        if any(f":{port:04X} " in line and " 0A " in line for line in Path("/proc/net/tcp").read_text().splitlines()):
            return
        time.sleep(0.01)
    raise TimeoutError(f"nothing listens on {port}")
