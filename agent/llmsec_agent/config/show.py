"""The configuration that counts, as a file again: every key with its value and, as a comment, where the value is from."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec
from msgspec import inspect

from llmsec_agent.config.load import Loaded, dotted_key
from llmsec_agent.config.schema import Config
from llmsec_agent.config.secret import Secret
from llmsec_analyzer.typed_files import bare, struct_type
from llmsec_analyzer.units import show_duration, show_size
from llmsec_analyzer.yaml_files import Where

_PLAIN_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_WORDS_OF_YAML = frozenset(("true", "false", "null", "yes", "no", "on", "off", "y", "n"))


def as_yaml(loaded: Loaded) -> Iterator[str]:
    """Lines of a file that means the same. Secrets are the references they were given by."""
    lines: list[tuple[str, str]] = []
    for field in struct_type(Config).fields:
        lines += _lines(field.encode_name, getattr(loaded.config, field.name), field.type, (field.encode_name,), loaded.origins, 0)
    width = min(60, max(len(text) for text, comment in lines if comment))
    for text, comment in lines:
        yield f"{text:<{width}}  # {comment}" if comment else text


def as_json(loaded: Loaded) -> str:
    """An object: `config`, `origins` (by dotted key; what is not there is a default) and `notes`."""
    made = {
        "file": str(loaded.file) if loaded.file is not None else None,
        "config": plain(loaded.config, struct_type(Config), {}),
        "origins": loaded.origins,
        "notes": [note.sentence() for note in loaded.notes],
    }
    return json.dumps(made, indent=2, ensure_ascii=False)


def digest_of(loaded: Loaded) -> str:
    """SHA-256 of the configuration as it counts, secrets as references: another one where any setting is another."""
    made = json.dumps(plain(loaded.config, struct_type(Config), {}), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(made.encode("utf-8", "replace")).hexdigest()


def _lines(name: str, value: Any, kind: inspect.Type, where: Where, origins: Mapping[str, str], depth: int) -> Iterator[tuple[str, str]]:
    """Text and comment of each line of one key."""
    head = "  " * depth + (name if _PLAIN_NAME.fullmatch(name) and name.lower() not in _WORDS_OF_YAML else json.dumps(name)) + ":"
    inner, facts = bare(kind)
    if isinstance(value, msgspec.Struct) and not isinstance(inner, inspect.DictType):
        yield head, ""
        fields = _type_of(value).fields
        for field in fields:
            yield from _lines(field.encode_name, getattr(value, field.name), field.type, (*where, field.encode_name), origins, depth + 1)
    elif isinstance(inner, inspect.DictType) and value:
        yield head, ""
        for item_name, item in value.items():
            yield from _lines(item_name, item, inner.value_type, (*where, item_name), origins, depth + 1)
    else:
        origin = origins.get(dotted_key(where), "default")
        yield f"{head} {json.dumps(plain(value, kind, facts), ensure_ascii=False)}", origin


def _type_of(value: msgspec.Struct) -> inspect.StructType:
    return struct_type(type(value))


def plain(value: Any, kind: inspect.Type, facts: Mapping[str, Any]) -> Any:
    """A value as a file has it: with units, and secrets as references."""
    inner, own = bare(kind)
    facts = {**own, **facts}
    if isinstance(value, Secret):
        return value.reference
    if isinstance(value, msgspec.Struct):
        return {field.encode_name: plain(getattr(value, field.name), field.type, {}) for field in _type_of(value).fields}
    if isinstance(value, dict):
        below = inner.value_type if isinstance(inner, inspect.DictType) else inner
        return {name: plain(item, below, {}) for name, item in value.items()}
    if isinstance(value, tuple | list):
        below = inner.item_type if isinstance(inner, inspect.VarTupleType | inspect.ListType) else inner
        return [plain(item, below, {}) for item in value]
    if value is not None and facts.get("unit") == "duration":
        return show_duration(value)
    if value is not None and facts.get("unit") == "size":
        return show_size(value)
    return masked(value) if isinstance(value, str) and facts.get("address") else value


def masked(text: str) -> str:
    """An address without the credentials and the query that it may carry."""
    if "://" not in text:
        return text
    try:
        parts = urlsplit(text)
    except ValueError:
        return "***"
    host = parts.netloc.rpartition("@")
    return parts._replace(netloc="***@" + host[2] if host[1] else parts.netloc, query="***" if parts.query else "", fragment="").geturl()
