"""Failures as servers report them: one reading for all vendors, because gateways mix their shapes.

Shapes: OpenAI `{"error": {"message", "type", "code"}}`; Anthropic the same inside `{"type": "error"}`; Google
`{"error": {"code": 404, "message", "status": "NOT_FOUND"}}`, at times in a list of one; vLLM and Mistral with the fields at the top;
TGI `{"error": "text", "error_type"}`; Ollama `{"error": "text"}`; FastAPI `{"detail": …}`; AWS the header `x-amzn-errortype`.
Some state a failure under status 200: MiniMax `base_resp.status_code`, Baidu `error_code` and `error_msg`, Tencent `Response.Error`, iFlytek
`header.code`, Cloudflare `success: false` and `errors`, Zhipu and DashScope `code` and `message`, Gemini `promptFeedback.blockReason`.
"""

from __future__ import annotations

from typing import Final

from llmsec_tap.dialects.base import JSON, ResponseView, dict_of, dump_json, int_of, text_of
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
    if not kind:
        kind = _number(inner.get("code")) or _number(whole.get("code")) or _number(whole.get("status_code"))
    message = (
        inner.get("message")
        or inner.get("Message")
        or inner.get("msg")
        or inner.get("detail")
        or whole.get("message")
        or whole.get("detail")
    )
    if message is not None and not isinstance(message, str):
        message = dump_json(message)
    errors = whole.get("errors")
    if message is None and isinstance(errors, list) and errors:
        first_kind, first_message = failure_of(errors[0]) if not isinstance(errors[0], list) else (None, None)
        kind, message = kind or first_kind, first_message or dump_json(errors)
    return kind, message


# Without one of these names a body states no failure; most have none.
FAILURE_NAMES: Final = frozenset(
    ("error", "errors", "base_resp", "error_code", "error_msg", "errorCode", "errorMessage", "error_type", "error_message", "errorType",
     "Response", "header", "success", "promptFeedback", "code", "status_code", "detail", "message", "msg", "Output", "Error", "__type")
)  # fmt: skip
# The same beside text of an answer, which may itself be a `message`.
FAILURE_NAMES_BESIDE_TEXT: Final = FAILURE_NAMES - {"message", "msg", "detail", "code", "status_code", "Response"}


def read_stated_failure(body: JSON, draft: Draft) -> None:
    """A failure, or a block of the prompt, that a body or an event states although its status is 200. Nothing where it states none."""
    if isinstance(body, list) and body:
        body = body[0]
    if not isinstance(body, dict) or draft.error_type is not None or FAILURE_NAMES.isdisjoint(body):
        return
    found = _stated(body, is_empty=not draft.choices and not draft.embeddings)
    if found is not None:
        draft.error(*found)


def _stated(body: dict[str, JSON], *, is_empty: bool) -> tuple[str | None, str | None] | None:
    """(type, message). `is_empty`: nothing of an answer has come, so that a bare message can only be a failure."""
    feedback = dict_of(body.get("promptFeedback"))
    if text_of(feedback.get("blockReason")):
        return feedback["blockReason"], text_of(feedback.get("blockReasonMessage"))
    for holder, code, message in _CODED:
        inner = dict_of(body.get(holder)) if holder else body
        value = inner.get(code)
        if (
            value not in (None, 0, "", "0", 200, "200", False)
            and isinstance(value, int | str)
            and (holder or code.lower().startswith("error"))
        ):
            return text_of(value) or _number(value), _message(inner, message)
    if body.get("error"):
        return failure_of(body)
    coral = text_of(body.get("__type")) or text_of(dict_of(body.get("Output")).get("__type"))
    if coral:
        return coral.rpartition("#")[2], _message(dict_of(body.get("Output")) or body, "message")
    inner = dict_of(dict_of(body.get("Response")).get("Error")) or dict_of(body.get("Error"))
    if inner:
        return text_of(inner.get("Code")) or _number(inner.get("Code")), text_of(inner.get("Message"))
    errors = body.get("errors")
    if (body.get("success") is False or is_empty) and isinstance(errors, list) and errors:
        kind, said = failure_of(errors[0])
        return kind, said or dump_json(errors)
    if body.get("success") is False or body.get("object") == "error" or body.get("type") == "error":
        return failure_of(body)
    if is_empty and not _ANSWERS.intersection(body):
        said = next((body[name] for name in ("message", "msg", "detail", "error_message") if body.get(name)), None)
        code_given = body.get("code") if body.get("code") not in (None, 0, "", "0", 200) else body.get("status_code")
        if isinstance(said, str | list) and (code_given not in (None, 0, 200) or body.get("detail") or len(body) <= _FEW_FIELDS):
            return text_of(code_given) or _number(code_given) or text_of(body.get("type")), said if isinstance(said, str) else dump_json(
                said
            )
    return None


# Where a code that is not 0 is a failure, and its message.
_CODED: Final = (
    ("base_resp", "status_code", "status_msg"),
    ("header", "code", "message"),
    ("", "error_code", "error_msg"),
    ("", "errorCode", "errorMessage"),
    ("", "errorType", "errorMessage"),
    ("", "error_type", "error_message"),
)
# A body with one of these answers something.
_ANSWERS: Final = frozenset(
    ("choices", "output", "outputs", "candidates", "content", "completion", "response", "generated_text", "text", "data", "result", "results",
     "usage", "usageMetadata", "object", "role", "delta", "event_type", "model")
)  # fmt: skip
_FEW_FIELDS = 2


def _message(body: dict[str, JSON], name: str) -> str | None:
    return text_of(body.get(name)) or text_of(body.get("message")) or text_of(body.get("msg")) or text_of(body.get("error"))


def _number(code: JSON) -> str | None:
    """A code that is a number, as text."""
    number = int_of(code)
    return str(number) if number is not None and number != 0 else None
