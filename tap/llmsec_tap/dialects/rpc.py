"""Inference over gRPC and Connect: KServe and NVIDIA Triton, vLLM's engine, TGI's shards, and services that no one here knows.

What they read is JSON that `rpc_schemas.py` makes of their messages. Token ids are no text: vLLM's engine answers with those alone, so its records
have a prompt, counts and a reason to finish, but no text of the answer.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from typing import ClassVar, Final

from llmsec_tap.dialects import claims, messages
from llmsec_tap.dialects.base import JSON, NotJSON, RequestView, ResponseView, count_of, dict_of, list_of, parse_json, text_of
from llmsec_tap.dialects.dialect import BaseDialect
from llmsec_tap.dialects.draft import Draft

_TYPE: Final = re.compile(r"application/(grpc|connect|proto|x-protobuf)")
_KSERVE: Final = re.compile(r"(?i)/inference\.GRPCInferenceService/Model(Stream)?Infer$")
_VLLM: Final = re.compile(r"/vllm\.grpc\.engine\.VllmEngine/Generate$")
_TGI: Final = re.compile(r"/generate\.v[23]\.TextGenerationService/(Prefill|Decode)$")
# What the names of services and methods of language models have in them, as far as no other service has it.
_OF_MODELS: Final = re.compile(
    r"(?i)/[\w.]*(llm|gpt|chat|completion|generat(e|ion|ive)|inference|embedding|prediction|gemini)[\w.]*/\w+$|/[\w.]+/\w*(chat|complet|generatetext|generatecontent|embed)\w*$"
)
_SETTINGS: Final = re.compile(
    r"(?i)param|sampling|config|stream|stop|seed|temperature|top_|max_|min_|num_|length|penalty|bad_words|exclude|image|return"
)


def is_rpc(request: RequestView) -> bool:
    return _TYPE.match(request.headers.get("content-type", "")) is not None


def names_models(path: str) -> bool:
    """Whether the names of a service and its method say that it serves language models. KServe's serves models of any kind."""
    return _OF_MODELS.search(path) is not None and not _KSERVE.search(path)


class KServeInfer(BaseDialect):
    """Tensors of text. A model without any (pictures, numbers) is no language model."""

    api: ClassVar[str] = "kserve.infer"
    operation: ClassVar[str] = "text_completion"
    default_provider: ClassVar[str] = "triton"

    def claims(self, request: RequestView) -> int:
        if not _KSERVE.search(request.path):
            return 0
        return claims.OWN_ROUTE if request.body is None or any(True for _ in _texts(request.body, "input")) else 0

    def decode_request(self, request: RequestView, draft: Draft) -> None:
        draft.request_model = text_of(request.get("model_name"))
        prompts = []
        for name, text in _texts(request.body, "input"):
            if not _SETTINGS.search(name):
                prompts.append(text)
            elif text[:1] == "{":
                try:
                    messages.parameters(parse_json(text.encode()), draft)
                except NotJSON:
                    continue
            else:
                messages.parameters({name: text}, draft)
        messages.prompt(prompts, draft)
        for name, value in dict_of(request.get("parameters")).items():
            messages.parameters({name: next(iter(dict_of(value).values()), None)}, draft)

    def answer(self, request: RequestView | None, response: ResponseView, body: JSON, ts_ns: int, draft: Draft) -> None:
        body = dict_of(body)
        if body.get("error_message"):
            draft.error(None, text_of(body["error_message"]))
        body = dict_of(body.get("infer_response")) or body
        draft.response_model = text_of(body.get("model_name")) or draft.response_model
        draft.response_id = draft.response_id or text_of(body.get("id")) or None
        _vectors(body, draft)
        for name, text in _texts(body, "output"):
            if name.lower() not in ("finish_reason", "log_probs"):
                draft.text(ts_ns, 0, text)
            elif name.lower() == "finish_reason" and text:
                draft.finish(0, text)


def _vectors(body: dict[str, JSON], draft: Draft) -> None:
    """Text that is answered by numbers alone was embedded (or scored)."""
    outputs = [dict_of(tensor) for tensor in list_of(body.get("outputs"))]
    if outputs and all(str(tensor.get("datatype")).startswith("FP") for tensor in outputs):
        shape = list_of(outputs[0].get("shape"))
        draft.operation = "embeddings"
        draft.embeddings = count_of(shape[0]) if len(shape) > 1 else 1
        draft.embedding_dimensions = count_of(shape[-1]) if shape else None


