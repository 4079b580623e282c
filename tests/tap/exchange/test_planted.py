"""Every place of the known APIs that carries text: a card number planted there is on the record, and detection finds it.

One row a place: `{card}` stands where the text is. Requests, whole answers and streams; what a place is called on the record is up to its
dialect (a part, a tool call, `other_texts`), that it is there is not.
"""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from llmsec_analyzer.judge.scanner import Scanner
from llmsec_analyzer.settings import DetectionSettings, InjectionSettings, ModelSettings
from llmsec_tap.model import Exchange, to_json
from support.detection import Detecting
from support.replay import replay
from support.wire import Talk, pcap

CARD = "5299 7709 1453 4166"
SAYS = f"note my card {CARD} please"
SSE, JSON_TYPE, NDJSON = "text/event-stream", "application/json", "application/x-ndjson"

OPENAI = "api.openai.com"
CLAUDE = "api.anthropic.com"
GOOGLE = "generativelanguage.googleapis.com"
BEDROCK = "bedrock-runtime.eu-west-1.amazonaws.com"
COHERE = "api.cohere.com"
NODE = "node7.internal"

CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
MESSAGES = "/v1/messages"
GENERATE = "/v1beta/models/gemini-x:generateContent"
CONVERSE = "/model/m1/converse"

HI = [{"role": "user", "content": "hi"}]
GEMINI_HI = [{"role": "user", "parts": [{"text": "hi"}]}]
CONVERSE_HI = [{"role": "user", "content": [{"text": "hi"}]}]


def chat(**more: Any) -> dict[str, Any]:
    return {"model": "m1", "messages": HI, **more}


def claude(*blocks: Any, role: str = "user", **more: Any) -> dict[str, Any]:
    return {"model": "m1", "max_tokens": 9, "messages": [{"role": role, "content": list(blocks)}] if blocks else HI, **more}


def items(*given: Any, **more: Any) -> dict[str, Any]:
    return {"model": "m1", "input": list(given) or "hi", **more}


def gemini(*parts: Any, **more: Any) -> dict[str, Any]:
    return {"contents": [{"role": "user", "parts": list(parts)}] if parts else GEMINI_HI, **more}


def converse(*blocks: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(blocks)}] if blocks else CONVERSE_HI, **more}


def schema(text: str) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": {"type": "string", "description": text}}}


def lines(*values: Any) -> str:
    return "\n".join(json.dumps(value) for value in values)


def upload(text: str) -> str:
    return (
        '--B\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        f'--B\r\nContent-Disposition: form-data; name="file"; filename="in.jsonl"\r\nContent-Type: application/jsonl\r\n\r\n{text}\r\n--B--\r\n'
    )


