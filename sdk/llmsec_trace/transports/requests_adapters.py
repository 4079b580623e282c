"""requests: the adapters of a session, each of which sends one request and gives the answer with its body unread."""

from __future__ import annotations

from typing import Any

from llmsec_trace.transports.hooking import Hook, refused, verdict
from llmsec_trace.transports.http_client_bodies import answered, begun, sent

PACKAGES = ("requests",)


class AdapterHook(Hook):
    name = "send"

    def __call__(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        call, screening = begun(self, request)
        if (blocked := verdict(screening, call)) is not None:
            raise refused(call, blocked, ())
        if call is None:
            return self.original(request, *args, **kwargs)
        body = request.body
        if call.asked is not None and call.asked.body is None:
            request.body = sent(body, call)
        try:
            response = self.original(request, *args, **kwargs)
        except BaseException as fault:
            call.failed(fault)
            raise
        finally:
            request.body = body
        answered(self, call, body, response)
        return response


def hooks_of(session: Any) -> list[tuple[type[Hook], Any]]:
    return [(AdapterHook, adapter) for adapter in (vars(session).get("adapters") or {}).values()]
