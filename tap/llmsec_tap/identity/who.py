"""Who serves an exchange, from what is on the wire: public host, path, headers of both sides, fields of the answer, dialect.

Evidence in order of strength; its tables are in `providers/`. A private host name or a port is never evidence: inference nodes have any
name. Where only the dialect is known, its `default_provider` is the answer; where even that is weak (a generic route such as `/chat` on an
unknown host) and the answer did not take the dialect's shape, it is None: not a language model as far as can be seen.
"""

from __future__ import annotations

import re
from typing import Final

from llmsec_tap.dialects.base import Dialect, RequestView, ResponseView
from llmsec_tap.dialects.draft import Draft
from llmsec_tap.dialects.rpc import is_rpc, names_models
from llmsec_tap.identity.non_inference import auxiliary
from llmsec_tap.providers.headers import MODEL_SERVERS, provider_of_headers
from llmsec_tap.providers.hosts import provider_of_host
from llmsec_tap.providers.paths import provider_of_path

# They stand before other vendors' APIs and keep those paths.
_GATEWAYS: Final = frozenset(("portkey", "litellm", "cloudflare"))

# Protocols of agents, whoever serves them.
_PROTOCOLS: Final = frozenset(("mcp", "a2a"))

# Routes that are an API of language models wherever they are met: the request alone is enough, even if the answer is a failure.
_TELLING: Final = re.compile(
    r"/(chat/completions|fim/completions|v1/embeddings|generation/text|generation/text_stream|text/generation|text/generation_stream)/?$"
    r"|^/[\w.]+\.(VllmEngine|TextGenerationService|GenerativeService|PredictionService)/\w+$"
    r"|/openai/deployments/|[./]BidiGenerateContent|/model/.+/(converse|invoke)|:(stream)?([gG]enerateContent|[rR]awPredict)$|:(batchEmbedContents|embedContent)$"
)
# Routes that other services may have as well: with a model named in the body the request is enough, else the answer must show it.
_TELLING_WITH_MODEL: Final = re.compile(
    r"/(v1/completions|v1/responses|v1/messages|v1/complete|embeddings|api/(chat|generate|embed|embeddings)|v[12]/(chat|embed))/?$"
    r"|/inference\.GRPCInferenceService/Model(Stream)?Infer$|/realtime/?$"
)


def identify(request: RequestView | None, response: ResponseView | None, draft: Draft, dialect: Dialect | None) -> str | None:
    """The provider of one exchange, or None where it is not traffic of a language model.

    Without a dialect it is a non-inference call, or not LLM traffic at all.
    """
    if dialect is not None and dialect.default_provider in _PROTOCOLS:
        # Its messages name it; a stream that a browser could ask for as well must have shown one.
        return dialect.default_provider if request is not None and (request.method != "GET" or draft.provider_hint) else None
    if request is not None:
        known = provider_of_host(request.host, request.path)
        if known:
            return known
    if dialect is not None:
        if not _is_convincing(request, response, draft):
            return None
    elif request is None or auxiliary(request, response) is None:
        return None
    provider = _from_headers(request, response) or draft.provider_hint
    if request is not None and provider not in _GATEWAYS:
        provider = provider_of_path(request.path) or provider
    return provider or (dialect.default_provider if dialect is not None else "openai_compatible")


def _is_convincing(request: RequestView | None, response: ResponseView | None, draft: Draft) -> bool:
    """Is this the dialect that it was taken for? The answer has taken its shape, or it failed and the request says so."""
    if draft.choices or draft.embeddings is not None or draft.usage.input_tokens is not None:
        return True
    if request is None:
        return False
    if (
        _TELLING.search(request.path)
        or (is_rpc(request) and names_models(request.path))
        or _from_headers(request, response) in MODEL_SERVERS
    ):
        return True
    if response is not None and response.status < 400 and not _is_stream(response) and draft.error_type is None:
        return False  # it answered well, and otherwise
    return bool(draft.request_model) and _TELLING_WITH_MODEL.search(request.path) is not None


def _is_stream(response: ResponseView) -> bool:
    return "stream" in response.content_type or "ndjson" in response.content_type


def _from_headers(request: RequestView | None, response: ResponseView | None) -> str | None:
    return provider_of_headers(response.headers if response is not None else {}, request.headers if request is not None else {})
