"""Protocol Buffers' wire format (https://protobuf.dev/programming-guides/encoding) to the JSON that a dialect reads.

A schema names the fields of a message that matter; the others go by their number, so that no text in them passes unread. What the schema cannot
know (`google.protobuf.Struct`) has its own reader.
"""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from llmsec_tap import limits

JSON = Any
_CONTROLS: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class NotProtobufError(ValueError):
    """The bytes are no message, or one of more fields than the bound."""


class Field(NamedTuple):
    """`kind` is text, bytes (base64), int, bool, float, double, struct, value, a table of an enum's names, or a message's schema."""

    name: str
    kind: str | Mapping[int, str] | Schema
    is_list: bool = False
    is_map: bool = False


class Schema(dict[int, Field]):
    """Fields by number."""


def many(name: str, kind: str | Mapping[int, str] | Schema) -> Field:
    return Field(name, kind, is_list=True)


class _Budget:
    """How many more fields one message may have, those inside it included: each takes some hundred bytes."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = limits.MAX_PROTOBUF_FIELDS

    def spend(self, count: int = 1) -> None:
        self.left -= count
        if self.left < 0:
            raise NotProtobufError


def read(data: bytes, schema: Schema) -> dict[str, JSON]:
    """A message as JSON. Raises NotProtobufError."""
    return _message(data, schema, _Budget(), 0)


def _fields(data: bytes, budget: _Budget) -> Iterator[tuple[int, int, int | bytes]]:
    at, end = 0, len(data)
    while at < end:
        tag, at = _varint(data, at, end)
        number, wire = tag >> 3, tag & 7
        budget.spend()
        value: int | bytes
        if wire == _VARINT:
            value, at = _varint(data, at, end)
        elif wire in (_BYTES, _FIXED64, _FIXED32):
            size, at = _varint(data, at, end) if wire == _BYTES else (8 if wire == _FIXED64 else 4, at)
            if size > end - at:
                raise NotProtobufError
            value = data[at : at + size]
            at += size
        else:
            raise NotProtobufError
        if not 0 < number < 1 << 29:
            raise NotProtobufError
        yield number, wire, value


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
        shift += 7
    raise NotProtobufError


def _message(data: bytes, schema: Schema, budget: _Budget, depth: int) -> dict[str, JSON]:
    if depth > limits.MAX_PROTOBUF_DEPTH:
        raise NotProtobufError
    found: dict[str, JSON] = {}
    for number, wire, value in _fields(data, budget):
        field = schema.get(number)
        if field is None:
            _keep_unknown(found, number, value, budget, depth)
        elif field.is_map:
            if isinstance(value, bytes):
                entry = _message(value, Schema({1: Field("key", "text"), 2: Field("value", field.kind)}), budget, depth + 1)
                found.setdefault(field.name, {})[str(entry.get("key", ""))] = entry.get("value")
        elif field.is_list:
            found.setdefault(field.name, []).extend(_packed(field.kind, wire, value, budget, depth))
        else:
            found[field.name] = _value(field.kind, wire, value, budget, depth)
    return found


def _packed(kind: str | Mapping[int, str] | Schema, wire: int, value: int | bytes, budget: _Budget, depth: int) -> list[JSON]:
    """One element, or the several numbers that one field holds."""
    if not isinstance(value, bytes) or wire != _BYTES or kind not in ("int", "bool", "float", "double"):
        return [_value(kind, wire, value, budget, depth)]
    if kind in ("int", "bool"):
        numbers, at = [], 0
        while at < len(value):
            number, at = _varint(value, at, len(value))
            budget.spend()
            numbers.append(number)
        return numbers
    size = 4 if kind == "float" else 8
    count = len(value) // size
    budget.spend(count // 4)
    return list(struct.unpack_from(f"<{count}{'f' if size == 4 else 'd'}", value))


def _value(kind: str | Mapping[int, str] | Schema, wire: int, value: int | bytes, budget: _Budget, depth: int) -> JSON:
    if isinstance(kind, Schema):
        return _message(value, kind, budget, depth + 1) if isinstance(value, bytes) and wire == _BYTES else None
    if isinstance(kind, Mapping):
        return kind.get(value, str(value)) if isinstance(value, int) else None
    if isinstance(value, int):
        return bool(value) if kind == "bool" else value - (1 << 64) if value >> 63 else value
    if wire == _FIXED32:
        return struct.unpack("<f", value)[0]
    if wire == _FIXED64:
        return struct.unpack("<d", value)[0]
    if kind == "struct":
        return _struct(value, budget, depth + 1)
    if kind == "value":
        return _json_value(value, budget, depth + 1)
    return base64.b64encode(value).decode() if kind == "bytes" else value.decode("utf-8", "replace")


def _struct(data: bytes, budget: _Budget, depth: int) -> dict[str, JSON]:
    """google.protobuf.Struct."""
    return dict_of_entries(_message(data, Schema({1: Field("fields", "value", is_map=True)}), budget, depth).get("fields"))


def dict_of_entries(value: JSON) -> dict[str, JSON]:
    return value if isinstance(value, dict) else {}


def _json_value(data: bytes, budget: _Budget, depth: int) -> JSON:
    """google.protobuf.Value: one of null, number, string, bool, struct, list."""
    result: JSON = None
    if depth > limits.MAX_PROTOBUF_DEPTH:
        raise NotProtobufError
    for number, wire, value in _fields(data, budget):
        if number == 6 and isinstance(value, bytes):
            result = [_json_value(item, budget, depth + 1) for of, _, item in _fields(value, budget) if of == 1 and isinstance(item, bytes)]
        elif number == 5 and isinstance(value, bytes):
            result = _struct(value, budget, depth + 1)
        elif number in (2, 3, 4):
            result = _value({2: "double", 3: "text", 4: "bool"}[number], wire, value, budget, depth)
    return result


def _keep_unknown(found: dict[str, JSON], number: int, value: int | bytes, budget: _Budget, depth: int) -> None:
    """Texts of a field that no schema names, under its number. Numbers and bytes are nothing to read."""
    if not isinstance(value, bytes) or len(value) < 2:
        return
    kept = _unknown(value, budget, depth)
    if kept:
        key = str(number)
        known = found.get(key)
        if known is None:
            found[key] = kept
        elif isinstance(known, list):
            known.append(kept)
        else:
            found[key] = [known, kept]


def _unknown(value: bytes, budget: _Budget, depth: int) -> JSON:
    try:
        text: str | None = value.decode()
    except UnicodeDecodeError:
        text = None
    # A message whose first field is a text begins with a line feed and its length: text hardly ever does and reads as a message.
    if text is not None and value[0] not in (10, 13) and not _CONTROLS.search(text):
        return text
    if depth < limits.MAX_PROTOBUF_DEPTH:
        was = budget.left
        try:
            return _message(value, Schema(), budget, depth + 1)
        except NotProtobufError:
            if budget.left < 0:
                raise
            budget.left = was - len(value) // 16  # looking was work, too
    return text if text is not None and not _CONTROLS.search(text) else None
