"""Google Gemini, on the Gemini API and on Vertex AI.

https://ai.google.dev/api/generate-content, https://ai.google.dev/api/embeddings and
https://cloud.google.com/vertex-ai/generative-ai/docs/reference/rest. Streams come as SSE with `alt=sse`, else as one JSON array
that grows. The model is in the path. Code Assist wraps both bodies once more, in `request` and `response`.
"""

from __future__ import annotations

import re
from typing import ClassVar, Final

from llmsec_tap.dialects import claims, messages
from llmsec_tap.dialects.base import (
    JSON,
    EventHandler,
    RequestView,
    ResponseView,
    dict_of,
    dump_json,
    list_of,
    text_of,
)
from llmsec_tap.dialects.dialect import BaseDialect
from llmsec_tap.dialects.draft import Draft
from llmsec_tap.dialects.failures import read_stated_failure, read_stream_failure
from llmsec_tap.dialects.json_events import json_events
from llmsec_tap.dialects.usage import gemini_usage
from llmsec_tap.dialects.vectors import count_vectors, dimensions
from llmsec_tap.limits import MAX_OTHER_TEXT_CHARS
from llmsec_tap.model import Framing, Message, Part, ToolDefinition

# Of the REST API, and of gRPC (rpc_schemas.py).
_GENERATE: Final = re.compile(
    r":(stream)?[gG]enerateContent$"
    r"|/google\.(ai\.generativelanguage|cloud\.aiplatform)\.v1\w*\.(Generative|Prediction)Service/(Stream)?GenerateContent$"
)
_EMBED: Final = re.compile(r":(batchEmbedContents|embedContent|asyncBatchEmbedContent)$")
_PREDICT: Final = re.compile(
    r"/publishers/[^/]+/models/[^/]+:predict$|/endpoints/[^/]+:predict$|/google\.cloud\.aiplatform\.v1\w*\.PredictionService/Predict$"
)


class GeminiGenerate(BaseDialect):
    api: ClassVar[str] = "gemini.generate"
    operation: ClassVar[str] = "generate_content"
    default_provider: ClassVar[str] = "gcp.gemini"

    def claims(self, request: RequestView) -> int:
        return claims.OWN_ROUTE if request.method == "POST" and _GENERATE.search(request.path) else 0

    def recognises(self, response: ResponseView, body: JSON) -> int:
        if isinstance(body, list) and body:
            body = body[0]
        body = dict_of(body)
        body = dict_of(body.get("response")) or body
        candidates = list_of(body.get("candidates"))
        if candidates and isinstance(candidates[0], dict) and ("content" in candidates[0] or "finishReason" in candidates[0]):
            return claims.NAMES_ITSELF
        return claims.LIKELY_FIELDS if "usageMetadata" in body else 0

    def decode_request(self, request: RequestView, draft: Draft) -> None:
        draft.request_model = model_in_path(request) or text_of(request.get("model"))
        body = dict_of(request.body)
        body = dict_of(body.get("request")) or body
        contents = body.get("contents")
        if isinstance(contents, str):
            messages.prompt(contents, draft)
        else:
            entries = contents if isinstance(contents, list) else [contents]
            draft.messages.extend(m for m in map(content_message, entries) if m is not None)
            draft.input_text = messages.last_user_text(draft.messages)
        system = content_message(body.get("systemInstruction") or body.get("system_instruction"))
        if system is not None and system.parts:
            draft.messages.insert(0, Message(role="system", parts=system.parts))
        for tool in list_of(body.get("tools")):
            tool_definitions(tool, draft)
        messages.parameters(body, draft, nested=("generationConfig", "generation_config"))

    def answer(self, request: RequestView | None, response: ResponseView, body: JSON, ts_ns: int, draft: Draft) -> None:
        reader = GeminiReader(draft)
        for chunk in body if isinstance(body, list) else [body]:
            if isinstance(chunk, dict):
                reader.read(chunk, ts_ns)
        reader.end(ts_ns)

    def stream(self, request: RequestView | None, response: ResponseView, draft: Draft) -> EventHandler:
        reader = GeminiReader(draft)
        draft.at_end = lambda: reader.end(draft.last_text_ns)
        return json_events(draft, lambda ts_ns, _name, value: reader.read(value, ts_ns))

    def framing(self, request: RequestView, response: ResponseView) -> Framing | None:
        if "treamGenerateContent" in request.path and response.content_type == "application/json" and response.status < 400:
            return "json-array"
        return None


