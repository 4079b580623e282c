"""What an application notices of being recorded (nothing), and what becomes of its calls in good and bad times."""

from __future__ import annotations

import asyncio
import copy
import gc
import json
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from llmsec_tap.errors import ConfigError
from llmsec_tap.identity.credentials import fingerprinter
from llmsec_tap.model import Exchange
from llmsec_trace import (
    Callback,
    Folder,
    InstrumentationConfig,
    SecurityConfig,
    TracingConfig,
    get_current_trace,
    instrument,
    set_tag,
    uninstrument,
)
from llmsec_trace.clients import hooks_in
from llmsec_trace.destinations.base import DestinationError
from llmsec_trace.recorder import Recorder
from llmsec_trace.trace import new_trace_id
from support.replay import KEY
from support.sdk_recording import Recording, recording
from support.sniff import free_port
from support.vendor_server import TEXT, vendor_server

httpx = pytest.importorskip("httpx", reason="in the dependency group `peers`")
pytestmark = pytest.mark.filterwarnings("default")

CHAT = "/v1/chat/completions"
BODY: Any = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
STREAM = BODY | {"stream": True}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with vendor_server(free_port()) as url:
        yield url


@contextmanager
def client_of(sdk: Recording) -> Iterator[Any]:
    with httpx.Client() as client:
        for hook, owner in hooks_in(client):
            hook.put(owner, sdk.recorder, again=True)
        yield client


def test_tags_and_metadata_that_are_set_after_the_call_reach_its_record(server: str) -> None:
    with recording(InstrumentationConfig(service_name="shop", tenant_id="t1")) as sdk, client_of(sdk) as client:
        sdk.recorder._grace_s = 30
        client.post(server + CHAT, json=BODY)
        trace = get_current_trace()
        assert trace is not None
        assert (trace.operation_type, trace.model_name) == ("openai_chat_completion", "m")
        trace.set_tag("user_id", "user-12345")
        assert set_tag("feature", "help")
        trace.set_metadata("limits", {"a": 1})
        for number in range(100):
            trace.set_tag(f"more{number}", "x" * 10_000)
        (record,) = sdk.flush()
        trace.set_tag("late", "x")
        assert sdk.recorder.stats().late_tags == 1
    assert record.tags["service.name"] == "shop"
    assert record.tags["user_id"] == "user-12345"
    assert record.tags["feature"] == "help"
    assert record.tags["limits"] == '{"a":1}'
    assert len(record.tags) <= 65
    assert max(map(len, record.tags.values())) == 512
    assert (record.tenant, record.trace_id, record.capture_kind) == ("t1", trace.trace_id, "sdk")
    assert record.end_user is not None
    assert "user" not in record.end_user


def test_tasks_have_traces_of_their_own(server: str) -> None:
    async def run(sdk: Recording) -> list[Any]:
        async with httpx.AsyncClient() as client:
            for hook, owner in hooks_in(client):
                hook.put(owner, sdk.recorder, again=True)

            async def one(number: int) -> Any:
                await client.post(server + CHAT, json=BODY | {"model": f"m{number}"})
                trace = get_current_trace()
                assert trace is not None
                trace.set_tag("number", str(number))
                return trace.model_name, trace.trace_id

            return list(await asyncio.gather(*(one(number) for number in range(10))))

    with recording() as sdk:
        sdk.recorder._grace_s = 30
        seen = asyncio.run(run(sdk))
        records = {record.request_model: record for record in sdk.flush()}
    assert [name for name, _ in seen] == [f"m{number}" for number in range(10)]
    assert len({trace_id for _, trace_id in seen}) == 10
    for number, (name, trace_id) in enumerate(seen):
        assert records[name].tags["number"] == str(number)
        assert records[name].trace_id == trace_id


def test_a_trace_of_the_application_s_own_is_kept(server: str) -> None:
    with recording() as sdk, client_of(sdk) as client:
        client.post(server + CHAT, json=BODY, headers={"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"})
        trace = get_current_trace()
        (record,) = sdk.flush()
    assert trace is not None
    assert trace.trace_id == record.trace_id == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert record.span_id == "00f067aa0ba902b7"