# name, host, path, body (JSON value, or a text with its content type)
REQUESTS: list[tuple[str, str, str, Any]] = [
    ("chat: text", NODE, CHAT, chat(messages=[{"role": "user", "content": SAYS}])),
    ("chat: name of a speaker", NODE, CHAT, chat(messages=[{"role": "user", "name": SAYS, "content": "hi"}])),
    ("chat: part of a new type", NODE, CHAT, chat(messages=[{"role": "user", "content": [{"type": "hologram", "hologram": {"caption": SAYS}}]}])),
    ("chat: audio transcript", NODE, CHAT, chat(messages=[{"role": "assistant", "audio": {"id": "a", "transcript": SAYS}}])),
    ("chat: reasoning details", NODE, CHAT, chat(messages=[{"role": "assistant", "content": "x", "reasoning_details": [{"type": "reasoning.text", "text": SAYS}]}])),
    ("chat: result of a tool as documents", NODE, CHAT, chat(messages=[{"role": "tool", "tool_call_id": "c", "content": [{"type": "document", "document": {"data": {"x": SAYS}}}]}])),
    ("chat: arguments of a call", NODE, CHAT, chat(messages=[{"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": json.dumps({"a": SAYS})}}]}])),
    ("chat: custom call", NODE, CHAT, chat(messages=[{"role": "assistant", "tool_calls": [{"id": "c", "type": "custom", "custom": {"name": "f", "input": SAYS}}]}])),
    ("chat: tool description", NODE, CHAT, chat(tools=[{"type": "function", "function": {"name": "f", "description": SAYS}}])),
    ("chat: tool parameter", NODE, CHAT, chat(tools=[{"type": "function", "function": {"name": "f", "parameters": schema(SAYS)}}])),
    ("chat: grammar of a custom tool", NODE, CHAT, chat(tools=[{"type": "custom", "custom": {"name": "f", "format": {"type": "grammar", "grammar": {"definition": SAYS}}}}])),
    ("chat: response format", NODE, CHAT, chat(response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema(SAYS)}})),
    ("chat: prediction", NODE, CHAT, chat(prediction={"type": "content", "content": SAYS})),
    ("chat: prediction in parts", NODE, CHAT, chat(prediction={"type": "content", "content": [{"type": "text", "text": SAYS}]})),
    ("chat: documents", NODE, CHAT, chat(documents=[{"title": "a", "text": SAYS}])),
    ("chat: web search location", NODE, CHAT, chat(web_search_options={"user_location": {"approximate": {"city": SAYS}}})),
    ("chat: template arguments", NODE, CHAT, chat(chat_template_kwargs={"system": SAYS})),
    ("chat: code of a name like a secret's", NODE, CHAT, chat(extra={"code": SAYS})),
    ("chat: only digits in a field of no name", NODE, CHAT, chat(extra={"x": CARD})),
    ("completions: suffix", NODE, "/v1/completions", {"model": "m1", "prompt": "hi", "suffix": SAYS}),
    ("embeddings: input", NODE, "/v1/embeddings", {"model": "m1", "input": ["hi", SAYS]}),
    ("responses: instructions", OPENAI, RESPONSES, items(instructions=SAYS)),
    ("responses: prompt variables", OPENAI, RESPONSES, items(prompt={"id": "pmpt_1", "variables": {"who": SAYS}})),
    ("responses: prompt variable as a part", OPENAI, RESPONSES, items(prompt={"id": "pmpt_1", "variables": {"who": {"type": "input_text", "text": SAYS}}})),
    ("responses: function output", OPENAI, RESPONSES, items({"type": "function_call_output", "call_id": "c", "output": SAYS})),
    ("responses: function output in parts", OPENAI, RESPONSES, items({"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": SAYS}]})),
    ("responses: shell output", OPENAI, RESPONSES, items({"type": "shell_call_output", "call_id": "c", "output": [{"stdout": SAYS, "stderr": "", "outcome": {"type": "exit", "exit_code": 0}}]})),
    ("responses: MCP call arguments", OPENAI, RESPONSES, items({"type": "mcp_call", "id": "m", "server_label": "s", "name": "f", "arguments": json.dumps({"a": SAYS}), "output": "x"})),
    ("responses: MCP call output", OPENAI, RESPONSES, items({"type": "mcp_call", "id": "m", "server_label": "s", "name": "f", "arguments": "{}", "output": SAYS})),
    ("responses: MCP tool list", OPENAI, RESPONSES, items({"type": "mcp_list_tools", "id": "m", "server_label": "s", "tools": [{"name": "f", "description": SAYS, "input_schema": {}}]})),
    ("responses: MCP tool parameters", OPENAI, RESPONSES, items({"type": "mcp_list_tools", "id": "m", "server_label": "s", "tools": [{"name": "f", "input_schema": schema(SAYS)}]})),
    ("responses: MCP approval reason", OPENAI, RESPONSES, items({"type": "mcp_approval_response", "approval_request_id": "m", "approve": False, "reason": SAYS})),
    ("responses: code interpreter input", OPENAI, RESPONSES, items({"type": "code_interpreter_call", "id": "c", "code": f"x = '{SAYS}'", "outputs": []})),
    ("responses: code interpreter output", OPENAI, RESPONSES, items({"type": "code_interpreter_call", "id": "c", "code": "1", "outputs": [{"type": "logs", "logs": SAYS}]})),
    ("responses: file search results", OPENAI, RESPONSES, items({"type": "file_search_call", "id": "c", "queries": ["x"], "results": [{"text": SAYS}]})),
    ("responses: file search queries", OPENAI, RESPONSES, items({"type": "file_search_call", "id": "c", "queries": [SAYS]})),
    ("responses: web search query", OPENAI, RESPONSES, items({"type": "web_search_call", "id": "c", "action": {"type": "search", "query": SAYS}})),
    ("responses: reasoning summary", OPENAI, RESPONSES, items({"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": SAYS}]})),
    ("responses: item of a new type", OPENAI, RESPONSES, items({"type": "telepathy", "thought": {"said": SAYS}})),
    ("responses: annotation title", OPENAI, RESPONSES, items({"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "x", "annotations": [{"type": "url_citation", "url": "https://a.example", "title": SAYS}]}]})),
    ("responses: text format", OPENAI, RESPONSES, items(text={"format": {"type": "json_schema", "name": "a", "schema": schema(SAYS)}})),
    ("responses: MCP server description", OPENAI, RESPONSES, items(tools=[{"type": "mcp", "server_label": "a", "server_description": SAYS}])),
    ("messages: document of text", CLAUDE, MESSAGES, claude({"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": SAYS}})),
    ("messages: document of blocks", CLAUDE, MESSAGES, claude({"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": SAYS}]}})),
    ("messages: title of a document", CLAUDE, MESSAGES, claude({"type": "document", "title": SAYS, "source": {"type": "text", "media_type": "text/plain", "data": "x y"}})),
    ("messages: context of a document", CLAUDE, MESSAGES, claude({"type": "document", "context": SAYS, "source": {"type": "text", "media_type": "text/plain", "data": "x y"}})),
    ("messages: search result", CLAUDE, MESSAGES, claude({"type": "search_result", "source": "https://a.example", "title": "t", "content": [{"type": "text", "text": SAYS}]})),
    ("messages: tool result text", CLAUDE, MESSAGES, claude({"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": SAYS}]})),
    ("messages: tool result document", CLAUDE, MESSAGES, claude({"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "x"}, {"type": "document", "source": {"type": "text", "data": SAYS}}]})),
    ("messages: web search result", CLAUDE, MESSAGES, claude({"type": "web_search_tool_result", "tool_use_id": "t", "content": [{"type": "web_search_result", "title": SAYS, "url": "https://a.example", "encrypted_content": "QUJD"}]}, role="assistant")),
    ("messages: code execution output", CLAUDE, MESSAGES, claude({"type": "bash_code_execution_tool_result", "tool_use_id": "t", "content": {"type": "bash_code_execution_result", "stdout": SAYS, "stderr": "", "return_code": 0}}, role="assistant")),
    ("messages: MCP result", CLAUDE, MESSAGES, claude({"type": "mcp_tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": SAYS}]}, role="assistant")),
    ("messages: server tool input", CLAUDE, MESSAGES, claude({"type": "server_tool_use", "id": "t", "name": "web_search", "input": {"query": SAYS}}, role="assistant")),
    ("messages: citation", CLAUDE, MESSAGES, claude({"type": "text", "text": "x", "citations": [{"type": "char_location", "cited_text": SAYS, "document_title": "t"}]}, role="assistant")),
    ("messages: compaction", CLAUDE, MESSAGES, claude({"type": "compaction", "content": SAYS}, role="assistant")),
    ("messages: tool schema", CLAUDE, MESSAGES, claude(tools=[{"name": "f", "input_schema": schema(SAYS)}])),
    ("messages: examples of a tool", CLAUDE, MESSAGES, claude(tools=[{"name": "f", "input_schema": {}, "input_examples": [{"a": SAYS}]}])),
    ("messages: block of a new type", CLAUDE, MESSAGES, claude({"type": "smell", "described": SAYS})),
    ("gemini: system instruction", GOOGLE, GENERATE, gemini(systemInstruction={"parts": [{"text": SAYS}]})),
    ("gemini: code", GOOGLE, GENERATE, gemini({"executableCode": {"language": "PYTHON", "code": f"x = '{SAYS}'"}})),
    ("gemini: output of code", GOOGLE, GENERATE, gemini({"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": SAYS}})),
    ("gemini: function response", GOOGLE, GENERATE, gemini({"functionResponse": {"name": "f", "response": {"a": SAYS}}})),
    ("gemini: part of a new type", GOOGLE, GENERATE, gemini({"sensorData": {"caption": SAYS}})),
    ("gemini: response schema", GOOGLE, GENERATE, gemini(generationConfig={"responseSchema": schema(SAYS)})),
    ("gemini: function parameters", GOOGLE, GENERATE, gemini(tools=[{"functionDeclarations": [{"name": "f", "parameters": schema(SAYS)}]}])),
    ("gemini: embedding title", GOOGLE, "/v1beta/models/e:embedContent", {"content": {"parts": [{"text": "hi"}]}, "title": SAYS}),
    ("converse: guarded text", BEDROCK, CONVERSE, converse({"guardContent": {"text": {"text": SAYS, "qualifiers": ["query"]}}})),
    ("converse: guarded system text", BEDROCK, CONVERSE, converse(system=[{"guardContent": {"text": {"text": SAYS}}}])),
    ("converse: document of text", BEDROCK, CONVERSE, converse({"document": {"format": "txt", "name": "d", "source": {"text": SAYS}}})),
    ("converse: document of blocks", BEDROCK, CONVERSE, converse({"document": {"format": "txt", "name": "d", "source": {"content": [{"text": SAYS}]}}})),
    ("converse: document of bytes", BEDROCK, CONVERSE, converse({"document": {"format": "txt", "name": "d", "source": {"bytes": base64.b64encode(SAYS.encode()).decode()}}})),
    ("converse: context of a document", BEDROCK, CONVERSE, converse({"document": {"format": "txt", "name": "d", "context": SAYS, "source": {"text": "x y"}}})),
    ("converse: search result", BEDROCK, CONVERSE, converse({"searchResult": {"source": "a", "title": "t", "content": [{"text": SAYS}]}})),
    ("converse: tool result as JSON", BEDROCK, CONVERSE, converse({"toolResult": {"toolUseId": "t", "content": [{"json": {"a": SAYS}}]}})),
    ("converse: tool result as a document", BEDROCK, CONVERSE, converse({"toolResult": {"toolUseId": "t", "content": [{"document": {"format": "txt", "name": "d", "source": {"text": SAYS}}}]}})),
    ("converse: prompt variables", BEDROCK, CONVERSE, {"promptVariables": {"who": {"text": SAYS}}}),
    ("converse: tool schema", BEDROCK, CONVERSE, converse(toolConfig={"tools": [{"toolSpec": {"name": "f", "inputSchema": {"json": schema(SAYS)}}}]})),
    ("converse: request metadata", BEDROCK, CONVERSE, converse(requestMetadata={"a": SAYS})),
    ("converse: fields of the model", BEDROCK, CONVERSE, converse(additionalModelRequestFields={"note": SAYS})),
    ("invoke: Nova document", BEDROCK, "/model/amazon.nova-x/invoke", {"schemaVersion": "messages-v1", **converse({"document": {"format": "txt", "name": "d", "source": {"text": SAYS}}})}),
    ("invoke: Claude document", BEDROCK, "/model/m1/invoke", {**claude({"type": "document", "source": {"type": "text", "data": SAYS}}), "anthropic_version": "bedrock-2023-05-31"}),
    ("invoke: query to rerank", BEDROCK, "/model/cohere.rerank/invoke", {"query": "x", "documents": [SAYS], "api_version": 2}),
    ("cohere: documents", COHERE, "/v2/chat", chat(documents=[{"id": "d", "data": {"text": SAYS}}])),
    ("cohere: documents as text", COHERE, "/v2/chat", chat(documents=[SAYS])),
    ("cohere: plan of an earlier turn", COHERE, "/v2/chat", chat(messages=[{"role": "assistant", "tool_plan": SAYS, "tool_calls": []}, *HI])),
    ("cohere: earlier citation", COHERE, "/v2/chat", chat(messages=[{"role": "assistant", "content": "x", "citations": [{"text": "x", "sources": [{"type": "document", "document": {"text": SAYS}}]}]}, *HI])),
    ("cohere v1: documents", COHERE, "/v1/chat", {"message": "hi", "documents": [{"title": "t", "snippet": SAYS}]}),
    ("cohere v1: preamble", COHERE, "/v1/chat", {"message": "hi", "preamble": SAYS}),
    ("cohere v1: results of tools", COHERE, "/v1/chat", {"message": "hi", "tool_results": [{"call": {"name": "f", "parameters": {"a": "x"}}, "outputs": [{"a": SAYS}]}]}),
    ("cohere v1: parameters of a tool's call", COHERE, "/v1/chat", {"message": "hi", "tool_results": [{"call": {"name": "f", "parameters": {"a": SAYS}}, "outputs": [{}]}]}),
    ("ollama: template", NODE, "/api/generate", {"model": "m1", "prompt": "hi", "template": SAYS}),
    ("ollama: thinking of an earlier turn", NODE, "/api/chat", chat(messages=[{"role": "assistant", "thinking": SAYS, "content": "x"}])),
    ("ollama: format", NODE, "/api/chat", chat(format=schema(SAYS))),
    ("tgi: grammar", NODE, "/generate", {"inputs": "hi", "parameters": {"grammar": {"type": "json", "value": schema(SAYS)}}}),
    ("llamacpp: system prompt", NODE, "/completion", {"prompt": "hi", "n_predict": 3, "system_prompt": {"prompt": SAYS}}),
    ("llamacpp: infill", NODE, "/infill", {"input_prefix": "x", "input_suffix": SAYS, "input_extra": []}),
    ("llamacpp: infill with files", NODE, "/infill", {"input_prefix": "x", "input_suffix": "y", "input_extra": [{"filename": "a", "text": SAYS}]}),
    ("watsonx: text", "us-south.ml.cloud.ibm.com", "/ml/v1/text/generation", {"model_id": "m1", "input": SAYS}),
    ("watsonx: moderations", "us-south.ml.cloud.ibm.com", "/ml/v1/text/generation", {"model_id": "m1", "input": "x", "moderations": {"note": SAYS}}),
    ("replicate: system prompt", "api.replicate.com", "/v1/models/a/b/predictions", {"input": {"prompt": "x", "system_prompt": SAYS}}),
    ("vertex: context", "us-central1-aiplatform.googleapis.com", "/v1/projects/p/locations/l/publishers/google/models/chat-bison:predict", {"instances": [{"context": SAYS, "messages": [{"author": "u", "content": "x"}]}]}),
    ("vertex: message", "us-central1-aiplatform.googleapis.com", "/v1/projects/p/locations/l/publishers/google/models/chat-bison:predict", {"instances": [{"messages": [{"author": "u", "content": SAYS}]}]}),
    ("sagemaker: inputs", "runtime.sagemaker.eu-west-1.amazonaws.com", "/endpoints/e/invocations", {"inputs": SAYS, "parameters": {}}),
    ("batch: inline, Anthropic", CLAUDE, "/v1/messages/batches", {"requests": [{"custom_id": "a", "params": claude({"type": "text", "text": SAYS})}]}),
    ("batch: inline, Anthropic, behind a gateway", NODE, "/v1/messages/batches", {"requests": [{"custom_id": "a", "params": claude({"type": "text", "text": SAYS})}]}),
    ("batch: inline, Gemini", GOOGLE, "/v1beta/models/m:batchGenerateContent", {"batch": {"input_config": {"requests": {"requests": [{"request": gemini({"text": SAYS})}]}}}}),
    ("batch: uploaded lines", OPENAI, "/v1/files", ("multipart/form-data; boundary=B", upload(lines({"custom_id": "a", "method": "POST", "url": CHAT, "body": chat(messages=[{"role": "user", "content": SAYS}])}, {"custom_id": "b", "body": chat()})))),
    ("batch: uploaded lines behind a gateway", NODE, "/v1/files", ("multipart/form-data; boundary=B", upload(lines({"custom_id": "a", "body": chat(messages=[{"role": "user", "content": SAYS}])})))),
    ("batch: uploaded lines, raw", GOOGLE, "/upload/v1beta/files", ("application/jsonl", lines({"key": "a", "request": gemini({"text": SAYS})}, {"key": "b", "request": gemini()}))),
    ("files: text", OPENAI, "/v1/files", ("multipart/form-data; boundary=B", upload(SAYS))),
    ("images: prompt", OPENAI, "/v1/images/generations", {"model": "m", "prompt": SAYS}),
    ("images: prompt on a node", NODE, "/v1/images/generations", {"model": "m", "prompt": SAYS}),
    ("images: edit", OPENAI, "/v1/images/edits", ("multipart/form-data; boundary=B", f'--B\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n{SAYS}\r\n--B--\r\n')),
    ("speech: input", OPENAI, "/v1/audio/speech", {"model": "m", "input": SAYS, "voice": "a"}),
    ("speech: instructions", OPENAI, "/v1/audio/speech", {"model": "m", "input": "x", "voice": "a", "instructions": SAYS}),
    ("transcription: prompt", OPENAI, "/v1/audio/transcriptions", ("multipart/form-data; boundary=B", f'--B\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n{SAYS}\r\n--B--\r\n')),
    ("moderations: input", OPENAI, "/v1/moderations", {"input": [{"type": "text", "text": SAYS}]}),
    ("moderations on a node", NODE, "/v1/moderations", {"input": SAYS}),
    ("rerank: document", COHERE, "/v2/rerank", {"model": "m", "query": "x", "documents": ["a b", SAYS]}),
    ("rerank: query on a node", NODE, "/v1/rerank", {"model": "m", "query": SAYS, "documents": ["a b"]}),
    ("rerank: texts, TEI", NODE, "/rerank", {"query": "x", "texts": [SAYS]}),
    ("score on a node", NODE, "/score", {"model": "m", "text_1": "x", "text_2": [SAYS]}),
    ("count: Anthropic", CLAUDE, "/v1/messages/count_tokens", claude({"type": "text", "text": SAYS})),
    ("count: Anthropic's, on a node", NODE, "/v1/messages/count_tokens", claude({"type": "text", "text": SAYS})),
    ("count: Gemini", GOOGLE, "/v1beta/models/m:countTokens", gemini({"text": SAYS})),
    ("count: Bedrock", BEDROCK, "/model/m1/count-tokens", {"input": {"converse": converse({"text": SAYS})}}),
    ("count: Responses", OPENAI, "/v1/responses/input_tokens", items(SAYS)),
    ("tokenize on a node", NODE, "/tokenize", {"model": "m", "prompt": SAYS}),
    ("threads: message", OPENAI, "/v1/threads/thread_1/messages", {"role": "user", "content": SAYS}),
    ("threads: messages of a new one", OPENAI, "/v1/threads", {"messages": [{"role": "user", "content": SAYS}]}),
    ("threads: run", OPENAI, "/v1/threads/thread_1/runs", {"assistant_id": "asst_1", "additional_instructions": SAYS}),
    ("threads: outputs of tools", OPENAI, "/v1/threads/thread_1/runs/run_1/submit_tool_outputs", {"tool_outputs": [{"tool_call_id": "c", "output": SAYS}]}),
    ("assistants: instructions", OPENAI, "/v1/assistants", {"model": "m", "instructions": SAYS}),
    ("conversations: items", OPENAI, "/v1/conversations/conv_1/items", {"items": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": SAYS}]}]}),
    ("caches: contents", GOOGLE, "/v1beta/cachedContents", {"model": "models/m", "contents": [{"role": "user", "parts": [{"text": SAYS}]}]}),
    ("compaction: input", OPENAI, "/v1/responses/compact", items({"role": "user", "content": SAYS})),
    ("interactions: input", GOOGLE, "/v1beta/interactions", {"model": "m", "input": SAYS}),
    ("realtime: instructions of a session", OPENAI, "/v1/realtime/client_secrets", {"session": {"type": "realtime", "instructions": SAYS}}),
    ("guardrail: content", BEDROCK, "/guardrail/g1/version/1/apply", {"source": "INPUT", "content": [{"text": {"text": SAYS}}]}),
    ("retrieve: query", "bedrock-agent-runtime.eu-west-1.amazonaws.com", "/knowledgebases/kb/retrieve", {"retrievalQuery": {"text": SAYS}}),
    ("vector store: search", OPENAI, "/v1/vector_stores/vs_1/search", {"query": SAYS}),
]  # fmt: skip


def said(**message: Any) -> dict[str, Any]:
    return {
        "id": "c1",
        "object": "chat.completion",
        "model": "m1",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "x", **message}, "finish_reason": "stop"}],
    }