class GeminiEmbed(BaseDialect):
    api: ClassVar[str] = "gemini.embed"
    operation: ClassVar[str] = "embeddings"
    default_provider: ClassVar[str] = "gcp.gemini"

    def claims(self, request: RequestView) -> int:
        return claims.OWN_ROUTE if request.method == "POST" and _EMBED.search(request.path) else 0

    def decode_request(self, request: RequestView, draft: Draft) -> None:
        draft.request_model = model_in_path(request)
        body = dict_of(request.body)
        entries = body.get("requests") if isinstance(body.get("requests"), list) else [body]
        for entry in list_of(entries):
            content = content_message(dict_of(entry).get("content"))
            if content is not None:
                draft.messages.append(content)
        draft.input_text = messages.last_user_text(draft.messages)
        messages.parameters(body, draft)

    def answer(self, request: RequestView | None, response: ResponseView, body: JSON, ts_ns: int, draft: Draft) -> None:
        body = dict_of(body)
        vectors = list_of(body.get("embeddings")) or ([body["embedding"]] if isinstance(body.get("embedding"), dict) else [])
        draft.embeddings = len(vectors)
        if vectors:
            draft.embedding_dimensions = dimensions(dict_of(vectors[0]).get("values"))
        gemini_usage(body.get("usageMetadata"), draft)


class VertexPredict(BaseDialect):
    """`:predict` of Vertex AI: text embeddings, and the older text and chat models."""

    api: ClassVar[str] = "vertex.predict"
    operation: ClassVar[str] = "embeddings"
    default_provider: ClassVar[str] = "gcp.vertex_ai"

    def claims(self, request: RequestView) -> int:
        return (
            claims.ROUTE_AND_SHAPE
            if request.method == "POST" and _PREDICT.search(request.path) and isinstance(request.get("instances"), list)
            else 0
        )

    def decode_request(self, request: RequestView, draft: Draft) -> None:
        draft.request_model = model_in_path(request)
        texts = []
        for instance in list_of(request.get("instances")):
            instance = dict_of(instance)
            for key in ("content", "prompt"):
                if isinstance(instance.get(key), str):
                    texts.append(instance[key])
                    if key == "prompt":
                        draft.operation = "text_completion"
        messages.prompt(texts, draft)
        messages.parameters(request.get("parameters"), draft)

    def answer(self, request: RequestView | None, response: ResponseView, body: JSON, ts_ns: int, draft: Draft) -> None:
        predictions = [p for p in list_of(dict_of(body).get("predictions")) if isinstance(p, dict)]
        vectors = [dict_of(p.get("embeddings")).get("values") for p in predictions if "embeddings" in p]
        if vectors:
            count_vectors(vectors, draft)
        for index, prediction in enumerate(predictions):
            if isinstance(prediction.get("content"), str):
                draft.text(ts_ns, index, prediction["content"])


class _Call:
    """A function call that comes in pieces: its arguments so far, by path."""

    __slots__ = ("arguments", "given", "id", "key", "name", "open", "size", "texts")

    def __init__(self, key: int) -> None:
        self.key = key
        self.id: str | None = None
        self.name: str | None = None
        self.arguments: JSON = {}
        self.given = False  # arguments came
        self.open: str | None = None  # the path of the text that goes on
        self.texts: list[tuple[JSON, str | int, list[str]]] = []  # where texts of several pieces go, and their pieces
        self.size = 0  # characters held

    def whole(self) -> JSON:
        for place, step, pieces in self.texts:
            place[step] = "".join(pieces)
        self.texts.clear()
        return self.arguments