def test_sampling_decides_by_the_trace_and_no_trace_is_left_behind(server: str) -> None:
    low, high = "0" * 16 + "1" * 16, "0" * 16 + "f" * 16
    with recording(InstrumentationConfig(sampling_rate=0.5)) as sdk, client_of(sdk) as client:
        for trace_id in (low, high, low):
            client.post(server + CHAT, json=BODY, headers={"traceparent": f"00-1{trace_id[1:]}-00f067aa0ba902b7-01"})
            assert (get_current_trace() is None) == (trace_id == high)
        assert len(sdk.flush()) == 2
        assert sdk.recorder.stats().unsampled == 1


def test_instrumenting_twice_is_once_and_undoing_leaves_nothing(server: str) -> None:
    got: list[Exchange] = []
    config = InstrumentationConfig(destinations=[Callback(got.append)])
    with httpx.Client() as client:
        before = dict(vars(client._transport))
        assert instrument(client, config) is client
        instrument(client, config)
        instrument(client, InstrumentationConfig(destinations=config.destinations))
        kind = type(client._transport)
        client.post(server + CHAT, json=BODY)
        uninstrument(client)
        assert dict(vars(client._transport)) == before
        assert kind is httpx.HTTPTransport
        client.post(server + CHAT, json=BODY)
        import llmsec_trace

        assert llmsec_trace.flush(60)
    assert len(got) == 1


def test_without_a_client_all_that_are_made_later_are_recorded_until_it_is_undone(server: str) -> None:
    requests = pytest.importorskip("requests", reason="in the dependency group `peers`")
    import llmsec_trace

    got: list[Exchange] = []
    original = httpx.Client.__init__, requests.adapters.HTTPAdapter.__init__
    with instrument(config=InstrumentationConfig(destinations=[Callback(got.append)])) as all_clients:
        with httpx.Client() as client, requests.Session() as session:
            client.post(server + CHAT, json=BODY)
            session.post(server + CHAT, json=BODY)
        requests.post(server + CHAT, json=BODY)
        httpx.post(server + CHAT, json=BODY)
    all_clients.undo()
    assert (httpx.Client.__init__, requests.adapters.HTTPAdapter.__init__) == original
    httpx.post(server + CHAT, json=BODY)
    assert llmsec_trace.flush(60)
    assert len(got) == 4


def test_vendors_clients_that_are_made_later_are_recorded(server: str) -> None:
    openai = pytest.importorskip("openai", reason="in the dependency group `peers`")
    session = pytest.importorskip("botocore.session", reason="in the dependency group `peers`").get_session()
    session.set_credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
    import llmsec_trace

    got: list[Exchange] = []
    with instrument(config=InstrumentationConfig(destinations=[Callback(got.append)])):
        with openai.OpenAI(base_url=f"{server}/v1", api_key="sk-test-0123456789abcdef") as client:
            client.with_options(timeout=5).chat.completions.create(model="m", messages=BODY["messages"])
        bedrock = session.create_client("bedrock-runtime", region_name="us-east-1", endpoint_url=server)
        bedrock.converse(modelId="anthropic.claude-x-v1:0", messages=[{"role": "user", "content": [{"text": "x"}]}])
        bedrock.close()
    assert llmsec_trace.flush(60)
    assert sorted(str(record.api) for record in got) == ["bedrock.converse", "openai.chat"]


def test_a_task_that_is_cancelled_in_a_stream_is_cancelled_and_recorded_as_far_as_it_came(server: str) -> None:
    async def run(sdk: Recording) -> None:
        async with httpx.AsyncClient() as client:
            for hook, owner in hooks_in(client):
                hook.put(owner, sdk.recorder, again=True)
            began = asyncio.Event()

            async def read() -> None:
                async with client.stream("POST", server + CHAT, json=STREAM) as answer:
                    async for _ in answer.aiter_raw():
                        began.set()
                        await asyncio.sleep(10)

            task = asyncio.create_task(read())
            await began.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    with recording() as sdk:
        asyncio.run(run(sdk))
        (record,) = sdk.flush()
    assert record.completeness == "aborted"
    assert record.output_text == "Passive"


def test_importing_takes_less_than_150_ms() -> None:
    line = "import time; t = time.perf_counter(); from llmsec_trace import instrument; print(time.perf_counter() - t)"
    took = [float(subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=True).stdout) for _ in range(7)]
    assert min(took) < 0.15


