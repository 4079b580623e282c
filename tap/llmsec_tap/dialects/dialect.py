"""The base of every dialect: safe defaults, so that a dialect's own file holds only what is particular to its wire format."""

from __future__ import annotations

from typing import ClassVar

from llmsec_tap.dialects.base import JSON, EventHandler, RequestView, ResponseView
from llmsec_tap.dialects.draft import Draft
from llmsec_tap.dialects.failures import read_failure, read_stated_failure
from llmsec_tap.dialects.json_events import json_events
from llmsec_tap.model import Framing


class BaseDialect:
    """Implements `Dialect`. Each subclass sets `api`, `operation` and `default_provider` itself, and overrides what it knows better."""

    api: ClassVar[str]
    operation: ClassVar[str]
    default_provider: ClassVar[str]

    def claims(self, request: RequestView) -> int:
        return 0

    def recognises(self, response: ResponseView, body: JSON) -> int:
        return 0

    def decode_request(self, request: RequestView, draft: Draft) -> None:
        """Nothing is known of the request."""

    def decode_response(self, request: RequestView | None, response: ResponseView, body: JSON, ts_ns: int, draft: Draft) -> None:
        """Failures are read here, an answer by `answer`."""
        if response.status >= 400:
            read_failure(response, body, draft)
        elif body is not None:
            self.answer(request, response, body, ts_ns, draft)
            read_stated_failure(body, draft)

    def answer(self, request: RequestView | None, response: ResponseView, body: JSON, ts_ns: int, draft: Draft) -> None:
        """A whole answer with a status below 400 and a body that is JSON."""

    def stream(self, request: RequestView | None, response: ResponseView, draft: Draft) -> EventHandler:
        """Events that are JSON objects go to `event`; whatever else comes is noted and skipped."""

        def on_object(ts_ns: int, name: str | None, value: dict[str, JSON]) -> None:
            self.event(request, response, name, value, ts_ns, draft)

        return json_events(draft, on_object)

    def event(
        self, request: RequestView | None, response: ResponseView, name: str | None, value: dict[str, JSON], ts_ns: int, draft: Draft
    ) -> None:
        """One event of a stream. By default each is read as a whole answer, whose texts are then increments."""
        self.answer(request, response, value, ts_ns, draft)

    def framing(self, request: RequestView, response: ResponseView) -> Framing | None:
        """The content type decides, unless a stream was asked for and the type says neither JSON nor a stream."""
        if request.get("stream") is True and response.status < 400 and response.content_type in ("", "text/plain"):
            return "sse"
        return None