class GeminiReader:
    """Calls come whole, or in pieces that `willContinue` ties together: `partialArgs` with a JSON path each, or plain `args` later on.

    Their arguments are made into text when the call ends.
    """

    __slots__ = ("_calls", "_draft", "_open")

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self._calls = 0
        self._open: dict[int, _Call] = {}  # by candidate

    def read(self, chunk: dict[str, JSON], ts_ns: int) -> None:
        draft = self._draft
        inner = chunk.get("response")
        if isinstance(inner, dict):
            chunk = inner
        if chunk.get("error"):
            self.end(ts_ns)
            read_stream_failure(chunk, draft)
            return
        version = chunk.get("modelVersion")
        if isinstance(version, str) and version:
            draft.response_model = version
        if not draft.response_id:
            draft.response_id = text_of(chunk.get("responseId")) or None
        for position, candidate in enumerate(list_of(chunk.get("candidates"))):
            if isinstance(candidate, dict):
                self._candidate(candidate, position, ts_ns)
        usage = chunk.get("usageMetadata")
        if usage is not None:
            gemini_usage(usage, draft)
        if "promptFeedback" in chunk:
            read_stated_failure(chunk, draft)
            draft.terminated = draft.terminated or draft.error_type is not None

    def _candidate(self, candidate: dict[str, JSON], position: int, ts_ns: int) -> None:
        draft = self._draft
        index = candidate.get("index")
        if not isinstance(index, int):
            index = position
        content = candidate.get("content")
        parts = dict_of(content).get("parts")
        for part in parts if isinstance(parts, list) else [parts]:
            if isinstance(part, dict):
                text = part.get("text")
                if isinstance(text, str):
                    if part.get("thought") is True:
                        draft.reasoning(ts_ns, index, text)
                    else:
                        draft.text(ts_ns, index, text)
                else:
                    self._part(part, index, ts_ns)
        if not _BESIDE_PARTS.isdisjoint(candidate):
            if isinstance(candidate.get("output"), str):  # PaLM
                draft.text(ts_ns, index, candidate["output"])
            messages.cite(dict_of(candidate.get("groundingMetadata")).get("groundingChunks"), draft, index)
            messages.cite(dict_of(candidate.get("citationMetadata")).get("citationSources"), draft, index)
        reason = candidate.get("finishReason")
        if isinstance(reason, str) and reason:
            self._close(index, ts_ns)
            draft.finish(index, reason)
            draft.terminated = True
            if reason not in _GOOD_ENDS and isinstance(candidate.get("finishMessage"), str):
                draft.error_message = draft.error_message or candidate["finishMessage"]

    def _part(self, part: dict[str, JSON], index: int, ts_ns: int) -> None:
        """A part that is no text."""
        draft = self._draft
        call = part.get("functionCall")
        if isinstance(call, dict):
            self._piece(call, index, ts_ns)
        elif isinstance(part.get("executableCode"), dict):
            self._calls += 1
            code = part["executableCode"]
            draft.tool_call(
                ts_ns,
                index,
                self._calls,
                id=text_of(code.get("id")),
                name="code_execution",
                arguments=text_of(code.get("code")),
                server_side=True,
            )
        elif isinstance(part.get("toolCall"), dict):
            self._calls += 1
            ran = part["toolCall"]
            name = text_of(ran.get("toolType")) or text_of(ran.get("name"))
            draft.tool_call(
                ts_ns, index, self._calls, id=text_of(ran.get("id")), name=name, arguments=dump_json(ran.get("args")), server_side=True
            )
        else:
            found = _part(part)
            if found is not None and found.content:
                draft.part(index, found)

    def _piece(self, call: dict[str, JSON], index: int, ts_ns: int) -> None:
        name = text_of(call.get("name")) or None
        known = self._open.get(index)
        if known is not None and name and not self._continues(known, call):
            self._close(index, ts_ns)
            known = None
        goes_on = call.get("willContinue") is True
        if known is None:
            if not name and not goes_on and not call:
                return  # the end of a call that has ended
            self._calls += 1
            known = self._open[index] = _Call(self._calls)
        known.id, known.name = text_of(call.get("id")) or known.id, name or known.name
        if goes_on:
            self._draft.tool_call(ts_ns, index, known.key, id=known.id, name=name)
        arguments = call.get("args")
        if arguments is not None:
            known.given = True
            if isinstance(arguments, dict) and isinstance(known.arguments, dict):
                known.arguments.update(arguments)
            else:
                known.arguments = arguments
        for piece in list_of(call.get("partialArgs")):
            if isinstance(piece, dict):
                known.given = True
                if known.size > MAX_OTHER_TEXT_CHARS:
                    self._draft.anomaly("text_limit")
                    break
                _put(known, piece)
        if not goes_on:
            self._close(index, ts_ns)

    @staticmethod
    def _continues(known: _Call, call: dict[str, JSON]) -> bool:
        """Whether a piece with a name is more of the open call: with the same id, or the same name and nothing that begins anew."""
        identity = text_of(call.get("id"))
        if identity and known.id:
            return identity == known.id
        return known.name in (None, call.get("name")) and ("partialArgs" in call or not known.given)

    def _close(self, index: int, ts_ns: int) -> None:
        """The call has all its arguments. One without any has an empty object."""
        known = self._open.pop(index, None)
        if known is not None:
            self._draft.tool_call(ts_ns, index, known.key, id=known.id, name=known.name, arguments=dump_json(known.whole()))

    def end(self, ts_ns: int) -> None:
        """Nothing more comes: what has come of calls is all there is."""
        for index in list(self._open):
            self._close(index, ts_ns)


