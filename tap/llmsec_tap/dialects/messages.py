"""Request messages in the record's own form, from the shapes that several dialects share.

OpenAI content parts (platform.openai.com/docs/api-reference/chat/create), which Mistral, Cohere v2 and many servers extend;
the Responses API's items; tool lists; scalar parameters. Images and other media are noted by size or address, never kept.
"""

from __future__ import annotations

from binascii import a2b_base64
from collections.abc import Iterable

from llmsec_tap.dialects.base import JSON, dict_of, dump_json, list_of, text_of
from llmsec_tap.dialects.draft import Draft
from llmsec_tap.dialects.vectors import base64_bytes
from llmsec_tap.limits import MAX_OTHER_TEXT_CHARS
from llmsec_tap.model import Message, Part, ToolDefinition

Scalar = str | int | float | bool | None

_MAX_URI_CHARS = 2048
_MODALITIES = ("image", "audio", "video", "file", "document", "pdf")
_TEXTS = frozenset(("text", "input_text", "output_text"))
_NOT_PARAMETERS = frozenset(
    (
        "model",
        "prompt",
        "input",
        "inputs",
        "suffix",
        "system",
        "instructions",
        "user",
        "message",
        "preamble",
        "query",
        "text",
        "inputText",
        "safety_identifier",
        "user_id",
        "end_user",
        "end_user_id",
    )
)


def data_uri(uri: str, modality: str) -> Part:
    """A `data:` address as a blob with its size (RFC 2397), any other one as it is."""
    if uri.startswith("data:"):
        head, _, payload = uri.partition(",")
        size = base64_bytes(payload) if head.endswith(";base64") else len(payload)
        return Part(type="blob", modality=modality, mime_type=head[5:].partition(";")[0] or None, size_bytes=size)
    return Part(type="uri", modality=modality, uri=uri[:_MAX_URI_CHARS])


def base64_part(data: JSON, modality: str, mime_type: JSON = None) -> Part:
    size = base64_bytes(data) if isinstance(data, str) else None
    return Part(type="blob", modality=modality, mime_type=text_of(mime_type), size_bytes=size)


def modality_of(kind: str) -> str:
    return next((m for m in _MODALITIES if m in kind), "file")


def plain_text(content: JSON) -> str | None:
    """The text of a content field: a string, or the text parts of a list joined with newlines; other JSON as JSON."""
    if content is None or isinstance(content, str):
        return content
    if isinstance(content, list):
        texts = [t for t in (text_of(dict_of(p).get("text")) if isinstance(p, dict) else text_of(p) for p in content) if t is not None]
        if texts or not content:
            return "\n".join(texts)
    return dump_json(content)


# Names of fields that hold no text to read, in documents, results of tools and sources of every vendor.
_NOT_READ = frozenset(
    ("type", "id", "object", "role", "format", "mime_type", "mimeType", "media_type", "encrypted_content", "encrypted_index", "signature", "data",
     "bytes", "url", "uri", "file_id", "fileId", "tool_use_id", "call_id", "status", "language", "outcome", "index", "thoughtSignature", "page_age")
)  # fmt: skip
_MAX_FLAT_TEXTS = 4096


def flat_text(value: JSON, *, but: frozenset[str] = _NOT_READ) -> str:
    """All texts of a JSON value, a line each: a result of a tool, a document of any shape. Not recursive: hostile values are deep."""
    texts: list[str] = []
    waiting = [value]
    while waiting and len(texts) < _MAX_FLAT_TEXTS:
        of = waiting.pop()
        if isinstance(of, str):
            if of:
                texts.append(of)
        elif isinstance(of, dict):
            waiting += [item for key, item in reversed(of.items()) if key not in but or (key == "data" and _is_text_source(of))]
        elif isinstance(of, list):
            waiting += reversed(of)
    return "\n".join(texts)


def _is_text_source(source: dict[str, JSON]) -> bool:
    """Anthropic's plain text documents, Cohere's documents."""
    data = source.get("data")
    return source.get("type") == "text" or isinstance(data, dict) or (isinstance(data, str) and " " in data[:256])