def response(*output: Any) -> dict[str, Any]:
    return {"id": "resp_1", "object": "response", "status": "completed", "model": "m1", "output": list(output)}


def block(*blocks: Any) -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m1",
        "content": list(blocks),
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 1, "output_tokens": 1},
    }


def candidate(*parts: Any, **more: Any) -> dict[str, Any]:
    return {"candidates": [{"content": {"role": "model", "parts": list(parts)}, "finishReason": "STOP", **more}]}


def conversed(*blocks: Any) -> dict[str, Any]:
    return {
        "output": {"message": {"role": "assistant", "content": list(blocks)}},
        "stopReason": "end_turn",
        "usage": {"inputTokens": 1, "outputTokens": 1},
    }


# name, host, path, request body, answer
ANSWERS: list[tuple[str, str, str, Any, Any]] = [
    ("chat: text", NODE, CHAT, chat(), said(content=SAYS)),
    ("chat: refusal", NODE, CHAT, chat(), said(refusal=SAYS)),
    ("chat: reasoning", NODE, CHAT, chat(), said(reasoning_content=SAYS)),
    ("chat: audio transcript", NODE, CHAT, chat(), said(audio={"id": "a", "data": "QUJD", "transcript": SAYS})),
    ("chat: title of a source", NODE, CHAT, chat(), said(annotations=[{"type": "url_citation", "url_citation": {"url": "https://a.example", "title": SAYS}}])),
    ("chat: search result", NODE, CHAT, chat(), {**said(), "search_results": [{"title": "t", "url": "https://a.example", "snippet": SAYS}]}),
    ("chat: output of Groq's tools", NODE, CHAT, chat(), said(executed_tools=[{"type": "search", "arguments": "{}", "output": SAYS}])),
    ("chat: a vendor's extension", NODE, CHAT, chat(), {**said(), "x_vendor": {"debug": {"note": SAYS}}}),
    ("chat: second choice", NODE, CHAT, chat(), {**said(), "choices": [*said()["choices"], {"index": 1, "message": {"content": SAYS}}]}),
    ("responses: text", OPENAI, RESPONSES, items(), response({"type": "message", "content": [{"type": "output_text", "text": SAYS}]})),
    ("responses: annotation", OPENAI, RESPONSES, items(), response({"type": "message", "content": [{"type": "output_text", "text": "x", "annotations": [{"type": "url_citation", "title": SAYS, "url": "https://a.example"}]}]})),
    ("responses: code", OPENAI, RESPONSES, items(), response({"type": "code_interpreter_call", "id": "c", "code": f"x = '{SAYS}'", "outputs": None})),
    ("responses: output of code", OPENAI, RESPONSES, items(), response({"type": "code_interpreter_call", "id": "c", "code": "1", "outputs": [{"type": "logs", "logs": SAYS}]})),
    ("responses: MCP output", OPENAI, RESPONSES, items(), response({"type": "mcp_call", "id": "m", "name": "f", "arguments": "{}", "output": SAYS})),
    ("responses: MCP error", OPENAI, RESPONSES, items(), response({"type": "mcp_call", "id": "m", "name": "f", "arguments": "{}", "error": {"type": "mcp_protocol_error", "message": SAYS}})),
    ("responses: MCP tool list", OPENAI, RESPONSES, items(), response({"type": "mcp_list_tools", "id": "m", "tools": [{"name": "f", "description": SAYS, "input_schema": {}}]})),
    ("responses: MCP approval", OPENAI, RESPONSES, items(), response({"type": "mcp_approval_request", "id": "m", "name": "f", "arguments": json.dumps({"a": SAYS})})),
    ("responses: file search", OPENAI, RESPONSES, items(), response({"type": "file_search_call", "id": "c", "queries": ["x"], "results": [{"filename": "a", "text": SAYS}]})),
    ("responses: revised prompt", OPENAI, RESPONSES, items(), response({"type": "image_generation_call", "id": "c", "revised_prompt": SAYS, "result": "QUJD"})),
    ("responses: item of a new type", OPENAI, RESPONSES, items(), response({"type": "telepathy", "thought": {"said": SAYS}})),
    ("messages: server tool input", CLAUDE, MESSAGES, claude(), block({"type": "server_tool_use", "id": "t", "name": "web_search", "input": {"query": SAYS}})),
    ("messages: web search result", CLAUDE, MESSAGES, claude(), block({"type": "web_search_tool_result", "tool_use_id": "t", "content": [{"type": "web_search_result", "title": SAYS, "url": "https://a.example"}]})),
    ("messages: fetched document", CLAUDE, MESSAGES, claude(), block({"type": "web_fetch_tool_result", "tool_use_id": "t", "content": {"type": "web_fetch_result", "content": {"type": "document", "source": {"type": "text", "data": SAYS}}}})),
    ("messages: output of code", CLAUDE, MESSAGES, claude(), block({"type": "code_execution_tool_result", "tool_use_id": "t", "content": {"type": "code_execution_result", "stdout": SAYS}})),
    ("messages: MCP result", CLAUDE, MESSAGES, claude(), block({"type": "mcp_tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": SAYS}]})),
    ("messages: citation", CLAUDE, MESSAGES, claude(), block({"type": "text", "text": "x", "citations": [{"type": "char_location", "cited_text": SAYS}]})),
    ("messages: block of a new type", CLAUDE, MESSAGES, claude(), block({"type": "smell", "described": SAYS})),
    ("gemini: code", GOOGLE, GENERATE, gemini(), candidate({"executableCode": {"language": "PYTHON", "code": f"x = '{SAYS}'"}})),
    ("gemini: output of code", GOOGLE, GENERATE, gemini(), candidate({"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": SAYS}})),
    ("gemini: source", GOOGLE, GENERATE, gemini(), candidate({"text": "x"}, groundingMetadata={"groundingChunks": [{"web": {"uri": "https://a.example", "title": SAYS}}]})),
    ("gemini: retrieved text", GOOGLE, GENERATE, gemini(), candidate({"text": "x"}, groundingMetadata={"groundingChunks": [{"retrievedContext": {"title": "t", "text": SAYS}}]})),
    ("gemini: search query", GOOGLE, GENERATE, gemini(), candidate({"text": "x"}, groundingMetadata={"webSearchQueries": [SAYS]})),
    ("gemini: why it ended", GOOGLE, GENERATE, gemini(), candidate(finishReason="OTHER", finishMessage=SAYS)),
    ("gemini: part of a new type", GOOGLE, GENERATE, gemini(), candidate({"sensorData": {"caption": SAYS}})),
    ("converse: cited source", BEDROCK, CONVERSE, converse(), conversed({"citationsContent": {"content": [{"text": "x"}], "citations": [{"title": "t", "sourceContent": [{"text": SAYS}]}]}})),
    ("converse: guardrail trace", BEDROCK, CONVERSE, converse(), {**conversed({"text": "x"}), "trace": {"guardrail": {"modelOutput": [SAYS]}}}),
    ("converse: fields of the model", BEDROCK, CONVERSE, converse(), {**conversed({"text": "x"}), "additionalModelResponseFields": {"a": SAYS}}),
    ("cohere: plan", COHERE, "/v2/chat", chat(), {"id": "c", "message": {"role": "assistant", "tool_plan": SAYS}, "finish_reason": "TOOL_CALL"}),
    ("cohere: citation", COHERE, "/v2/chat", chat(), {"id": "c", "message": {"role": "assistant", "content": [{"type": "text", "text": "x"}], "citations": [{"text": "x", "sources": [{"type": "document", "document": {"snippet": SAYS}}]}]}, "finish_reason": "COMPLETE"}),
    ("cohere v1: documents", COHERE, "/v1/chat", {"message": "hi"}, {"text": "x", "generation_id": "g", "documents": [{"title": "t", "snippet": SAYS}], "finish_reason": "COMPLETE"}),
    ("ollama: thinking", NODE, "/api/chat", chat(stream=False), {"model": "m1", "created_at": "2026-01-01T00:00:00Z", "message": {"role": "assistant", "content": "x", "thinking": SAYS}, "done": True}),
    ("transcription", OPENAI, "/v1/audio/transcriptions", {}, {"text": SAYS}),
    ("stored response", OPENAI, "/v1/responses/resp_1", None, response({"type": "message", "content": [{"type": "output_text", "text": SAYS}]})),
    ("messages of a thread", OPENAI, "/v1/threads/thread_1/messages", None, {"object": "list", "data": [{"role": "user", "content": [{"type": "text", "text": {"value": SAYS}}]}]}),
    ("lines of a batch", OPENAI, "/v1/files/file-1/content", None, ("application/octet-stream", lines({"custom_id": "a", "response": {"body": said(content=SAYS)}}, {"custom_id": "b"}))),
    ("revised prompt of an image", OPENAI, "/v1/images/generations", {"prompt": "x"}, {"data": [{"b64_json": "QUJD", "revised_prompt": SAYS}]}),
    ("compaction", OPENAI, "/v1/responses/compact", items("x"), {"object": "response.compaction", "output": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": SAYS}]}]}),
]  # fmt: skip

FIRST, SECOND = SAYS[:20], SAYS[20:]  # the card number is cut in two


def delta(**more: Any) -> dict[str, Any]:
    return {"id": "c1", "object": "chat.completion.chunk", "model": "m1", "choices": [{"index": 0, "delta": more, "finish_reason": None}]}


CHAT_END: list[Any] = [{**delta(), "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}]
CHAT_BEGINS: list[Any] = [delta(role="assistant", content=""), delta(content="Well then"), delta(content=" once more")]
RESPONSES_END: list[Any] = [{"type": "response.completed", "response": response()}]
CLAUDE_BEGINS: list[Any] = [{"type": "message_start", "message": {**block(), "stop_reason": None}}]
CLAUDE_END: list[Any] = [
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}},
    {"type": "message_stop"},
]

# name, host, path, request body, events
STREAMS: list[tuple[str, str, str, Any, list[Any]]] = [
    ("chat: audio transcript", NODE, CHAT, chat(stream=True), [*CHAT_BEGINS, delta(audio={"id": "a", "transcript": FIRST}), delta(audio={"transcript": SECOND}), *CHAT_END]),
    ("chat: a field of no name in the delta", NODE, CHAT, chat(stream=True), [*CHAT_BEGINS, delta(content="a", aside=FIRST), delta(content="b", aside=SECOND), *CHAT_END]),
    ("chat: a field of no name in the choice", NODE, CHAT, chat(stream=True), [*CHAT_BEGINS, {**delta(), "choices": [{"index": 0, "delta": {"content": "a"}, "hint": SAYS}]}, *CHAT_END]),
    ("chat: a field of no name in the chunk", NODE, CHAT, chat(stream=True), [*CHAT_BEGINS, {**delta(content="a"), "x_vendor": {"note": SAYS}}, *CHAT_END]),
    ("chat: search results in every chunk", NODE, CHAT, chat(stream=True), [*({**chunk, "search_results": [{"title": SAYS, "url": "https://a.example"}]} for chunk in CHAT_BEGINS), *CHAT_END]),
    ("chat: refusal", NODE, CHAT, chat(stream=True), [*CHAT_BEGINS, delta(refusal=FIRST), delta(refusal=SECOND), *CHAT_END]),
    ("responses: code", OPENAI, RESPONSES, items(stream=True), [{"type": "response.code_interpreter_call_code.delta", "item_id": "c", "output_index": 0, "delta": FIRST}, {"type": "response.code_interpreter_call_code.delta", "item_id": "c", "output_index": 0, "delta": SECOND}, *RESPONSES_END]),
    ("responses: MCP arguments", OPENAI, RESPONSES, items(stream=True), [{"type": "response.mcp_call_arguments.delta", "item_id": "m", "output_index": 0, "delta": FIRST}, {"type": "response.mcp_call_arguments.delta", "item_id": "m", "output_index": 0, "delta": SECOND}, *RESPONSES_END]),
    ("responses: audio transcript", OPENAI, RESPONSES, items(stream=True), [{"type": "response.output_audio_transcript.delta", "output_index": 0, "delta": FIRST}, {"type": "response.output_audio_transcript.delta", "output_index": 0, "delta": SECOND}, *RESPONSES_END]),
    ("responses: MCP output of an item", OPENAI, RESPONSES, items(stream=True), [{"type": "response.output_item.done", "output_index": 0, "item": {"type": "mcp_call", "id": "m", "name": "f", "arguments": "{}", "output": SAYS}}, *RESPONSES_END]),
    ("responses: annotation", OPENAI, RESPONSES, items(stream=True), [{"type": "response.output_text.delta", "output_index": 0, "delta": "x"}, {"type": "response.output_text.annotation.added", "output_index": 0, "annotation": {"type": "url_citation", "title": SAYS, "url": "https://a.example"}}, *RESPONSES_END]),
    ("responses: deltas of a new kind", OPENAI, RESPONSES, items(stream=True), [{"type": "response.telepathy.delta", "item_id": "x", "delta": FIRST}, {"type": "response.telepathy.delta", "item_id": "x", "delta": SECOND}, *RESPONSES_END]),
    ("messages: web search result", CLAUDE, MESSAGES, claude(stream=True), [*CLAUDE_BEGINS, {"type": "content_block_start", "index": 0, "content_block": {"type": "web_search_tool_result", "tool_use_id": "t", "content": [{"title": SAYS, "url": "https://a.example"}]}}, *CLAUDE_END]),
    ("messages: citation", CLAUDE, MESSAGES, claude(stream=True), [*CLAUDE_BEGINS, {"type": "content_block_delta", "index": 0, "delta": {"type": "citations_delta", "citation": {"type": "char_location", "cited_text": SAYS}}}, *CLAUDE_END]),
    ("messages: compaction", CLAUDE, MESSAGES, claude(stream=True), [*CLAUDE_BEGINS, {"type": "content_block_delta", "index": 0, "delta": {"type": "compaction_delta", "content": FIRST}}, {"type": "content_block_delta", "index": 0, "delta": {"type": "compaction_delta", "content": SECOND}}, *CLAUDE_END]),
    ("messages: deltas of a new type", CLAUDE, MESSAGES, claude(stream=True), [*CLAUDE_BEGINS, {"type": "content_block_delta", "index": 0, "delta": {"type": "smell_delta", "smell": FIRST}}, {"type": "content_block_delta", "index": 0, "delta": {"type": "smell_delta", "smell": SECOND}}, *CLAUDE_END]),
    ("gemini: output of code", GOOGLE, "/v1beta/models/m:streamGenerateContent?alt=sse", gemini(), [candidate({"text": "x"}), candidate({"codeExecutionResult": {"output": SAYS}})]),
    ("gemini: arguments of a call that is cut", GOOGLE, "/v1beta/models/m:streamGenerateContent?alt=sse", gemini(), [{"candidates": [{"content": {"parts": [{"functionCall": {"name": "f", "willContinue": True, "partialArgs": [{"jsonPath": "$.a", "stringValue": FIRST, "willContinue": True}]}}]}}]}, {"candidates": [{"content": {"parts": [{"functionCall": {"willContinue": True, "partialArgs": [{"jsonPath": "$.a", "stringValue": SECOND, "willContinue": True}]}}]}}]}]),
    ("cohere: plan", COHERE, "/v2/chat", chat(stream=True), [{"type": "message-start", "id": "c"}, {"type": "tool-plan-delta", "delta": {"message": {"tool_plan": FIRST}}}, {"type": "tool-plan-delta", "delta": {"message": {"tool_plan": SECOND}}}, {"type": "message-end", "delta": {"finish_reason": "COMPLETE"}}]),
    ("cohere: citation", COHERE, "/v2/chat", chat(stream=True), [{"type": "message-start", "id": "c"}, {"type": "citation-start", "index": 0, "delta": {"message": {"citations": {"text": "x", "sources": [{"document": {"snippet": SAYS}}]}}}}, {"type": "message-end", "delta": {"finish_reason": "COMPLETE"}}]),
]  # fmt: skip


@pytest.fixture(scope="module")
def detector() -> Detecting:
    off = InjectionSettings(model=ModelSettings(enabled=False))
    return Detecting(Scanner(DetectionSettings(plugins=False, prompt_injection=off), lambda value: value[:4]))


def http(head: str, kind: str, body: str | bytes) -> bytes:
    raw = body.encode() if isinstance(body, str) else body
    return f"{head}\r\nContent-Type: {kind}\r\nContent-Length: {len(raw)}\r\n\r\n".encode() + raw


def body_of(value: Any) -> tuple[str, str]:
    return value if isinstance(value, tuple) else (JSON_TYPE, "" if value is None else json.dumps(value))


def exchange_of(host: str, path: str, asked: Any, answer: Any) -> Exchange:
    method = "GET" if asked is None else "POST"
    headers = "\r\nanthropic-version: 2023-06-01" if host == CLAUDE else ""
    talk = Talk().open()
    talk.say(0, http(f"{method} {path} HTTP/1.1\r\nHost: {host}{headers}", *body_of(asked)))
    talk.say(1, http("HTTP/1.1 200 OK", *body_of(answer))).close()
    (exchange,), _ = replay(pcap(talk.frames))
    return exchange


# What a server that is known by its answer alone says; of the others any answer does.
SAID_BACK: dict[str, Any] = {
    "/v1/completions": {"object": "text_completion", "choices": [{"index": 0, "text": "x"}]},
    "/v1/embeddings": {"data": [{"embedding": [0.5]}]},
    "/api/generate": {"model": "m1", "created_at": "2026-01-01T00:00:00Z", "response": "x", "done": True},
    "/api/chat": {"model": "m1", "created_at": "2026-01-01T00:00:00Z", "message": {"role": "assistant", "content": "x"}, "done": True},
    "/generate": {"generated_text": "x"},
    "/completion": {"content": "x", "stop": True, "tokens_predicted": 1},
    "/infill": {"content": "x", "stop": True, "tokens_predicted": 1},
}


def check(exchange: Exchange, detector: Detecting) -> None:
    assert exchange.provider is not None, "not known as a call to a model"
    assert CARD in to_json(exchange).decode(), "not on the record"
    detector.detect(exchange)
    assert any(finding.category == "pii" for finding in exchange.findings), "not found by detection"


@pytest.mark.parametrize(("host", "path", "body"), [row[1:] for row in REQUESTS], ids=[row[0] for row in REQUESTS])
def test_every_place_of_a_request_is_read(host: str, path: str, body: Any, detector: Detecting) -> None:
    check(exchange_of(host, path, body, SAID_BACK.get(path, {"ok": True})), detector)


@pytest.mark.parametrize(("host", "path", "asked", "answer"), [row[1:] for row in ANSWERS], ids=[row[0] for row in ANSWERS])
def test_every_place_of_an_answer_is_read(host: str, path: str, asked: Any, answer: Any, detector: Detecting) -> None:
    check(exchange_of(host, path, asked, answer), detector)


@pytest.mark.parametrize(("host", "path", "asked", "events"), [row[1:] for row in STREAMS], ids=[row[0] for row in STREAMS])
def test_every_place_of_a_stream_is_read(host: str, path: str, asked: Any, events: list[Any], detector: Detecting) -> None:
    text = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    check(exchange_of(host, path, asked, (SSE, text)), detector)
