"""Token counts in the shapes of the vendors. Every function sets what is stated and leaves the rest as it was: the last one wins."""

from __future__ import annotations

from llmsec_tap.dialects.base import JSON, count_of
from llmsec_tap.dialects.draft import Draft


def openai_usage(value: JSON, draft: Draft, *, embedding: bool = False) -> None:
    """`usage` of chat, completions and embeddings (platform.openai.com/docs/api-reference/chat/object), with what others add.

    DeepSeek: prompt_cache_hit_tokens. Groq: x_groq.usage. Embedding servers such as Voyage's state total_tokens only.
    """
    if not isinstance(value, dict):
        return
    usage = draft.usage
    count = count_of(value.get("prompt_tokens"))
    if count is None:
        count = count_of(value.get("input_tokens"))
    if count is None and embedding:
        count = count_of(value.get("total_tokens"))
    if count is not None:
        usage.input_tokens = count
    count = count_of(value.get("completion_tokens"))
    if count is None:
        count = count_of(value.get("output_tokens"))
    if count is not None:
        usage.output_tokens = count
    details = value.get("prompt_tokens_details")
    if not isinstance(details, dict):
        details = value.get("input_tokens_details")
    if not isinstance(details, dict):
        details = value.get("prompt_token_details")
    count = count_of(details.get("cached_tokens")) if isinstance(details, dict) else None
    if count is None:
        count = count_of(value.get("prompt_cache_hit_tokens"))
    for key in ("cached_tokens", "num_cached_tokens"):  # Moonshot, Mistral
        if count is None:
            count = count_of(value.get(key))
    if count is not None:
        usage.cached_input_tokens = count
    if isinstance(details, dict):
        count = count_of(details.get("cache_write_tokens"))
        if count is None:
            count = count_of(details.get("cache_creation_tokens"))
        if count is not None:
            usage.cache_write_tokens = count
    details = value.get("completion_tokens_details")
    if not isinstance(details, dict):
        details = value.get("output_tokens_details")
    if not isinstance(details, dict):
        details = value.get("completion_token_details")
    count = count_of(details.get("reasoning_tokens")) if isinstance(details, dict) else None
    if count is None:
        count = count_of(value.get("reasoning_tokens"))
    if count is not None:
        usage.reasoning_tokens = count


def anthropic_usage(value: JSON, draft: Draft) -> None:
    """`usage` of the Messages API: input_tokens leave cached ones out (docs.claude.com/en/api/messages)."""
    if not isinstance(value, dict):
        return
    usage = draft.usage
    if (count := count_of(value.get("input_tokens"))) is not None:
        usage.input_tokens = count
    if (count := count_of(value.get("output_tokens"))) is not None:
        usage.output_tokens = count
    if (count := count_of(value.get("cache_read_input_tokens"))) is not None:
        usage.cached_input_tokens = count
    if (count := count_of(value.get("cache_creation_input_tokens"))) is not None:
        usage.cache_write_tokens = count
    details = value.get("output_tokens_details")
    if isinstance(details, dict) and (
        (count := count_of(details.get("thinking_tokens"))) is not None or (count := count_of(details.get("reasoning_tokens"))) is not None
    ):
        usage.reasoning_tokens = count


def converse_usage(value: JSON, draft: Draft) -> None:
    """`TokenUsage` of the Bedrock Converse API, also in Amazon Nova's own bodies."""
    if not isinstance(value, dict):
        return
    usage = draft.usage
    if (count := count_of(value.get("inputTokens"))) is not None:
        usage.input_tokens = count
    if (count := count_of(value.get("outputTokens"))) is not None:
        usage.output_tokens = count
    for key in ("cacheReadInputTokens", "cacheReadInputTokenCount"):
        if (count := count_of(value.get(key))) is not None:
            usage.cached_input_tokens = count
            break
    for key in ("cacheWriteInputTokens", "cacheWriteInputTokenCount"):
        if (count := count_of(value.get(key))) is not None:
            usage.cache_write_tokens = count
            break


def gemini_usage(value: JSON, draft: Draft) -> None:
    """`UsageMetadata` (ai.google.dev/api/generate-content): candidates without thoughts."""
    if not isinstance(value, dict):
        return
    usage = draft.usage
    if (count := count_of(value.get("promptTokenCount"))) is not None:
        usage.input_tokens = count
    if (count := count_of(value.get("candidatesTokenCount"))) is not None:
        usage.output_tokens = count
    if (count := count_of(value.get("cachedContentTokenCount"))) is not None:
        usage.cached_input_tokens = count
    if (count := count_of(value.get("thoughtsTokenCount"))) is not None:
        usage.reasoning_tokens = count


def cohere_usage(value: JSON, draft: Draft) -> None:
    """`meta` (v1) or `usage` (v2): what was used in `tokens`, else what is billed (docs.cohere.com/reference/chat)."""
    if not isinstance(value, dict):
        return
    usage = draft.usage
    counts = value.get("tokens")
    if not isinstance(counts, dict):
        counts = value.get("billed_units")
    if isinstance(counts, dict):
        if (count := count_of(counts.get("input_tokens"))) is not None:
            usage.input_tokens = count
        if (count := count_of(counts.get("output_tokens"))) is not None:
            usage.output_tokens = count
    if (count := count_of(value.get("cached_tokens"))) is not None:
        usage.cached_input_tokens = count