@pytest.mark.parametrize("thing", [3, "text", object(), [], {}, lambda: None, None.__class__])
def test_what_holds_no_client_is_one_clear_error(thing: Any) -> None:
    with pytest.raises(ConfigError, match="found no HTTP client in"):
        instrument(thing, InstrumentationConfig(destinations=[Callback(print)]))
    with pytest.raises(ConfigError, match="takes an InstrumentationConfig, not dict"):
        instrument(httpx.Client(), {})  # type: ignore[call-overload]


def test_clients_of_aws_are_found_in_what_holds_them_and_async_ones_are_left_to_aiohttp() -> None:
    boto3 = pytest.importorskip("boto3", reason="in the dependency group `peers`")
    session = boto3.Session("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", region_name="us-east-1")
    resource = session.resource("s3")
    client = resource.meta.client
    assert [owner for _, owner in hooks_in(resource)] == [client._endpoint.http_session]

    class AsyncSession:  # as aiobotocore's
        async def send(self, request: Any) -> Any: ...

    client.close()
    client._endpoint.http_session = AsyncSession()
    with pytest.raises(ConfigError, match="Call instrument"):
        instrument(client, InstrumentationConfig(destinations=[Callback(print)]))


def test_what_cannot_be_connected_to_raises_what_it_did_before_and_is_recorded() -> None:
    with recording() as sdk, client_of(sdk) as client:
        with pytest.raises(httpx.ConnectError):
            client.post(f"http://127.0.0.1:{free_port()}{CHAT}", json=BODY)
        (record,) = sdk.flush()
    assert record.completeness == "aborted"
    assert record.error_type == "httpx.ConnectError"
    assert record.input_text == "hello"
    assert record.status is None


def test_a_stream_that_is_broken_off_is_aborted_and_nobody_who_forgets_it_holds_memory(server: str) -> None:
    with recording() as sdk, client_of(sdk) as client:
        with client.stream("POST", server + CHAT, json=STREAM) as answer:
            next(answer.iter_raw())
        request = client.build_request("POST", server + CHAT, json=STREAM)
        forgotten = client.send(request, stream=True)
        del forgotten, request
        gc.collect()
        records = sdk.flush()
    assert [record.completeness for record in records] == ["aborted", "aborted"]
    assert records[0].output_text
    assert sdk.recorder.stats().waiting == 0


def test_an_exception_of_the_application_passes_through_and_ends_the_record(server: str) -> None:
    class OwnError(Exception):
        pass

    def parts() -> Iterator[bytes]:
        yield b'{"model": "m", '
        raise OwnError

    with recording() as sdk, client_of(sdk) as client:
        with pytest.raises(OwnError):
            client.post(server + CHAT, content=parts(), headers={"Content-Length": "500"})
        assert sdk.recorder.flush(10)
        assert sdk.recorder.stats().waiting == 0
        client.post(server + CHAT, json=BODY)
        assert [record.status for record in sdk.flush()][-1] == 200


def test_what_is_no_call_to_a_model_makes_no_record(server: str) -> None:
    with recording() as sdk, client_of(sdk) as client:
        client.post(f"{server}/nothing", json={"a": 1})
        assert sdk.flush() == []
        assert sdk.recorder.stats().other == 1


def test_copies_and_pickles_work_as_before() -> None:
    requests = pytest.importorskip("requests", reason="in the dependency group `peers`")
    with recording() as sdk, requests.Session() as session:
        for hook, owner in hooks_in(session):
            hook.put(owner, sdk.recorder, again=True)
        pickle.loads(pickle.dumps(session)).close()
    transport = httpx.MockTransport(_answer)
    with recording() as sdk, httpx.Client(transport=transport) as client:
        for hook, owner in hooks_in(client):
            hook.put(owner, sdk.recorder, again=True)
        for made in (copy.deepcopy(transport), pickle.loads(pickle.dumps(transport))):
            assert made.handle_request(httpx.Request("GET", "http://x/")).status_code == 204