_BESIDE_PARTS: Final = frozenset(("output", "groundingMetadata", "citationMetadata"))
_GOOD_ENDS: Final = frozenset(("STOP", "MAX_TOKENS", "FINISH_REASON_UNSPECIFIED"))
_STEP: Final = re.compile(r"\.?([^.\[\]]+)|\[(\d+)\]|\[[\'\"]([^\'\"]*)[\'\"]\]")
_MAX_STEPS = 32
_MAX_PLACES = 4096


def _put(call: _Call, piece: dict[str, JSON]) -> None:
    """One of `partialArgs`: a value at a JSON path (RFC 9535); a text goes on where the piece before it said so."""
    path = text_of(piece.get("jsonPath")) or text_of(piece.get("json_path")) or "$"
    value: JSON = next((piece[kind] for kind in ("stringValue", "numberValue", "boolValue") if kind in piece), None)
    steps: list[str | int] = [
        int(found[2]) if found[2] is not None else found[1] or found[3] or "" for found in _STEP.finditer(path.removeprefix("$"))
    ]
    call.size += len(path) + (len(value) if isinstance(value, str) else 0)
    goes_on = piece.get("willContinue") is True
    is_more = isinstance(value, str) and call.open == path
    call.open = path if goes_on else None
    if is_more:
        call.texts[-1][2].append(value)
        return
    at: JSON = call.arguments
    for number, step in enumerate(steps[:_MAX_STEPS]):
        if isinstance(step, int):
            if not isinstance(at, list) or step > min(len(at), _MAX_PLACES):
                break
            if step == len(at):
                at.append(None)
        elif not isinstance(at, dict) or (step not in at and len(at) >= _MAX_PLACES):
            break
        if number == len(steps) - 1:
            at[step] = value
            if goes_on and isinstance(value, str):
                call.texts.append((at, step, [value]))
            else:
                call.open = None
            return
        here = at[step] if isinstance(step, int) else at.get(step)
        if not isinstance(here, dict | list):
            at[step] = here = [] if isinstance(steps[number + 1], int) else {}
        at = here
    call.open = None