_TITLES = ("title", "document_title", "name", "filename", "file_name", "source")
_ADDRESSES = ("url", "uri", "link", "source")
_SAID = (
    "cited_text",
    "content",
    "text",
    "snippet",
    "quote",
    "passage",
    "excerpt",
    "context",
    "description",
    "sourceContent",
    "data",
    "document",
)


def document_part(document: JSON) -> Part | None:
    """A document given to the model, a search result, or a source that an answer cites, in the shape of any vendor."""
    if isinstance(document, str):
        return Part(type="document", uri=document[:_MAX_URI_CHARS]) if _is_address(document) else Part(type="document", content=document)
    if not isinstance(document, dict):
        return None
    title = next((document[key] for key in _TITLES if isinstance(document.get(key), str) and not _is_address(document[key])), None)
    uri = next((document[key] for key in _ADDRESSES if isinstance(document.get(key), str) and _is_address(document[key])), None)
    said = [flat_text(document[key]) for key in _SAID if document.get(key)]
    if not any(said):
        rest = {key: value for key, value in document.items() if value is not title and value is not uri}
        said = [flat_text(rest)]
    text = "\n".join(filter(None, [title, *said]))
    if not (uri or text):
        return None
    return Part(type="document", uri=uri[:_MAX_URI_CHARS] if uri else None, content=text or None)


_TEXT_TYPES = ("text/", "application/json", "application/xml", "application/x-ndjson", "application/yaml")
_TEXT_FORMATS = frozenset(("txt", "md", "csv", "html", "json", "jsonl", "xml", "yaml"))


