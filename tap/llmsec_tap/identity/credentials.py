"""Credentials on the wire: found at decode and replaced by a keyed fingerprint before anything else sees them.

The fingerprint is HMAC-SHA-256 under a key of this installation, cut to 128 bits: equal credentials have equal fingerprints, and
without the key a short or guessable one cannot be tried against it, as it could be against a plain hash.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Any

import msgspec

from llmsec_tap.dialects.base import RequestView
from llmsec_tap.model import Exchange

Fingerprinter = Callable[[str], str]

# Headers that carry a key as their whole value, in the order in which they say who calls.
_KEY_HEADERS = (
    "x-api-key",
    "api-key",
    "x-goog-api-key",
    "ocp-apim-subscription-key",
    "x-goog-iam-authorization-token",
    "x-auth-token",
    "x-access-token",
    "x-portkey-api-key",
    "helicone-auth",
    "cf-aig-authorization",
    "proxy-authorization",
)
# A browser can give a WebSocket no header of its own, so OpenAI takes the key as a subprotocol.
_KEY_PROTOCOL = "openai-insecure-api-key."
_SIGV4 = re.compile(r"AWS4-[A-Z0-9-]+ +Credential=([A-Za-z0-9]{8,128})/")
# Query names that say who calls; more names than these carry secrets (secret_shapes.py).
_CALLER_NAMES = frozenset(("key", "sig", "code", "auth", "jwt", "sas", "session", "awsaccesskeyid", "x-amz-credential"))
_CALLER_PARTS = ("api_key", "apikey", "api-key", "token", "secret", "signature", "password", "credential", "authorization")


def fingerprinter(key: bytes) -> Fingerprinter:
    """A function from credential to fingerprint (32 hex digits) under `key`."""
    # HMAC (RFC 2104) with both keyed states made once: several are needed for each exchange.
    padded = (key if len(key) <= 64 else hashlib.sha256(key).digest()).ljust(64, b"\0")
    inner, outer = hashlib.sha256(bytes(byte ^ 0x36 for byte in padded)), hashlib.sha256(bytes(byte ^ 0x5C for byte in padded))

    def fingerprint(credential: str) -> str:
        first, second = inner.copy(), outer.copy()
        first.update(credential.encode("utf-8", "surrogatepass"))
        second.update(first.digest())
        return second.hexdigest()[:32]

    return fingerprint


def credential_of(request: RequestView) -> str | None:
    """The credential that identifies the caller: Bearer or Basic value, key header, SigV4 access key id, a WebSocket's subprotocol, or `?key=`."""
    headers = request.headers
    authorization = headers.get("authorization", "").strip()
    if authorization:
        signed = _SIGV4.match(authorization)
        if signed is not None:
            return signed[1]  # the signature changes with each request; the access key id says who
        scheme, _, value = authorization.partition(" ")
        return value.strip() or scheme
    for name in _KEY_HEADERS:
        value = headers.get(name, "").strip()
        if value:
            scheme, space, rest = value.partition(" ")
            return rest.strip() if space and scheme.lower() in ("bearer", "basic") else value
    for protocol in headers.get("sec-websocket-protocol", "").split(","):
        if protocol.strip().startswith(_KEY_PROTOCOL):
            return protocol.strip().removeprefix(_KEY_PROTOCOL)
    for name, value in request.query.items():
        lower = name.lower()
        if value and (lower in _CALLER_NAMES or any(part in lower for part in _CALLER_PARTS)):
            return value.partition("/")[0] if lower == "x-amz-credential" else value
    return headers.get("cookie") or None


def clean_text(exchange: Exchange) -> Exchange:
    """The record with lone surrogates made whole or replaced by U+FFFD, so that it can be encoded as UTF-8.

    Servers that cut a stream between the two escapes (`u` and four digits) of one character send each half as a string of its own; joined, they
    are that character again.
    """
    plain: Any = msgspec.to_builtins(exchange)
    return msgspec.convert(_clean(plain), Exchange)


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_clean(item) for item in value]
    if isinstance(value, dict):
        return {_clean(key): _clean(item) for key, item in value.items()}
    return value
