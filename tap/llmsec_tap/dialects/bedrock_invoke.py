"""Amazon Bedrock InvokeModel and InvokeModelWithResponseStream: each model family in its own body.

https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_InvokeModel.html and
https://docs.aws.amazon.com/bedrock/latest/userguide/model-parameters.html. A stream's `chunk` holds the family's own event in base64.
The family is told by the body's shape, not by the model's name: an ARN or an imported model hides it. Counts come from the body,
else from the headers `x-amzn-bedrock-*-token-count`, else from `amazon-bedrock-invocationMetrics` in the last chunk.
"""

from __future__ import annotations

import binascii
import re
from binascii import a2b_base64
from typing import ClassVar, Final

from llmsec_tap.dialects import claims, messages
from llmsec_tap.dialects.anthropic import AnthropicReader, anthropic_request
from llmsec_tap.dialects.base import JSON, EventHandler, NotJSON, RequestView, ResponseView, count_of, dict_of, list_of, parse_json, text_of
from llmsec_tap.dialects.bedrock_converse import ConverseReader, converse_request, model_in_path, stream_exception
from llmsec_tap.dialects.cohere import CohereReader, cohere_v1_request
from llmsec_tap.dialects.dialect import BaseDialect
from llmsec_tap.dialects.draft import Draft
from llmsec_tap.dialects.failures import read_stated_failure
from llmsec_tap.dialects.openai_chat import Reader as OpenAIReader
from llmsec_tap.dialects.vectors import count_vectors, dimensions

_ROUTE: Final = re.compile(r"/model/.+/invoke(-with-response-stream|-with-bidirectional-stream)?$")
_METRICS: Final = "amazon-bedrock-invocationMetrics"
_NOVA_EVENTS: Final = ("contentBlockDelta", "contentBlockStart", "messageStop", "metadata")


class BedrockInvoke(BaseDialect):
    api: ClassVar[str] = "bedrock.invoke"
    operation: ClassVar[str] = "chat"
    default_provider: ClassVar[str] = "aws.bedrock"

    def claims(self, request: RequestView) -> int:
        return claims.OWN_ROUTE if request.method == "POST" and _ROUTE.search(request.path) else 0

    def recognises(self, response: ResponseView, body: JSON) -> int:
        if response.content_type == "application/vnd.amazon.eventstream" and isinstance(dict_of(body).get("bytes"), str):
            return claims.LIKELY_FIELDS
        return claims.OWN_HEADER if "x-amzn-bedrock-invocation-latency" in response.headers and isinstance(body, dict) else 0

    def decode_request(self, request: RequestView, draft: Draft) -> None:
        draft.request_model = model_in_path(request)
        body = request.body
        if not isinstance(body, dict):
            return
        if isinstance(body.get("messages"), list):
            if "inferenceConfig" in body or "schemaVersion" in body or _is_converse(body["messages"]):
                converse_request(body, draft)
            elif "anthropic_version" in body:
                anthropic_request(body, draft)
            else:
                messages.chat_messages(body["messages"], draft)
                messages.tools(body.get("tools"), draft)
                messages.parameters(body, draft)
            return
        if isinstance(body.get("message"), str):
            cohere_v1_request(body, draft)
            return
        draft.operation = _operation(body, draft.request_model or "")
        for key in ("prompt", "inputText", "texts", "inputs", "input", "text_prompts"):
            if body.get(key) is not None:
                messages.prompt(body[key], draft)
                break
        messages.parameters(body, draft, nested=("textGenerationConfig", "parameters", "embeddingConfig"))

    def answer(self, request: RequestView | None, response: ResponseView, body: JSON, ts_ns: int, draft: Draft) -> None:
        _Reader(draft).read(body, ts_ns, streaming=False)
        usage = draft.usage
        if usage.input_tokens is None:
            usage.input_tokens = _count(response, "x-amzn-bedrock-input-token-count")
        if usage.output_tokens is None and draft.embeddings is None:
            usage.output_tokens = _count(response, "x-amzn-bedrock-output-token-count")
        if usage.cached_input_tokens is None:
            usage.cached_input_tokens = _count(response, "x-amzn-bedrock-cache-read-input-token-count")
        if usage.cache_write_tokens is None:
            usage.cache_write_tokens = _count(response, "x-amzn-bedrock-cache-write-input-token-count")

    def stream(self, request: RequestView | None, response: ResponseView, draft: Draft) -> EventHandler:
        read = _Reader(draft).read
        overlooked = draft.overlooked

        def on_event(ts_ns: int, name: str | None, data: bytes) -> None:
            if name is not None and name.startswith("exception:"):
                stream_exception(name, data, draft)
                return
            try:
                value = parse_json(data)
                wrapped = dict_of(value).get("bytes")
                inner = a2b_base64(wrapped) if isinstance(wrapped, str) else data
                if inner is not data:
                    value = parse_json(inner, draft)
                before = draft.chars
                read(value, ts_ns, streaming=True)
                read_stated_failure(value, draft)
                if overlooked is not None and isinstance(value, dict):
                    overlooked.event(None, value, len(inner), draft.chars - before)
            except (NotJSON, binascii.Error, ValueError):
                draft.unread_event(data)

        return on_event


