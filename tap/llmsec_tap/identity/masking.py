"""What is not content leaves no credential behind: request targets, model names, parameters, error messages, addresses of media.

A target is masked by an allow-list: query values stay where their name is known to be harmless (plain_names.py), everything else
is replaced by its keyed fingerprint, which still says whether two are equal. Path segments stay unless they look like a key.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final
from urllib.parse import quote_plus, unquote, unquote_plus

import msgspec

from llmsec_tap.identity.secret_shapes import MIN_TOKEN, is_secret_name, is_token, mask_tokens, mask_vendor_forms
from llmsec_tap.model import Exchange, Message, OtherText
from llmsec_tap.plain_names import PARAMETERS, QUERY, folded_name

Fingerprinter = Callable[[str], str]

_MAX_NAME_CHARS = 64
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:(?=//)")
_BEGINS_QUERY: Final = re.compile(r"[?#]")
_BETWEEN_FIELDS: Final = re.compile(r"([&;?#])")
_HOST_PORT: Final = re.compile(r"[\w.-]*(?::\d*)?|\[[0-9A-Fa-f:.%]+\](?::\d*)?")
_USER_IN_SEGMENT: Final = re.compile(r"[^:@/]*:[^@]*@")
_PLAIN_TARGET: Final = re.compile(r"(?:/[A-Za-z0-9_.-]{0,11})+")  # too short for any key
_PLAIN_SEGMENT: Final = re.compile(r"[A-Za-z0-9_.-]*")
_METHOD: Final = re.compile(r"[A-Za-z-]{1,24}")


def mask_method(method: str, fingerprint: Fingerprinter) -> str:
    """A method as on the wire; a word that no method looks like may be anything, and is masked."""
    return method if _METHOD.fullmatch(method) else fingerprint(method)


def mask_target(target: str, fingerprint: Fingerprinter) -> str:
    """The request target (RFC 9112 3.2) without credentials: user information, query, fragment, matrix parameters, path segments."""
    if _PLAIN_TARGET.fullmatch(target):
        return target
    found = _SCHEME.match(target)
    scheme = found[0] if found else ""
    rest = target[len(scheme) :]
    authority = ""
    if rest.startswith("//"):
        authority, rest = _mask_authority(rest, fingerprint)
    mark = _BEGINS_QUERY.search(rest)
    path, query = (rest[: mark.start()], rest[mark.start() :]) if mark else (rest, "")
    path = "/".join(
        segment if len(segment) < MIN_TOKEN and _PLAIN_SEGMENT.fullmatch(segment) else _mask_segment(segment, fingerprint)
        for segment in path.split("/")
    )
    fields = _BETWEEN_FIELDS.split(query)
    fields[::2] = [_mask_field(field, fingerprint) for field in fields[::2]]
    return scheme + authority + path + "".join(fields)


def _mask_authority(rest: str, fingerprint: Fingerprinter) -> tuple[str, str]:
    """`//user:password@host` and what follows. A password may hold a slash that nobody escaped."""
    mark = _BEGINS_QUERY.search(rest)
    until = mark.start() if mark else len(rest)
    authority, slash, tail = rest[2:until].partition("/")
    if "@" not in authority and "@" in tail and ":" in authority and not _HOST_PORT.fullmatch(authority):
        user, _, after = f"{authority}/{tail}".rpartition("@")
        host, slash, tail = after.partition("/")
        return f"//{fingerprint(user)}@{host}", slash + tail + rest[until:]
    user, at, host = authority.rpartition("@")
    return f"//{fingerprint(user) + '@' if at else ''}{host}", slash + tail + rest[until:]


def _mask_segment(segment: str, fingerprint: Fingerprinter) -> str:
    name, *matrix = segment.split(";")
    plain = unquote(name)
    user = _USER_IN_SEGMENT.match(plain)
    if user:
        name = f"{fingerprint(user[0][:-1])}@{plain[user.end() :]}"
    elif "=" in plain:
        name = _mask_field(name, fingerprint)
    elif is_token(plain):
        name = fingerprint(plain)
    return ";".join([name, *(_mask_field(field, fingerprint) for field in matrix)])


def _mask_field(field: str, fingerprint: Fingerprinter) -> str:
    """`name=value`, or one word that may be either."""
    if not field:
        return field
    name, equals, value = field.partition("=")
    plain_name, plain_value = unquote_plus(name), unquote_plus(value)
    is_harmless = folded_name(plain_name) in QUERY
    if not equals:
        return field if is_harmless or (is_secret_name(plain_name) and not is_token(plain_name)) else fingerprint(plain_name)
    if len(plain_name) > _MAX_NAME_CHARS or is_token(plain_name):
        name = fingerprint(plain_name)
    if value and not is_harmless:
        value = fingerprint(plain_value)
    elif value and is_token(plain_value):
        rest = mask_tokens(plain_value, fingerprint)
        value = quote_plus(rest) if rest != plain_value else fingerprint(plain_value)
    return f"{name}={value}"


# --- the record --------------------------------------------------------------------------------------------------------


def mask_record(exchange: Exchange, fingerprint: Fingerprinter) -> None:
    """Masks whatever of a record is neither content nor ours. Its messages, which another record may share, are replaced, not changed."""
    if exchange.request_model is not None:
        exchange.request_model = mask_tokens(exchange.request_model, fingerprint)
    if exchange.response_model is not None:
        exchange.response_model = mask_tokens(exchange.response_model, fingerprint)
    if exchange.response_id is not None:
        exchange.response_id = mask_vendor_forms(exchange.response_id, fingerprint)
    if exchange.error_type is not None:
        exchange.error_type = mask_tokens(exchange.error_type, fingerprint)
    if exchange.request.parameters:
        exchange.request.parameters = dict(_mask_parameter(name, value, fingerprint) for name, value in exchange.request.parameters.items())
    if exchange.response.error_message:
        exchange.response.error_message = mask_tokens(exchange.response.error_message, fingerprint)
    if exchange.other_texts:
        exchange.other_texts = [_mask_other(other, fingerprint) for other in exchange.other_texts]
    exchange.request.messages = [_mask_message(message, fingerprint) for message in exchange.request.messages]


def _mask_message(message: Message, fingerprint: Fingerprinter) -> Message:
    if all(part.uri is None for part in message.parts):
        return message
    parts = [part if part.uri is None else msgspec.structs.replace(part, uri=mask_target(part.uri, fingerprint)) for part in message.parts]
    return msgspec.structs.replace(message, parts=parts)


_FIELDS: Final = (
    re.compile(r'("([^"\\]{1,128})"\s{0,8}:\s{0,8}")((?:[^"\\]|\\.)+)', re.DOTALL),
    re.compile(r"(?m)^(([A-Za-z0-9_-]{1,64})[ \t]{0,8}:[ \t]{0,8})([^\r\n]+)"),
    re.compile(r"((?<![^&?\s])([\w.%-]{1,64})=)([^&\s]+)"),
)


def _mask_other(other: OtherText, fingerprint: Fingerprinter) -> OtherText:
    """Text that is no field's own value may hold whole heads and bodies: fields in it whose names say credential are masked."""
    if other.path not in ("$", "response"):
        return other
    text = other.text
    for pattern in _FIELDS:
        text = pattern.sub(lambda found: found[1] + fingerprint(found[3]) if is_secret_name(found[2]) else found[0], text)
    return OtherText(path=other.path, text=text)


def _mask_parameter(name: str, value: str | float | bool | None, fingerprint: Fingerprinter) -> tuple[str, str | float | bool | None]:
    if isinstance(value, str):
        if is_secret_name(name) and folded_name(name) not in PARAMETERS:
            value = fingerprint(value)
        else:
            value = mask_target(value, fingerprint) if "://" in value else mask_tokens(value, fingerprint)
    elif value is not None and not isinstance(value, bool) and is_secret_name(name):
        value = fingerprint(str(value))
    if len(name) >= MIN_TOKEN and (len(name) > _MAX_NAME_CHARS or is_token(name)):
        name = fingerprint(name)
    return name, value
