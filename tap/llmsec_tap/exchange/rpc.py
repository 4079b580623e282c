"""gRPC, Connect and Bedrock's bidirectional stream: from framed Protocol Buffers messages to the JSON that dialects read, and from trailers to a failure."""

from __future__ import annotations

from binascii import a2b_base64
from typing import Final
from urllib.parse import unquote

import msgspec

from llmsec_tap.dialects.base import JSON, NotJSON, ResponseView, dict_of, parse_json, text_of
from llmsec_tap.dialects.draft import Draft
from llmsec_tap.dialects.protobuf import NotProtobufError, Schema, read
from llmsec_tap.dialects.rpc_schemas import UNKNOWN, method_of
from llmsec_tap.wire.eventstream import EventStreamParser
from llmsec_tap.wire.grpc import GRPCParser

# https://github.com/grpc/grpc/blob/master/doc/statuscodes.md
_STATUS: Final = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS",
    "UNAUTHENTICATED",
)  # fmt: skip
_FRAMED: Final = ("application/grpc", "application/connect+")
BARE: Final = ("application/proto", "application/x-protobuf")


def is_framed(content_type: str) -> bool:
    """Whether a body is messages with their lengths before them. The text form of gRPC-Web is not read."""
    return content_type.startswith(_FRAMED) and not content_type.startswith("application/grpc-web-text")


def request_as_json(path: str, content_type: str, raw: bytes) -> bytes:
    """The first message of a request, as JSON; of further ones, as a stream of calls has them, the texts under their number.

    What is no RPC, or cannot be read, is returned as it is.
    """
    if content_type.startswith("application/vnd.amazon.eventstream"):
        return _sonic_as_json(raw)
    method = method_of(path)
    if content_type.startswith(BARE):
        return as_json(raw, method.request)
    if not is_framed(content_type):
        return raw
    found: list[bytes] = []
    parser = GRPCParser(lambda _ts, name, data: found.append(data) if name is None else None, lambda _name: None)
    parser.feed(0, raw)
    if not found:
        return raw
    first, *more = [as_json(message, method.request) for message in found]
    if not more:
        return first
    try:
        values = [parse_json(value) for value in (first, *more)]
    except NotJSON:
        return b"".join((first, *more))
    whole = dict_of(values[0])
    whole["more"] = values[1:]
    return msgspec.json.encode(whole)


def _sonic_as_json(raw: bytes) -> bytes:
    """What a client says in Bedrock's bidirectional stream (Nova Sonic): its texts by their content's role, as messages. Audio is left out."""
    roles: dict[JSON, JSON] = {}
    found: list[dict[str, JSON]] = []

    def on_event(ts_ns: int, name: str | None, data: bytes) -> None:
        if data[:1] != b"{":  # a signed message holds the message itself
            EventStreamParser(on_inner, lambda _name: None).feed(ts_ns, data)
        else:
            on_inner(ts_ns, name, data)

    def on_inner(_ts_ns: int, _name: str | None, data: bytes) -> None:
        try:
            value = dict_of(parse_json(data))
            event = dict_of(dict_of(parse_json(a2b_base64(str(value.get("bytes") or "")))).get("event"))
        except (NotJSON, ValueError):
            return
        start, text = dict_of(event.get("contentStart")), dict_of(event.get("textInput"))
        if start:
            roles[str(start.get("contentName"))] = start.get("role")
        if isinstance(text.get("content"), str):
            role = text_of(roles.get(str(text.get("contentName")))) or "USER"
            found.append({"role": role.lower(), "content": [{"text": text["content"]}]})

    EventStreamParser(on_event, lambda _name: None).feed(0, raw)
    return msgspec.json.encode({"messages": found}) if found else raw


def as_json(message: bytes, schema: Schema) -> bytes:
    """Messages that are JSON already, as Connect may have them, and such as cannot be read, stay as they are."""
    if message[:1] == b"{":
        return message
    try:
        return msgspec.json.encode(read(message, schema))
    except (NotProtobufError, UnicodeEncodeError):
        return message


def answer_schema(path: str | None) -> Schema:
    return method_of(path).answer if path is not None else UNKNOWN.answer


def read_status(response: ResponseView, draft: Draft) -> None:
    """`grpc-status` of the trailers, or of the head where there is no body. With it the answer is whole."""
    fields = response.trailers if "grpc-status" in response.trailers else response.headers
    status = fields.get("grpc-status")
    if status is None:
        return
    draft.terminated = True
    code = int(status) if status.isdigit() and len(status) < 4 else 2
    if code:
        draft.error(_STATUS[code] if code < len(_STATUS) else status, unquote(fields.get("grpc-message", "")) or None)


def read_last(name: str, data: bytes, response: ResponseView, draft: Draft) -> None:
    """What ends a stream of Connect (JSON with an error, if any) or of gRPC-Web (trailers as header lines)."""
    if name == "trailers":
        for line in data.decode("latin-1").split("\r\n")[:64]:
            key, colon, value = line.partition(":")
            if colon:
                response.trailers[key.strip().lower()] = value.strip()
        return
    draft.terminated = True
    try:
        error: JSON = dict_of(parse_json(data)).get("error")
    except NotJSON:
        return
    if isinstance(error, dict):
        draft.error(text_of(error.get("code")) or "unknown", text_of(error.get("message")))
