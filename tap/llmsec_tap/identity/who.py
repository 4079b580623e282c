"""Who serves an exchange, from what is on the wire: public host, path, headers of both sides, fields of the answer, dialect.

Evidence in order of strength. A private host name or a port is never evidence: inference nodes have any name. Where only the
dialect is known, the answer is `openai_compatible` (or `anthropic_compatible`), or the dialect's own server; where even that is weak (a generic route such as
`/chat` on an unknown host) and the answer did not take the dialect's shape, it is None: not a language model as far as can be seen.
"""

from __future__ import annotations

import re
from typing import Final

from llmsec_tap.dialects.base import RequestView, ResponseView
from llmsec_tap.dialects.draft import Draft
from llmsec_tap.identity.non_inference import auxiliary
from llmsec_tap.providers.hosts import provider_of_host

# (pattern of the path, provider): routes that only one vendor has. Gateways keep them behind a prefix.
_PATHS: Final = tuple(
    (re.compile(pattern), provider)
    for pattern, provider in (
        (r"/openai/deployments/[^/]+/", "azure.ai.openai"),
        (r"/model/[^/]+/(converse|converse-stream|invoke|invoke-with-response-stream|count-tokens)$", "aws.bedrock"),
        (r"/publishers/(google|anthropic|mistralai|meta)/models/[^/]+:\w+$", "gcp.vertex_ai"),
        (r"/v1(beta|alpha)?/models/[^/]+:(stream)?[gG]enerateContent$", "gcp.gemini"),
        (r"/v1(beta|alpha)?/models/[^/]+:(batchEmbedContents|embedContent|countTokens)$", "gcp.gemini"),
    )
)

# Header (lower case), pattern of its value, provider. Response headers first: the request's may be meant for a gateway.
_RESPONSE_HEADERS: Final = tuple(
    (name, re.compile(pattern), provider)
    for name, pattern, provider in (
        ("server", r"(?i)llama\.cpp", "llamacpp"),
        ("server", r"(?i)ollama", "ollama"),
        ("server", r"(?i)vllm", "vllm"),
        ("server", r"(?i)sglang", "sglang"),
        ("x-groq-region", r"", "groq"),
        ("x-litellm-version", r"", "litellm"),
        ("x-litellm-call-id", r"", "litellm"),
        ("x-portkey-trace-id", r"", "portkey"),
        ("cf-aig-log-id", r"", "cloudflare"),
        ("x-compute-type", r"", "tgi"),
        ("x-amzn-bedrock-input-token-count", r"", "aws.bedrock"),
        ("x-amzn-bedrock-invocation-latency", r"", "aws.bedrock"),
        ("apim-request-id", r"", "azure.ai.openai"),
        ("azureml-model-session", r"", "azure.ai.openai"),
        ("x-ms-deployment-name", r"", "azure.ai.openai"),
        ("anthropic-organization-id", r"", "anthropic"),
        ("anthropic-ratelimit-requests-limit", r"", "anthropic"),
        ("openai-organization", r"", "openai"),
        ("openai-project", r"", "openai"),
        ("x-ds-trace-id", r"", "deepseek"),
        ("x-fireworks-request-id", r"", "fireworks"),
        ("x-cohere-trials-remaining", r"", "cohere"),
    )
)
_REQUEST_HEADERS: Final = tuple(
    (name, re.compile(pattern), provider)
    for name, pattern, provider in (
        ("authorization", r"AWS4-HMAC-SHA256 .*/bedrock/aws4_request", "aws.bedrock"),
        ("x-goog-api-key", r"", "gcp.gemini"),
        ("x-portkey-provider", r"", "portkey"),
    )
)

# Servers of nothing else than models, which name themselves in the `Server` header.
_MODEL_SERVERS: Final = frozenset(("llamacpp", "ollama", "vllm", "sglang"))

# They stand before other vendors' APIs and keep those paths.
_GATEWAYS: Final = frozenset(("portkey", "litellm", "cloudflare"))

