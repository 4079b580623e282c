"""botocore (Bedrock): the HTTP session of a client's endpoint."""

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

PACKAGES = ("botocore",)


class SessionHook(Hook):
    """botocore reads an answer that is no stream before it returns it, inside `send`: so the request says that it is one, and it is read here."""

    name = "send"

    def __call__(self, request: Any) -> Any:
        call, screening = self._begin(request)
        if screening is not None and (blocked := screening.wait()) is not None:
            raise refused(call, blocked, ())
        if call is None:
            return self.original(request)
        body, is_stream = request.body, request.stream_output
        if call.asked is not None and call.asked.body is None:
            request.body = sent(body, call)
        request.stream_output = True
        try:
            response = self.original(request)
        except BaseException as fault:
            call.failed(fault)
            raise
        finally:
            request.body, request.stream_output = body, is_stream
        try:
            if whole_body(body) is None:
                call.request_end()
            received(response.raw, call)
        except Exception:  # noqa: BLE001 - never the application's problem
            self.recorder.fault()
            call.closed()
        if not is_stream:
            self._read(request, response)
        return response

    @staticmethod
    def _read(request: Any, response: Any) -> None:
        """As botocore does in its own `send`, with the exceptions that it raises there."""
        from botocore import exceptions  # noqa: PLC0415 - it is there: the session is its
        from urllib3.exceptions import ProtocolError, ReadTimeoutError, SSLError  # noqa: PLC0415

        url = request.url
        try:
            response.content  # noqa: B018 - it reads the body
        except SSLError as fault:
            raise exceptions.SSLError(endpoint_url=url, error=fault)  # noqa: B904 - as there
        except ReadTimeoutError as fault:
            raise exceptions.ReadTimeoutError(endpoint_url=url, error=fault)  # noqa: B904
        except ProtocolError as fault:
            raise exceptions.ConnectionClosedError(error=fault, request=request, endpoint_url=url)  # noqa: B904
        except Exception as fault:  # noqa: BLE001
            raise exceptions.HTTPClientError(error=fault)  # noqa: B904

    def _begin(self, request: Any) -> tuple[Call | None, Screening | None]:
        try:
            url = urlsplit(request.url)
            address = host_and_port(url.hostname or "", url.port or (443 if url.scheme == "https" else 80))
            headers = list(request.headers.items())
            if "host" not in {str(name).lower() for name, _ in headers}:
                headers.append(("Host", url.netloc.rpartition("@")[2]))
            target = (url.path or "/") + (f"?{url.query}" if url.query else "")
            asked = Asked(request.method, target, headers, whole_body(request.body), address)
            call = self.recorder.begin(asked, trace_of(headers))
            return call, self.recorder.screen(asked, call)
        except Exception:  # noqa: BLE001 - as above
            self.recorder.fault()
            return None, None


def hooks_of(client: Any) -> list[tuple[type[Hook], Any]]:
    return [(SessionHook, client._endpoint.http_session)]  # noqa: SLF001 - botocore gives no other way to it
