"""Reading and writing the model file: a small ONNX graph (Gather, Mul, ReduceSum, Add) with its facts as metadata.

ONNX is protobuf; the few fields needed here are read and written directly, so neither scanning nor training needs the
`onnx` package, and the same weights always give the same bytes.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from llmsec_tap.errors import ConfigError

TEXTS = "llmsec-injection-3"
PAIRS = "llmsec-context-1"


class ModelFile(msgspec.Struct):
    """`strict`, `balanced`, `cautious`, `permissive`: calibrated scores that fewer and fewer harmless texts reach.

    `offsets`: what is taken off the logit of a text by its language (languages.py), so that one threshold serves all.
    """

    weights: Any
    bias: float
    strict: float
    balanced: float
    cautious: float
    permissive: float
    slope: float
    intercept: float
    system_offset: float
    version: str
    form: str = TEXTS
    offsets: dict[str, float] = {}

    @property
    def size(self) -> int:
        return len(self.weights)


# --- protobuf --------------------------------------------------------------------------------------------------------


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _field(number: int, value: int | bytes | str) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _fields(data: bytes) -> list[tuple[int, int | bytes]]:
    """The fields of one message. Raises ValueError where the bytes are no message."""
    found: list[tuple[int, int | bytes]] = []
    at = 0

    def varint() -> int:
        nonlocal at
        number = shift = 0
        while True:
            byte = data[at]
            at += 1
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number
            shift += 7
            if shift > 63:
                raise ValueError

    while at < len(data):
        key = varint()
        kind = key & 7
        if kind == 0:
            found.append((key >> 3, varint()))
            continue
        size = varint() if kind == 2 else 8 if kind == 1 else 4 if kind == 5 else -1
        if size < 0 or at + size > len(data):
            raise ValueError
        found.append((key >> 3, data[at : at + size]))
        at += size
    return found


_FLOAT, _INT64 = 1, 7


def _tensor(name: str, kind: int, shape: list[int], raw: bytes) -> bytes:
    return b"".join(_field(1, size) for size in shape) + _field(2, kind) + _field(8, name) + _field(9, raw)


def _value(name: str, kind: int, dimension: str | int) -> bytes:
    dim = _field(2, dimension) if isinstance(dimension, str) else _field(1, dimension)
    return _field(1, name) + _field(2, _field(1, _field(1, kind) + _field(2, _field(1, dim))))


def _node(operator: str, inputs: list[str], output: str, attributes: bytes = b"") -> bytes:
    return b"".join(_field(1, name) for name in inputs) + _field(2, output) + _field(3, output) + _field(4, operator) + attributes


_NUMBERS = ("strict", "balanced", "cautious", "permissive", "slope", "intercept", "system_offset")
_OFFSET = "offset."


def write_model(path: Path, model: ModelFile) -> None:
    weights = np.ascontiguousarray(model.weights, dtype="<f4")
    keep = _field(5, _field(1, "keepdims") + _field(20, 2) + _field(3, 1))
    graph = (
        _field(1, _node("Gather", ["weights", "ids"], "gathered"))
        + _field(1, _node("Mul", ["gathered", "values"], "weighed"))
        + _field(1, _node("ReduceSum", ["weighed"], "total", keep))
        + _field(1, _node("Add", ["total", "bias"], "logit"))
        + _field(2, "injection")
        + _field(5, _tensor("weights", _FLOAT, [len(weights)], weights.tobytes()))
        + _field(5, _tensor("bias", _FLOAT, [1], struct.pack("<f", model.bias)))
        + _field(11, _value("ids", _INT64, "features"))
        + _field(11, _value("values", _FLOAT, "features"))
        + _field(12, _value("logit", _FLOAT, 1))
    )
    facts = {
        "format": model.form,
        "version": model.version,
        **{name: repr(getattr(model, name)) for name in _NUMBERS},
        **{_OFFSET + name: repr(offset) for name, offset in sorted(model.offsets.items())},
    }
    data = (
        _field(1, 8)
        + _field(2, "llmsec-trace")
        + _field(7, graph)
        + _field(8, _field(2, 13))
        + b"".join(_field(14, _field(1, name) + _field(2, value)) for name, value in facts.items())
    )
    path.write_bytes(data)


def read_model(path: Path, form: str = TEXTS) -> ModelFile:
    """The weights and facts of a model file. ConfigError where it is not one of ours, or of another form."""
    try:
        data = path.read_bytes()
    except OSError as fault:
        raise ConfigError(f"{path}: the model cannot be read: {fault.strerror}", "see security.prompt_injection.model.path") from None
    try:
        facts: dict[str, str] = {}
        tensors: dict[str, bytes] = {}
        for number, value in _fields(data):
            if number == 14 and isinstance(value, bytes):
                pair = dict(_fields(value))
                facts[_text(pair[1])] = _text(pair[2])
            elif number == 7 and isinstance(value, bytes):
                for inner, content in _fields(value):
                    if inner == 5 and isinstance(content, bytes):
                        fields = dict(_fields(content))
                        tensors[_text(fields[8])] = fields[9]  # type: ignore[assignment]
        if facts.get("format") != form:
            raise ValueError  # noqa: TRY301 - like any other damage
        weights = np.frombuffer(tensors["weights"], dtype="<f4")
        bias = struct.unpack("<f", tensors["bias"])[0]
        numbers = {name: float(facts[name]) for name in _NUMBERS}
        offsets = {name[len(_OFFSET) :]: float(value) for name, value in facts.items() if name.startswith(_OFFSET)}
        return ModelFile(weights=weights, bias=bias, version=facts["version"], form=form, offsets=offsets, **numbers)
    except (ValueError, KeyError, IndexError, struct.error, UnicodeDecodeError, TypeError):
        raise ConfigError(f"{path}: not a model of this program (format {form})", "it may be cut; install or train it again") from None


def _text(value: int | bytes) -> str:
    if not isinstance(value, bytes):
        raise ValueError  # noqa: TRY004 - damage like any other
    return value.decode()
