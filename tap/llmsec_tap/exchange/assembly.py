"""From HTTP messages to `Exchange` records: bodies are decoded, framed and given to a dialect as they arrive.

One `ExchangeAssembly` per request and response pair. Which dialect reads it is settled when the request has ended (or, where the
request was not captured, at the answer's first event or its end); everything before that is buffered.
A dialect that raises is a defect of ours: it is caught here, counted as `decoder_error`, and the rest of the exchange goes on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

from llmsec_tap import limits
from llmsec_tap.anomalies import UNREAD
from llmsec_tap.dialects.base import JSON, Dialect, EventHandler, NotJSON, RequestView, ResponseView, is_costly, is_json_lines, parse_json
from llmsec_tap.dialects.draft import DeltaListener, Draft
from llmsec_tap.dialects.failures import read_failure
from llmsec_tap.dialects.registry import classify_response
from llmsec_tap.exchange.body import FRAME_PARSERS, FRAMING_BY_TYPE, Body, FrameParser, looks_like_sse
from llmsec_tap.exchange.charsets import likely_text, seen_text
from llmsec_tap.exchange.loose_json import read_loosely, texts_in
from llmsec_tap.exchange.request_reading import fold_case, has_token_ids, needs_folding, read_body, read_left_over, settle
from llmsec_tap.exchange.timing import timings
from llmsec_tap.identity.credentials import Fingerprinter, clean_text, credential_of
from llmsec_tap.identity.masking import mask_method, mask_record, mask_target
from llmsec_tap.identity.non_inference import auxiliary
from llmsec_tap.identity.who import identify
from llmsec_tap.model import AnomalyCount, Completeness, Exchange, Framing, OtherText, Request, Response
from llmsec_tap.wire.flow import Flow
from llmsec_tap.wire.messages import Head, ignore

_T = TypeVar("_T")

# Reasons a message ended, from the HTTP parser, and what they make of the exchange.
_ABORTED = frozenset(("fin", "reset", "closed"))


class ListenerFactory(Protocol):
    """Makes the listener of one exchange's increments (stream detection); None: nobody listens."""

    def __call__(self, assembly: ExchangeAssembly) -> DeltaListener | None: ...


class Context:
    """What all exchanges of a run share."""

    __slots__ = ("fingerprint", "listener_factory", "on_defect", "on_exchange", "shield")

    def __init__(
        self,
        on_exchange: Callable[[Exchange], None],
        fingerprint: Fingerprinter,
        *,
        on_defect: Callable[[str], None] = lambda _decoder: None,
        listener_factory: ListenerFactory | None = None,
        shield: bool = True,
    ) -> None:
        self.on_exchange = on_exchange
        self.fingerprint = fingerprint
        self.on_defect = on_defect  # told the decoder's name, inside the except block
        self.listener_factory = listener_factory
        self.shield = shield  # off in tests, so that a decoder's defect is seen


