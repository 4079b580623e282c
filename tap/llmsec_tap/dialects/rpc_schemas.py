"""Messages of RPC services that serve language models: the fields that matter, from the services' published protos.

- KServe and NVIDIA Triton, `inference.GRPCInferenceService`: https://github.com/triton-inference-server/common (protobuf/grpc_service.proto)
- vLLM, `vllm.grpc.engine.VllmEngine`: https://github.com/vllm-project/vllm (vllm/grpc/vllm_engine.proto)
- TGI's router and its shards, `generate.v2` and `generate.v3`: https://github.com/huggingface/text-generation-inference (proto)
- Gemini API and Vertex AI: https://github.com/googleapis/googleapis (google/ai/generativelanguage, google/cloud/aiplatform); fields have the names
  of the REST API, so that its dialect reads them.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from llmsec_tap.dialects.protobuf import Field, Schema, many


class Method(NamedTuple):
    """What a call carries in each direction."""

    request: Schema
    answer: Schema


# --- KServe, Triton ----------------------------------------------------------------------------------------------------------
_PARAMETER = Schema({1: Field("bool", "bool"), 2: Field("int", "int"), 3: Field("string", "text"), 4: Field("double", "double")})
_CONTENTS = Schema({8: many("bytes_contents", "text")})
_TENSOR = Schema({1: Field("name", "text"), 2: Field("datatype", "text"), 3: many("shape", "int"), 5: Field("contents", _CONTENTS)})
_INFER_REQUEST = Schema(
    {
        1: Field("model_name", "text"),
        2: Field("model_version", "text"),
        3: Field("id", "text"),
        4: Field("parameters", _PARAMETER, is_map=True),
        5: many("inputs", _TENSOR),
        6: many("outputs", Schema({1: Field("name", "text")})),
        7: many("raw_input_contents", "bytes"),
    }
)
_INFER_ANSWER = Schema(
    {
        1: Field("model_name", "text"),
        2: Field("model_version", "text"),
        3: Field("id", "text"),
        4: Field("parameters", _PARAMETER, is_map=True),
        5: many("outputs", _TENSOR),
        6: many("raw_output_contents", "bytes"),
    }
)
_INFER_STREAM = Schema({1: Field("error_message", "text"), 2: Field("infer_response", _INFER_ANSWER)})

# --- vLLM --------------------------------------------------------------------------------------------------------------------
_TOKENIZED = Schema({1: Field("original_text", "text"), 2: many("input_ids", "int")})
_SAMPLING = Schema(
    {
        1: Field("temperature", "float"), 2: Field("top_p", "float"), 3: Field("top_k", "int"), 4: Field("min_p", "float"),
        5: Field("frequency_penalty", "float"), 6: Field("presence_penalty", "float"), 7: Field("repetition_penalty", "float"),
        8: Field("max_tokens", "int"), 9: Field("min_tokens", "int"), 10: many("stop", "text"), 14: Field("ignore_eos", "bool"),
        15: Field("n", "int"), 16: Field("json_schema", "text"), 17: Field("regex", "text"), 18: Field("grammar", "text"), 24: Field("seed", "int"),
    }
)  # fmt: skip
_VLLM_REQUEST = Schema(
    {
        1: Field("request_id", "text"),
        2: Field("tokenized", _TOKENIZED),
        3: Field("text", "text"),
        4: Field("sampling_params", _SAMPLING),
        5: Field("stream", "bool"),
    }
)
_VLLM_CHUNK = Schema({2: Field("prompt_tokens", "int"), 3: Field("completion_tokens", "int"), 4: Field("cached_tokens", "int")})
_VLLM_COMPLETE = Schema(
    {
        2: Field("finish_reason", "text"),
        3: Field("prompt_tokens", "int"),
        4: Field("completion_tokens", "int"),
        5: Field("cached_tokens", "int"),
    }
)
_VLLM_ERROR = Schema({1: Field("message", "text"), 2: Field("http_status_code", "text"), 3: Field("details", "text")})
_VLLM_ANSWER = Schema(
    {1: Field("request_id", "text"), 2: Field("chunk", _VLLM_CHUNK), 3: Field("complete", _VLLM_COMPLETE), 4: Field("error", _VLLM_ERROR)}
)

# --- TGI ---------------------------------------------------------------------------------------------------------------------
_TGI_CHUNKS = Schema({1: many("chunks", Schema({1: Field("text", "text"), 2: Field("image", Schema({2: Field("mimetype", "text")}))}))})
_TGI_PARAMETERS = Schema(
    {1: Field("temperature", "float"), 2: Field("top_k", "int"), 3: Field("top_p", "float"), 4: Field("typical_p", "float"),
     5: Field("do_sample", "bool"), 6: Field("seed", "int"), 7: Field("repetition_penalty", "float"), 10: Field("grammar", "text")}
)  # fmt: skip
_TGI_STOPPING = Schema({1: Field("max_new_tokens", "int"), 2: many("stop_sequences", "text")})
_TGI_REQUEST = Schema(
    {
        1: Field("id", "int"),
        2: Field("inputs", "text"),
        4: Field("parameters", _TGI_PARAMETERS),
        5: Field("stopping_parameters", _TGI_STOPPING),
        8: Field("input_chunks", _TGI_CHUNKS),
        11: Field("adapter_id", "text"),
    }
)
_TGI_PREFILL = Schema({1: Field("batch", Schema({1: Field("id", "int"), 2: many("requests", _TGI_REQUEST)}))})
_TGI_FINISH = {0: "length", 1: "eos_token", 2: "stop_sequence"}
_TGI_TEXT = Schema({1: Field("text", "text"), 2: Field("generated_tokens", "int"), 3: Field("finish_reason", _TGI_FINISH)})
_TGI_GENERATION = Schema(
    {1: Field("request_id", "int"), 3: Field("tokens", Schema({3: many("texts", "text")})), 4: Field("generated_text", _TGI_TEXT)}
)
_TGI_ANSWER = Schema({1: many("generations", _TGI_GENERATION)})

# --- Gemini ------------------------------------------------------------------------------------------------------------------
_BLOB = Schema({1: Field("mimeType", "text"), 2: Field("data", "bytes")})
_FILE = Schema({1: Field("mimeType", "text"), 2: Field("fileUri", "text")})
_CALL = Schema({1: Field("name", "text"), 2: Field("args", "struct"), 3: Field("id", "text")})
_RESULT = Schema({1: Field("name", "text"), 2: Field("response", "struct"), 3: Field("id", "text")})
_CODE = Schema({2: Field("code", "text")})
_OUTPUT = Schema({2: Field("output", "text")})
_FUNCTION = Schema({1: Field("name", "text"), 2: Field("description", "text")})
_TOOL = Schema({1: many("functionDeclarations", _FUNCTION)})
_STUDIO_CONTENT = Schema(
    {
        1: many(
            "parts",
            Schema(
                {
                    2: Field("text", "text"),
                    3: Field("inlineData", _BLOB),
                    4: Field("functionCall", _CALL),
                    5: Field("functionResponse", _RESULT),
                    6: Field("fileData", _FILE),
                    9: Field("executableCode", _CODE),
                    10: Field("codeExecutionResult", _OUTPUT),
                    11: Field("thought", "bool"),
                    13: Field("thoughtSignature", "bytes"),
                }
            ),
        ),
        2: Field("role", "text"),
    }
)
_VERTEX_CONTENT = Schema(
    {
        1: Field("role", "text"),
        2: many(
            "parts",
            Schema(
                {
                    1: Field("text", "text"),
                    2: Field("inlineData", _BLOB),
                    3: Field("fileData", _FILE),
                    5: Field("functionCall", _CALL),
                    6: Field("functionResponse", _RESULT),
                    8: Field("executableCode", _CODE),
                    9: Field("codeExecutionResult", _OUTPUT),
                    10: Field("thought", "bool"),
                    11: Field("thoughtSignature", "bytes"),
                }
            ),
        ),
    }
)
_STUDIO_CONFIG = Schema(
    {1: Field("candidateCount", "int"), 2: many("stopSequences", "text"), 4: Field("maxOutputTokens", "int"), 5: Field("temperature", "float"),
     6: Field("topP", "float"), 7: Field("topK", "int"), 8: Field("seed", "int"), 13: Field("responseMimeType", "text")}
)  # fmt: skip
_VERTEX_CONFIG = Schema(
    {1: Field("temperature", "float"), 2: Field("topP", "float"), 3: Field("topK", "float"), 4: Field("candidateCount", "int"),
     5: Field("maxOutputTokens", "int"), 6: many("stopSequences", "text"), 12: Field("seed", "int"), 13: Field("responseMimeType", "text")}
)  # fmt: skip
_STUDIO_FINISH = {
    1: "STOP", 2: "MAX_TOKENS", 3: "SAFETY", 4: "RECITATION", 5: "OTHER", 6: "LANGUAGE", 7: "BLOCKLIST", 8: "PROHIBITED_CONTENT", 9: "SPII",
    10: "MALFORMED_FUNCTION_CALL",
}  # fmt: skip
_VERTEX_FINISH = {
    1: "STOP", 2: "MAX_TOKENS", 3: "SAFETY", 4: "RECITATION", 5: "OTHER", 6: "BLOCKLIST", 7: "PROHIBITED_CONTENT", 8: "SPII",
    9: "MALFORMED_FUNCTION_CALL",
}  # fmt: skip
_STUDIO_USAGE = Schema(
    {1: Field("promptTokenCount", "int"), 2: Field("candidatesTokenCount", "int"), 3: Field("totalTokenCount", "int"),
     4: Field("cachedContentTokenCount", "int"), 10: Field("thoughtsTokenCount", "int")}
)  # fmt: skip
_VERTEX_USAGE = Schema(
    {1: Field("promptTokenCount", "int"), 2: Field("candidatesTokenCount", "int"), 3: Field("totalTokenCount", "int"),
     5: Field("cachedContentTokenCount", "int"), 14: Field("thoughtsTokenCount", "int")}
)  # fmt: skip
_STUDIO_CANDIDATE = Schema(
    {
        1: Field("content", _STUDIO_CONTENT),
        2: Field("finishReason", _STUDIO_FINISH),
        3: Field("index", "int"),
        4: Field("finishMessage", "text"),
    }
)
_VERTEX_CANDIDATE = Schema(
    {
        1: Field("index", "int"),
        2: Field("content", _VERTEX_CONTENT),
        3: Field("finishReason", _VERTEX_FINISH),
        5: Field("finishMessage", "text"),
    }
)
_BLOCKED = {1: "SAFETY", 2: "OTHER", 3: "BLOCKLIST", 4: "PROHIBITED_CONTENT"}
_STUDIO = Method(
    Schema(
        {
            1: Field("model", "text"),
            2: many("contents", _STUDIO_CONTENT),
            4: Field("generationConfig", _STUDIO_CONFIG),
            5: many("tools", _TOOL),
            8: Field("systemInstruction", _STUDIO_CONTENT),
        }
    ),
    Schema(
        {
            1: many("candidates", _STUDIO_CANDIDATE),
            2: Field("promptFeedback", Schema({1: Field("blockReason", _BLOCKED)})),
            3: Field("usageMetadata", _STUDIO_USAGE),
            4: Field("modelVersion", "text"),
            5: Field("responseId", "text"),
        }
    ),
)
_VERTEX = Method(
    Schema(
        {
            2: many("contents", _VERTEX_CONTENT),
            4: Field("generationConfig", _VERTEX_CONFIG),
            5: Field("model", "text"),
            6: many("tools", _TOOL),
            8: Field("systemInstruction", _VERTEX_CONTENT),
        }
    ),
    Schema(
        {
            2: many("candidates", _VERTEX_CANDIDATE),
            3: Field("promptFeedback", Schema({1: Field("blockReason", _BLOCKED), 3: Field("blockReasonMessage", "text")})),
            4: Field("usageMetadata", _VERTEX_USAGE),
            11: Field("modelVersion", "text"),
            13: Field("responseId", "text"),
        }
    ),
)
_VERTEX_PREDICT = Method(
    Schema({1: Field("endpoint", "text"), 2: many("instances", "value"), 3: Field("parameters", "value")}),
    Schema({1: many("predictions", "value"), 3: Field("model", "text"), 6: Field("metadata", "value")}),
)

_METHODS: Final = tuple(
    (re.compile(pattern), method)
    for pattern, method in (
        (r"/inference\.GRPCInferenceService/ModelInfer$", Method(_INFER_REQUEST, _INFER_ANSWER)),
        (r"/inference\.GRPCInferenceService/ModelStreamInfer$", Method(_INFER_REQUEST, _INFER_STREAM)),
        (r"/vllm\.grpc\.engine\.VllmEngine/Generate$", Method(_VLLM_REQUEST, _VLLM_ANSWER)),
        (r"/generate\.v[23]\.TextGenerationService/(Prefill|Decode)$", Method(_TGI_PREFILL, _TGI_ANSWER)),
        (r"/google\.ai\.generativelanguage\.v1\w*\.GenerativeService/(Stream)?GenerateContent$", _STUDIO),
        (r"/google\.cloud\.aiplatform\.v1\w*\.PredictionService/(Stream)?GenerateContent$", _VERTEX),
        (r"/google\.cloud\.aiplatform\.v1\w*\.PredictionService/Predict$", _VERTEX_PREDICT),
    )
)
UNKNOWN: Final = Method(Schema(), Schema())


def method_of(path: str) -> Method:
    """The messages of a call by its path, `/package.Service/Method`; those of an unknown one have fields without names."""
    return next((method for pattern, method in _METHODS if pattern.search(path)), UNKNOWN)
