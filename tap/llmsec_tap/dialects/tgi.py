"""Hugging Face text generation: Text Generation Inference, the Inference API, and SageMaker endpoints that run it.

https://huggingface.github.io/text-generation-inference/ (/generate, /generate_stream, and / for both) and
https://huggingface.co/docs/inference-providers/tasks/text-generation. The last event of a stream has the whole text in
`generated_text`: it is the answer as meant (special tokens left out), and must not be added to the deltas.
"""

from __future__ import annotations

import re
from typing import ClassVar, Final

from llmsec_tap.dialects import claims, messages
from llmsec_tap.dialects.base import JSON, RequestView, ResponseView, count_of, dict_of, list_of, text_of
from llmsec_tap.dialects.dialect import BaseDialect
from llmsec_tap.dialects.draft import Draft
from llmsec_tap.dialects.failures import read_stream_failure
from llmsec_tap.dialects.vectors import count_vectors, dimensions
from llmsec_tap.model import Framing

_HF_MODEL: Final = re.compile(r"/models/([^/]+(?:/[^/]+)?)$")
_HF_PIPELINE: Final = re.compile(r"/pipeline/feature-extraction(/|$)")
_SAGEMAKER: Final = re.compile(r"/endpoints/[^/]+/invocations(-response-stream)?$")


class TGIGenerate(BaseDialect):
    api: ClassVar[str] = "tgi.generate"
    operation: ClassVar[str] = "text_completion"
    default_provider: ClassVar[str] = "tgi"

    def claims(self, request: RequestView) -> int:
        if request.method != "POST" or not _is_prompt(request.get("inputs")):
            return 0
        path = request.path.rstrip("/")
        if path.endswith(("/generate", "/generate_stream")):
            return claims.SHARED_ROUTE_AND_SHAPE
        if path == "":
            return (
                claims.SHARED_ROUTE_AND_HINT
                if isinstance(request.get("parameters"), dict) or isinstance(request.get("stream"), bool)
                else claims.GENERIC_ROUTE
            )
        return claims.GENERIC_ROUTE_AND_SHAPE if path.endswith("/invocations") else 0

    def recognises(self, response: ResponseView, body: JSON) -> int:
        if isinstance(body, list) and body:
            body = body[0]
        body = dict_of(body)
        if "generated_text" in body and ("token" in body or "details" in body):
            return claims.OWN_FIELDS
        return claims.SOME_FIELDS if isinstance(body.get("generated_text"), str) else 0

    def decode_request(self, request: RequestView, draft: Draft) -> None:
        messages.prompt(request.get("inputs"), draft)
        messages.parameters(request.body, draft, nested=("parameters",))

    def answer(self, request: RequestView | None, response: ResponseView, body: JSON, ts_ns: int, draft: Draft) -> None:
        for index, output in enumerate(body if isinstance(body, list) else [body]):
            if isinstance(output, list):  # a batch: one list a prompt
                output = output[0] if output else None
            if isinstance(output, dict):
                self._output(output, index, ts_ns, draft)

    def event(
        self, request: RequestView | None, response: ResponseView, name: str | None, value: dict[str, JSON], ts_ns: int, draft: Draft
    ) -> None:
        token = value.get("token")
        if isinstance(token, dict) and token.get("special") is not True and isinstance(token.get("text"), str):
            draft.text(ts_ns, 0, token["text"])
        self._output(value, 0, ts_ns, draft)

    def framing(self, request: RequestView, response: ResponseView) -> Framing | None:
        if request.path.endswith("/generate_stream") and response.status < 400 and response.content_type in ("", "text/plain"):
            return "sse"
        return super().framing(request, response)

    def _output(self, output: dict[str, JSON], index: int, ts_ns: int, draft: Draft) -> None:
        if output.get("error"):
            read_stream_failure(output, draft)
        whole = output.get("generated_text")
        if isinstance(whole, str):
            if str(draft.choice(index).text) != whole or not whole:
                draft.cumulative_text(ts_ns, index, whole)
            draft.terminated = True
        details = output.get("details")
        if isinstance(details, dict):
            draft.finish(index, text_of(details.get("finish_reason")))
            if index == 0:
                if (count := count_of(details.get("generated_tokens"))) is not None:
                    draft.usage.output_tokens = count
                if (count := count_of(details.get("input_length"))) is not None:
                    draft.usage.input_tokens = count


