"""Identifies the serving system from fields of an answer that only one implementation writes.

Weaker than a known host, stronger than nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from llmsec_tap.providers.mark import Mark, marks

# OpenAI-style answers and chunks, `where` being a field of the object, of its first choice, …
FIELDS: Final[tuple[Mark, ...]] = marks(
    ("timings", r"", "llamacpp"),
    ("x_groq", r"", "groq"),
    ("kv_transfer_params", r"", "vllm"),
    ("prompt_logprobs", r"", "vllm"),
    ("prompt_token_ids", r"", "vllm"),
    ("ec_transfer_params", r"", "vllm"),
    ("meta_info", r"", "sglang"),
    ("time_info", r"", "cerebras"),
    ("search_results", r"", "perplexity"),
    ("prompt_filter_results", r"", "azure.ai.openai"),
)
CHOICE_FIELDS: Final[tuple[Mark, ...]] = marks(
    ("matched_stop", r"", "sglang"),
    ("token_ids", r"", "vllm"),
    ("stop_reason", r"", "vllm"),
    ("content_filter_results", r"", "azure.ai.openai"),
)
IDS: Final[tuple[Mark, ...]] = marks(
    ("id", r"infinity-", "infinity"),
    ("id", r"embd-[0-9a-f]{16,32}\Z", "vllm"),
    ("id", r"msg_bdrk_", "aws.bedrock"),
)
FINGERPRINTS: Final[tuple[Mark, ...]] = marks(
    ("system_fingerprint", r"fp_ollama\Z", "ollama"),
    ("system_fingerprint", r"vllm-", "vllm"),
    ("system_fingerprint", r"b\d+-[0-9a-f]{6,}\Z", "llamacpp"),
    ("system_fingerprint", r"\d+\.\d+\.\d+\S*-(native|sha-\w+|\w+)\Z", "tgi"),
)
# Anthropic's own answers, and those of servers that speak its API: the id of a message.
ANTHROPIC_IDS: Final[tuple[Mark, ...]] = marks(
    ("id", r"msg_bdrk_", "aws.bedrock"),
    ("id", r"msg_vrtx_", "gcp.vertex_ai"),
    ("id", r"chatcmpl-", "vllm"),
    ("id", r"msg_01[0-9A-Za-z]{22}\Z", "anthropic"),
)


def provider_of_answer(value: Mapping[str, Any]) -> str | None:
    """The serving system of an OpenAI-style answer or chunk (decoded JSON)."""
    for field, _, provider in FIELDS:
        if field in value:
            return provider
    identity = value.get("id")
    if isinstance(identity, str):
        if identity.startswith("gen-") and isinstance(value.get("provider"), str):
            return "openrouter"
        if (found := _first(IDS, identity)) is not None:
            return found
    fingerprint = value.get("system_fingerprint")
    if isinstance(fingerprint, str) and (found := _first(FINGERPRINTS, fingerprint)) is not None:
        return found
    metadata = value.get("metadata")
    if isinstance(metadata, dict) and "weight_version" in metadata:
        return "sglang"
    choices = value.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if isinstance(choice, dict):
        for field, _, provider in CHOICE_FIELDS:
            if field in choice:
                return provider
    return None


def provider_of_anthropic_id(identity: str) -> str | None:
    return _first(ANTHROPIC_IDS, identity)


def _first(table: tuple[Mark, ...], value: str) -> str | None:
    for _, pattern, provider in table:
        if pattern.match(value):
            return provider
    return None