class ExchangeAssembly:
    """An `ExchangeSink` of wire/messages.py."""

    __slots__ = (
        "_anomalies",
        "_counted",
        "_dialect",
        "_digest",
        "_done",
        "_frames",
        "_framing",
        "_handler",
        "_held",
        "_last_ns",
        "_ordinal",
        "_read_bytes",
        "_request_head",
        "_response_body_ns",
        "_response_head",
        "_started_ns",
        "_truncated",
        "_view",
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

    def __init__(self, context: Context, flow: Flow, client: str, server: str, ordinal: int) -> None:
        self.context = context
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
        self._anomalies: dict[str, int] = {}
        self._request_head: Head | None = None
        self._response_head: Head | None = None
        self._view: RequestView | None = None
        self.response_view: ResponseView | None = None
        self._dialect: Dialect | None = None
        self._handler: EventHandler | None = None
        self._frames: FrameParser | None = None
        self._framing: Framing | None = None
        self._started_ns: int | None = None
        self._last_ns = 0
        self._response_body_ns: int | None = None
        self._digest = hashlib.blake2b(digest_size=16)
        self._truncated = False
        self._counted = False
        self._done = False

    @property
    def is_ended(self) -> bool:
        return self._done

    # --- the request --------------------------------------------------------------------------------------------------

    def request_head(self, head: Head) -> None:
        self._request_head = head
        self._started_ns = head.ts_ns
        self._digest.update(f"{head.method} {head.target.partition('?')[0]}".encode())  # a query may hold a credential
        self.request.head(head)
        if self.context.listener_factory is not None:
            self.draft.listener = self.context.listener_factory(self)

    def _request_data(self, ts_ns: int, data: bytes) -> None:
        self._digest.update(data)
        self.request.hold(data)

    def _request_complete(self) -> None:
        """Decode what there is of the request, and settle the dialect."""
        head = self._request_head
        if head is None or self._view is not None:
            return
        raw, undecoded, others = self.request.take(), self.request.raw_prefix, self.request.other_bytes
        view = self._view = RequestView(head.method, head.target, _joined(head), raw)
        # A gap inside a long text leaves JSON that still reads, with both sides of the text joined; elsewhere it does not read.
        self._guarded(lambda: self._read_request(view, raw, undecoded, others))
        view.raw = b""
        view.body = _scalars(view.body)
        self.draft.request_cost(view.body)

    def _read_request(self, view: RequestView, raw: bytes, undecoded: bytes, others: bytes) -> None:
        """`undecoded` and `others` are bytes beside the body: what could not be read of it, and copies that differed."""
        self._read_bytes = len(undecoded), len(others)
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
        if has_token_ids(view.body):
            self.anomaly("prompt_token_ids")

    def _body_anomaly(self, name: str) -> None:
        """Of damage that lost bytes explain, the loss says enough."""
        if name != "body_bad_json" or not self.request.gapped:
            self.anomaly(name)

    # --- the response -------------------------------------------------------------------------------------------------

    def response_head(self, head: Head) -> None:
        self._response_head = head
        if self._started_ns is None:
            self._started_ns = head.ts_ns
        self.response.head(head)
        self.response_view = ResponseView(head.status, _joined(head))

    def _first_response_data(self, ts_ns: int, data: bytes) -> None:
        """The body begins: is it a stream, and who reads it?"""
        self._response_body_ns = ts_ns
        view = self.response_view
        assert view is not None
        framing = FRAMING_BY_TYPE.get(view.content_type)
        if framing == "sse" and data.lstrip()[:1] in (b"{", b"["):
            framing = None  # a whole answer under the type of a stream: no line of an event stream begins so
        # An answer may come before the request's last byte (a refusal): a whole one is read when the request has ended, but a
        # stream is read as it comes, with what there is of the request.
        if framing is not None or self.request.ended is not None:
            self._request_complete()
        if framing is None and self._view is not None and self._dialect is not None:
            dialect, request = self._dialect, self._view
            framing = self._guarded(lambda: dialect.framing(request, view))
        plain = view.content_type in ("", "text/plain", "application/octet-stream")
        if framing is None and (plain or self._dialect is not None) and looks_like_sse(data):
            framing = "sse"
        if framing is None:
            self.response.on_data = self._buffered_data
            self._buffered_data(ts_ns, data)
            return
        self._framing = framing
        if self._dialect is not None:
            dialect = self._dialect
            self._handler = self._guarded(lambda: dialect.stream(self._view, view, self.draft))
        self._frames = FRAME_PARSERS[framing](self._event, self.anomaly, self.reserve)
        self._frames.feed(ts_ns, data)
        self.response.stream_into(self._frames)

    def _buffered_data(self, ts_ns: int, data: bytes) -> None:
        self._last_ns = ts_ns
        self.response.hold(data)

    def _event(self, ts_ns: int, name: str | None, data: bytes) -> None:
        self._last_ns = ts_ns
        draft = self.draft
        if data != b"[DONE]":
            if not draft.events:
                draft.first_event_ns = ts_ns
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
        if self._counted or view is None or self.draft.events > 8:
            return None
        try:
            value = parse_json(data)
        except NotJSON:
            return None
        dialect = self._guarded(lambda: classify_response(view, value))
        if dialect is None:
            return None
        self._dialect = dialect
        self._handler = self._guarded(lambda: dialect.stream(self._view, view, self.draft))
        return self._handler

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
        exchange = self._record(ts_ns)
        self.request.release()
        self.response.release()
        # Cut the cycles, so that a finished exchange is freed at once and not at some later garbage collection.
        for body in (self.request, self.response):
            body.on_data = body.data = ignore
        del self.request, self.response
        self._handler = self._frames = None
        listener, self.draft.listener = self.draft.listener, None
        if listener is not None:
            listener.finished(exchange)
        self.draft.close()
        del self.draft, self._view
        self.flow.reserve(-self._held)
        self.context.on_exchange(exchange)

    def _whole_response(self, view: ResponseView, raw: bytes) -> None:
        body: JSON = None
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

    def _streamed_late(self, view: ResponseView, raw: bytes) -> bool:
        """A stream under the type of a whole answer: lines of JSON, or events behind white space."""
        dialect = self._dialect
        framing: Framing | None = "sse" if looks_like_sse(raw.lstrip()) else "ndjson" if is_json_lines(raw) else None
        if dialect is None or framing is None or view.status >= 400:
            return False
        self._framing = framing
        self._handler = self._guarded(lambda: dialect.stream(self._view, view, self.draft))
        at = self._response_body_ns or self._last_ns
        frames = FRAME_PARSERS[framing](self._event, self.anomaly, self.reserve)
        frames.feed(at, raw)
        frames.end(at)
        return True

    def _loose_response(self, view: ResponseView, raw: bytes) -> JSON:
        """What can be had of an answer that is no JSON as it stands: its value as far as it goes, and its text for detection."""
        content_type = view.headers.get("content-type", "")
        is_small = len(raw) <= limits.MAX_LOOSE_BODY_BYTES and not is_costly(raw)
        raw = raw[: limits.MAX_LOOSE_BODY_BYTES]
        loose = read_loosely(raw, content_type) if is_small else None
        lost = self.response.gapped or self._truncated or self.response.ended != "complete"
        for name in loose.marks if loose is not None else ():
            if name != "body_bad_json" or (self._dialect is not None and not lost):
                self.anomaly(name)
        if loose is not None:
            self._unread_texts(loose.rest)
            return loose.value
        if not view.content_type.startswith(("image/", "audio/", "video/")):
            text, is_whole = seen_text(raw, content_type)
            self._unread_texts([text])
            if self._dialect is not None and not lost:
                if "json" in view.content_type:
                    self.anomaly("body_bad_json")
                elif not is_whole:
                    self.anomaly("body_unreadable")
        return None

    def _late_bytes(self) -> None:
        """What the parser gave out of the request after it had ended: bytes that it skipped, copies that differed."""
        raw, others = self.request.raw_prefix, self.request.other_bytes
        for data in (raw[self._read_bytes[0] :], others[self._read_bytes[1] :]):
            if data:
                text = likely_text(data)
                self._unread_texts((text, *texts_in(text)), path="$")

    def _unread_texts(self, texts: Iterable[str], path: str = "response") -> None:
        self.draft.other_texts += [OtherText(path=path, text=text[: limits.MAX_OTHER_TEXT_CHARS]) for text in texts if text.strip()]

    def _record(self, ts_ns: int) -> Exchange:
        draft, head, response_head = self.draft, self._request_head, self._response_head
        api = self._dialect.api if self._dialect is not None else None
        provider = self._guarded(lambda: identify(self._view, self.response_view, draft, self._dialect))
        operation = draft.operation or (self._dialect.operation if self._dialect is not None else None)
        if provider is None:
            api = operation = None
        elif operation is None and self._view is not None:
            view = self._view
            operation = self._guarded(lambda: auxiliary(view, self.response_view))
        for name, count in draft.anomalies.items():
            self.anomaly(name, count)
        is_llm = provider is not None
        completeness = self._completeness()
        first = draft.choices.get(0)
        streaming = self._framing is not None and is_llm
        exchange = Exchange(
            exchange_id=self._id(),
            client=self.client,
            server=self.server,
            started_ns=self._started_ns,
            first_token_ns=draft.first_event_ns if streaming else self._response_body_ns,
            first_text_ns=draft.first_text_ns if streaming else None,
            ended_ns=self._last_ns or ts_ns,
            provider=provider,
            api=api,
            operation=operation,
            method=mask_method(head.method, self.context.fingerprint) if head else None,
            path=mask_target(head.target, self.context.fingerprint) if head else None,
            http_version=(head or response_head).version if head or response_head else None,  # type: ignore[union-attr]
            status=response_head.status if response_head else None,
            streaming=streaming,
            framing=self._framing if streaming else None,
            completeness=completeness,
            process=self.flow.process,
            request=Request(body_bytes=self.request.bytes),
            response=Response(
                body_bytes=max(self.response.bytes, self._frames.fed_bytes if self._frames else 0),
                events=draft.events if streaming else None,
            ),
        )
        if is_llm:
            exchange.request_model = draft.request_model
            exchange.response_model = draft.response_model
            exchange.response_id = draft.response_id
            exchange.input_text = draft.input_text
            if first is not None:
                exchange.output_text = str(first.text) if first.text or first.text.given else None
                exchange.reasoning_text = str(first.reasoning) or None
                exchange.refusal_text = str(first.refusal) or None
            exchange.tool_calls = draft.tool_calls()
            exchange.finish_reasons = draft.finish_reasons()
            exchange.usage = draft.usage
            exchange.error_type = draft.error_type
            exchange.request.messages = draft.messages
            exchange.request.tools = draft.tools
            exchange.request.parameters = draft.parameters
            exchange.response.messages = [choice.message() for _, choice in sorted(draft.choices.items())]
            exchange.response.error_message = draft.error_message
            exchange.response.embeddings = draft.embeddings
            exchange.response.embedding_dimensions = draft.embedding_dimensions
            if draft.unread or self.response.unreadable or self.response.other_bytes:
                self._unread_texts(
                    likely_text(data) for data in (*draft.unread, self.response.raw_prefix, self.response.other_bytes) if data
                )
            if self.request.unreadable or self.request.other_bytes:
                self._late_bytes()
            exchange.other_texts = draft.other_texts
            mask_record(exchange, self.context.fingerprint)
            timings(exchange, draft)
            if streaming and completeness == "complete" and not draft.terminated and not any(exchange.finish_reasons):
                self.anomaly("stream_unterminated")
            for why in (self.request.unreadable, self.response.unreadable):
                if why is not None and why not in self._anomalies:
                    self.anomaly(why)
            unread = self.request.unreadable or self.response.unreadable or not UNREAD.isdisjoint(self._anomalies)
            if completeness == "complete" and unread:
                exchange.completeness = "unreadable"
        if self._view is not None:
            credential = credential_of(self._view)
            exchange.api_key_fingerprint = self.context.fingerprint(credential) if credential else None
        exchange.anomalies = [AnomalyCount(name=name, count=count) for name, count in sorted(self._anomalies.items())]
        return clean_text(exchange) if "json_not_strict" in self._anomalies else exchange

    def _completeness(self) -> Completeness:
        """midstream, gapped, truncated, aborted, complete: the first that holds."""
        if self._request_head is None:
            return "midstream"
        if self.request.gapped or self.response.gapped:
            return "gapped"
        ends = {self.request.ended, self.response.ended}
        if self.draft.terminated and self.response.ended in _ABORTED | {"capture_end", "expired"}:
            ends.discard(self.response.ended)  # the stream's own last event came: nothing of it is missing
        if ends & {"damage"}:
            return "gapped"
        if self._truncated or ends & {"capture_end", "expired", "memory", None}:
            return "truncated"
        return "aborted" if ends & _ABORTED else "complete"

    def _id(self) -> str:
        """48 bits of time, so that ids sort by it, then 80 bits of request and place: the same capture gives the same id.

        Under the key of this installation: who has a record cannot try guesses of its request against its id. Nothing of the
        answer is in it, so it can be told as soon as the request is known.
        """
        self._digest.update(f"{self.client} {self.server} {self._started_ns} {self._ordinal}".encode())
        milliseconds = max(0, (self._started_ns or 0) // 1_000_000) & 0xFFFFFFFFFFFF
        return f"{milliseconds:012x}{self.context.fingerprint('exchange ' + self._digest.hexdigest())[:20]}"

    # --- faults -------------------------------------------------------------------------------------------------------

    def anomaly(self, name: str, count: int = 1) -> None:
        self._anomalies[name] = self._anomalies.get(name, 0) + count

    def unread(self, ts_ns: int, name: str, data: bytes) -> None:
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

    def truncate(self, why: str) -> None:
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


def _joined(head: Head) -> dict[str, str]:
    """Headers by name; repeats joined with a comma (RFC 9110 5.3)."""
    headers: dict[str, str] = {}
    for name, value in head.headers:
        key, text = name.decode("latin-1"), value.decode("latin-1")
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    return headers


def _scalars(body: JSON) -> JSON:
    """What dialects still ask of a request once it is decoded: flags, names and the prompt. Messages are in the draft already."""
    if not isinstance(body, dict):
        return None
    return {key: value for key, value in body.items() if not isinstance(value, dict | list)}
