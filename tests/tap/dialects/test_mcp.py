"""MCP and A2A over HTTP: calls, results, lists, what servers ask of clients, and what is neither."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmsec_tap.model import Exchange, to_json
from llmsec_tap.pipeline import Pipeline
from llmsec_tap.wire.flow import Flow

SESSION = b"Mcp-Session-Id: 1868a90c\r\nMCP-Protocol-Version: 2025-11-25\r\n"


def call(method: str, params: Any = None, **more: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 3, "method": method, "params": params or {}, **more}


def result(value: Any, identity: int = 3) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": identity, "result": value}


def events(*values: Any) -> bytes:
    return b"".join(b"event: message\nid: 7\ndata: " + json.dumps(value).encode() + b"\n\n" for value in values)


def talk(
    asked: Any, answer: Any, path: bytes = b"/mcp", headers: bytes = SESSION, status: bytes = b"200 OK", host: bytes = b"tools.local"
) -> Exchange:
    """One exchange: `answer` is JSON, bytes of a stream, or None for an answer without a body."""
    exchanges: list[Exchange] = []
    pipeline = Pipeline(exchanges.append, lambda secret: secret, shield=False)
    flow = pipeline.open_flow(Flow("10.1.0.7:4000", "10.2.0.9:80", 1, is_midstream=False))
    if asked is None:
        flow.first.data(2, b"GET %s HTTP/1.1\r\nHost: %s\r\nAccept: text/event-stream\r\n%s\r\n" % (path, host, headers))
    else:
        body = json.dumps(asked).encode()
        head = b"POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%s\r\n"
        flow.first.data(2, head % (path, host, len(body), headers) + body)
    is_stream = isinstance(answer, bytes)
    body = answer if isinstance(answer, bytes) else b"" if answer is None else json.dumps(answer).encode()
    kind = b"text/event-stream" if is_stream else b"application/json"
    flow.second.data(3, b"HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n" % (status, kind, len(body)) + body)
    flow.close(4, "fin")
    assert pipeline.account.held == pipeline.account.fixed
    (exchange,) = exchanges
    to_json(exchange)
    return exchange


def parts(exchange: Exchange) -> list[tuple[str, str | None, str | None]]:
    return [(part.type, part.name, part.content) for message in exchange.response.messages for part in message.parts]


FIND = call("tools/call", {"name": "find", "arguments": {"q": "fox"}})
FOUND = result({"content": [{"type": "text", "text": "It is quick."}, {"type": "image", "data": "QUJD", "mimeType": "image/png"}]})


@pytest.mark.parametrize("framing", [None, "sse"])
def test_a_call_of_a_tool_and_its_result(framing: str | None) -> None:
    exchange = talk(FIND, events(FOUND) if framing else FOUND)
    assert (exchange.provider, exchange.api, exchange.operation, exchange.framing) == ("mcp", "mcp.tools/call", "execute_tool", framing)
    assert (exchange.session_id, exchange.response_id, exchange.completeness) == ("1868a90c", "3", "complete")
    (asked,) = [part for message in exchange.request.messages for part in message.parts]
    assert (asked.type, asked.id, asked.name, asked.arguments) == ("tool_call", "3", "find", '{"q":"fox"}')
    assert parts(exchange) == [("tool_call_response", "find", "It is quick."), ("blob", None, None)]
    assert [message.role for message in exchange.response.messages] == ["tool"]
    assert exchange.other_texts == []
    assert exchange.anomalies == []


def test_structured_content_is_read_beside_the_text() -> None:
    exchange = talk(
        FIND,
        result({"content": [{"type": "text", "text": "42 degrees"}], "structuredContent": {"note": "42 degrees", "by": "an odd sensor"}}),
    )
    assert parts(exchange) == [("tool_call_response", "find", "42 degrees\n42 degrees\nan odd sensor")]


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (result({"content": [{"type": "text", "text": "No such city."}], "isError": True}), "tool_error", None),
        ({"jsonrpc": "2.0", "id": 3, "error": {"code": -32602, "message": "Unknown tool: find"}}, "-32602", "Unknown tool: find"),
    ],
)
def test_failures(answer: Any, kind: str, message: str | None) -> None:
    exchange = talk(FIND, answer)
    assert (exchange.error_type, exchange.response.error_message) == (kind, message)


def test_a_list_of_tools_gives_their_descriptions_and_what_their_schemas_say() -> None:
    schema = {"type": "object", "properties": {"q": {"type": "string", "description": "Ask before you look here."}}}
    tools = [{"name": "find", "description": "Find a thing.", "inputSchema": schema}, {"name": "now"}]
    exchange = talk(call("tools/list"), result({"tools": tools, "nextCursor": "abc"}))
    assert (exchange.api, exchange.operation) == ("mcp.tools/list", "other")
    assert [(tool.name, tool.description) for tool in exchange.request.tools] == [("find", "Find a thing."), ("now", None)]
    assert [other.text for other in exchange.other_texts] == ["Ask before you look here."]


def test_prompts_and_resources() -> None:
    prompt = talk(call("prompts/get", {"name": "review", "arguments": {"code": "def f(): pass"}}), result({
        "description": "x", "messages": [{"role": "user", "content": {"type": "text", "text": "Review this: def f(): pass"}}]}))  # fmt: skip
    assert prompt.api == "mcp.prompts/get"
    assert parts(prompt) == [("text", None, "Review this: def f(): pass")]
    resource = talk(
        call("resources/read", {"uri": "file:///notes.txt"}), result({"contents": [{"uri": "file:///notes.txt", "text": "Buy milk."}]})
    )
    assert resource.api == "mcp.resources/read"
    assert parts(resource) == [("document", None, "Buy milk.")]


ASKED = call(
    "sampling/createMessage",
    {"messages": [{"role": "user", "content": {"type": "text", "text": "Name a fox."}}], "systemPrompt": "Be brief."},
)
WONDERED = {**call("elicitation/create", {"message": "What is your name?", "requestedSchema": {"type": "object"}}), "id": 8}


def test_what_a_server_asks_of_its_client_is_a_part_of_the_answer_it_stands_in() -> None:
    exchange = talk(FIND, events({**ASKED, "id": 7}, WONDERED, FOUND))
    assert parts(exchange)[:2] == [
        ("other", "sampling/createMessage", "Be brief.\nName a fox."),
        ("other", "elicitation/create", "What is your name?"),
    ]
    assert [part.id for part in exchange.response.messages[0].parts[:2]] == ["7", "8"]
    assert exchange.completeness == "complete"


def test_what_a_client_answers_is_a_record_of_its_own() -> None:
    sampled = {
        "jsonrpc": "2.0",
        "id": 7,
        "result": {"role": "assistant", "content": {"type": "text", "text": "Reynard"}, "model": "claude-x"},
    }
    exchange = talk(sampled, None, status=b"202 Accepted")
    assert (exchange.api, exchange.operation, exchange.response_model, exchange.response_id) == (
        "mcp.sampling/createMessage",
        "chat",
        "claude-x",
        "7",
    )
    assert [(m.role, m.parts[0].content) for m in exchange.request.messages] == [("assistant", "Reynard")]
    told = talk({"jsonrpc": "2.0", "id": 8, "result": {"action": "accept", "content": {"name": "Jo Roe"}}}, None, status=b"202 Accepted")
    assert (told.api, told.session_id, told.response_id) == ("mcp.elicitation/create", "1868a90c", "8")
    assert [(p.name, p.content) for m in told.request.messages for p in m.parts] == [("accept", "Jo Roe")]


def test_input_that_is_asked_for_in_a_result_and_given_with_the_next_call() -> None:
    asked = {"resultType": "input_required", "inputRequests": {"name": {"method": "elicitation/create", "params": {"message": "Whose?"}}}}
    exchange = talk(FIND, result(asked), headers=b"MCP-Protocol-Version: 2026-07-28\r\nMcp-Method: tools/call\r\nMcp-Name: find\r\n")
    assert parts(exchange)[0] == ("other", "elicitation/create", "Whose?")
    given = {**FIND, "params": {**FIND["params"], "inputResponses": {"name": {"action": "accept", "content": {"name": "Jo Roe"}}}}}
    again = talk(given, FOUND)
    assert ("other", "Jo Roe") in [
        (p.type, (p.content or "").splitlines()[-1]) for m in again.request.messages for p in m.parts if p.content
    ]


def test_instructions_of_a_server_are_read() -> None:
    exchange = talk(
        call("initialize", {"protocolVersion": "2025-11-25"}), result({"instructions": "Call find first.", "serverInfo": {"name": "x"}})
    )
    assert (exchange.api, exchange.request.parameters["method"]) == ("mcp.other", "initialize")
    assert parts(exchange) == [("other", "instructions", "Call find first.")]


def test_the_stream_of_a_get_holds_what_comes_in_it() -> None:
    older = b"event: endpoint\ndata: /messages/?session_id=abc\n\n" + events(
        FOUND, result({"tools": [{"name": "find", "description": "Find."}]}, 4)
    )
    exchange = talk(None, older, path=b"/sse", headers=b"")
    assert (exchange.provider, exchange.api, exchange.method) == ("mcp", "mcp.other", "GET")
    assert parts(exchange)[0] == ("tool_call_response", None, "It is quick.")
    assert [tool.name for tool in exchange.request.tools] == ["find"]
    asked = talk(None, events({**ASKED, "id": 9}))
    assert parts(asked) == [("other", "sampling/createMessage", "Be brief.\nName a fox.")]


def test_the_host_of_a_provider_makes_it_no_less_mcp() -> None:
    assert talk(FIND, FOUND, host=b"api.openai.com").provider == "mcp"


@pytest.mark.parametrize(
    ("asked", "answer", "path", "headers"),
    [
        (None, b'data: {"price": 3}\n\n', b"/sse", b""),
        (call("eth_call", [1]), result("0x"), b"/", b""),
        (call("initialize", {"rootUri": "file:///x"}), result({"capabilities": {}}), b"/lsp", b""),
        ({"method": "tools/call", "params": {}}, {}, b"/api", b""),
        ({"jsonrpc": "2.0", "id": 1, "result": {"ok": True}}, None, b"/api", b""),
    ],
)
def test_what_is_not_mcp(asked: Any, answer: Any, path: bytes, headers: bytes) -> None:
    assert talk(asked, answer, path=path, headers=headers).provider is None


@pytest.mark.parametrize(
    "value",
    [[], 3, "x", None, {"tools": 3}, {"tools": [3, {"name": 5}]}, {"content": {"text": 1}}, {"content": [[], {"type": []}]}, {"contents": [1]},
     {"messages": [2, {"content": [3]}]}, {"inputRequests": [1]}, {"inputRequests": {"a": 3}}, {"role": 1, "content": 2, "model": 3}, {"action": "accept"}],
)  # fmt: skip
@pytest.mark.parametrize("method", ["tools/call", "tools/list", "prompts/get", "resources/read", "sampling/createMessage", "ping"])
def test_no_value_breaks_a_record(method: str, value: Any) -> None:
    for asked in (call(method, value), [call(method), {"jsonrpc": "2.0", "id": [], "result": value}]):
        assert talk(asked, result(value)).provider is not None
        assert talk(asked, events(result(value), call(method, value))).provider is not None


# --- A2A -------------------------------------------------------------------------------------------------------------------

SAY = call(
    "message/send", {"message": {"role": "user", "kind": "message", "messageId": "m", "parts": [{"kind": "text", "text": "Book a room."}]}}
)


@pytest.mark.parametrize("value", [[], 3, {"status": 3}, {"artifacts": [3, {"parts": [2, {"file": 1}]}]}, {"task": [], "final": True}])
def test_no_value_of_an_agent_breaks_a_record(value: Any) -> None:
    assert talk(SAY, result(value)).provider == "a2a"
    assert talk(SAY, events(result(value), SAY)).provider == "a2a"


def test_a_message_to_an_agent_and_its_task() -> None:
    task = {
        "kind": "task",
        "id": "t",
        "contextId": "c",
        "status": {"state": "completed"},
        "artifacts": [{"parts": [{"kind": "text", "text": "Room 5."}]}],
    }
    exchange = talk(SAY, result(task), path=b"/a2a", headers=b"")
    assert (exchange.provider, exchange.api, exchange.operation) == ("a2a", "a2a.message", "invoke_agent")
    assert (exchange.input_text, exchange.output_text, exchange.finish_reasons) == ("Book a room.", "Room 5.", ["completed"])


def test_a_stream_of_an_agent() -> None:
    updates = [
        {"kind": "status-update", "taskId": "t", "contextId": "c", "status": {"state": "working"}, "final": False},
        {
            "kind": "artifact-update",
            "taskId": "t",
            "contextId": "c",
            "artifact": {"artifactId": "a", "parts": [{"kind": "text", "text": "Room "}]},
        },
        {
            "kind": "artifact-update",
            "taskId": "t",
            "contextId": "c",
            "artifact": {"artifactId": "a", "parts": [{"kind": "text", "text": "5."}]},
        },
        {"kind": "status-update", "taskId": "t", "contextId": "c", "status": {"state": "completed"}, "final": True},
    ]
    exchange = talk({**SAY, "method": "message/stream"}, events(*map(result, updates)), path=b"/", headers=b"")
    assert (exchange.output_text, exchange.finish_reasons, exchange.completeness) == ("Room 5.", ["completed"], "complete")
    assert exchange.anomalies == []
