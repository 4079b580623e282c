"""What a request asks for, in the design's words, for the application that asks its trace. The recorder reads requests on its own."""

from __future__ import annotations

from llmsec_tap.dialects.base import RequestView
from llmsec_tap.dialects.draft import Draft
from llmsec_tap.exchange.request_reading import read_body, settle
from llmsec_trace.call import Asked

NOT_A_MODEL = ("http_request", None)


def describe(asked: Asked) -> tuple[str, str | None]:
    """Operation and model: `openai_chat_completion_stream`, `gpt-4`."""
    view = RequestView(asked.method, asked.target, plain_headers(asked), asked.body or b"")
    draft = Draft()
    dialect = settle(view, read_body(view, asked.body or b"", draft, _ignore), _ignore)
    if dialect is None:
        return NOT_A_MODEL
    dialect.decode_request(view, draft)
    return operation_type(dialect.api, is_stream=view.get("stream") is True or "stream" in view.path.lower()), draft.request_model


def operation_type(api: str, *, is_stream: bool) -> str:
    name = "openai_chat_completion" if api == "openai.chat" else api.replace(".", "_")
    return f"{name}_stream" if is_stream else name


def plain_headers(asked: Asked) -> dict[str, str]:
    return {text(name).lower(): text(value) for name, value in asked.headers}


def text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode("latin-1")


def _ignore(_name: str) -> None: ...
