"""OpenAI legacy completions and embeddings, as many servers speak them.

https://platform.openai.com/docs/api-reference/completions and .../embeddings. Also Mistral's fill-in-the-middle route
(https://docs.mistral.ai/api/#tag/fim): a completion's prompt in, a chat message out.
"""

from __future__ import annotations

from typing import ClassVar

from llmsec_tap.dialects import claims, messages
from llmsec_tap.dialects.base import JSON, RequestView, ResponseView, dict_of, list_of, text_of
from llmsec_tap.dialects.dialect import BaseDialect
from llmsec_tap.dialects.draft import Draft
from llmsec_tap.dialects.openai_chat import OpenAIChat, azure_deployment, chat_shaped
from llmsec_tap.dialects.usage import openai_usage
from llmsec_tap.dialects.vectors import dimensions
from llmsec_tap.model import Message, Part
from llmsec_tap.providers.answers import provider_of_answer


class OpenAICompletions(OpenAIChat):
    """Chunks differ from chat's in having `text` in the choice, which the shared reader knows."""

    api: ClassVar[str] = "openai.completions"
    operation: ClassVar[str] = "text_completion"
    default_provider: ClassVar[str] = "openai_compatible"

    def claims(self, request: RequestView) -> int:
        path = request.path.rstrip("/")
        if request.method != "POST" or not path.endswith("/completions") or path.endswith("/chat/completions"):
            return 0
        body = request.body
        if isinstance(body, dict) and chat_shaped(body) and "prompt" not in body:
            return 0
        return claims.ROUTE_AND_SHAPE if isinstance(body, dict) and "prompt" in body else claims.SHARED_ROUTE

    def recognises(self, response: ResponseView, body: JSON) -> int:
        if not isinstance(body, dict):
            return 0
        if body.get("object") == "text_completion":
            return claims.NAMES_ITSELF
        choices = list_of(body.get("choices"))
        return claims.FEW_FIELDS if choices and isinstance(choices[0], dict) and "text" in choices[0] else 0

    def decode_request(self, request: RequestView, draft: Draft) -> None:
        body = request.body
        draft.request_model = text_of(request.get("model")) or azure_deployment(request)
        if isinstance(body, dict):
            messages.prompt(body.get("prompt"), draft)
            messages.parameters(body, draft)


class MistralFIM(OpenAIChat):
    api: ClassVar[str] = "mistral.fim"
    operation: ClassVar[str] = "text_completion"
    default_provider: ClassVar[str] = "mistral_ai"

    def claims(self, request: RequestView) -> int:
        return claims.OWN_ROUTE if request.method == "POST" and request.path.rstrip("/").endswith("/fim/completions") else 0

    def recognises(self, response: ResponseView, body: JSON) -> int:
        return 0  # its answers are chat completions

    def decode_request(self, request: RequestView, draft: Draft) -> None:
        draft.request_model = text_of(request.get("model"))
        messages.prompt(request.get("prompt"), draft)
        messages.parameters(request.body, draft)


class OpenAIEmbeddings(BaseDialect):
    api: ClassVar[str] = "openai.embeddings"
    operation: ClassVar[str] = "embeddings"
    default_provider: ClassVar[str] = "openai_compatible"

    def claims(self, request: RequestView) -> int:
        path = request.path.rstrip("/")
        if request.method != "POST" or not path.endswith("/embeddings"):
            return 0
        body = request.body
        if isinstance(body, dict):
            if "input" in body:
                return claims.ROUTE_AND_SHAPE
            # Ollama's own route has a prompt; llama.cpp also takes `content`.
            return claims.FAINT if "prompt" in body and path.endswith("/api/embeddings") else claims.SHARED_ROUTE_AND_HINT
        return claims.SHARED_ROUTE

    def recognises(self, response: ResponseView, body: JSON) -> int:
        if not isinstance(body, dict):
            return 0
        data = list_of(body.get("data"))
        return claims.OWN_FIELDS if data and isinstance(data[0], dict) and "embedding" in data[0] else 0

    def decode_request(self, request: RequestView, draft: Draft) -> None:
        draft.request_model = text_of(request.get("model")) or azure_deployment(request)
        inputs = request.get("input")
        messages.prompt(inputs if inputs is not None else request.get("content"), draft)
        if isinstance(inputs, list) and inputs and isinstance(inputs[0], int):
            draft.messages.append(Message(role="user", parts=[Part(type="other", name="token_ids")]))
        messages.parameters(request.body, draft)

    def answer(self, request: RequestView | None, response: ResponseView, body: JSON, ts_ns: int, draft: Draft) -> None:
        body = dict_of(body)
        draft.response_model = text_of(body.get("model")) or None
        draft.response_id = text_of(body.get("id")) or None
        draft.provider_hint = provider_of_answer(body)
        data = body.get("data")
        if isinstance(data, list) and (not data or isinstance(data[0], dict)):
            draft.embeddings = len(data)
            if data:
                draft.embedding_dimensions = dimensions(data[0].get("embedding"))
        openai_usage(body.get("usage"), draft, embedding=True)
