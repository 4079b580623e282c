"""Every dialect that is known, in one list. A new provider is one file and one line here."""

from __future__ import annotations

from typing import Final

from llmsec_tap.dialects.a2a import A2AMessage
from llmsec_tap.dialects.anthropic import AnthropicComplete, AnthropicMessages
from llmsec_tap.dialects.base import JSON, Dialect, RequestView, ResponseView
from llmsec_tap.dialects.bedrock_converse import BedrockConverse
from llmsec_tap.dialects.bedrock_invoke import BedrockInvoke
from llmsec_tap.dialects.cohere import CohereChatV1, CohereChatV2, CohereEmbed, CohereGenerate
from llmsec_tap.dialects.gemini import GeminiEmbed, GeminiGenerate, VertexPredict
from llmsec_tap.dialects.gemini_live import GeminiLive
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
from llmsec_tap.dialects.mcp import MCPElicitation, MCPOther, MCPPrompt, MCPResource, MCPSampling, MCPToolCall, MCPToolList
from llmsec_tap.dialects.ollama import OllamaChat, OllamaEmbed, OllamaEmbeddings, OllamaGenerate
from llmsec_tap.dialects.openai_chat import OpenAIChat
from llmsec_tap.dialects.openai_completions import MistralFIM, OpenAICompletions, OpenAIEmbeddings
from llmsec_tap.dialects.openai_realtime import OpenAIRealtime
from llmsec_tap.dialects.openai_responses import OpenAIResponses
from llmsec_tap.dialects.rpc import KServeInfer, TGIShard, UnknownRPC, VLLMEngine
from llmsec_tap.dialects.tgi import HFFeatureExtraction, HFTextGeneration, SageMakerInvoke, TGIGenerate
from llmsec_tap.dialects.websocket import UnknownWebSocket

# Of two equal claims the earlier dialect has it.
DIALECTS: Final[tuple[Dialect, ...]] = (
    OpenAIChat(),
    OpenAICompletions(),
    MistralFIM(),
    OpenAIEmbeddings(),
    OpenAIResponses(),
    OpenAIRealtime(),
    AnthropicMessages(),
    AnthropicComplete(),
    GeminiGenerate(),
    GeminiEmbed(),
    GeminiLive(),
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
    KServeInfer(),
    VLLMEngine(),
    TGIShard(),
    UnknownRPC(),
    UnknownWebSocket(),
    MCPToolCall(),
    MCPToolList(),
    MCPPrompt(),
    MCPResource(),
    MCPSampling(),
    MCPElicitation(),
    MCPOther(),
    A2AMessage(),
)


def surest_claim(request: RequestView) -> tuple[Dialect | None, int]:
    """The dialect that claims a request most surely, once its head and body are known, and its claim; (None, 0) where none does."""
    best: Dialect | None = None
    surest = 0
    for dialect in DIALECTS:
        claim = dialect.claims(request)
        if claim > surest:
            best, surest = dialect, claim
    return best, surest


def classify_response(response: ResponseView, body: JSON) -> Dialect | None:
    """The dialect of an answer whose request was not captured: `body` is the whole body, or the data of a stream's first event."""
    best: Dialect | None = None
    surest = 0
    for dialect in DIALECTS:
        claim = dialect.recognises(response, body)
        if claim > surest:
            best, surest = dialect, claim
    return best
