"""From what the transports saw to `Exchange` records, by the same stages that read a tap's traffic. One thread, the recorder's.

The heads and bodies go in where HTTP/2 puts its own (wire/messages.py), or, where a transport hands out bytes with HTTP/1's framing
on them, through the tap's parser of answers.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

from llmsec_tap import limits
from llmsec_tap.account import Account
from llmsec_tap.dialects.draft import DeltaListener
from llmsec_tap.exchange.assembly import Context, ExchangeAssembly, Origin
from llmsec_tap.identity.credentials import Fingerprinter
from llmsec_tap.identity.whose import WhoseSettings
from llmsec_tap.model import Exchange, Process
from llmsec_tap.wire.flow import Flow
from llmsec_tap.wire.http1 import ResponseParser
from llmsec_tap.wire.messages import IGNORED, BodySink, Head, Headers
from llmsec_trace.call import Answered, Asked, Call, Ended, Kind, RawHeaders

# Of an answer to what is no request to a language model, so much is looked at.
MAX_OTHER_BYTES: Final = limits.MIB
MAX_OPEN_CALLS: Final = 10_000
_UNKNOWN: Final = "0.0.0.0:0"  # as the tap has it where it knows no address


class Looking(Protocol):
    """Who looks at calls while they run. All of it is called on the recorder's thread, and may raise nothing."""

    def listener(self, assembly: ExchangeAssembly) -> DeltaListener | None:
        """Who is told the increments of one answer as they come; None: nobody."""

    def requested(self, exchange: Exchange) -> None:
        """What a record could say of a call when its request is whole; the answer may still take minutes."""


class Examiner(Looking, Protocol):
    """Detection of the application's own in place of ours."""

    def examine(self, exchanges: list[Exchange]) -> None:
        """The last look at whole records before they are handed on: findings and scores are put on them here."""


class _CallFlow(Flow):
    """The connection of one call, as far as the stages above need one."""

    __slots__ = ("call", "close")

    def __init__(self, call: Call, server: str, ts_ns: int, process: Process) -> None:
        super().__init__(_UNKNOWN, server, ts_ns, is_midstream=False, process=process, kind="sdk")
        self.call: Call | None = call
        self.close: Callable[[], None] = lambda: None  # gives back its room in the account


