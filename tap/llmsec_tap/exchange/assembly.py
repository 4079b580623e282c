"""From HTTP messages to `Exchange` records: bodies are decoded, framed and given to a dialect as they arrive.

One `ExchangeAssembly` per request and response pair. Which dialect reads it is settled when the request has ended (or, where the
request was not captured, at the answer's first event or its end); everything before that is buffered.
What comes of it is settled elsewhere: `completeness.py` says how whole it is, `record.py` makes the record.
An exception in a dialect is a bug in this project: it is caught here, counted as `decoder_error`, and the rest of the exchange is still
processed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple, Protocol, TypeVar

from llmsec_tap import limits
from llmsec_tap.anomalies import UNREAD, AnomalyName
from llmsec_tap.dialects.base import JSON, Dialect, EventHandler, NotJSON, RequestView, ResponseView, parse_json
from llmsec_tap.dialects.draft import DeltaListener, Draft
from llmsec_tap.dialects.failures import read_failure
from llmsec_tap.dialects.registry import classify_response
from llmsec_tap.exchange.body import FRAME_PARSERS, FRAMING_BY_TYPE, Body, FrameParser, looks_like_sse
from llmsec_tap.exchange.charsets import likely_text
from llmsec_tap.exchange.completeness import completeness_of
from llmsec_tap.exchange.ids import RequestDigest
from llmsec_tap.exchange.left_over import LeftOver, StreamLeftOver
from llmsec_tap.exchange.loose_json import texts_in
from llmsec_tap.exchange.record import Facts, build_record
from llmsec_tap.exchange.request_reading import fold_case, has_token_ids, needs_folding, read_body, read_left_over, scalars, settle
from llmsec_tap.exchange.response_reading import late_framing, read_loose_answer
from llmsec_tap.exchange.rpc import BARE, answer_schema, as_json, is_framed, read_last, read_status, request_as_json
from llmsec_tap.exchange.timing import characters_per_token
from llmsec_tap.identity.credentials import Fingerprinter, credential_of
from llmsec_tap.identity.non_inference import auxiliary, holds_texts
from llmsec_tap.identity.tenants import Directory, Known
from llmsec_tap.identity.who import identify
from llmsec_tap.identity.whose import Whose, WhoseSettings, resolved_tenant, whose_request, with_response
from llmsec_tap.model import CaptureKind, Completeness, Exchange, Framing, OtherText
from llmsec_tap.wire.flow import Flow
from llmsec_tap.wire.messages import Head, Headers, ignore

_T = TypeVar("_T")
_PRETTY: Final = re.compile(rb"\s*[\[{][ \t]*\r?\n")


class ListenerFactory(Protocol):
    """Makes the listener of one exchange's increments (stream detection); None: nobody listens."""

    def __call__(self, assembly: ExchangeAssembly) -> DeltaListener | None: ...


class Origin(NamedTuple):
    """Where traffic comes from: `kind` of what is read as packets, and the host that captures; none in a replay."""

    kind: CaptureKind = "file"
    node: str | None = None


REPLAYED: Final = Origin()


class Context:
    """What all exchanges of a run share."""

    __slots__ = (
        "directory",
        "emitting",
        "fingerprint",
        "listener_factory",
        "on_defect",
        "on_exchange",
        "on_request",
        "origin",
        "shield",
        "whose",
    )

    def __init__(
        self,
        on_exchange: Callable[[Exchange], None],
        fingerprint: Fingerprinter,
        *,
        on_defect: Callable[[str], None] = lambda _decoder: None,
        listener_factory: ListenerFactory | None = None,
        on_request: Callable[[Exchange], None] | None = None,
        shield: bool = True,
        whose: WhoseSettings | None = None,
        directory: Directory | None = None,
        origin: Origin = REPLAYED,
    ) -> None:
        """`on_request` is given what a record could say, once for each request to a language model, when its last byte is in."""
        self.whose = whose or WhoseSettings()
        self.directory = directory
        self.origin = origin
        self.emitting: Flow | None = None  # whose exchange is handed on at this moment
        self.on_exchange = on_exchange
        self.on_request = on_request
        self.fingerprint = fingerprint
        self.on_defect = on_defect  # told the decoder's name, inside the except block
        self.listener_factory = listener_factory
        self.shield = shield  # off in tests, so that a decoder's defect is seen


