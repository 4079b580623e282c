"""Every dialect that is known, in one list. A new provider is one file and one line here."""

from __future__ import annotations

from typing import Final

from llmsec_tap.dialects.anthropic import AnthropicComplete, AnthropicMessages
from llmsec_tap.dialects.base import JSON, Dialect, RequestView, ResponseView
from llmsec_tap.dialects.bedrock_converse import BedrockConverse
from llmsec_tap.dialects.bedrock_invoke import BedrockInvoke
from llmsec_tap.dialects.cohere import CohereChatV1, CohereChatV2, CohereEmbed, CohereGenerate
from llmsec_tap.dialects.gemini import GeminiEmbed, GeminiGenerate, VertexPredict
from llmsec_tap.dialects.hosted import (
    AlephAlphaComplete,
    CloudflareRun,
    ReplicatePredict,
    TritonGenerate,
    WatsonxChat,
    WatsonxEmbed,
    WatsonxGenerate,
)
from llmsec_tap.dialects.inference_servers import LlamaCppCompletion, LlamaCppEmbedding, SGLangGenerate, VLLMGenerate
from llmsec_tap.dialects.ollama import OllamaChat, OllamaEmbed, OllamaEmbeddings, OllamaGenerate
from llmsec_tap.dialects.openai_chat import OpenAIChat
from llmsec_tap.dialects.openai_completions import MistralFIM, OpenAICompletions, OpenAIEmbeddings
from llmsec_tap.dialects.openai_responses import OpenAIResponses
from llmsec_tap.dialects.tgi import HFFeatureExtraction, HFTextGeneration, SageMakerInvoke, TGIGenerate
from llmsec_tap.identity.non_inference import auxiliary
from llmsec_tap.identity.who import identify

__all__ = ["DIALECTS", "auxiliary", "classify", "classify_response", "identify"]

# Of two equal claims the earlier dialect has it.
DIALECTS: Final[tuple[Dialect, ...]] = (
    OpenAIChat(),
    OpenAICompletions(),
    MistralFIM(),
    OpenAIEmbeddings(),
    OpenAIResponses(),
    AnthropicMessages(),
    AnthropicComplete(),
    GeminiGenerate(),
    GeminiEmbed(),
    VertexPredict(),
    BedrockConverse(),
    BedrockInvoke(),
    OllamaChat(),
    OllamaGenerate(),
    OllamaEmbed(),
    OllamaEmbeddings(),
    SageMakerInvoke(),
    HFTextGeneration(),
    HFFeatureExtraction(),
    TGIGenerate(),
    SGLangGenerate(),
    VLLMGenerate(),
    LlamaCppCompletion(),
    LlamaCppEmbedding(),
    CohereChatV2(),
    CohereChatV1(),
    CohereGenerate(),
    CohereEmbed(),
    WatsonxGenerate(),
    WatsonxChat(),
    WatsonxEmbed(),
    AlephAlphaComplete(),
    ReplicatePredict(),
    CloudflareRun(),
    TritonGenerate(),
)

# Claims below this rest on the body's shape alone.
_GENERIC_CLAIM: Final = 30


def classify(request: RequestView) -> Dialect | None:
    """The dialect that claims a request most surely, once its head and body are known."""
    best: Dialect | None = None
    surest = 0
    for dialect in DIALECTS:
        claim = dialect.claims(request)
        if claim > surest:
            best, surest = dialect, claim
    if surest < _GENERIC_CLAIM and auxiliary(request, None) is not None:
        return None  # a token count or a rerank may carry messages too
    return best


def classify_response(response: ResponseView, body: JSON) -> Dialect | None:
    """The dialect of an answer whose request was not captured: `body` is the whole body, or the data of a stream's first event."""
    best: Dialect | None = None
    surest = 0
    for dialect in DIALECTS:
        claim = dialect.recognises(response, body)
        if claim > surest:
            best, surest = dialect, claim
    return best