def test_a_transport_that_is_sync_and_async_is_recorded_as_its_client_uses_it() -> None:
    class Both(httpx.MockTransport):  # type: ignore[misc, name-defined]
        pass

    body = b'{"choices": [{"index": 0, "message": {"role": "assistant", "content": "yes"}}]}'
    both = Both(lambda _request: httpx.Response(200, content=body, headers={"content-type": "application/json"}))

    async def run(client: Any) -> None:
        async with client:
            await client.post("http://model.test/v1/chat/completions", json=BODY)

    with recording() as sdk:
        for client in (httpx.Client(transport=both), httpx.AsyncClient(transport=both)):
            for hook, owner in hooks_in(client):
                hook.put(owner, sdk.recorder, again=True)
            if isinstance(client, httpx.Client):
                client.post("http://model.test/v1/chat/completions", json=BODY)
                client.close()
            else:
                asyncio.run(run(client))
        assert [record.output_text for record in sdk.flush()] == ["yes", "yes"]


def _answer(request: Any) -> Any:
    return httpx.Response(204)


def test_a_destination_that_fails_costs_the_application_nothing_and_is_tried_again(server: str) -> None:
    class Failing:
        def __init__(self) -> None:
            self.got: list[Exchange] = []
            self.failures = 2

        def send(self, batch: Sequence[Exchange]) -> None:
            if self.failures:
                self.failures -= 1
                raise DestinationError("down")
            self.got += batch

        def close(self) -> None:
            raise RuntimeError

    class Broken(Failing):
        def send(self, batch: Sequence[Exchange]) -> None:
            raise KeyError

    failing, broken = Failing(), Broken()
    recorder = Recorder(
        InstrumentationConfig(tracing=TracingConfig(flush_interval_seconds=0.05)), [failing, broken], fingerprinter(KEY), grace_s=0
    )
    with httpx.Client() as client:
        for hook, owner in hooks_in(client):
            hook.put(owner, recorder, again=True)
        client.post(server + CHAT, json=BODY)
    until = time.monotonic() + 15
    while not failing.got and time.monotonic() < until:
        time.sleep(0.05)
    assert len(failing.got) == 1
    assert recorder.stats().dropped == 1
    assert recorder.lanes[0].failures == 2
    assert recorder.close()


def test_a_full_queue_leaves_out_pieces_first_and_counts_them(server: str) -> None:
    got: list[Exchange] = []
    recorder = Recorder(InstrumentationConfig(), [Callback(got.append)], fingerprinter(KEY), grace_s=0)
    with httpx.Client() as client:
        for hook, owner in hooks_in(client):
            hook.put(owner, recorder, again=True)
        with client.stream("POST", server + CHAT, json=STREAM) as answer:
            parts = answer.iter_raw()
            next(parts)
            recorder._max_queued_bytes = 0
            next(parts)
            client.post(server + CHAT, json=BODY)
            recorder._max_queued_bytes = 1 << 20
            for _ in parts:
                pass
    assert recorder.flush(10)
    assert [record.completeness for record in got] == ["gapped"]
    assert (recorder.stats().dropped, recorder.stats().gaps) == (1, 1)
    recorder.close()


class Keeping:
    """`down`: what comes is to be tried again; `refuses`: it is given up."""

    def __init__(self) -> None:
        self.batches: list[list[Exchange]] = []
        self.is_down = False
        self.refuses = False

    def send(self, batch: Sequence[Exchange]) -> None:
        if self.is_down or self.refuses:
            raise DestinationError("no", is_lasting=self.refuses)
        self.batches.append(list(batch))

    def close(self) -> None:
        pass

    def lost(self) -> list[int]:
        """By the marks of its records, in their order."""
        records = [record for batch in self.batches for record in batch]
        return [sum(mark.count for mark in record.anomalies if mark.name == "sdk_lost") for record in records]


