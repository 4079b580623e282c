"""WebSockets: what the SDK records of a connection equals what a tap decodes of it, and nothing of the application changes."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from llmsec_trace import InstrumentationConfig, PolicyResults, SecurityConfig, SecurityPolicy, get_current_trace
from llmsec_trace.config import TracingConfig
from llmsec_trace.instrumenting import Instrumentation
from llmsec_trace.recorder import Recorder
from support.recording_relay import Relay
from support.replay import replay
from support.sdk_recording import Recording, differences, recording
from support.websocket_models import WORDS, ask_gemini_live, live, realtime, responses

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("default")]
websockets = pytest.importorskip("websockets", reason="in the dependency group `peers`")

Handler = Callable[[Any], Awaitable[None]]
TEXT = "".join(WORDS)


@contextmanager
def serving(handler: Handler, **options: Any) -> Iterator[int]:
    """A server in a loop of its own; its port."""
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(_serve(handler, options))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield next(iter(server.sockets)).getsockname()[1]
    finally:
        server.close()
        asyncio.run_coroutine_threadsafe(server.wait_closed(), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(20)
        loop.close()


async def _serve(handler: Handler, options: dict[str, Any]) -> Any:
    return await websockets.serve(handler, "127.0.0.1", 0, **options)


# --- the clients ----------------------------------------------------------------------------------------------------------


def async_openai_realtime(port: int) -> None:
    openai = pytest.importorskip("openai", reason="in the dependency group `peers`")

    async def run() -> None:
        vendor = openai.AsyncOpenAI(api_key="sk-test", websocket_base_url=f"ws://127.0.0.1:{port}/v1")
        async with vendor, vendor.realtime.connect(model="gpt-realtime") as connection:
            await connection.session.update(session={"type": "realtime", "instructions": "Be brief.", "output_modalities": ["audio"]})
            for question in ("one?", "two?"):
                content = [{"type": "input_text", "text": question}]
                await connection.conversation.item.create(item={"type": "message", "role": "user", "content": content})
                await connection.response.create()
                async for event in connection:
                    if event.type == "response.done":
                        break

    asyncio.run(run())


def openai_realtime(port: int) -> None:
    openai = pytest.importorskip("openai", reason="in the dependency group `peers`")
    vendor = openai.OpenAI(api_key="sk-test", websocket_base_url=f"ws://127.0.0.1:{port}/v1")
    with vendor, vendor.realtime.connect(model="gpt-realtime") as connection:
        for question in ("one?", "two?"):
            content = [{"type": "input_text", "text": question}]
            connection.conversation.item.create(item={"type": "message", "role": "user", "content": content})
            connection.response.create()
            read = ""
            for event in connection:
                read += event.delta if event.type == "response.output_text.delta" else ""
                if event.type == "response.done":
                    break
            assert read == TEXT


def openai_responses(port: int) -> None:
    openai = pytest.importorskip("openai", reason="in the dependency group `peers`")
    vendor = openai.OpenAI(api_key="sk-test", websocket_base_url=f"ws://127.0.0.1:{port}/v1")
    with vendor, vendor.responses.connect() as connection:
        for question in ("one?", "two?"):
            connection.response.create(model="gpt-5", input=question, instructions="Be brief.")
            for event in connection:
                if event.type == "response.completed":
                    break


def gemini_live(port: int) -> None:
    pytest.importorskip("google.genai", reason="in the dependency group `peers`")
    assert "".join(asyncio.run(ask_gemini_live(port))) == TEXT * 2


@pytest.mark.parametrize(
    ("client", "handler", "api"),
    [
        (async_openai_realtime, realtime, "openai.realtime"),
        (openai_realtime, realtime, "openai.realtime"),
        (openai_responses, responses, "openai.responses"),
        (gemini_live, live, "gemini.live"),
    ],
)
def test_records_of_a_connection_equal_those_of_the_wire(client: Callable[[int], None], handler: Handler, api: str) -> None:
    with serving(handler) as port, Relay(port) as relay, recording() as sdk:
        with Instrumentation(sdk.recorder):
            client(relay.port)
        records = sdk.flush()
        wire, _ = replay(relay.capture())
    taps = sorted((record for record in wire if record.is_request), key=lambda record: record.started_ns or 0)
    assert [(record.api, record.input_text, record.output_text) for record in records] == [(api, "one?", TEXT), (api, "two?", TEXT)]
    assert [differences(record, tap) for record, tap in zip(records, taps, strict=True)] == [{}, {}]
    assert all(record.capture_kind == "sdk" and record.server == f"127.0.0.1:{relay.port}" for record in records)
    assert len({record.trace_id for record in records}) == 1
    assert len({record.exchange_id for record in records}) == 2


# --- what else may happen -------------------------------------------------------------------------------------------------


def ask(socket: Any, question: str) -> str:
    content = [{"type": "input_text", "text": question}]
    socket.send(json.dumps({"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": content}}))
    socket.send(json.dumps({"type": "response.create"}))
    read = ""
    while True:
        event = json.loads(socket.recv(20))
        read += event.get("delta", "") if event["type"] == "response.output_text.delta" else ""
        if event["type"] == "response.done":
            return read


def connect(port: int, path: str = "/v1/realtime?model=m", **options: Any) -> Any:
    from websockets.sync.client import connect as connected

    return connected(f"ws://127.0.0.1:{port}{path}", **options)


@contextmanager
def recorded(config: InstrumentationConfig | None = None) -> Iterator[Recording]:
    with recording(config) as sdk, Instrumentation(sdk.recorder):
        yield sdk


def test_tags_that_are_set_while_it_is_connected_are_on_the_records_that_follow() -> None:
    with serving(realtime) as port, recorded() as sdk:
        with connect(port) as socket:
            trace = get_current_trace()
            assert trace is not None
            for number in (1, 2):
                trace.set_tag("turn", str(number))
                assert ask(socket, "?") == TEXT
                sdk.flush()
        assert [record.tags["turn"] for record in sdk.flush()] == ["1", "2"]
        assert sdk.recorder.stats().late_tags == 0


def test_a_connection_that_nobody_closes_is_let_go() -> None:
    from websockets.client import ClientProtocol
    from websockets.uri import parse_uri

    with recorded() as sdk:
        protocol = ClientProtocol(parse_uri("ws://127.0.0.1:9/v1/realtime?model=m"))
        protocol.send_request(protocol.connect())
        assert b"".join(protocol.data_to_send()).startswith(b"GET /v1/realtime")
        sdk.flush()
        assert len(sdk.recorder._decoder) == 1
        del protocol
        gc.collect()
        sdk.flush()
        assert len(sdk.recorder._decoder) == 0


def test_an_answer_that_is_cut_off_says_so() -> None:
    async def breaking(socket: Any) -> None:
        await socket.send(json.dumps({"type": "session.created", "session": {"type": "realtime", "model": "m"}}))
        async for message in socket:
            if json.loads(message)["type"] == "response.create":
                place = {"response_id": "r", "item_id": "i", "output_index": 0, "content_index": 0}
                await socket.send(json.dumps({"type": "response.created", "response": {"id": "r", "output": []}}))
                await socket.send(json.dumps({"type": "response.output_text.delta", **place, "delta": "half a"}))
                await asyncio.sleep(0.1)
                socket.transport.abort()

    with serving(breaking) as port, recorded() as sdk:
        with connect(port) as socket, pytest.raises(websockets.ConnectionClosed):
            ask(socket, "?")
        (record,) = sdk.flush()
    assert (record.output_text, record.completeness) == ("half a", "aborted")


def test_other_websockets_leave_nothing_and_cost_nothing() -> None:
    async def echo(socket: Any) -> None:
        async for message in socket:
            await socket.send(message)

    with serving(echo) as port, recorded() as sdk:
        with connect(port, "/prices") as socket:
            socket.send("first")
            assert socket.recv(20) == "first"
            sdk.flush()
            call = socket.protocol.data_to_send.call
            assert not call.is_wanted
            items = sdk.recorder._items
            socket.send("second")
            assert socket.recv(20) == "second"
            assert not items
        assert sdk.flush() == []
        assert len(sdk.recorder._decoder) == 0


def test_a_refused_handshake_is_the_applications_to_see() -> None:
    def refuse(connection: Any, _request: Any) -> Any:
        return connection.respond(401, "no key")

    with serving(realtime, process_request=refuse) as port, recorded() as sdk:
        with pytest.raises(websockets.InvalidStatus):
            connect(port)
        sdk.flush()
        assert len(sdk.recorder._decoder) == 0


def test_what_finds_no_room_is_marked_and_what_follows_is_read() -> None:
    with serving(realtime) as port, recorded() as sdk:
        with connect(port, compression=None) as socket:
            assert ask(socket, "one?") == TEXT
            sdk.flush()
            limit, sdk.recorder._max_queued_bytes = sdk.recorder._max_queued_bytes, 0
            assert ask(socket, "two?") == TEXT
            sdk.recorder._max_queued_bytes = limit
            assert ask(socket, "three?") == TEXT
        records = sdk.flush()
        assert sdk.recorder.stats().gaps > 2
    assert (records[0].output_text, records[0].completeness) == (TEXT, "complete")
    assert (records[-1].output_text, records[-1].input_text) == (TEXT, "three?")
    assert records[-1].completeness == "gapped"
    assert [mark.name for mark in records[-1].anomalies] == ["sdk_lost"]


class Never(SecurityPolicy):
    def analyze_request(self, request_data: dict[str, Any]) -> PolicyResults:
        raise AssertionError(request_data)


def test_policies_do_not_look_at_them_and_the_records_say_so() -> None:
    config = InstrumentationConfig(security=SecurityConfig(policy_class=Never, block_on="low"), tracing=TracingConfig())
    with serving(realtime) as port, recorded(config) as sdk:
        with connect(port) as socket:
            assert ask(socket, "one?") == TEXT
        (record,) = sdk.flush()
        assert [mark.name for mark in record.anomalies] == ["detection_incomplete"]
        assert sdk.recorder.stats().unchecked == 1
        assert sdk.recorder.stats().policy_faults == 0


def test_faults_of_ours_are_not_the_applications(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("ours")

    with serving(realtime) as port, recorded() as sdk:
        monkeypatch.setattr(Recorder, "connect", broken)
        with connect(port) as socket:
            assert ask(socket, "one?") == TEXT
        assert sdk.recorder.stats().faults == 1
