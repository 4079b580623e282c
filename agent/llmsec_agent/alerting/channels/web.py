"""POST over HTTP(S) to one address of the configuration: certificates are verified, and no redirect is followed."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from llmsec_agent.alerting.channels.base import SendError
from llmsec_tap import __version__
from llmsec_tap.visible import visible

if TYPE_CHECKING:
    import urllib3

_LATER: Final = frozenset((408, 425, 429))
_MAX_ANSWER_BYTES: Final = 4 << 10
_LONGEST_WAIT_S: Final = 120.0


class Http:
    """One connection that is kept. One thread."""

    def __init__(self, url: str, *, timeout: float, ca: str | None, headers: Mapping[str, str] | None = None) -> None:
        import urllib3

        self._url = url
        self._headers = {"User-Agent": f"llmsec-trace/{__version__}", "Content-Type": "application/json", **(headers or {})}
        self._pool: urllib3.PoolManager = urllib3.PoolManager(
            num_pools=1, maxsize=1, ssl_context=context(ca), retries=False, timeout=urllib3.Timeout(total=timeout)
        )

    def post(self, body: Any, *, headers: Mapping[str, str] | None = None, path: str = "") -> None:
        """`body`: JSON's value, or the bytes themselves. Raises SendError."""
        import urllib3

        data = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
        try:
            answer = self._pool.request(
                "POST", self._url + path, body=data, headers={**self._headers, **(headers or {})}, redirect=False, preload_content=False
            )
            said = answer.read(_MAX_ANSWER_BYTES, decode_content=False)
            if len(said) >= _MAX_ANSWER_BYTES:
                answer.close()  # the rest is not waited for
            answer.release_conn()
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as fault:
            raise SendError(_reason(fault)) from None
        _judge(answer.status, said, answer.headers.get("Retry-After", ""))


def context(ca: str | None) -> ssl.SSLContext:
    """`ca`: these authorities and no others."""
    return ssl.create_default_context(cadata=ca) if ca is not None else ssl.create_default_context()


def _judge(status: int, said: bytes, retry_after: str) -> None:
    if 200 <= status < 300:
        return
    if 300 <= status < 400:
        raise SendError(f"answered {status}: it sends us elsewhere, which is not followed", is_final=True)
    words = visible(said[:200].decode("utf-8", "replace")).strip()
    text = f"answered {status}" + (f": {words}" if words else "")
    wait = min(float(retry_after), _LONGEST_WAIT_S) if retry_after.isdecimal() and len(retry_after) < 9 else None
    raise SendError(text, is_final=status < 500 and status not in _LATER, retry_after=wait)


def _reason(fault: BaseException) -> str:
    """Why, in our own words: the library's hold the address, and that may be a secret."""
    import urllib3

    causes = list(_causes(fault))
    for seen in causes:
        if isinstance(seen, ssl.SSLCertVerificationError):
            return f"its certificate is not accepted: {seen.verify_message}"
    for seen in causes:
        if isinstance(seen, ssl.SSLError):
            return f"TLS failed: {seen.reason or 'no agreement'}"
        if isinstance(seen, urllib3.exceptions.NameResolutionError | socket.gaierror):
            return "its name is not known"
        if isinstance(seen, ConnectionRefusedError):
            return "connection refused"
        # What could not connect at all counts as a time-out there.
        if isinstance(seen, TimeoutError | urllib3.exceptions.TimeoutError) and not isinstance(seen, urllib3.exceptions.NewConnectionError):
            return "no answer in time"
        if isinstance(seen, OSError) and seen.strerror:
            return seen.strerror
    return f"the connection failed ({type(fault).__name__})"


def _causes(fault: BaseException | None) -> Iterator[BaseException]:
    for _ in range(10):
        if fault is None:
            return
        yield fault
        within = next((item for item in fault.args if isinstance(item, BaseException)), None)
        fault = within or fault.__cause__ or fault.__context__
