"""requests: the adapters of a session, each of which sends one request and gives the answer with its body unread."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from llmsec_trace.call import Asked, Call
from llmsec_trace.transports.addresses import host_and_port
from llmsec_trace.transports.hooking import Hook, refused
from llmsec_trace.transports.http_client_bodies import received, sent, whole_body
from llmsec_trace.transports.httpx_transports import trace_of

if TYPE_CHECKING:
    from llmsec_trace.policy import Screening

PACKAGES = ("requests",)


class AdapterHook(Hook):
    name = "send"

    def __call__(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        call, screening = self._begin(request)
        if screening is not None and (blocked := screening.wait()) is not None:
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
        try:
            if whole_body(body) is None:
                call.request_end()
            received(response.raw, call)
        except Exception:  # noqa: BLE001 - never the application's problem
            self.recorder.fault()
            call.closed()
        return response

    def _begin(self, request: Any) -> tuple[Call | None, Screening | None]:
        try:
            url = urlsplit(request.url)
            address = host_and_port(url.hostname or "", url.port or (443 if url.scheme == "https" else 80))
            headers = list(request.headers.items())
            if "host" not in {str(name).lower() for name, _ in headers}:
                headers.append(("Host", url.netloc.rpartition("@")[2]))
            asked = Asked(request.method or "GET", request.path_url, headers, whole_body(request.body), address)
            call = self.recorder.begin(asked, trace_of(headers))
            return call, self.recorder.screen(asked, call)
        except Exception:  # noqa: BLE001 - as above
            self.recorder.fault()
            return None, None


def hooks_of(session: Any) -> list[tuple[type[Hook], Any]]:
    return [(AdapterHook, adapter) for adapter in (vars(session).get("adapters") or {}).values()]