def text_file(data: JSON, kind: JSON) -> str | None:
    """The text of a file that is sent in base64 and is text by its MIME type or format; None for all other files."""
    if not isinstance(data, str) or not isinstance(kind, str) or not (kind.startswith(_TEXT_TYPES) or kind in _TEXT_FORMATS):
        return None
    coded: str = data[: MAX_OTHER_TEXT_CHARS // 4 * 4]
    try:
        decoded = a2b_base64(coded)
    except ValueError:
        return coded
    return decoded.decode("utf-8", "replace")


def _is_address(text: str) -> bool:
    return text.startswith(("http://", "https://", "s3://", "gs://"))


def documents(entries: JSON, draft: Draft) -> None:
    """Documents beside the messages (Cohere, vLLM, llama.cpp): one message of them, under no role of the conversation."""
    parts = [part for part in map(document_part, list_of(entries)) if part is not None]
    if parts:
        draft.messages.append(Message(role="document", parts=parts))


def cite(entries: JSON, draft: Draft, choice: int) -> None:
    """Sources that an answer names: annotations, citations, search results."""
    for entry in list_of(entries):
        if isinstance(entry, dict):
            nested = next(
                (entry[key] for key in ("url_citation", "file_citation", "web", "retrievedContext") if isinstance(entry.get(key), dict)),
                entry,
            )
            part = document_part(nested)
            if part is not None:
                draft.part(choice, part)


def call_parts(item: dict[str, JSON], kind: str) -> list[Part]:
    """A call of a tool that stands as an item of its own (Responses, MCP), with its result where it has one."""
    identity = text_of(item.get("call_id")) or text_of(item.get("id"))
    name = text_of(item.get("name")) or kind
    parts = [Part(type="tool_call", id=identity, name=name, arguments=call_arguments(item) or "")]
    result = "\n".join(filter(None, (flat_text(item.get(key)) for key in RESULTS)))
    if isinstance(item.get("result"), str) and " " in item["result"]:  # else an image
        result = "\n".join(filter(None, (result, item["result"])))
    if result:
        parts.append(Part(type="tool_call_response", id=identity, name=name, content=result))
    return parts


# Where an item of a call has what its tool gave.
RESULTS = ("output", "outputs", "results", "error", "revised_prompt", "tools")


def call_arguments(item: dict[str, JSON]) -> str | None:
    for key in ("arguments", "input", "action", "operation", "code", "queries", "query", "prompt"):
        value = item.get(key)
        if value is not None:
            return value if isinstance(value, str) else dump_json(value)
    return None


def variables(values: JSON, draft: Draft) -> None:
    """What is put into a stored prompt."""
    parts = []
    for name, value in dict_of(values).items():
        part = Part(type="text", content=value) if isinstance(value, str) else content_part(value) if isinstance(value, dict) else None
        if part is not None:
            part.name = name
            parts.append(part)
    if parts:
        draft.messages.append(Message(role="user", parts=parts))
        if draft.input_text is None:
            draft.input_text = last_user_text(draft.messages)


def content_parts(content: JSON) -> list[Part]:
    """OpenAI-style content: a string or a list of parts of any of the known types."""
    if isinstance(content, str):
        return [Part(type="text", content=content)]
    parts: list[Part] = []
    for part in list_of(content):
        if isinstance(part, str):
            parts.append(Part(type="text", content=part))
        elif isinstance(part, dict):
            parts.append(content_part(part))
    return parts


def content_part(part: dict[str, JSON]) -> Part:
    kind = text_of(part.get("type")) or ("text" if isinstance(part.get("text"), str) else "other")
    if kind in _TEXTS:
        text = part.get("text")
        return Part(type="text", content=text_of(text) or text_of(dict_of(text).get("value")) or "")
    if kind == "refusal":
        return Part(type="refusal", content=text_of(part.get("refusal")) or "")
    if kind in ("thinking", "reasoning", "reasoning_text", "summary_text"):
        return Part(type="reasoning", content=plain_text(part.get("thinking") or part.get("text")) or "")
    body = part.get(kind)
    modality = modality_of(kind)
    if "audio" in kind and (transcript := text_of(part.get("transcript")) or text_of(dict_of(body).get("transcript"))):
        return Part(type="text", content=transcript)
    if (
        kind in ("document", "search_result")
        and not isinstance(body, str)
        and (found := document_part(body or part)) is not None
        and found.content
    ):
        return found
    if isinstance(body, str):  # Responses and Mistral: the address itself
        return data_uri(body, modality)
    inner = dict_of(body)
    for source in (inner, part):
        for key in ("url", "image_url", "file_url", "video_url", "document_url"):
            value = source.get(key)
            value = value.get("url") if isinstance(value, dict) else value
            if isinstance(value, str):
                return data_uri(value, modality)
        for key in ("data", "file_data", "image", "audio"):
            value = source.get(key)
            if isinstance(value, str):
                if value.startswith(("data:", "http://", "https://")):
                    return data_uri(value, modality)
                return base64_part(value, modality, source.get("format") or source.get("mime_type"))
        if isinstance(source.get("file_id"), str):
            return Part(type="file", modality=modality, id=source["file_id"])
    return Part(type="other", name=kind)


def tool_call_part(call: JSON) -> Part:
    """An entry of `tool_calls`; Ollama and others send arguments as an object, some without `function`."""
    call = dict_of(call)
    function = dict_of(call.get("function")) or dict_of(call.get("custom")) or call
    return Part(type="tool_call", id=text_of(call.get("id")), name=text_of(function.get("name")), arguments=arguments_of(function))


def arguments_of(function: dict[str, JSON]) -> str:
    value = function.get("arguments")
    if value is None:
        value = function.get("parameters") if "parameters" in function else function.get("input")
    if value is None:
        return ""
    return value if isinstance(value, str) else dump_json(value)


def chat_message(message: JSON) -> Message | None:
    """One entry of `messages` of a chat request."""
    if isinstance(message, str):
        return Message(role="user", parts=[Part(type="text", content=message)])
    if not isinstance(message, dict):
        return None
    role = text_of(message.get("role")) or "user"
    parts: list[Part] = []
    if role != "user":
        parts += _thoughts(message)
    if role in ("tool", "function", "ipython"):
        parts.append(
            Part(
                type="tool_call_response",
                id=text_of(message.get("tool_call_id")),
                name=text_of(message.get("name")) or text_of(message.get("tool_name")),
                content=result_text(message.get("content")),
            )
        )
        return Message(role=role, parts=parts)
    parts += content_parts(message.get("content"))
    parts += [base64_part(image, "image") for image in list_of(message.get("images"))]  # Ollama
    if isinstance(message.get("refusal"), str):
        parts.append(Part(type="refusal", content=message["refusal"]))
    if isinstance(message.get("audio"), dict) and isinstance(message["audio"].get("transcript"), str):
        parts.append(Part(type="text", content=message["audio"]["transcript"]))
    parts += [tool_call_part(call) for call in list_of(message.get("tool_calls"))]
    if isinstance(message.get("function_call"), dict):
        parts.append(tool_call_part(message["function_call"]))
    return Message(role=role, parts=parts)


def _thoughts(message: dict[str, JSON]) -> list[Part]:
    """What a model thought in an earlier turn, as Ollama, OpenRouter, Cohere and others send it back."""
    for key in ("reasoning_content", "reasoning", "thinking", "tool_plan"):
        thought = message.get(key)
        if isinstance(thought, str) and thought:
            return [Part(type="reasoning", content=thought)]
    details = [dict_of(detail) for detail in list_of(message.get("reasoning_details"))]
    thoughts = [detail.get("text") or detail.get("summary") for detail in details]
    return [Part(type="reasoning", content=thought) for thought in thoughts if isinstance(thought, str) and thought]


def result_text(content: JSON) -> str | None:
    """What a tool gave: its text, and where that is made of parts of other types (Cohere's documents) all texts in them."""
    if isinstance(content, list) and any(isinstance(part, dict) and "text" not in part for part in content):
        return flat_text(content) or plain_text(content)
    return plain_text(content)


def chat_messages(messages: JSON, draft: Draft) -> None:
    """`messages` of a chat request, and the input text: the last user message that has any text."""
    draft.messages.extend(m for m in map(chat_message, list_of(messages)) if m is not None)
    draft.input_text = last_user_text(draft.messages)


def last_user_text(messages: list[Message]) -> str | None:
    for message in reversed(messages):
        if message.role in ("user", "USER", "human", "User"):
            texts = [part.content for part in message.parts if part.type == "text" and part.content is not None]
            if texts:
                return "\n".join(texts)
    return None


def prompt(value: JSON, draft: Draft) -> None:
    """A prompt: text, a list of texts, token ids (which are not text), or a list of either."""
    if isinstance(value, str):
        texts = [value]
    else:
        texts = [v for v in list_of(value) if isinstance(v, str)]
        if not texts:
            texts = [t for v in list_of(value) if isinstance(v, dict) and (t := plain_text(v.get("content") or [v])) is not None]
    draft.messages.extend(Message(role="user", parts=[Part(type="text", content=text)]) for text in texts)
    if texts:
        draft.input_text = texts[-1]


def system(value: JSON, draft: Draft) -> None:
    """System instructions that are sent beside the messages."""
    parts = content_parts(value if not isinstance(value, dict) else [value])
    if parts:
        draft.messages.insert(0, Message(role="system", parts=parts))


def tools(entries: JSON, draft: Draft) -> None:
    """`tools` or `functions`: OpenAI's nested form, the flat form of Responses and Anthropic, built-in tools by their type."""
    for entry in list_of(entries):
        if not isinstance(entry, dict):
            continue
        function = entry.get("function")
        source = function if isinstance(function, dict) else entry
        name = text_of(source.get("name")) or text_of(entry.get("type"))
        if name:
            draft.tools.append(ToolDefinition(name=name, description=text_of(source.get("description"))))


def parameters(body: JSON, draft: Draft, *, nested: Iterable[str] = ()) -> None:
    """Scalars of the request (temperature, max_tokens, seed, stream, …), also of the objects named in `nested`."""
    if not isinstance(body, dict):
        return
    for key, value in body.items():
        if key not in _NOT_PARAMETERS and isinstance(value, str | int | float | bool) and len(draft.parameters) < 64:
            if isinstance(value, int) and abs(value) >= 1 << 63:
                continue
            draft.parameters[key] = value[:256] if isinstance(value, str) else value
    for name in nested:
        inner = body.get(name)
        if isinstance(inner, dict):
            parameters(inner, draft)
