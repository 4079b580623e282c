"""Who served an answer, as told by fields that only one server writes. Weaker than a known host, stronger than nothing."""

from __future__ import annotations

import re
from typing import Final

from llmsec_tap.dialects.base import JSON, dict_of, list_of

_LLAMACPP_BUILD: Final = re.compile(r"b\d+-[0-9a-f]{6,}")
_TGI_BUILD: Final = re.compile(r"\d+\.\d+\.\d+\S*-(native|sha-\w+|\w+)")
_VLLM_EMBEDDING: Final = re.compile(r"embd-[0-9a-f]{16,32}")
_VLLM_FINGERPRINT: Final = re.compile(r"vllm-")

# (field of the answer, who writes it)
_FIELDS: Final = (
    ("timings", "llamacpp"),
    ("x_groq", "groq"),
    ("kv_transfer_params", "vllm"),
    ("prompt_logprobs", "vllm"),
    ("prompt_token_ids", "vllm"),
    ("ec_transfer_params", "vllm"),
    ("meta_info", "sglang"),
    ("time_info", "cerebras"),
    ("search_results", "perplexity"),
    ("prompt_filter_results", "azure.ai.openai"),
)
_CHOICE_FIELDS: Final = (
    ("matched_stop", "sglang"),
    ("token_ids", "vllm"),
    ("stop_reason", "vllm"),
    ("content_filter_results", "azure.ai.openai"),
)


def answer_hint(value: dict[str, JSON]) -> str | None:
    """The serving system of an OpenAI-style answer or chunk."""
    for field, provider in _FIELDS:
        if field in value:
            return provider
    identity = value.get("id")
    if isinstance(identity, str):
        if identity.startswith("gen-") and isinstance(value.get("provider"), str):
            return "openrouter"
        if identity.startswith("infinity-"):
            return "infinity"
        if _VLLM_EMBEDDING.fullmatch(identity):
            return "vllm"
        if identity.startswith("msg_bdrk_"):
            return "aws.bedrock"
    fingerprint = value.get("system_fingerprint")
    if isinstance(fingerprint, str):
        if fingerprint == "fp_ollama":
            return "ollama"
        if _VLLM_FINGERPRINT.match(fingerprint):
            return "vllm"
        if _LLAMACPP_BUILD.fullmatch(fingerprint):
            return "llamacpp"
        if _TGI_BUILD.fullmatch(fingerprint):
            return "tgi"
    if "weight_version" in dict_of(value.get("metadata")):
        return "sglang"
    for choice in list_of(value.get("choices"))[:1]:
        if isinstance(choice, dict):
            for field, provider in _CHOICE_FIELDS:
                if field in choice:
                    return provider
    return None
