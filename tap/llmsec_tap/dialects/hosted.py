"""Vendors with a wire format of their own and one or two routes: IBM watsonx.ai, Aleph Alpha, Replicate, Cloudflare Workers AI,
NVIDIA Triton.

https://cloud.ibm.com/apidocs/watsonx-ai, https://docs.aleph-alpha.com/api/complete, https://replicate.com/docs/reference/http,
https://developers.cloudflare.com/workers-ai, https://docs.nvidia.com/deeplearning/triton-inference-server (generate extension).
"""

from __future__ import annotations

import re
from typing import ClassVar, Final

from llmsec_tap.dialects import claims, messages
from llmsec_tap.dialects.base import JSON, EventHandler, RequestView, ResponseView, count_of, dict_of, dump_json, list_of, text_of
from llmsec_tap.dialects.dialect import BaseDialect
from llmsec_tap.dialects.draft import Draft
from llmsec_tap.dialects.failures import read_stream_failure
from llmsec_tap.dialects.json_events import json_events
from llmsec_tap.dialects.openai_chat import OpenAIChat
from llmsec_tap.dialects.openai_chat import Reader as OpenAIReader
from llmsec_tap.dialects.usage import openai_usage
from llmsec_tap.dialects.vectors import dimensions

_WATSONX_TEXT: Final = re.compile(r"/ml/v1[\w-]*/(deployments/[^/]+/)?(generation/text|text/generation)(_stream)?$")
_WATSONX_CHAT: Final = re.compile(r"/ml/v1[\w-]*/(deployments/[^/]+/)?text/chat(_stream)?$")
_WATSONX_EMBED: Final = re.compile(r"/ml/v1[\w-]*/text/embeddings$")
_REPLICATE: Final = re.compile(r"/v1/((models|deployments)/[^/]+/[^/]+/)?predictions$")
_CLOUDFLARE: Final = re.compile(r"/ai/run/(@[\w-]+/[^/]+/[^/]+)$|/workers-ai/(@[\w-]+/[^/]+/[^/]+)$")
_TRITON: Final = re.compile(r"/v2/models/([^/]+)/(versions/[^/]+/)?generate(_stream)?$")


class WatsonxGenerate(BaseDialect):
    api: ClassVar[str] = "watsonx.generate"
    operation: ClassVar[str] = "text_completion"
    default_provider: ClassVar[str] = "ibm.watsonx.ai"

    def claims(self, request: RequestView) -> int:
        return claims.OWN_ROUTE if request.method == "POST" and _WATSONX_TEXT.search(request.path) else 0

    def recognises(self, response: ResponseView, body: JSON) -> int:
        results = list_of(dict_of(body).get("results"))
        return claims.OWN_FIELDS if results and "generated_text" in dict_of(results[0]) else 0

    def decode_request(self, request: RequestView, draft: Draft) -> None:
        draft.request_model = text_of(request.get("model_id"))
        messages.prompt(request.get("input"), draft)
        messages.parameters(request.body, draft, nested=("parameters",))

    def answer(self, request: RequestView | None, response: ResponseView, body: JSON, ts_ns: int, draft: Draft) -> None:
        body = dict_of(body)
        if body.get("error") or body.get("errors"):
            read_stream_failure(body, draft)
        draft.response_model = draft.response_model or text_of(body.get("model_id"))
        for index, result in enumerate(list_of(body.get("results"))):
            result = dict_of(result)
            if isinstance(result.get("generated_text"), str):
                draft.text(ts_ns, index, result["generated_text"])
            reason = text_of(result.get("stop_reason"))
            if reason and reason.lower() != "not_finished":
                draft.finish(index, reason)
                draft.terminated = True
            if index == 0:
                # The first chunk states the input and no output, the later ones the reverse: zero means unsaid there.
                if count := count_of(result.get("input_token_count")):
                    draft.usage.input_tokens = count
                if (count := count_of(result.get("generated_token_count"))) is not None:
                    draft.usage.output_tokens = count


class WatsonxChat(OpenAIChat):
    """OpenAI's answers to a request that names the model `model_id`."""

    api: ClassVar[str] = "watsonx.chat"
    default_provider: ClassVar[str] = "ibm.watsonx.ai"

    def claims(self, request: RequestView) -> int:
        return claims.OWN_ROUTE if request.method == "POST" and _WATSONX_CHAT.search(request.path) else 0

    def recognises(self, response: ResponseView, body: JSON) -> int:
        return 0

    def decode_request(self, request: RequestView, draft: Draft) -> None:
        super().decode_request(request, draft)
        draft.request_model = text_of(request.get("model_id")) or draft.request_model


