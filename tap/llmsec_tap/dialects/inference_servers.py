"""The native generation routes of vLLM, SGLang and llama.cpp.

vLLM `/generate` (vllm/entrypoints/api_server.py): JSON lines, each with the prompt and all text so far. SGLang `/generate`
(https://docs.sglang.ai/basic_usage/native_api.html): server-sent events with all text so far, choices interleaved by `index`, or only
the new text where the server was started so. llama.cpp `/completion` (tools/server/README.md): increments, the last with `stop`.
The paths are too plain to be taken alone: the body must have the server's own fields, and the answer its shape.
"""

from __future__ import annotations

from typing import ClassVar

from llmsec_tap.dialects import claims, messages
from llmsec_tap.dialects.base import JSON, RequestView, ResponseView, count_of, dict_of, list_of, text_of
from llmsec_tap.dialects.dialect import BaseDialect
from llmsec_tap.dialects.draft import Draft
from llmsec_tap.dialects.failures import read_stream_failure
from llmsec_tap.dialects.vectors import dimensions
from llmsec_tap.model import Framing


class SGLangGenerate(BaseDialect):
    api: ClassVar[str] = "sglang.generate"
    operation: ClassVar[str] = "text_completion"
    default_provider: ClassVar[str] = "sglang"

    def claims(self, request: RequestView) -> int:
        if request.method not in ("POST", "PUT") or not request.path.rstrip("/").endswith("/generate"):
            return 0
        body = dict_of(request.body)
        if "sampling_params" in body:
            return claims.ROUTE_AND_FIELD
        return claims.GENERIC_ROUTE_AND_FIELD if "text" in body or "input_ids" in body else 0

    def recognises(self, response: ResponseView, body: JSON) -> int:
        if isinstance(body, list) and body:
            body = body[0]
        body = dict_of(body)
        return claims.NAMES_ITSELF if isinstance(body.get("meta_info"), dict) and ("text" in body or "output_ids" in body) else 0

    def decode_request(self, request: RequestView, draft: Draft) -> None:
        messages.prompt(request.get("text"), draft)
        sampling = request.get("sampling_params")
        messages.parameters(request.body, draft)
        messages.parameters(sampling[0] if isinstance(sampling, list) and sampling else sampling, draft)

    def answer(self, request: RequestView | None, response: ResponseView, body: JSON, ts_ns: int, draft: Draft) -> None:
        for index, output in enumerate(body if isinstance(body, list) else [body]):
            if isinstance(output, dict):
                self._output(output, index, ts_ns, draft)

    def event(
        self, request: RequestView | None, response: ResponseView, name: str | None, value: dict[str, JSON], ts_ns: int, draft: Draft
    ) -> None:
        index = value.get("index")
        self._output(value, index if isinstance(index, int) else 0, ts_ns, draft)

    def _output(self, output: dict[str, JSON], index: int, ts_ns: int, draft: Draft) -> None:
        if output.get("error"):
            read_stream_failure(output, draft)
            return
        meta = output.get("meta_info")
        if not isinstance(meta, dict):
            return
        if draft.response_id is None:
            draft.response_id = text_of(meta.get("id"))
        made = count_of(meta.get("completion_tokens"))
        text = output.get("text")
        if isinstance(text, str):
            ids = output.get("output_ids")
            if isinstance(ids, list) and made is not None and len(ids) < made:
                draft.text(ts_ns, index, text)  # incremental_streaming_output: only what is new
            else:
                draft.cumulative_text(ts_ns, index, text)
        if index == 0:
            usage = draft.usage
            if (count := count_of(meta.get("prompt_tokens"))) is not None:
                usage.input_tokens = count
            if made is not None:
                usage.output_tokens = made
            if (count := count_of(meta.get("cached_tokens"))) is not None:
                usage.cached_input_tokens = count
            if (count := count_of(meta.get("reasoning_tokens"))) is not None:
                usage.reasoning_tokens = count
        reason = meta.get("finish_reason")
        kind = text_of(dict_of(reason).get("type")) if isinstance(reason, dict) else text_of(reason)
        draft.finish(index, kind)
        if kind == "abort":
            draft.error(text_of(dict_of(reason).get("err_type")) or "abort", text_of(dict_of(reason).get("message")))


