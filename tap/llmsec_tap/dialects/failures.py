"""Failures as servers report them: one reading for all vendors, because gateways mix their shapes.

Shapes: OpenAI `{"error": {"message", "type", "code"}}`; Anthropic the same inside `{"type": "error"}`; Google
`{"error": {"code": 404, "message", "status": "NOT_FOUND"}}`, at times in a list of one; vLLM and Mistral with the fields at the top;
TGI `{"error": "text", "error_type"}`; Ollama `{"error": "text"}`; FastAPI `{"detail": …}`; AWS the header `x-amzn-errortype`.
"""

from __future__ import annotations

from llmsec_tap.dialects.base import JSON, ResponseView, dict_of, dump_json, text_of
from llmsec_tap.dialects.draft import Draft


def read_failure(response: ResponseView, body: JSON, draft: Draft) -> None:
    """A whole answer with status >= 400. Without any type in it, the status is the type (OpenTelemetry's `error.type`)."""
    kind, message = failure_of(body)
    amazon = response.headers.get("x-amzn-errortype")
    if amazon:
        kind = amazon.partition(":")[0].strip() or kind
    draft.error(kind or str(response.status), message)


def read_stream_failure(value: JSON, draft: Draft) -> None:
    """A failure inside a stream that began well."""
    kind, message = failure_of(value)
    draft.error(kind, message)


def failure_of(body: JSON) -> tuple[str | None, str | None]:
    """(type, message) of an error body of any vendor."""
    if isinstance(body, list) and body:
        body = body[0]
    if isinstance(body, str):
        return None, body
    whole = dict_of(body)
    error = whole.get("error")
    if isinstance(error, str) and error:
        return text_of(whole.get("error_type")) or text_of(whole.get("type")), text_of(whole.get("message")) or error
    inner = error if isinstance(error, dict) and error else whole
    kind = text_of(inner.get("type")) or text_of(inner.get("code")) or text_of(inner.get("status")) or text_of(inner.get("__type"))
    if inner is whole and kind in ("error", None):
        kind = text_of(inner.get("code")) or text_of(inner.get("error_type"))
    message = inner.get("message") or inner.get("Message") or inner.get("detail") or whole.get("message") or whole.get("detail")
    if message is not None and not isinstance(message, str):
        message = dump_json(message)
    if message is None and isinstance(whole.get("errors"), list):
        message = dump_json(whole["errors"])
    return kind, message