def test_what_was_lost_is_on_the_next_record_of_each_destination(server: str) -> None:
    first, second = Keeping(), Keeping()
    recorder = Recorder(InstrumentationConfig(), [first, second], fingerprinter(KEY), grace_s=0)
    with httpx.Client() as client:
        for hook, owner in hooks_in(client):
            hook.put(owner, recorder, again=True)

        def call(body: Any = BODY, times: int = 1) -> None:
            for _ in range(times):
                client.post(server + CHAT, json=body)
            recorder.flush(1 if first.is_down else 10)

        call(times=2)
        assert (first.lost(), second.lost()) == ([0, 0], [0, 0])
        recorder._max_queued_bytes = 0
        call(times=3)  # there is no room for any
        recorder._max_queued_bytes = 1 << 20
        call(times=2)
        assert first.lost() == second.lost() == [0, 0, 3, 0]
        first.refuses = True
        call()
        first.refuses = False
        call()
        assert first.lost() == [0, 0, 3, 0, 1]
        first.is_down = True
        recorder._stats.gaps += 2
        call()
        recorder._stats.gaps += 2
        first.is_down = False
        call()
        assert first.lost()[5:] == [4, 0]
        assert sum(second.lost()) == sum(first.lost())  # whoever has lost it
    recorder.close()


def test_a_store_is_written_that_the_commands_read(server: str, tmp_path: Path) -> None:
    recorder = Recorder(InstrumentationConfig(), [Folder(tmp_path / "store")], fingerprinter(KEY), grace_s=0)
    with httpx.Client() as client:
        for hook, owner in hooks_in(client):
            hook.put(owner, recorder, again=True)
        client.post(server + CHAT, json=BODY)
        client.post(server + CHAT, json=STREAM)
    assert recorder.close(30)
    sql = """SELECT count(*) AS n, min(tags ->> '$."service.name"') AS service, min(capture_kind) AS kind FROM exchanges"""
    command = [str(Path(sys.executable).with_name("llmsec-analyze")), "query", sql, "--store", str(tmp_path / "store"), "--format", "json"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout) in ([row := {"n": 2, "service": "llm-application", "kind": "sdk"}], row)


PROGRAM = """
import os, sys, httpx
from llmsec_trace import Callback, InstrumentationConfig, instrument
def tell(record):
    os.write(1, f"{os.getpid()} {record.request_model}\\n".encode())
client = instrument(httpx.Client(), InstrumentationConfig(destinations=[Callback(tell)]))
def call(model):
    client.post(sys.argv[1], json={"model": model, "messages": [{"role": "user", "content": "x"}]})
call("parent")
if sys.argv[2] == "fork":
    pid = os.fork()
    if pid == 0:
        call("child")
        sys.exit(0)
    os.waitpid(pid, 0)
elif sys.argv[2] == "multiprocessing":
    import multiprocessing
    child = multiprocessing.get_context("fork").Process(target=call, args=("child",))
    child.start()
    child.join()
os.write(1, f"{os.getpid()} end\\n".encode())
"""


@pytest.mark.parametrize("how", ["plain", "fork", "multiprocessing"])
def test_records_are_flushed_at_the_end_of_each_process_and_a_child_repeats_none_of_its_parent_s(server: str, how: str) -> None:
    told = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, server + CHAT, how], capture_output=True, text=True, timeout=60, check=False
    )
    assert told.returncode == 0, told.stderr
    assert told.stderr == ""
    lines = [line.split() for line in told.stdout.splitlines()]
    parent = next(pid for pid, word in lines if word == "end")
    assert sorted((pid == parent, word) for pid, word in lines if word != "end") == sorted(
        [(True, "parent")] + ([(False, "child")] if how != "plain" else [])
    )


def test_where_no_thread_can_be_started_a_call_is_dropped_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    answer = httpx.MockTransport(lambda _request: httpx.Response(200, stream=httpx.ByteStream(b"{}")))
    with recording() as sdk, httpx.Client(transport=answer) as client:
        for hook, owner in hooks_in(client):
            hook.put(owner, sdk.recorder, again=True)
        with monkeypatch.context() as without:
            without.setattr(threading.Thread, "start", start)
            assert client.post("http://model.test/v1/chat/completions", json=BODY).status_code == 200
        assert sdk.recorder.stats().dropped == 1
        client.post("http://model.test/v1/chat/completions", json=BODY)
        assert len(sdk.flush()) == 1


