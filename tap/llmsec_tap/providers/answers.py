"""Identifies the serving system from fields of an answer that only one implementation writes.

Weaker than a known host, stronger than nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from llmsec_tap.providers.mark import Table, by_name, by_value, marks

# OpenAI-style answers and chunks, `where` being a field of the object, of its first choice, …
FIELDS: Final[Table] = marks(
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
CHOICE_FIELDS: Final[Table] = marks(
    ("matched_stop", r"", "sglang"),
    ("token_ids", r"", "vllm"),
    ("stop_reason", r"", "vllm"),
    ("content_filter_results", r"", "azure.ai.openai"),
)
IDS: Final[Table] = marks(
    ("id", r"infinity-", "infinity"),
    ("id", r"embd-[0-9a-f]{16,32}\Z", "vllm"),
    ("id", r"msg_bdrk_", "aws.bedrock"),
)
FINGERPRINTS: Final[Table] = marks(
    ("system_fingerprint", r"fp_ollama\Z", "ollama"),
    ("system_fingerprint", r"vllm-", "vllm"),
    ("system_fingerprint", r"b\d+-[0-9a-f]{6,}\Z", "llamacpp"),
    ("system_fingerprint", r"\d+\.\d+\.\d+\S*-(native|sha-\w+|\w+)\Z", "tgi"),
)
# Anthropic's own answers, and those of servers that speak its API: the id of a message.
ANTHROPIC_IDS: Final[Table] = marks(
    ("id", r"msg_bdrk_", "aws.bedrock"),
    ("id", r"msg_vrtx_", "gcp.vertex_ai"),
    ("id", r"chatcmpl-", "vllm"),
    ("id", r"msg_01[0-9A-Za-z]{22}\Z", "anthropic"),
)


_by_field: Final = by_name(FIELDS)
_by_choice_field: Final = by_name(CHOICE_FIELDS)
_by_id: Final = by_value(IDS)
_by_fingerprint: Final = by_value(FINGERPRINTS)

provider_of_anthropic_id: Final = by_value(ANTHROPIC_IDS)


def provider_of_answer(value: Mapping[str, Any]) -> str | None:
    """The serving system of an OpenAI-style answer or chunk (decoded JSON)."""
    found = _by_field(value)
    identity = value.get("id")
    if found is None and isinstance(identity, str):
        if identity.startswith("gen-") and isinstance(value.get("provider"), str):
            return "openrouter"
        found = _by_id(identity)
    fingerprint = value.get("system_fingerprint")
    if found is None and isinstance(fingerprint, str):
        found = _by_fingerprint(fingerprint)
    if found is not None:
        return found
    metadata = value.get("metadata")
    if isinstance(metadata, dict) and "weight_version" in metadata:
        return "sglang"
    choices = value.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    return _by_choice_field(choice) if isinstance(choice, dict) else None