class VLLMGenerate(BaseDialect):
    api: ClassVar[str] = "vllm.generate"
    operation: ClassVar[str] = "text_completion"
    default_provider: ClassVar[str] = "vllm"

    def claims(self, request: RequestView) -> int:
        if request.method != "POST" or not request.path.rstrip("/").endswith("/generate"):
            return 0
        return claims.GENERIC_ROUTE_AND_PROMPT if isinstance(request.get("prompt"), str) and "model" not in request.body else 0

    def recognises(self, response: ResponseView, body: JSON) -> int:
        texts = list_of(dict_of(body).get("text"))
        return claims.LONE_FIELD if len(dict_of(body)) == 1 and texts and isinstance(texts[0], str) else 0

    def decode_request(self, request: RequestView, draft: Draft) -> None:
        messages.prompt(request.get("prompt"), draft)
        messages.parameters(request.body, draft)

    def answer(self, request: RequestView | None, response: ResponseView, body: JSON, ts_ns: int, draft: Draft) -> None:
        texts = dict_of(body).get("text")
        if not isinstance(texts, list):
            return
        asked = text_of(request.get("prompt")) if request is not None else None
        for index, text in enumerate(texts):
            if isinstance(text, str):
                if asked and not text.startswith(asked):
                    return  # another service with this route
                draft.cumulative_text(ts_ns, index, text[len(asked or "") :])

    def framing(self, request: RequestView, response: ResponseView) -> Framing | None:
        if request.get("stream") is True and response.status < 400 and response.content_type in ("", "text/plain", "application/json"):
            return "ndjson"
        return None


class LlamaCppCompletion(BaseDialect):
    api: ClassVar[str] = "llamacpp.completion"
    operation: ClassVar[str] = "text_completion"
    default_provider: ClassVar[str] = "llamacpp"

    def claims(self, request: RequestView) -> int:
        path = request.path.rstrip("/")
        body = dict_of(request.body)
        if request.method != "POST" or not path.endswith(("/completion", "/completions", "/infill")):
            return 0
        if path.endswith("/infill"):
            return claims.ROUTE if "input_prefix" in body or "input_suffix" in body else 0
        if "prompt" not in body:
            return 0
        if path.endswith("/completion"):
            return claims.SHARED_ROUTE_AND_FIELD if "n_predict" in body else claims.GENERIC_ROUTE_AND_FIELD
        return claims.OWN_ROUTE if path == "/completions" and "n_predict" in body and "model" not in body else 0

    def recognises(self, response: ResponseView, body: JSON) -> int:
        body = dict_of(body)
        return claims.OWN_FIELDS if isinstance(body.get("content"), str) and "stop" in body and "tokens_predicted" in body else 0

    def decode_request(self, request: RequestView, draft: Draft) -> None:
        draft.request_model = text_of(request.get("model"))
        body = dict_of(request.body)
        messages.prompt(body.get("prompt") if "prompt" in body else body.get("input_prefix"), draft)
        messages.parameters(body, draft)

    def answer(self, request: RequestView | None, response: ResponseView, body: JSON, ts_ns: int, draft: Draft) -> None:
        for position, output in enumerate(body if isinstance(body, list) else [body]):
            if isinstance(output, dict):
                self._output(output, position, ts_ns, draft)

    def _output(self, output: dict[str, JSON], position: int, ts_ns: int, draft: Draft) -> None:
        if output.get("error"):
            read_stream_failure(output, draft)
            return
        if not isinstance(output.get("content"), str) or "stop" not in output:
            return
        index = output.get("index")
        if not isinstance(index, int):
            index = position
        draft.text(ts_ns, index, output["content"])
        draft.response_model = draft.response_model or text_of(output.get("model"))
        if index == 0:
            if (count := count_of(output.get("tokens_evaluated"))) is not None:
                draft.usage.input_tokens = count
            if (count := count_of(output.get("tokens_predicted"))) is not None:
                draft.usage.output_tokens = count
            if (count := count_of(output.get("tokens_cached"))) is not None and output.get("stop") is True:
                draft.usage.cached_input_tokens = _cached(output)
        if output.get("stop") is True:
            draft.finish(index, text_of(output.get("stop_type")) or _older_stop(output))
            draft.terminated = True


class LlamaCppEmbedding(BaseDialect):
    """`/embedding`: a list with one entry a text, the vector nested once more (one a token where nothing is pooled)."""

    api: ClassVar[str] = "llamacpp.embedding"
    operation: ClassVar[str] = "embeddings"
    default_provider: ClassVar[str] = "llamacpp"

    def claims(self, request: RequestView) -> int:
        path = request.path.rstrip("/")
        if request.method != "POST" or not path.endswith("/embedding"):
            return 0
        return claims.SHARED_ROUTE_AND_HINT if "content" in dict_of(request.body) else 0

    def decode_request(self, request: RequestView, draft: Draft) -> None:
        messages.prompt(request.get("content"), draft)

    def answer(self, request: RequestView | None, response: ResponseView, body: JSON, ts_ns: int, draft: Draft) -> None:
        entries = body if isinstance(body, list) else [body]
        vectors = [entry["embedding"] for entry in entries if isinstance(entry, dict) and isinstance(entry.get("embedding"), list)]
        if vectors:
            draft.embeddings = len(vectors)
            draft.embedding_dimensions = dimensions(vectors[0])


def _older_stop(output: dict[str, JSON]) -> str | None:
    """Versions before `stop_type` had one flag each."""
    return next((kind for kind in ("eos", "limit", "word") if output.get(f"stopped_{kind}") is True), None)


def _cached(output: dict[str, JSON]) -> int | None:
    """Prompt tokens that were not evaluated anew; `tokens_cached` itself is the whole context in use."""
    return count_of(dict_of(output.get("timings")).get("cache_n"))
