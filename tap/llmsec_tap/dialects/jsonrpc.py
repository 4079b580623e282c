"""JSON-RPC 2.0 (https://www.jsonrpc.org/specification), as MCP and A2A speak it over HTTP: a message, or a list of them."""

from __future__ import annotations

from typing import Final

from llmsec_tap.dialects.base import JSON, dict_of, text_of
from llmsec_tap.dialects.draft import Draft

_MAX_BATCH: Final = 256


def messages_of(body: JSON) -> list[dict[str, JSON]]:
    """The messages of a body that is JSON-RPC; none where it is anything else."""
    entries = body[:_MAX_BATCH] if isinstance(body, list) else [body]
    return [entry for entry in entries if isinstance(entry, dict) and entry.get("jsonrpc") == "2.0"]


def method_of(message: dict[str, JSON]) -> str:
    return text_of(message.get("method")) or ""


def id_of(message: dict[str, JSON]) -> str | None:
    """The id that ties an answer to its request; none: a notification."""
    value = message.get("id")
    if isinstance(value, bool):
        return None
    return str(value) if isinstance(value, str | int) else None


def read_error(message: dict[str, JSON], draft: Draft) -> bool:
    """A failure, if the message is one: its code is the type."""
    error = message.get("error")
    if not isinstance(error, dict):
        return False
    code = error.get("code")
    draft.error(str(code) if isinstance(code, int | str) else None, text_of(dict_of(error).get("message")))
    return True