def _is_converse(entries: list[JSON]) -> bool:
    """Nova's content parts have no `type`."""
    for entry in entries:
        content = list_of(dict_of(entry).get("content"))
        if content:
            return isinstance(content[0], dict) and "type" not in content[0]
    return False


def _operation(body: dict[str, JSON], model: str) -> str:
    if "embed" in model or "texts" in body or ("inputText" in body and ("normalize" in body or "dimensions" in body)):
        return "embeddings"
    if "text_prompts" in body or "taskType" in body or "stability." in model:
        return "image"
    return "text_completion"


def _count(response: ResponseView, header: str) -> int | None:
    value = response.headers.get(header, "")
    return int(value) if value.isascii() and value.isdigit() and len(value) < 19 else None


class _Reader:
    """One body or chunk of whichever family; state is kept by the family's own reader."""

    __slots__ = ("_anthropic", "_cohere", "_converse", "_draft", "_openai")

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self._anthropic = AnthropicReader(draft)
        self._openai = OpenAIReader(draft)
        self._converse = ConverseReader(draft)
        self._cohere = CohereReader(draft)

    def _sonic(self, event: dict[str, JSON], ts_ns: int) -> None:
        """Nova Sonic, in the bidirectional stream: the answer's text beside its audio. What the user said comes as text, too, and stays an other text."""
        draft, text, usage = self._draft, dict_of(event.get("textOutput")), dict_of(event.get("usageEvent"))
        if text.get("role") == "ASSISTANT" and isinstance(text.get("content"), str):
            draft.text(ts_ns, 0, text["content"])
        if usage:
            self._counts(usage.get("totalInputTokens"), usage.get("totalOutputTokens"))
        if isinstance(event.get("completionEnd"), dict):
            draft.finish(0, text_of(event["completionEnd"].get("stopReason")))
            draft.terminated = True

    def read(self, body: JSON, ts_ns: int, *, streaming: bool) -> None:
        if isinstance(body, list):  # imported TGI models
            body = body[0] if body else None
        if not isinstance(body, dict):
            return
        draft = self._draft
        if "choices" in body:
            self._choices(body, ts_ns)
        elif "outputs" in body:  # Mistral
            for index, output in enumerate(list_of(body.get("outputs"))):
                self._output(dict_of(output), index, ts_ns, "text", "stop_reason")
        elif "generation" in body:  # Meta Llama
            self._output(body, 0, ts_ns, "generation", "stop_reason")
            self._counts(body.get("prompt_token_count"), body.get("generation_token_count"))
        elif "outputText" in body:  # Titan, streaming
            self._output(body, count_of(body.get("index")) or 0, ts_ns, "outputText", "completionReason")
            self._counts(body.get("inputTextTokenCount"), body.get("totalOutputTextTokenCount"))
        elif "results" in body:  # Titan
            for index, result in enumerate(list_of(body.get("results"))):
                self._output(dict_of(result), index, ts_ns, "outputText", "completionReason")
                if index == 0:
                    self._counts(body.get("inputTextTokenCount"), dict_of(result).get("tokenCount"))
        elif "embedding" in body or "embeddings" in body or "embeddingsByType" in body:
            self._embedding(body)
        elif "completions" in body:  # AI21 Jurassic
            for index, output in enumerate(list_of(body.get("completions"))):
                draft.text(ts_ns, index, text_of(dict_of(dict_of(output).get("data")).get("text")) or "")
                draft.finish(index, text_of(dict_of(dict_of(output).get("finishReason")).get("reason")))
            draft.response_id = text_of(body.get("id")) or draft.response_id
        elif "generated_text" in body:
            self._output(body, 0, ts_ns, "generated_text", "stop_reason")
        elif isinstance(body.get("event"), dict):
            self._sonic(body["event"], ts_ns)
        elif any(event in body for event in _NOVA_EVENTS):
            for event in _NOVA_EVENTS:
                if isinstance(body.get(event), dict):
                    self._converse.event(event, body[event], ts_ns)
        elif isinstance(dict_of(body.get("output")).get("message"), dict):
            self._converse.whole(body, ts_ns)
        elif "generations" in body or "event_type" in body or ("text" in body and "type" not in body) or "is_finished" in body:
            self._cohere.read(body, ts_ns)
        elif "completion" in body:  # Claude 2
            self._output(body, 0, ts_ns, "completion", "stop_reason")
        elif streaming:
            self._anthropic.event(ts_ns, None, body)
        elif body.get("type") in ("message", "error"):
            self._anthropic.whole(body, ts_ns)
        elif isinstance(dict_of(body.get("Output")).get("__type"), str):
            self._converse.whole(body, ts_ns)
        metrics = body.get(_METRICS)
        if isinstance(metrics, dict):
            self._metrics(metrics)

    def _choices(self, body: dict[str, JSON], ts_ns: int) -> None:
        self._openai.read(body, ts_ns)
        for position, choice in enumerate(list_of(body.get("choices"))):
            choice = dict_of(choice)
            if not isinstance(choice.get("finish_reason"), str) and isinstance(choice.get("stop_reason"), str):
                index = choice.get("index")
                self._draft.finish(index if isinstance(index, int) else position, choice["stop_reason"])
                self._draft.terminated = True

    def _output(self, output: dict[str, JSON], index: int, ts_ns: int, text: str, reason: str) -> None:
        if isinstance(output.get(text), str):
            self._draft.text(ts_ns, index, output[text])
        why = text_of(output.get(reason))
        if why:
            self._draft.finish(index, why)
            self._draft.terminated = True

    def _counts(self, given: JSON, made: JSON) -> None:
        usage = self._draft.usage
        if (count := count_of(given)) is not None:
            usage.input_tokens = count
        if (count := count_of(made)) is not None:
            usage.output_tokens = count

    def _embedding(self, body: dict[str, JSON]) -> None:
        draft = self._draft
        vectors = body.get("embeddings")
        by_type = vectors if isinstance(vectors, dict) else body.get("embeddingsByType")
        if isinstance(body.get("embedding"), list):
            draft.embeddings = 1
            draft.embedding_dimensions = dimensions(body["embedding"])
        elif isinstance(by_type, dict):
            first = next(iter(by_type.values()), None)
            if isinstance(first, list) and first and isinstance(first[0], int | float):
                first = [first]
            count_vectors(first, draft)
        elif isinstance(vectors, list) and vectors and isinstance(vectors[0], dict):  # Nova
            draft.embeddings = len(vectors)
            draft.embedding_dimensions = dimensions(vectors[0].get("embedding"))
        else:
            count_vectors(vectors, draft)
        draft.response_id = draft.response_id or text_of(body.get("id"))
        self._counts(body.get("inputTextTokenCount"), None)

    def _metrics(self, metrics: dict[str, JSON]) -> None:
        usage = self._draft.usage
        if usage.input_tokens is None:
            usage.input_tokens = count_of(metrics.get("inputTokenCount"))
        if usage.output_tokens is None:
            usage.output_tokens = count_of(metrics.get("outputTokenCount"))
        if usage.cached_input_tokens is None:
            usage.cached_input_tokens = count_of(metrics.get("cacheReadInputTokenCount"))
        if usage.cache_write_tokens is None:
            usage.cache_write_tokens = count_of(metrics.get("cacheWriteInputTokenCount"))
        self._draft.terminated = True  # they come in the last chunk only