# What serves a dialect where nothing else tells.
_BY_API: Final[dict[str, str]] = {
    "openai.chat": "openai_compatible",
    "openai.completions": "openai_compatible",
    "openai.embeddings": "openai_compatible",
    "openai.responses": "openai_compatible",
    "mistral.fim": "mistral_ai",
    "anthropic.messages": "anthropic_compatible",
    "anthropic.complete": "anthropic",
    "gemini.generate": "gcp.gemini",
    "gemini.embed": "gcp.gemini",
    "vertex.predict": "gcp.vertex_ai",
    "bedrock.converse": "aws.bedrock",
    "bedrock.invoke": "aws.bedrock",
    "sagemaker.invoke": "aws.sagemaker",
    "ollama.chat": "ollama",
    "ollama.generate": "ollama",
    "ollama.embed": "ollama",
    "ollama.embeddings": "ollama",
    "tgi.generate": "tgi",
    "hf.text_generation": "huggingface",
    "hf.feature_extraction": "huggingface",
    "sglang.generate": "sglang",
    "vllm.generate": "vllm",
    "llamacpp.completion": "llamacpp",
    "llamacpp.embedding": "llamacpp",
    "cohere.chat": "cohere",
    "cohere.generate": "cohere",
    "cohere.embed": "cohere",
    "watsonx.generate": "ibm.watsonx.ai",
    "watsonx.chat": "ibm.watsonx.ai",
    "aleph_alpha.complete": "aleph_alpha",
    "replicate.predict": "replicate",
}

# Routes that are an API of language models wherever they are met: the request alone is enough, even if the answer is a failure.
_TELLING: Final = re.compile(
    r"/(chat/completions|fim/completions|v1/embeddings|generation/text|generation/text_stream|text/generation|text/generation_stream)/?$"
    r"|/openai/deployments/|/model/.+/(converse|invoke)|:(stream)?([gG]enerateContent|[rR]awPredict)$|:(batchEmbedContents|embedContent)$"
)
# Routes that other services may have as well: with a model named in the body the request is enough, else the answer must show it.
_TELLING_WITH_MODEL: Final = re.compile(
    r"/(v1/completions|v1/responses|v1/messages|v1/complete|embeddings|api/(chat|generate|embed|embeddings)|v[12]/(chat|embed))/?$"
)


def identify(request: RequestView | None, response: ResponseView | None, draft: Draft, api: str | None) -> str | None:
    """The provider of one exchange, or None where it is not traffic of a language model.

    `api` is the dialect's, or None for a call that no dialect decodes: then it is an auxiliary one, or nothing of ours.
    """
    if request is not None:
        known = provider_of_host(request.host, request.path)
        if known:
            return known
    if api is not None:
        if not _is_convincing(request, response, draft):
            return None
    elif request is None or auxiliary(request, response) is None:
        return None
    provider = _from_headers(request, response) or draft.provider_hint
    if request is not None and provider not in _GATEWAYS:
        for pattern, by_path in _PATHS:
            if pattern.search(request.path):
                return by_path
    if provider is not None:
        return provider
    return _BY_API.get(api, "openai_compatible") if api is not None else "openai_compatible"


def _is_convincing(request: RequestView | None, response: ResponseView | None, draft: Draft) -> bool:
    """Is this the dialect that it was taken for? The answer has taken its shape, or it failed and the request says so."""
    if draft.choices or draft.embeddings is not None or draft.usage.input_tokens is not None:
        return True
    if request is None:
        return False
    if _TELLING.search(request.path) or _from_headers(request, response) in _MODEL_SERVERS:
        return True
    if response is not None and response.status < 400 and not _is_stream(response):
        return False  # it answered well, and otherwise
    return bool(draft.request_model) and _TELLING_WITH_MODEL.search(request.path) is not None


def _is_stream(response: ResponseView) -> bool:
    return "stream" in response.content_type or "ndjson" in response.content_type


def _from_headers(request: RequestView | None, response: ResponseView | None) -> str | None:
    if response is not None:
        for name, pattern, provider in _RESPONSE_HEADERS:
            value = response.headers.get(name)
            if value is not None and pattern.search(value):
                return provider
    if request is not None:
        for name, pattern, provider in _REQUEST_HEADERS:
            value = request.headers.get(name)
            if value is not None and pattern.search(value):
                return provider
    return None
