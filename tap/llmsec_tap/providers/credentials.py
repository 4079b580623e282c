"""Credentials on the wire: found at decode and replaced by a keyed fingerprint before anything else sees them.

The fingerprint is HMAC-SHA-256 under a key of this installation, cut to 128 bits: equal credentials have equal fingerprints, and
without the key a short or guessable one cannot be tried against it, as it could be against a plain hash.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote_plus

import msgspec

from llmsec_tap.model import Exchange
from llmsec_tap.providers.base import RequestView

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
_SIGV4 = re.compile(r"AWS4-[A-Z0-9-]+ +Credential=([A-Za-z0-9]{8,128})/")
# Query names that carry keys, tokens or signatures: exact names, and parts that mark one.
_SECRET_NAMES = frozenset(("key", "sig", "code", "auth", "jwt", "sas", "session", "awsaccesskeyid", "x-amz-credential"))
_SECRET_PARTS = ("api_key", "apikey", "api-key", "token", "secret", "signature", "password", "credential", "authorization")


def fingerprinter(key: bytes) -> Fingerprinter:
    """A function from credential to fingerprint (32 hex digits) under `key`."""

    def fingerprint(credential: str) -> str:
        return hmac.new(key, credential.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()[:32]

    return fingerprint


def credential_of(request: RequestView) -> str | None:
    """The credential that identifies the caller: Bearer or Basic value, key header, SigV4 access key id, or `?key=`."""
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
    for name, value in request.query.items():
        if value and is_secret_name(name):
            return value.partition("/")[0] if name.lower() == "x-amz-credential" else value
    return headers.get("cookie") or None


def is_secret_name(name: str) -> bool:
    """Whether a query field or body field of this name carries a credential."""
    name = unquote_plus(name).lower()
    return name in _SECRET_NAMES or any(part in name for part in _SECRET_PARTS)


def mask_target(target: str, fingerprint: Fingerprinter) -> str:
    """The request target with user information and secret query values replaced by their fingerprints."""
    scheme, separator, rest = target.partition("://")
    if separator and len(scheme) <= 10:
        authority, slash, tail = rest.partition("/")
        user, at, host = authority.rpartition("@")
        target = f"{scheme}://{fingerprint(user) + '@' if at else ''}{host}{slash}{tail}"
    path, mark, query = target.partition("?")
    if not mark:
        return target
    fields = []
    for field in query.split("&"):
        name, equals, value = field.partition("=")
        fields.append(f"{name}={fingerprint(unquote_plus(value))}" if equals and value and is_secret_name(name) else field)
    return f"{path}?{'&'.join(fields)}"


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
