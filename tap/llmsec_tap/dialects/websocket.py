"""A WebSocket of a known provider whose protocol nobody here knows: one record for the connection, its texts kept as other texts."""

from __future__ import annotations

from typing import ClassVar

from llmsec_tap.dialects import claims
from llmsec_tap.dialects.base import EventHandler, NotJSON, RequestView, ResponseView, parse_json
from llmsec_tap.dialects.dialect import BaseDialect
from llmsec_tap.dialects.draft import Draft
from llmsec_tap.limits import MAX_OTHER_TEXT_CHARS, MAX_OTHER_TEXTS
from llmsec_tap.model import OtherText
from llmsec_tap.providers.hosts import provider_of_host


class UnknownWebSocket(BaseDialect):
    api: ClassVar[str] = "websocket.unknown"
    operation: ClassVar[str] = "other"
    default_provider: ClassVar[str] = "websocket"

    def claims(self, request: RequestView) -> int:
        """At a known host no other call has this shape: a list, which exchange/sessions.py makes."""
        is_known = request.is_websocket and isinstance(request.body, list) and provider_of_host(request.host, request.path) is not None
        return claims.GENERIC_ROUTE if is_known else 0

    def stream(self, request: RequestView | None, response: ResponseView, draft: Draft) -> EventHandler:
        overlooked = draft.overlooked
        chars = 0

        def on_event(_ts_ns: int, name: str | None, data: bytes) -> None:
            nonlocal chars
            try:
                value = parse_json(data, draft)
            except NotJSON:
                value = None
            if isinstance(value, dict):
                if overlooked is not None:
                    overlooked.event(name, value, len(data), 0)
                return
            text = data.decode("utf-8", "replace")
            chars += len(text)
            if "\ufffd" in text:
                return  # audio, or another coding of its own
            if chars > MAX_OTHER_TEXT_CHARS or len(draft.other_texts) >= MAX_OTHER_TEXTS:
                draft.anomaly("other_text_limit")
            elif text.strip():
                draft.other_texts.append(OtherText(path="response", text=text))

        return on_event