def test_all_threads_run_from_the_first_call_on(server: str) -> None:
    """Python 3.12 starts none while a program ends, which may be before its first record is made."""
    with (
        recording(InstrumentationConfig(security=SecurityConfig(on_finding=lambda _finding, _trace: None))) as sdk,
        client_of(sdk) as client,
    ):
        sdk.recorder._grace_s = 30
        assert sdk.recorder.lanes[0]._thread is None
        client.post(server + CHAT, json=BODY)
        assert sdk.records == []
        for thread in (sdk.recorder.lanes[0]._thread, sdk.recorder._telling._thread):
            assert thread.is_alive()


def test_a_child_s_trace_ids_are_not_those_that_its_parent_has_drawn() -> None:
    from_child, to_parent = os.pipe()
    own = {new_trace_id()}
    child = os.fork()
    if child == 0:
        os.write(to_parent, " ".join(new_trace_id() for _ in range(300)).encode())
        os._exit(0)
    os.close(to_parent)
    with os.fdopen(from_child) as told:
        theirs = set(told.read().split())
    os.waitpid(child, 0)
    own |= {new_trace_id() for _ in range(600)}
    assert {len(one) for one in own | theirs} == {32}
    assert (len(own), len(theirs), len(own | theirs)) == (601, 300, 901)


def test_importing_loads_nothing_heavy_and_neither_does_decoding() -> None:
    program = """
import sys
from llmsec_trace import instrument
light = set(sys.modules)
from llmsec_trace import Callback, InstrumentationConfig
import llmsec_trace.recorder
heavy = {"numpy", "duckdb", "polars", "pyarrow", "cryptography", "re2", "hyperscan", "opentelemetry", "typer", "prometheus_client"}
print(sorted(heavy & {name.partition(".")[0] for name in sys.modules}), "msgspec" in light)
"""
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert told.stdout.split("\n")[0] == "[] False"


def test_a_call_from_a_thread_of_a_destination_is_not_recorded(server: str) -> None:
    got: list[Exchange] = []
    with httpx.Client() as client:

        def again(record: Exchange) -> None:
            got.append(record)
            client.post(server + CHAT, json=BODY)

        recorder = Recorder(InstrumentationConfig(), [Callback(again)], fingerprinter(KEY), grace_s=0)
        for hook, owner in hooks_in(client):
            hook.put(owner, recorder, again=True)
        client.post(server + CHAT, json=BODY)
        assert recorder.flush(10)
        assert recorder.flush(10)
        recorder.close()
    assert len(got) == 1


def test_many_threads_at_once_are_each_recorded_once(server: str) -> None:
    with recording() as sdk, client_of(sdk) as client:

        def calls(thread: int) -> None:
            for number in range(10):
                client.post(server + CHAT, json=BODY | {"model": f"m{thread}-{number}"})

        threads = [threading.Thread(target=calls, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({record.request_model for record in sdk.flush()}) == len(sdk.records) == 80
        assert sdk.records[0].output_text == TEXT


def test_a_process_without_a_home_has_a_key_of_its_own(tmp_path: Path) -> None:
    program = """
import httpx
from llmsec_trace import Callback, InstrumentationConfig, instrument
instrument(httpx.Client(), InstrumentationConfig(destinations=[Callback(print)]))
"""
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_STATE_HOME")}
    environment["XDG_STATE_HOME"] = "/proc/nowhere"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, env=environment, check=False)
    assert (told.returncode, told.stderr) == (0, "")


UNHEARD = """
import logging
import sys
import httpx
from llmsec_trace import InstrumentationConfig, SecurityConfig, instrument
from llmsec_trace.destinations.base import DestinationError

logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")

class Full:
    def send(self, batch):
        raise DestinationError("no space is left", "free some")
    def close(self):
        pass

config = InstrumentationConfig(destinations=[Full()], security=SecurityConfig(enabled=False))
client = instrument(httpx.Client(), config)
for _ in range(3):
    client.post(sys.argv[1], json={"model": "m", "messages": [{"role": "user", "content": "x"}]})
"""


def test_what_nobody_took_is_said_when_the_program_ends(server: str) -> None:
    told = subprocess.run([sys.executable, "-c", UNHEARD, server + CHAT], capture_output=True, text=True, check=True, timeout=60)
    assert told.stderr.splitlines() == [
        "llmsec_trace: records cannot be handed to Full: no space is left (free some)",
        "llmsec_trace: 3 records of calls to models were handed to nobody",
    ]
