"""Syslog as RFC 5424 has it, over TLS (RFC 5425), TCP (RFC 6587, with octet counts) or UDP (RFC 5426)."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import ssl
from typing import Final

from llmsec_agent.alerting.channels.base import SendError
from llmsec_agent.alerting.channels.web import context
from llmsec_agent.alerting.message import Message, cut
from llmsec_agent.alerting.templates import Text
from llmsec_agent.config.channels import Syslog

_FACILITY: Final = {"auth": 4, "daemon": 3, "audit": 13, **{f"local{number}": 16 + number for number in range(8)}}
_SEVERITY: Final = {"critical": 2, "high": 3, "medium": 4, "low": 5}
# RFC 5612 sets this number aside for those who have none.
_ID: Final = "llmsec@32473"
_VALUE: Final = re.compile(r'(["\\\]])')
_NOT_PRINTABLE: Final = re.compile(r"[^!-~]")
# Every receiver takes 2,048 bytes (RFC 5425, 4.3.1); a datagram beyond what most paths carry may be lost.
_MOST_UDP_BYTES: Final = 1_400
_MOST_BYTES: Final = 8_192


class SyslogChannel:
    """A connection for each message: syslog acknowledges nothing, but a connection that ends in order was read."""

    def __init__(self, settings: Syslog, text: Text, ca: str | None) -> None:
        self._settings = settings
        self._text = text
        self._tls = context(ca) if settings.transport == "tls" else None

    def send(self, message: Message) -> None:
        settings = self._settings
        most = _MOST_UDP_BYTES if settings.transport == "udp" else _MOST_BYTES
        line = rfc5424(message, _FACILITY[settings.facility], self._text.of(message), most)
        try:
            if settings.transport == "udp":
                self._datagram(line)
            else:
                self._stream(b"%d %s" % (len(line), line))
        except ssl.SSLCertVerificationError as fault:
            raise SendError(f"its certificate is not accepted: {fault.verify_message}") from None
        except TimeoutError:
            raise SendError("no answer in time") from None
        except OSError as fault:
            raise SendError(f"the connection failed: {fault.strerror or type(fault).__name__}") from None

    def _datagram(self, data: bytes) -> None:
        family, kind, protocol, _, address = socket.getaddrinfo(self._settings.host, self._settings.port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as sock:
            sock.sendto(data, address)

    def _stream(self, data: bytes) -> None:
        settings = self._settings
        with socket.create_connection((settings.host, settings.port), timeout=settings.timeout) as plain:
            sock = self._tls.wrap_socket(plain, server_hostname=settings.host) if self._tls is not None else plain
            with sock:
                sock.sendall(data)
                if isinstance(sock, ssl.SSLSocket):
                    with contextlib.suppress(OSError, ValueError):
                        sock.unwrap()
                else:
                    with contextlib.suppress(OSError):
                        sock.shutdown(socket.SHUT_WR)


def rfc5424(message: Message, facility: int, own: str | None, most: int) -> bytes:
    """A message of at most so many bytes."""
    alert = message.alert
    priority = facility * 8 + (6 if message.is_resolved else _SEVERITY[alert.priority])
    values = {
        "alert_id": alert.alert_id,
        "rule": alert.rule,
        "priority": alert.priority,
        "state": alert.state,
        "dedup_key": alert.dedup_key,
        "count": str(alert.count),
        "exchange_id": alert.exchange_id,
        "tenant": alert.tenant or "",
        "model": alert.model or "",
        "process": alert.process or "",
        "pod": alert.pod or "",
    }
    data = " ".join(f'{name}="{_quoted(value)}"' for name, value in values.items() if value)
    host = _NOT_PRINTABLE.sub("_", alert.node or socket.gethostname())[:255] or "-"
    stamp = message.at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    head = f"<{priority}>1 {stamp} {host} llmsec-trace {os.getpid()} alert [{_ID} {data}] ".encode()
    text = " ".join((own if own is not None else message.title).split())
    # The mark says that the text is UTF-8.
    return head + b"\xef\xbb\xbf" + text.encode("utf-8", "replace")[: max(0, most - len(head) - 3)].decode("utf-8", "ignore").encode()


def _quoted(value: str) -> str:
    return _VALUE.sub(r"\\\1", cut(value, 128))