class HFTextGeneration(TGIGenerate):
    """The model is in the path of the Inference API; an endpoint of one's own has none."""

    api: ClassVar[str] = "hf.text_generation"
    default_provider: ClassVar[str] = "huggingface"

    def claims(self, request: RequestView) -> int:
        if request.method != "POST":
            return 0
        host = request.host
        if _HF_MODEL.search(request.path):  # the older conversational task nests its text
            return (
                claims.SHARED_ROUTE_AND_FIELD
                if _is_prompt(request.get("inputs")) or isinstance(dict_of(request.get("inputs")).get("text"), str)
                else 0
            )
        if not _is_prompt(request.get("inputs")):
            return 0
        return claims.ROUTE if request.path == "/" and ".endpoints.huggingface.cloud" in host else 0

    def recognises(self, response: ResponseView, body: JSON) -> int:
        return 0

    def decode_request(self, request: RequestView, draft: Draft) -> None:
        super().decode_request(request, draft)
        if isinstance(request.get("inputs"), dict):
            messages.prompt(request.get("inputs").get("text"), draft)
        found = _HF_MODEL.search(request.path)
        if found is not None:
            draft.request_model = found.group(1)


class SageMakerInvoke(TGIGenerate):
    """https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_runtime_InvokeEndpoint.html with a text generation body."""

    api: ClassVar[str] = "sagemaker.invoke"
    default_provider: ClassVar[str] = "aws.sagemaker"

    def claims(self, request: RequestView) -> int:
        if request.method != "POST" or not _SAGEMAKER.search(request.path):
            return 0
        return claims.ROUTE_AND_FIELD if _is_prompt(request.get("inputs")) else 0

    def recognises(self, response: ResponseView, body: JSON) -> int:
        return 0


class HFFeatureExtraction(BaseDialect):
    """Vectors from the Inference API, and from Text Embeddings Inference's `/embed`."""

    api: ClassVar[str] = "hf.feature_extraction"
    operation: ClassVar[str] = "embeddings"
    default_provider: ClassVar[str] = "huggingface"

    def claims(self, request: RequestView) -> int:
        if request.method != "POST" or not _is_prompt(request.get("inputs")):
            return 0
        path = request.path.rstrip("/")
        if _HF_PIPELINE.search(path) or path.endswith("/pipeline/feature-extraction"):
            return claims.ROUTE_AND_SHAPE
        return claims.SHARED_ROUTE if path.endswith("/embed") else 0

    def decode_request(self, request: RequestView, draft: Draft) -> None:
        messages.prompt(request.get("inputs"), draft)
        segments = request.segments
        if "feature-extraction" in segments:
            draft.request_model = "/".join(segments[segments.index("feature-extraction") + 1 :]) or None
        elif "models" in segments:
            draft.request_model = (
                "/".join(segments[segments.index("models") + 1 : segments.index("pipeline")]) if "pipeline" in segments else None
            )

    def answer(self, request: RequestView | None, response: ResponseView, body: JSON, ts_ns: int, draft: Draft) -> None:
        if not isinstance(body, list) or not body:
            return
        if isinstance(body[0], int | float):  # one text: its vector, bare
            draft.embeddings = 1
            draft.embedding_dimensions = dimensions(body)
        elif isinstance(body[0], list):
            count_vectors(body, draft)


def _is_prompt(value: JSON) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and bool(list_of(value)) and isinstance(value[0], str))