class WatsonxEmbed(BaseDialect):
    api: ClassVar[str] = "watsonx.embed"
    operation: ClassVar[str] = "embeddings"
    default_provider: ClassVar[str] = "ibm.watsonx.ai"

    def claims(self, request: RequestView) -> int:
        return claims.OWN_ROUTE if request.method == "POST" and _WATSONX_EMBED.search(request.path) else 0

    def decode_request(self, request: RequestView, draft: Draft) -> None:
        draft.request_model = text_of(request.get("model_id"))
        messages.prompt(request.get("inputs"), draft)
        messages.parameters(request.body, draft, nested=("parameters",))

    def answer(self, request: RequestView | None, response: ResponseView, body: JSON, ts_ns: int, draft: Draft) -> None:
        body = dict_of(body)
        draft.response_model = text_of(body.get("model_id"))
        results = list_of(body.get("results"))
        draft.embeddings = len(results)
        if results:
            draft.embedding_dimensions = dimensions(dict_of(results[0]).get("embedding"))
        draft.usage.input_tokens = count_of(body.get("input_token_count"))


class AlephAlphaComplete(BaseDialect):
    api: ClassVar[str] = "aleph_alpha.complete"
    operation: ClassVar[str] = "text_completion"
    default_provider: ClassVar[str] = "aleph_alpha"

    def claims(self, request: RequestView) -> int:
        if request.method != "POST" or not request.path.rstrip("/").endswith("/complete"):
            return 0
        body = dict_of(request.body)
        return claims.SHARED_ROUTE_AND_SHAPE if "prompt" in body and ("maximum_tokens" in body or "model" in body) else 0

    def recognises(self, response: ResponseView, body: JSON) -> int:
        return claims.OWN_FIELDS if "num_tokens_prompt_total" in dict_of(body) else 0

    def decode_request(self, request: RequestView, draft: Draft) -> None:
        draft.request_model = text_of(request.get("model"))
        given = request.get("prompt")
        if isinstance(given, list):
            texts = [p["data"] for p in given if isinstance(p, dict) and p.get("type") == "text" and isinstance(p.get("data"), str)]
            given = "\n".join(texts) if texts else None
        messages.prompt(given, draft)
        messages.parameters(request.body, draft)

    def answer(self, request: RequestView | None, response: ResponseView, body: JSON, ts_ns: int, draft: Draft) -> None:
        body = dict_of(body)
        for index, output in enumerate(list_of(body.get("completions"))):
            output = dict_of(output)
            if isinstance(output.get("completion"), str):
                draft.text(ts_ns, index, output["completion"])
            draft.finish(index, text_of(output.get("finish_reason")))
        if body.get("type") == "stream_chunk" and isinstance(body.get("completion"), str):
            draft.text(ts_ns, count_of(body.get("index")) or 0, body["completion"])
        elif body.get("type") == "stream_summary":
            draft.finish(count_of(body.get("index")) or 0, text_of(body.get("finish_reason")))
        elif body.get("type") == "completion_summary":
            draft.terminated = True
        draft.response_model = draft.response_model or text_of(body.get("model_version"))
        if (count := count_of(body.get("num_tokens_prompt_total"))) is not None:
            draft.usage.input_tokens = count
        if (count := count_of(body.get("num_tokens_generated"))) is not None:
            draft.usage.output_tokens = count


