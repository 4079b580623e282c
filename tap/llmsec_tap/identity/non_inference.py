"""Calls to a language model's API that carry no conversation: models, files, token counts, reranking, images, batches, …

They are reported with an operation and a provider, and not decoded further. On a known public host any path counts; elsewhere
only a route that is unmistakable, or one that the server's own header vouches for.
"""

from __future__ import annotations

import re
from typing import Final

from llmsec_tap.dialects.base import RequestView, ResponseView
from llmsec_tap.providers.headers import MODEL_SERVERS, provider_of_headers
from llmsec_tap.providers.hosts import provider_of_host

# Path pattern, operation: the first that fits. Order matters: `/responses/{id}/input_tokens` before `/responses/{id}`.
_OPERATIONS: Final = tuple(
    (re.compile(pattern), operation)
    for pattern, operation in (
        (r"/(messages/count_tokens|responses/input_tokens|count-tokens)$|:(countTokens|computeTokens)$", "count_tokens"),
        (r"/(tokenize|detokenize|tokenize/count)$", "tokenize"),
        (r"/(re)?rerank$|/rerank$", "rerank"),
        (r"/models/rerank$", "rerank"),
        (r"/(score|classify|pooling)$", "classify"),
        (r"/moderations$", "moderation"),
        (r"/guardrail/[^/]+/version/[^/]+/apply$", "guardrail"),
        (r"/images?/(generations?|edits|variations|generate)$|:generateImages?$", "image"),
        (r"/audio/(transcriptions|translations)$", "transcription"),
        (r"/audio/speech$", "speech"),
        (r"/realtime(/|$)", "realtime"),
        (r"/vector_stores(/|$)", "vector_store"),
        (r"/fine[_-]tun(ing|es)(/|$)|/tunedModels(/|$)", "fine_tuning"),
        (r"/batches(/|$)|/chat/completions/batch$|:batchGenerateContent$", "batch"),
        (r"/(assistants|threads)(/|$)", "assistant"),
        (r"/conversations(/|$)", "conversation"),
        (r"/responses/compact$", "compact"),
        (r"/responses/[^/]+", "stored_response"),
        (r"/interactions(/|$)", "interaction"),
        (r"/cachedContents(/|$)", "cache"),
        (r"/files(/|$)", "file"),
        (r"/predictions(/|$)", "prediction"),
        (r"/(organization|organizations)(/|$)", "admin"),
        (r"/(agents|retrieveAndGenerate|knowledgebases)(/|$)", "agent"),
        (r"/(models|tags|foundation_model_specs|available-models)(/|$)|/api/(show|tags|ps|pull|version)$|/get_model_info$", "model"),
        (r"/(props|slots|metrics|health|get_server_info|apply-template)$", "server_info"),
    )
)

# Routes that no ordinary web service has, whatever the host.
_UNMISTAKABLE: Final = re.compile(
    r"/v1/(messages/count_tokens|responses/input_tokens|audio/(transcriptions|translations|speech)|images/(generations|edits|variations)"
    r"|moderations|fine_tuning/jobs|realtime/(sessions|client_secrets|calls)|chat/completions/batch|messages/batches|responses/compact"
    r"|threads/thread_\w+|conversations/conv_\w+|responses/resp_\w+|vector_stores/vs_\w+|assistants/asst_\w+|batches/batch_\w+)(/|$)"
    r"|/v1beta/cachedContents(/|$)"
    r"|/model/[^/]+/count-tokens$|:(countTokens|computeTokens|batchGenerateContent)$"
)
# What these answer is about models and accounts.
_ABOUT_SERVERS: Final = frozenset(("model", "server_info", "admin"))
# What files are uploaded for, to OpenAI and to those who speak its API.
_PURPOSES: Final = frozenset(("batch", "fine-tune", "assistants", "user_data", "vision", "evals"))
_THREAD_MESSAGES: Final = re.compile(r"/v1/threads/[^/]+/messages$")


def auxiliary(request: RequestView, response: ResponseView | None) -> str | None:
    """The operation of a call that no dialect claims, or None where it is not a language model's API."""
    path = request.path.rstrip("/") or "/"
    operation = next((name for pattern, name in _OPERATIONS if pattern.search(path)), None)
    if provider_of_host(request.host, request.path):
        return operation or "other"
    if operation is None:
        return None
    if response is not None and provider_of_headers(response.headers, {}) in MODEL_SERVERS:
        return operation
    if _UNMISTAKABLE.search(path):
        return operation
    body = request.body
    if not isinstance(body, dict) or request.method != "POST":
        return (
            "model" if operation == "model" and request.method == "GET" and path in ("/v1/models", "/api/tags", "/get_model_info") else None
        )
    if operation == "rerank" and isinstance(body.get("query"), str):
        return operation
    # Only scalars of the body may be left by now.
    if operation == "assistant" and _THREAD_MESSAGES.search(path) and isinstance(body.get("role"), str):
        return operation
    if operation == "file" and body.get("purpose") in _PURPOSES:
        return operation
    if operation == "batch" and isinstance(body.get("input_file_id"), str):
        return operation
    if operation == "assistant" and (isinstance(body.get("assistant_id"), str) or (path.endswith("/v1/assistants") and "model" in body)):
        return operation
    if operation == "tokenize" and isinstance(body.get("model"), str):
        return operation
    if operation == "classify" and isinstance(body.get("model"), str) and (isinstance(body.get("input"), str) or "text_1" in body):
        return operation
    return None


def holds_texts(request: RequestView, response: ResponseView) -> bool:
    """Whether the answer of an auxiliary call holds texts of people or models: a transcript, a stored conversation, a file of a batch."""
    operation = auxiliary(request, response)
    return operation is not None and operation not in _ABOUT_SERVERS
