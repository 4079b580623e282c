"""Headers, by their lower-case names, that only one provider sends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from llmsec_tap.providers.mark import Table, by_name, marks

RESPONSE_HEADERS: Final[Table] = marks(
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
REQUEST_HEADERS: Final[Table] = marks(
    ("authorization", r"AWS4-HMAC-SHA256 .*/bedrock/aws4_request", "aws.bedrock"),
    ("x-goog-api-key", r"", "gcp.gemini"),
    ("x-portkey-provider", r"", "portkey"),
)

# Servers of nothing else than models, which name themselves in the `Server` header.
MODEL_SERVERS: Final = frozenset(("llamacpp", "ollama", "vllm", "sglang"))


_in_response: Final = by_name(RESPONSE_HEADERS)
_in_request: Final = by_name(REQUEST_HEADERS)


def provider_of_headers(response: Mapping[str, str], request: Mapping[str, str]) -> str | None:
    """The response's come first: the request's may be meant for a gateway."""
    return _in_response(response) or _in_request(request)
