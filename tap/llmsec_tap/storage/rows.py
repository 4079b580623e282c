"""An exchange as one line of JSON, ready for Arrow's JSON reader.

The line is what the writer buffers: its length is the memory it takes, and Arrow parses a batch of lines in native code,
which costs a third of building columns from Python objects.
"""

from __future__ import annotations

import json
from hashlib import blake2b
from typing import Any

import msgspec

from llmsec_tap.model import Exchange
from llmsec_tap.storage.schema import BOOL, FLOAT, INT, ROW_COLUMNS, TEXT, ColumnType, ListOf, StructOf

INT64_MAX = 2**63 - 1
INT64_MIN = -(2**63)

_encoder = msgspec.json.Encoder()


class _StoredRequest(msgspec.Struct):
    messages: list[Any]
    tools: list[Any]
    parameters: str
    body_bytes: int


def row_key(exchange_id: str) -> int:
    """64 bits of a hash, signed: a cheap stand-in for the id when looking for repeated rows."""
    digest = blake2b(exchange_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def encode_row(exchange: Exchange) -> bytes:
    """One line without its newline. Never raises for any content: what UTF-8 or 64 bits cannot hold is replaced."""
    row: dict[str, Any] = msgspec.structs.asdict(exchange)
    request = exchange.request
    row["row_key"] = row_key(exchange.exchange_id)
    try:
        row["tags"] = _encoder.encode(exchange.tags).decode()
        parameters = _encoder.encode(request.parameters).decode()
        row["request"] = _StoredRequest(request.messages, request.tools, parameters, request.body_bytes)
        return _encoder.encode(row)
    except (UnicodeEncodeError, OverflowError, ValueError):
        return _encode_slowly(row, exchange)


def repair_row(line: bytes) -> bytes:
    """The same row with every value forced into its column's type; what cannot be is null."""
    row = json.loads(line)
    return _encoder.encode({name: coerce(row.get(name), kind) for name, kind in ROW_COLUMNS})


def _encode_slowly(row: dict[str, Any], exchange: Exchange) -> bytes:
    row = {name: _plain(value) for name, value in row.items()}
    request: dict[str, Any] = _plain(exchange.request)
    request["parameters"] = json.dumps(request.get("parameters", {}), separators=(",", ":"))
    row["request"] = request
    return _encoder.encode({name: coerce(row.get(name), kind) for name, kind in ROW_COLUMNS})


def _plain(value: Any) -> Any:
    """Structs as dicts, all the way down. (msgspec.to_builtins refuses the very values that bring us here.)"""
    if isinstance(value, msgspec.Struct):
        return {name: _plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def coerce(value: Any, kind: ColumnType) -> Any:
    """`value` as the column's type, or None."""
    if value is None:
        return None
    if isinstance(kind, ListOf):
        return [coerce(item, kind.item) for item in value] if isinstance(value, list) else None
    if isinstance(kind, StructOf):
        return {name: coerce(value.get(name), inner) for name, inner in kind.fields} if isinstance(value, dict) else None
    if kind == TEXT:
        return well_formed(value if isinstance(value, str) else json.dumps(value))
    if kind == BOOL:
        return value if isinstance(value, bool) else None
    try:
        number = float(value) if kind == FLOAT else int(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if kind != INT or INT64_MIN <= number <= INT64_MAX else None


def well_formed(text: str) -> str:
    """The text with surrogate pairs joined and lone surrogates (legal in JSON, not in UTF-8) replaced by U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def exchange_of(row: dict[str, Any]) -> Exchange:
    """The record that a stored row holds. What the row leaves null where the record cannot is the record's default."""
    row = {name: _without_nulls(value) for name, value in row.items() if value is not None}
    request = row.get("request")
    if isinstance(request, dict) and isinstance(request.get("parameters"), str):
        request["parameters"] = json.loads(request["parameters"])
    if isinstance(row.get("tags"), str):
        row["tags"] = json.loads(row["tags"])
    exchange = msgspec.convert(row, Exchange)
    exchange.findings = [msgspec.structs.replace(finding, exchange_id=exchange.exchange_id) for finding in exchange.findings]
    return exchange


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value