def _texts(body: JSON, side: str) -> Iterator[tuple[str, str]]:
    """(tensor's name, text) of each element of the tensors of text: those of `inputs` or `outputs`, or their raw bytes beside them."""
    raws = list_of(dict_of(body).get(f"raw_{side}_contents"))
    for number, tensor in enumerate(list_of(dict_of(body).get(f"{side}s"))):
        tensor = dict_of(tensor)
        if tensor.get("datatype") != "BYTES":
            continue
        name = text_of(tensor.get("name")) or ""
        for text in list_of(dict_of(tensor.get("contents")).get("bytes_contents")):
            if isinstance(text, str):
                yield name, text
        if number < len(raws) and isinstance(raws[number], str):
            yield from ((name, text) for text in _elements(raws[number]))


def _elements(raw: str) -> Iterator[str]:
    """Elements of a raw tensor of text: each with its length before it, four bytes, the least first."""
    try:
        data = base64.b64decode(raw)
    except (binascii.Error, ValueError):
        return
    at = 0
    while at + 4 <= len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        yield data[at + 4 : at + 4 + size].decode("utf-8", "replace")
        at += 4 + size


class VLLMEngine(BaseDialect):
    api: ClassVar[str] = "vllm.engine"
    operation: ClassVar[str] = "text_completion"
    default_provider: ClassVar[str] = "vllm"

    def claims(self, request: RequestView) -> int:
        return claims.OWN_ROUTE if _VLLM.search(request.path) else 0

    def decode_request(self, request: RequestView, draft: Draft) -> None:
        tokenized = dict_of(request.get("tokenized"))
        messages.prompt(text_of(request.get("text")) or text_of(tokenized.get("original_text")), draft)
        messages.parameters(request.get("sampling_params"), draft)
        if tokenized.get("input_ids") and not draft.messages:
            draft.anomaly("prompt_token_ids")

    def answer(self, request: RequestView | None, response: ResponseView, body: JSON, ts_ns: int, draft: Draft) -> None:
        body = dict_of(body)
        draft.response_id = draft.response_id or text_of(body.get("request_id"))
        failure = dict_of(body.get("error"))
        if "http_status_code" in failure:
            draft.error(text_of(failure.get("http_status_code")), text_of(failure.get("message")))
        for part in (dict_of(body.get("chunk")), dict_of(body.get("complete"))):
            usage = draft.usage
            usage.input_tokens = count_of(part.get("prompt_tokens")) or usage.input_tokens
            usage.output_tokens = count_of(part.get("completion_tokens")) or usage.output_tokens
            usage.cached_input_tokens = count_of(part.get("cached_tokens")) or usage.cached_input_tokens
            if part.get("finish_reason"):
                draft.finish(0, text_of(part["finish_reason"]))


class TGIShard(BaseDialect):
    """Between TGI's router and its shards: a batch of prompts, then a token of each at a call."""

    api: ClassVar[str] = "tgi.shard"
    operation: ClassVar[str] = "text_completion"
    default_provider: ClassVar[str] = "tgi"

    def claims(self, request: RequestView) -> int:
        return claims.OWN_ROUTE if _TGI.search(request.path) else 0

    def decode_request(self, request: RequestView, draft: Draft) -> None:
        prompts = []
        for entry in list_of(dict_of(request.get("batch")).get("requests")):
            entry = dict_of(entry)
            chunks = [text_of(dict_of(chunk).get("text")) or "" for chunk in list_of(dict_of(entry.get("input_chunks")).get("chunks"))]
            prompts.append("".join(chunks) or text_of(entry.get("inputs")) or "")
            messages.parameters(entry.get("parameters"), draft)
            messages.parameters(entry.get("stopping_parameters"), draft)
        messages.prompt([text for text in prompts if text], draft)

    def answer(self, request: RequestView | None, response: ResponseView, body: JSON, ts_ns: int, draft: Draft) -> None:
        for index, generation in enumerate(list_of(dict_of(body).get("generations"))):
            generation = dict_of(generation)
            for text in list_of(dict_of(generation.get("tokens")).get("texts")):
                if isinstance(text, str):
                    draft.text(ts_ns, index, text)
            whole = dict_of(generation.get("generated_text"))
            if whole:
                draft.finish(index, text_of(whole.get("finish_reason")) or "length")


class UnknownRPC(BaseDialect):
    """A service whose name says that it serves models, and whose messages nobody here knows: what it carries is kept as other texts."""

    api: ClassVar[str] = "rpc.unknown"
    operation: ClassVar[str] = "other"
    default_provider: ClassVar[str] = "rpc"

    def claims(self, request: RequestView) -> int:
        return claims.FAINT if is_rpc(request) and names_models(request.path) else 0