def model_in_path(request: RequestView) -> str | None:
    """`…/models/{model}:verb`; tuned models and endpoints likewise."""
    segments = request.segments
    for name in ("models", "tunedModels", "endpoints"):
        if name in segments[:-1]:
            model = "/".join(segments[segments.index(name) + 1 :])
            return (model.rpartition(":")[0] or model) if ":" in model else model
    return None


def content_message(content: JSON) -> Message | None:
    if isinstance(content, str):
        return Message(role="user", parts=[Part(type="text", content=content)])
    if not isinstance(content, dict):
        return None
    parts = content.get("parts")
    entries = parts if isinstance(parts, list) else [parts]
    return Message(role=text_of(content.get("role")) or "user", parts=[p for p in map(_part, entries) if p is not None])


def _part(part: JSON) -> Part | None:
    if isinstance(part, str):
        return Part(type="text", content=part)
    if not isinstance(part, dict):
        return None
    text = part.get("text")
    if isinstance(text, str):
        return Part(type="reasoning" if part.get("thought") is True else "text", content=text)
    call = part.get("functionCall") or part.get("function_call")
    if isinstance(call, dict):
        return Part(type="tool_call", id=text_of(call.get("id")), name=text_of(call.get("name")), arguments=dump_json(call.get("args")))
    result = part.get("functionResponse") or part.get("function_response")
    if isinstance(result, dict):
        return Part(
            type="tool_call_response",
            id=text_of(result.get("id")),
            name=text_of(result.get("name")),
            content=dump_json(result.get("response")),
        )
    code = part.get("executableCode") or part.get("executable_code")
    if isinstance(code, dict):
        return Part(type="tool_call", id=text_of(code.get("id")), name="code_execution", arguments=text_of(code.get("code")) or "")
    result = part.get("codeExecutionResult") or part.get("code_execution_result")
    if isinstance(result, dict):
        return Part(type="tool_call_response", id=text_of(result.get("id")), name="code_execution", content=text_of(result.get("output")))
    call = part.get("toolCall")
    if isinstance(call, dict):
        return Part(type="tool_call", id=text_of(call.get("id")), name=text_of(call.get("toolType")), arguments=dump_json(call.get("args")))
    result = part.get("toolResponse")
    if isinstance(result, dict):
        return Part(
            type="tool_call_response",
            id=text_of(result.get("id")),
            name=text_of(result.get("toolType")) or text_of(result.get("name")),
            content=messages.flat_text(result.get("response")),
        )
    blob = part.get("inlineData") or part.get("inline_data")
    if isinstance(blob, dict):
        mime = text_of(blob.get("mimeType")) or text_of(blob.get("mime_type"))
        said = messages.text_file(blob.get("data"), mime)
        if said is not None:
            return Part(type="document", content=said)
        return messages.base64_part(blob.get("data"), messages.modality_of(mime or ""), mime)
    file = part.get("fileData") or part.get("file_data")
    if isinstance(file, dict):
        mime = text_of(file.get("mimeType")) or text_of(file.get("mime_type"))
        uri = text_of(file.get("fileUri")) or text_of(file.get("file_uri")) or ""
        return messages.data_uri(uri, messages.modality_of(mime or ""))
    return Part(type="other", name=next((k for k in part if k != "thoughtSignature"), "other"))


def tool_definitions(tool: JSON, draft: Draft) -> None:
    tool = dict_of(tool)
    declared = tool.get("functionDeclarations") or tool.get("function_declarations")
    if declared is not None:
        messages.tools(declared, draft)
        return
    draft.tools.extend(ToolDefinition(name=name) for name in list(tool)[:16])