class ReplicatePredict(BaseDialect):
    """A prediction that is asked for and, with `Prefer: wait`, answered at once; language models put out a list of texts."""

    api: ClassVar[str] = "replicate.predict"
    operation: ClassVar[str] = "text_completion"
    default_provider: ClassVar[str] = "replicate"

    def claims(self, request: RequestView) -> int:
        if request.method != "POST" or not _REPLICATE.search(request.path):
            return 0
        asked = dict_of(request.get("input"))
        return claims.ROUTE if isinstance(asked.get("prompt"), str) or isinstance(asked.get("messages"), list) else 0

    def decode_request(self, request: RequestView, draft: Draft) -> None:
        asked = dict_of(request.get("input"))
        draft.operation = "prediction"
        segments = request.segments
        if len(segments) >= 5:
            draft.request_model = "/".join(segments[-3:-1])
        else:
            draft.request_model = text_of(request.get("model")) or text_of(request.get("version"))
        if isinstance(asked.get("messages"), list):
            messages.chat_messages(asked["messages"], draft)
        else:
            messages.prompt(asked.get("prompt"), draft)
        messages.parameters(asked, draft)

    def answer(self, request: RequestView | None, response: ResponseView, body: JSON, ts_ns: int, draft: Draft) -> None:
        body = dict_of(body)
        draft.response_id = text_of(body.get("id"))
        draft.response_model = text_of(body.get("model"))
        output = body.get("output")
        texts = [output] if isinstance(output, str) else [t for t in list_of(output) if isinstance(t, str)]
        if texts and not texts[0].startswith(("http://", "https://", "data:")):
            draft.text(ts_ns, 0, "".join(texts))
        metrics = dict_of(body.get("metrics"))
        draft.usage.input_tokens = count_of(metrics.get("input_token_count"))
        draft.usage.output_tokens = count_of(metrics.get("output_token_count"))
        if isinstance(body.get("error"), str) and body["error"]:
            draft.error(text_of(body.get("error_type")) or "failed", body["error"])


class CloudflareRun(BaseDialect):
    api: ClassVar[str] = "cloudflare.run"
    operation: ClassVar[str] = "chat"
    default_provider: ClassVar[str] = "cloudflare"

    def claims(self, request: RequestView) -> int:
        if request.method != "POST" or not _CLOUDFLARE.search(request.path):
            return 0
        body = dict_of(request.body)
        return claims.ROUTE_AND_SHAPE if "messages" in body or "prompt" in body else 0

    def decode_request(self, request: RequestView, draft: Draft) -> None:
        found = _CLOUDFLARE.search(request.path)
        draft.request_model = (found.group(1) or found.group(2)) if found else None
        if isinstance(request.get("messages"), list):
            messages.chat_messages(request.get("messages"), draft)
        else:
            draft.operation = "text_completion"
            messages.prompt(request.get("prompt"), draft)
        messages.tools(request.get("tools"), draft)
        messages.parameters(request.body, draft)

    def stream(self, request: RequestView | None, response: ResponseView, draft: Draft) -> EventHandler:
        chat = OpenAIReader(draft)
        return json_events(draft, lambda ts_ns, _name, value: self._answer(value, ts_ns, draft, chat))

    def answer(self, request: RequestView | None, response: ResponseView, body: JSON, ts_ns: int, draft: Draft) -> None:
        self._answer(dict_of(body), ts_ns, draft, OpenAIReader(draft, whole=True))

    def _answer(self, body: dict[str, JSON], ts_ns: int, draft: Draft, chat: OpenAIReader) -> None:
        result = dict_of(body.get("result")) or body
        if isinstance(result.get("response"), str):
            draft.text(ts_ns, 0, result["response"])
        elif isinstance(result.get("response"), dict):  # JSON was asked for
            draft.text(ts_ns, 0, dump_json(result["response"]))
        if "choices" in result:  # newer models answer as OpenAI's do
            chat.read(result, ts_ns)
            return
        for call in list_of(result.get("tool_calls")):
            if isinstance(call, dict):
                chat.call(call, 0, ts_ns)
        openai_usage(result.get("usage"), draft)


class TritonGenerate(BaseDialect):
    api: ClassVar[str] = "triton.generate"
    operation: ClassVar[str] = "text_completion"
    default_provider: ClassVar[str] = "triton"

    def claims(self, request: RequestView) -> int:
        return (
            claims.ROUTE_AND_SHAPE
            if request.method == "POST" and _TRITON.search(request.path) and "text_input" in dict_of(request.body)
            else 0
        )

    def recognises(self, response: ResponseView, body: JSON) -> int:
        return claims.LIKELY_FIELDS if isinstance(dict_of(body).get("text_output"), str) and "model_name" in dict_of(body) else 0

    def decode_request(self, request: RequestView, draft: Draft) -> None:
        found = _TRITON.search(request.path)
        draft.request_model = found.group(1) if found else None
        messages.prompt(request.get("text_input"), draft)
        messages.parameters(request.body, draft, nested=("parameters",))

    def answer(self, request: RequestView | None, response: ResponseView, body: JSON, ts_ns: int, draft: Draft) -> None:
        body = dict_of(body)
        if body.get("error"):
            read_stream_failure(body, draft)
        draft.response_model = text_of(body.get("model_name")) or draft.response_model
        if isinstance(body.get("text_output"), str):
            draft.text(ts_ns, 0, body["text_output"])
