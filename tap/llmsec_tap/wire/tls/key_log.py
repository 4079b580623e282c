"""Secrets of TLS sessions as their owners log them: a key log file (SSLKEYLOGFILE), or a block of a pcapng file.

Lines are `label client_random secret` in hexadecimal (draft-ietf-tls-keylogfile). Older ones name the session or the encrypted key
instead of the random (NSS Key Log Format). Secrets stay in this process: they are in no log, record or message.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from typing import Final

from llmsec_tap import limits

MASTER: Final = "CLIENT_RANDOM"
_LABELS: Final = frozenset(
    (
        MASTER,
        "CLIENT_EARLY_TRAFFIC_SECRET",
        "CLIENT_HANDSHAKE_TRAFFIC_SECRET",
        "SERVER_HANDSHAKE_TRAFFIC_SECRET",
        "CLIENT_TRAFFIC_SECRET_0",
        "SERVER_TRAFFIC_SECRET_0",
    )
)
_LINE = re.compile(rb"([A-Z_0-9]+) ([0-9a-fA-F]{64}) ([0-9a-fA-F]{32,128})")
_SESSION = re.compile(rb"RSA Session-ID:([0-9a-fA-F]{2,64}) Master-Key:([0-9a-fA-F]{96})")
# Other lines that are no damage: secrets that are not needed here, comments.
_KNOWN = re.compile(rb"\s*(?:#|\Z)|(?:[A-Z]+_)*(?:EXPORTER|SECRET|TRAFFIC|ECH|RSA|PMS|QUIC)\b|[A-Z0-9_]+ [0-9a-fA-F]+ [0-9a-fA-F]+")


class KeyLog:
    """Secrets by the client's random and label. `secrets` are known, `left_out` were beyond the bound, `unread` lines made no sense.

    `generation` grows when any are added: who waits for secrets looks again then.
    """

    def __init__(self) -> None:
        self._secrets: dict[tuple[bytes, str], bytes] = {}
        # Master secrets of TLS 1.2 by session id or ticket, as connections show them: a resumed session may be logged once only.
        self._sessions: OrderedDict[bytes, bytes] = OrderedDict()
        self.generation = 0
        self.left_out = 0
        self.unread = 0

    @property
    def secrets(self) -> int:
        return len(self._secrets) + len(self._sessions)

    def add(self, data: bytes) -> None:
        """Whole lines, of a key log or of a capture file that holds one."""
        for line in data.split(b"\n"):
            stripped = line.rstrip(b"\r \0")
            if match := _LINE.fullmatch(stripped):
                label = match[1].decode()
                if label in _LABELS:
                    self._add((bytes.fromhex(match[2].decode()), label), bytes.fromhex(match[3].decode()))
            elif match := _SESSION.fullmatch(stripped):
                self.remember(bytes.fromhex(match[1].decode()), bytes.fromhex(match[2].decode()))
            elif not _KNOWN.match(stripped):
                self.unread += 1

    def _add(self, key: tuple[bytes, str], secret: bytes) -> None:
        if len(self._secrets) >= limits.MAX_TLS_SECRETS and key not in self._secrets:
            self.left_out += 1
            return
        self._secrets[key] = secret
        self.generation += 1

    def secret(self, random: bytes, label: str) -> bytes | None:
        return self._secrets.get((random, label))

    def remember(self, session: bytes, master: bytes) -> None:
        """The master secret of a session that may be resumed, by its id or ticket."""
        if not session:
            return
        self._sessions[session] = master
        self._sessions.move_to_end(session)
        self.generation += 1
        if len(self._sessions) > limits.MAX_TLS_SESSIONS:
            self._sessions.popitem(last=False)

    def master_of(self, session: bytes) -> bytes | None:
        return self._sessions.get(session)