class Decoder:
    """`feed` what the queue gives, in its order; `on_record` is given each call's exchange when it has ended, `on_open` its id when its request is whole."""

    def __init__(
        self,
        on_record: Callable[[Call, Exchange], None],
        fingerprint: Fingerprinter,
        *,
        tenant: str | None = None,
        examiner: Looking | None = None,
        on_open: Callable[[Call, str], None] = lambda _call, _exchange_id: None,
        on_defect: Callable[[str], None] = lambda _decoder: None,
        shield: bool = True,
    ) -> None:
        self._on_record = on_record
        self._examiner = examiner
        self._on_open = on_open
        self._fed: Call | None = None  # of the piece that is decoded at this moment
        self._account = Account()
        self._open: dict[Call, None] = {}
        self._process = _this_process()
        self._context = Context(
            self._exchange,
            fingerprint,
            on_defect=on_defect,
            listener_factory=self._listener,
            on_request=self._requested,
            shield=shield,
            whose=WhoseSettings(tenant=tenant),
            origin=Origin("sdk", platform.node() or None),
        )

    def __len__(self) -> int:
        return len(self._open)

    def feed(self, call: Call, kind: Kind, ts_ns: int, payload: Any) -> None:
        self._fed = call
        if kind == Kind.REQUEST:
            self._request(call, ts_ns, payload)
            return
        if call.is_connection:
            self._connection(call, kind, ts_ns, payload)
            return
        assembly = call.assembly
        if assembly is None:
            return
        if kind == Kind.DATA:
            self._data(call, assembly, ts_ns, payload)
        elif kind == Kind.RESPONSE:
            self._response(call, assembly, ts_ns, payload)
        elif kind == Kind.END:
            self._end(call, assembly, ts_ns, payload)
        elif kind == Kind.REQUEST_DATA:
            assembly.request.data(ts_ns, payload)
        elif kind == Kind.REQUEST_END:
            assembly.request.end(ts_ns, "complete")
        elif kind == Kind.GAP:
            side = call.parser or (assembly.response if call.answered_from is not None else assembly.request)
            side.gap(ts_ns, payload)

    def close(self, ts_ns: int) -> None:
        """Nothing more comes: what is under way is handed on as far as it came."""
        for call in list(self._open):
            self._cut(call, ts_ns, "capture_end")

    # --- the two sides --------------------------------------------------------------------------------------------------------

    def _flow(self, call: Call, ts_ns: int, asked: Asked) -> _CallFlow:
        if len(self._open) >= MAX_OPEN_CALLS:
            self._cut(next(iter(self._open)), ts_ns, "expired")
        flow = _CallFlow(call, asked.server, ts_ns, self._process)
        holding = self._account.open(asked.server, lambda: self._shed(call))
        flow.reserve, flow.close = holding.reserve, holding.close
        return flow

    def _connection(self, call: Call, kind: Kind, ts_ns: int, payload: Any) -> None:
        """Bytes as on the wire, both ways. The exchanges are those that a tap would find."""
        if kind == Kind.CONNECTED:
            from llmsec_trace.connections import connection_of  # noqa: PLC0415 - most applications have none

            flow = self._flow(call, ts_ns, payload)
            call.connection = connection_of(call, flow, self._context, flow.close)
            self._open[call] = None
        connection = call.connection
        if connection is None:
            return
        if kind == Kind.SENT:
            connection.first.data(ts_ns, payload)
        elif kind == Kind.DATA:
            connection.second.data(ts_ns, payload)
        elif kind == Kind.SENT_GAP:
            connection.first.gap(ts_ns, payload)
        elif kind == Kind.GAP:
            connection.second.gap(ts_ns, payload)
        elif kind == Kind.END:
            self._cut(call, ts_ns, "fin" if payload.how == "complete" else payload.how)

    def _request(self, call: Call, ts_ns: int, asked: Asked) -> None:
        flow = self._flow(call, ts_ns, asked)
        assembly = call.assembly = ExchangeAssembly(self._context, flow, flow.first, flow.second, 0)
        self._open[call] = None
        assembly.request_head(Head(ts_ns, "1.1", _headers(asked.headers), method=asked.method, target=asked.target))
        if not assembly.has_room:
            self._shed(call)
        elif asked.body is not None:
            if asked.body:
                assembly.request.data(ts_ns, asked.body)
            assembly.request.end(ts_ns, "complete")

    def _response(self, call: Call, assembly: ExchangeAssembly, ts_ns: int, answer: Answered) -> None:
        call.answered_from = answer
        if answer.is_framed:
            asked = call.asked
            method = asked.method if asked is not None else ""
            parser = call.parser = ResponseParser(
                lambda head: self._head(assembly, head), assembly.anomaly, reserve=assembly.flow.reserve, answered=lambda: method
            )
            if answer.status:
                parser.data(ts_ns, _head_bytes(answer))
        else:
            self._head(assembly, Head(ts_ns, answer.version, _headers(answer.headers), status=answer.status))

    @staticmethod
    def _head(assembly: ExchangeAssembly, head: Head) -> BodySink:
        if assembly.is_ended or (100 <= head.status < 200 and head.status != 101):  # more than was asked for; an interim answer
            return IGNORED
        assembly.spoken_in(head.version)
        assembly.response_head(head)
        return assembly.response

    def _data(self, call: Call, assembly: ExchangeAssembly, ts_ns: int, data: bytes) -> None:
        if call.parser is not None:
            call.parser.data(ts_ns, data)
        else:
            assembly.response.data(ts_ns, data)
        if call.assembly is not None and not assembly.is_claimed and assembly.answer_bytes > MAX_OTHER_BYTES:
            call.is_wanted = False
            self._cut(call, ts_ns, "memory")

    def _end(self, call: Call, assembly: ExchangeAssembly, ts_ns: int, ended: Ended) -> None:
        call.error = ended.error
        answer = call.answered_from
        if call.parser is not None:
            call.parser.end(ts_ns, "fin" if ended.how == "complete" else ended.how)
        elif answer is not None:
            how = "complete" if ended.how == "complete" or _is_whole(assembly, answer) else ended.how
            assembly.response.end(ts_ns, how)
        if not assembly.is_ended:
            assembly.close(ts_ns, ended.how if ended.how != "complete" else "fin")

    # --- what comes of it -----------------------------------------------------------------------------------------------------

    def _exchange(self, exchange: Exchange) -> None:
        flow = self._context.emitting
        assert isinstance(flow, _CallFlow)
        if flow.call is not None and flow.call.is_connection:
            self._on_record(flow.call, exchange)
            return
        call, flow.call = flow.call, None
        if call is None:
            return
        self._open.pop(call, None)
        flow.close()
        call.assembly = None
        if call.parser is not None:
            call.parser = None
        answer = call.answered_from
        if answer is not None:
            exchange.client, exchange.server = answer.client or exchange.client, answer.server or exchange.server
        exchange.error_type = exchange.error_type or call.error
        self._on_record(call, exchange)

    def _cut(self, call: Call, ts_ns: int, why: str) -> None:
        connection, call.connection = call.connection, None
        if connection is not None:
            call.is_over = True
            self._open.pop(call, None)
            connection.close(ts_ns, why)
            return
        assembly = call.assembly
        if assembly is not None and not assembly.is_ended:
            call.is_over = True
            assembly.close(ts_ns, why)

    def _shed(self, call: Call) -> None:
        if call.connection is not None:
            call.connection.shed()
            return
        assembly = call.assembly
        if assembly is not None and not assembly.is_ended:
            assembly.anomaly("memory_limit")
            self._cut(call, assembly.flow.opened_ns, "memory")

    def _listener(self, assembly: ExchangeAssembly) -> DeltaListener | None:
        return self._examiner.listener(assembly) if self._examiner is not None else None

    def _requested(self, exchange: Exchange) -> None:
        if self._fed is not None:
            self._on_open(self._fed, exchange.exchange_id)
        if self._examiner is not None:
            self._examiner.requested(exchange)


def _headers(headers: RawHeaders) -> Headers:
    return [(_bytes(name).lower(), _bytes(value).strip()) for name, value in headers]


def _bytes(value: bytes | str) -> bytes:
    return value if isinstance(value, bytes) else value.encode("latin-1", "replace")


def _head_bytes(answer: Answered) -> bytes:
    """The head as a server writes it: those who hand out framed bodies have taken it apart already."""
    lines = [f"HTTP/{answer.version} {answer.status} ".encode(), *(_bytes(name) + b": " + _bytes(value) for name, value in answer.headers)]
    return b"\r\n".join([*lines, b"\r\n"])


def _is_whole(assembly: ExchangeAssembly, answer: Answered) -> bool:
    """All that the head announced came, though the application did not look for the end."""
    announced = next((_bytes(value) for name, value in answer.headers if _bytes(name).lower() == b"content-length"), b"")
    return announced.isdigit() and len(announced) < 16 and assembly.answer_bytes >= int(announced)


def _this_process() -> Process:
    try:
        name = Path("/proc/self/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        name = Path(sys.argv[0] if sys.argv else "python").name
    return Process(pid=os.getpid(), comm=name or None, exe=sys.executable or None)