class ExchangeAssembly:
    """An `ExchangeSink` of wire/messages.py."""

    __slots__ = (
        "_anomalies",
        "_dialect",
        "_digest",
        "_done",
        "_frames",
        "_framing",
        "_given_framing",
        "_handler",
        "_held",
        "_last_ns",
        "_left",
        "_ordinal",
        "_read_bytes",
        "_request_head",
        "_response_body_ns",
        "_response_head",
        "_started_ns",
        "_truncated",
        "_view",
        "_whose",
        "client",
        "context",
        "draft",
        "flow",
        "has_room",
        "request",
        "response",
        "response_view",
        "server",
    )

    def __init__(self, context: Context, flow: Flow, client: str, server: str, ordinal: int, framing: Framing | None = None) -> None:
        """`framing`: how the answer is known to be framed, whatever its head says; None: its head and first bytes tell."""
        self.context = context
        self._given_framing = framing
        self.flow = flow
        self.client = client
        self.server = server
        self._ordinal = ordinal
        self._held = 0
        self._read_bytes = (0, 0)  # of what could not be read, and of copies that differed: looked at with the request
        self.has_room = self.reserve(limits.EXCHANGE_COST_BYTES)
        self.request = Body(self, self._request_data)
        self.response = Body(self, self._first_response_data)
        self.draft = Draft(reserve=self.reserve)
        self._anomalies: dict[AnomalyName, int] = {}
        self._request_head: Head | None = None
        self._response_head: Head | None = None
        self._view: RequestView | None = None
        self.response_view: ResponseView | None = None
        self._dialect: Dialect | None = None
        self._handler: EventHandler | None = None
        self._frames: FrameParser | None = None
        self._left: StreamLeftOver | None = None
        self._framing: Framing | None = None
        self._started_ns: int | None = None
        self._last_ns = 0
        self._response_body_ns: int | None = None
        self._digest = RequestDigest()
        self._truncated = False
        self._whose = Whose()
        self._done = False

    @property
    def is_ended(self) -> bool:
        return self._done

    @property
    def is_claimed(self) -> bool:
        """A dialect reads it."""
        return self._dialect is not None

    @property
    def answer_bytes(self) -> int:
        """Of the answer's body so far, as on the wire."""
        return max(self.response.bytes, self._frames.fed_bytes if self._frames is not None else 0)

    # --- the request --------------------------------------------------------------------------------------------------

    def spoken_in(self, version: str) -> None:
        """The version of HTTP, where only the answer shows it to whoever gives heads and bodies (the SDK)."""
        if self._request_head is not None:
            self._request_head.version = version

    def request_head(self, head: Head) -> None:
        self._request_head = head
        self._started_ns = head.ts_ns
        self._digest.head(head)
        self.request.head(head)
        if self.context.listener_factory is not None:
            self.draft.listener = self.context.listener_factory(self)

    def _request_data(self, ts_ns: int, data: bytes) -> None:
        self._digest.data(data)
        self.request.hold(data)

    def _request_complete(self) -> None:
        """Decode what there is of the request, and settle the dialect."""
        head = self._request_head
        if head is None or self._view is not None:
            return
        raw, undecoded, others = self.request.take(), self.request.raw_prefix, self.request.other_bytes
        view = self._view = RequestView(head.method, head.target, head.joined(), raw)
        # A gap inside a long text leaves JSON that still reads, with both sides of the text joined; elsewhere it does not read.
        self._guarded(lambda: self._read_request(view, raw, undecoded, others))
        view.raw = b""
        self._whose = self._guarded(lambda: whose_request(view, self.context.fingerprint, self.context.whose)) or self._whose
        view.body = scalars(view.body)
        self.draft.request_cost(view.body)
        directory = self.context.directory
        if directory is not None and self._dialect is not None:
            self._guarded(lambda: self._expect(directory, view))

    def _expect(self, directory: Directory, view: RequestView) -> None:
        """Asked for now, it is mostly known when the answer has ended."""
        credential = credential_of(view)
        if credential:
            directory.expect(self.context.fingerprint(credential))

    def _read_request(self, view: RequestView, raw: bytes, undecoded: bytes, others: bytes) -> None:
        """`undecoded` and `others` are bytes beside the body: what could not be read of it, and copies that differed."""
        self._read_bytes = len(undecoded), len(others)
        raw = request_as_json(view.path, view.headers.get("content-type", ""), raw)
        reading = read_body(view, raw or undecoded, self.draft, self._body_anomaly)
        reading.texts += [("$", likely_text(more)) for more in (undecoded if raw else b"", others) if more]
        self._dialect = dialect = settle(view, reading, self.anomaly)
        if dialect is not None:
            self._guarded(lambda: dialect.decode_request(view, self.draft))
        elif auxiliary(view, None) is None:
            return
        left = read_left_over(view, reading, self.draft)
        if dialect is not None and needs_folding(view, left) and self._response_head is None and fold_case(view, reading, self.anomaly):
            fresh = Draft(self.draft.listener, self.reserve)
            fresh.anomalies, self.draft = self.draft.anomalies, fresh
            self._guarded(lambda: dialect.decode_request(view, self.draft))
            left = read_left_over(view, reading, self.draft)
        self.draft.other_texts += left.found
        if left.conversation and dialect is not None:
            self.anomaly("unknown_part")
        if has_token_ids(view.body):
            self.anomaly("prompt_token_ids")

    def _body_anomaly(self, name: AnomalyName) -> None:
        """Of damage that lost bytes explain, the loss says enough."""
        if name != "body_bad_json" or not self.request.gapped:
            self.anomaly(name)

    def _announce(self, ts_ns: int) -> None:
        """For whoever does not wait for the answer."""
        on_request = self.context.on_request
        if on_request is None or (self._dialect is None and not self.draft.other_texts):
            return
        record = self._guarded(lambda: self._begun(ts_ns))
        if record is not None:
            on_request(record)

    def _begun(self, ts_ns: int) -> Exchange | None:
        view, draft, dialect = self._view, self.draft, self._dialect
        provider = identify(view, None, draft, dialect)
        if provider is None or view is None:
            return None
        operation = draft.operation or (dialect.operation if dialect is not None else auxiliary(view, None))
        api = dialect.api if dialect is not None else None
        facts = self._facts(provider, api, operation, ended_ns=ts_ns, completeness="complete")
        return build_record(facts, draft, {}, self.context.fingerprint)

    # --- the response -------------------------------------------------------------------------------------------------

    def response_head(self, head: Head) -> None:
        self._response_head = head
        if self._started_ns is None:
            self._started_ns = head.ts_ns
        self.response.head(head)
        self.response_view = ResponseView(head.status, head.joined())

    def trailers(self, headers: Headers) -> None:
        if not self._done and self.response_view is not None:
            self.response_view.trailers.update((name.decode("latin-1"), value.decode("latin-1")) for name, value in headers)

    def _first_response_data(self, ts_ns: int, data: bytes) -> None:
        """The body begins: is it a stream, and who reads it?"""
        self._response_body_ns = ts_ns
        view = self.response_view
        assert view is not None
        framing = self._given_framing or ("grpc" if is_framed(view.content_type) else FRAMING_BY_TYPE.get(view.content_type))
        if framing in ("sse", "aws-eventstream") and data.lstrip()[:1] in (b"{", b"["):
            framing = None  # a whole answer under the type of a stream: no event begins so
        # An answer may come before the request's last byte (a refusal): a whole one is read when the request has ended, but a
        # stream is read as it comes, with what there is of the request.
        if framing is not None or self.request.ended is not None:
            self._request_complete()
        if framing is None and self._view is not None and self._dialect is not None:
            dialect, request = self._dialect, self._view
            framing = self._guarded(lambda: dialect.framing(request, view))
        if framing == "ndjson" and _PRETTY.match(data):
            framing = None  # one value over many lines
        plain = view.content_type in ("", "text/plain", "application/octet-stream")
        if framing is None and (plain or self._dialect is not None) and looks_like_sse(data):
            framing = "sse"
        if framing is None:
            self.response.on_data = self._buffered_data
            self._buffered_data(ts_ns, data)
            return
        self._framing = framing
        if self._dialect is not None:
            self._handler = self._stream_handler(self._dialect, view)
        self._frames = FRAME_PARSERS[framing](self._event, self.anomaly, self.reserve)
        self._frames.feed(ts_ns, data)
        self.response.stream_into(self._frames)

    def _buffered_data(self, ts_ns: int, data: bytes) -> None:
        self._last_ns = ts_ns
        self.response.hold(data)

    def _event(self, ts_ns: int, name: str | None, data: bytes) -> None:
        self._last_ns = ts_ns
        draft = self.draft
        if self._framing == "grpc":
            if name is not None and self.response_view is not None:
                read_last(name, data, self.response_view, draft)
                return
            data = as_json(data, answer_schema(self._view.path if self._view is not None else None))
        if data != b"[DONE]":
            draft.events += 1
        handler = self._handler
        if handler is None:
            handler = self._adopt(data)
            if handler is None:
                return
        try:
            handler(ts_ns, name, data)
        except Exception:  # noqa: BLE001 - any defect of a decoder; see the module's docstring
            self._defect()

    def _adopt(self, data: bytes) -> EventHandler | None:
        """A stream whose request was not captured, or not known: its first events may tell the dialect."""
        view = self.response_view
        if view is None or self.draft.events > 8:
            return None
        try:
            value = parse_json(data)
        except NotJSON:
            return None
        dialect = self._guarded(lambda: classify_response(view, value))
        if dialect is None:
            return None
        self._dialect = dialect
        self._handler = self._stream_handler(dialect, view)
        return self._handler

    def _stream_handler(self, dialect: Dialect, view: ResponseView) -> EventHandler | None:
        self._left = self.draft.overlooked = StreamLeftOver(self.draft)
        return self._guarded(lambda: dialect.stream(self._view, view, self.draft))

    def gap(self, body: Body) -> None:
        if body is self.response and self._frames is not None:
            self._frames.gap()

    # --- the end ------------------------------------------------------------------------------------------------------

    def ended(self, body: Body, ts_ns: int) -> None:
        if self._done:
            return
        if body is self.request:
            self._request_complete()
            if self.response.ended is None:
                self._announce(ts_ns)
                return
        else:
            self._last_ns = ts_ns
            if self._frames is not None:
                self._frames.end(ts_ns)
            if self.request.ended is None and self._request_head is not None:
                return  # an early answer: the request may still be running
        self._emit(ts_ns)

    def close(self, ts_ns: int, reason: str) -> None:
        """The connection ended, so nothing more comes for either side."""
        if self._done:
            return
        if self._request_head is not None and self.request.ended is None:
            self.request.ended = reason
            self._request_complete()
        if self._response_head is None:
            self.anomaly("http_no_response")
        self.response.ended = self.response.ended or reason
        self._emit(ts_ns)

    def _emit(self, ts_ns: int) -> None:
        if self._done:
            return
        self._done = True
        self._request_complete()
        view = self.response_view
        if view is not None and self._framing is None:
            self._whole_response(view, self.response.take())
        if self.draft.at_end is not None:
            self._guarded(self.draft.at_end)
        if view is not None and (view.trailers or "grpc-status" in view.headers):
            read_status(view, self.draft)
        stream_left = self._left
        if stream_left is not None:
            self._guarded(lambda: self._keep_left(stream_left.end()))
        exchange = self._record(ts_ns)
        self.request.release()
        self.response.release()
        # Cut the cycles, so that a finished exchange is freed at once and not at some later garbage collection.
        for body in (self.request, self.response):
            body.on_data = body.data = ignore
        del self.request, self.response
        self._handler = self._frames = self._left = self.draft.overlooked = self.draft.at_end = None
        listener, self.draft.listener = self.draft.listener, None
        if listener is not None:
            listener.finished(exchange)
        self.draft.close()
        del self.draft, self._view
        self.flow.reserve(-self._held)
        self.context.emitting = self.flow
        self.context.on_exchange(exchange)

    def _whole_response(self, view: ResponseView, raw: bytes) -> None:
        body: JSON = None
        if raw and view.content_type in BARE and self._view is not None:
            raw = as_json(raw, answer_schema(self._view.path))
        if raw:
            try:
                body = parse_json(raw, self.draft)
            except NotJSON:
                if self._streamed_late(view, raw):
                    return
                body = self._guarded(lambda: self._loose_response(view, raw))
        draft, request = self.draft, self._view
        request_is_unreadable = request is None or (self.request.bytes > 0 and not request.body_is_json)
        if self._dialect is None and body is not None and request_is_unreadable:
            self._dialect = self._guarded(lambda: classify_response(view, body))
        if self._dialect is not None:
            dialect, at = self._dialect, self._response_body_ns or self._last_ns
            self._guarded(lambda: dialect.decode_response(request, view, body, at, draft))
        elif view.status >= 400:
            self._guarded(lambda: read_failure(view, body, draft))  # of an auxiliary call, if it turns out to be one
        if isinstance(body, dict | list) and (self._dialect is not None or (request is not None and holds_texts(request, view))):
            self._guarded(lambda: self._look_over(body))

    def _look_over(self, body: JSON) -> None:
        """What the dialect left of a whole answer."""
        left = LeftOver(self.draft, of_answer=True)
        left.walk(body)
        self._keep_left(left)

    def _keep_left(self, left: LeftOver) -> None:
        known = {other.text for other in self.draft.other_texts}  # of the request: some servers repeat all of it
        self.draft.other_texts += [other for other in left.found if other.text not in known]
        if left.conversation and self._dialect is not None and "unknown_part" not in self._anomalies:
            self.anomaly("unknown_part")

    def _streamed_late(self, view: ResponseView, raw: bytes) -> bool:
        dialect = self._dialect
        framing = late_framing(raw) if dialect is not None and view.status < 400 else None
        if dialect is None or framing is None:
            return False
        self._framing = framing
        self._handler = self._stream_handler(dialect, view)
        at = self._response_body_ns or self._last_ns
        frames = FRAME_PARSERS[framing](self._event, self.anomaly, self.reserve)
        frames.feed(at, raw)
        frames.end(at)
        return True

    def _loose_response(self, view: ResponseView, raw: bytes) -> JSON:
        is_lost = self.response.gapped or self._truncated or self.response.ended != "complete"
        value, texts = read_loose_answer(view, raw, self.anomaly, is_damage=self._dialect is not None and not is_lost)
        self._unread_texts(texts)
        return value

    # --- the record ---------------------------------------------------------------------------------------------------

    @property
    def exchange_id(self) -> str:
        """The id that the record will have. It is settled once the request is whole: nothing of the answer is in it."""
        return self._digest.exchange_id(self.client, self.server, self._started_ns, self._ordinal, self.context.fingerprint)

    @property
    def output_tokens_so_far(self) -> int:
        """Tokens of the answer at this moment: as the server states them, or as many as its characters make up. For rates while it streams."""
        draft = self.draft
        estimate = int(draft.chars / characters_per_token(draft.response_model or draft.request_model or ""))
        return max(draft.usage.output_tokens or 0, estimate)

    def _record(self, ts_ns: int) -> Exchange:
        view, draft, dialect = self._view, self.draft, self._dialect
        provider = self._guarded(lambda: identify(view, self.response_view, draft, dialect))
        api = dialect.api if dialect is not None and provider is not None else None
        operation = None
        if provider is not None:
            operation = draft.operation or (dialect.operation if dialect is not None else None)
            if operation is None and view is not None:
                operation = self._guarded(lambda: auxiliary(view, self.response_view))
        for name, count in draft.anomalies.items():
            self.anomaly(name, count)
        if provider is not None:
            self._keep_unread()
        completeness = self._completeness(is_llm=provider is not None)
        is_whole_stream = self._framing is not None and provider is not None and completeness in ("complete", "unreadable")
        is_cut = self._frames is not None and self._frames.unfinished
        if is_whole_stream and (is_cut or not (draft.terminated or draft.error_type or any(draft.finish_reasons()))):
            self.anomaly("stream_unterminated")
        head = self._response_head
        if head is not None and self.response_view is not None and provider is not None:
            answered = self.response_view.headers
            self._guarded(lambda: with_response(self._whose, answered, head.ts_ns, self.context.fingerprint))
        facts = self._facts(provider, api, operation, ended_ns=self._last_ns or ts_ns, completeness=completeness)
        return build_record(facts, draft, self._anomalies, self.context.fingerprint)

    def _facts(self, provider: str | None, api: str | None, operation: str | None, *, ended_ns: int, completeness: Completeness) -> Facts:
        view = self._view
        credential = credential_of(view) if view is not None else None
        tenant = self._guarded(lambda: self._tenant(credential, is_llm=provider is not None)) or Known(None)
        if tenant.mark is not None and self._done:
            self.anomaly(tenant.mark)
        return Facts(
            exchange_id=self.exchange_id,
            client=self.client,
            server=self.server,
            process=self.flow.process,
            request_head=self._request_head,
            response_head=self._response_head,
            request_bytes=self.request.bytes,
            response_bytes=self.answer_bytes,
            started_ns=self._started_ns,
            response_body_ns=self._response_body_ns,
            ended_ns=ended_ns,
            framing=self._framing if self._framing != "grpc" or self.draft.events > 1 else None,  # one message is no stream
            provider=provider,
            api=api,
            operation=operation,
            credential=credential,
            tenant=tenant.tenant,
            completeness=completeness,
            whose=self._whose,
            proxied=self.flow.proxied,
            capture_kind=self.flow.kind or self.context.origin.kind,
            node=self.context.origin.node,
            tls=self.flow.tls,
        )

    def _tenant(self, credential: str | None, *, is_llm: bool) -> Known:
        """Credentials of other traffic are nobody's business: no directory is asked for them."""
        model, context = self.draft.request_model or self.draft.response_model, self.context
        directory = context.directory if is_llm else None
        return resolved_tenant(self._whose, self._view, credential, self.flow.process, model, context.fingerprint, context.whose, directory)

    def _completeness(self, *, is_llm: bool) -> Completeness:
        request, response = self.request, self.response
        is_unread = request.unreadable is not None or response.unreadable is not None or not UNREAD.isdisjoint(self._anomalies)
        return completeness_of(
            has_request=self._request_head is not None,
            is_gapped=request.gapped or response.gapped,
            is_truncated=self._truncated,
            is_unread=is_llm and is_unread,
            request_ended=request.ended,
            response_ended=response.ended,
            is_terminated=self.draft.terminated,
        )

    def _keep_unread(self) -> None:
        """What could not be read, and copies that differed, is kept as text for detection, and said."""
        draft, request, response = self.draft, self.request, self.response
        if draft.unread or response.unreadable or response.other_bytes:
            self._unread_texts(likely_text(data) for data in (*draft.unread, response.raw_prefix, response.other_bytes) if data)
        if request.unreadable or request.other_bytes:
            # The parser may have given more of it after the request had ended, which is when the first of it was read.
            for data in (request.raw_prefix[self._read_bytes[0] :], request.other_bytes[self._read_bytes[1] :]):
                if data:
                    text = likely_text(data)
                    self._unread_texts((text, *texts_in(text)), path="$")
        for why in (request.unreadable, response.unreadable):
            if why is not None and why not in self._anomalies:
                self.anomaly(why)

    def _unread_texts(self, texts: Iterable[str], path: str = "response") -> None:
        self.draft.other_texts += [OtherText(path=path, text=text[: limits.MAX_OTHER_TEXT_CHARS]) for text in texts if text.strip()]

    # --- faults -------------------------------------------------------------------------------------------------------

    def anomaly(self, name: AnomalyName, count: int = 1) -> None:
        self._anomalies[name] = self._anomalies.get(name, 0) + count

    def unread(self, ts_ns: int, name: AnomalyName, data: bytes) -> None:
        if self._started_ns is None:
            self._started_ns = ts_ns
        self.request.unread(name, data)

    def other(self, data: bytes, *, of_client: bool) -> None:
        (self.request if of_client else self.response).other(data)

    def reserve(self, size: int) -> bool:
        if not self.flow.reserve(size):
            return False
        self._held += size
        return True

    def truncate(self, why: AnomalyName) -> None:
        self._truncated = True
        if why not in self._anomalies:
            self.anomaly(why)

    def _guarded(self, call: Callable[[], _T | None]) -> _T | None:
        try:
            return call()
        except Exception:  # noqa: BLE001 - as in _event
            self._defect()
            return None

    def _defect(self) -> None:
        if not self.context.shield:
            raise  # noqa: PLE0704 - called from except blocks only
        self.anomaly("decoder_error")
        self.context.on_defect(self._dialect.api if self._dialect is not None else "registry")
