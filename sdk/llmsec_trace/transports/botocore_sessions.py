"""botocore (Bedrock): the HTTP session of a client's endpoint."""

from __future__ import annotations

from inspect import iscoroutinefunction
from typing import Any

from llmsec_trace.transports.hooking import Hook, refused, verdict
from llmsec_trace.transports.http_client_bodies import answered, begun, sent

PACKAGES = ("botocore",)


class SessionHook(Hook):
    """botocore reads an answer that is no stream before it returns it, inside `send`: so the request says that it is one, and it is read here."""

    name = "send"

    def __call__(self, request: Any) -> Any:
        call, screening = begun(self, request)
        if (blocked := verdict(screening, call)) is not None:
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
        answered(self, call, body, response)
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


def hooks_of(client: Any) -> list[tuple[type[Hook], Any]]:
    session = client._endpoint.http_session  # noqa: SLF001 - botocore gives no other way to it
    # aiobotocore's clients are botocore's, but send through sessions of aiohttp that they make later.
    return [] if iscoroutinefunction(session.send) else [(SessionHook, session)]
