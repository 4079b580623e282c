"""What the handlers of all pages share: who may ask, what an address asks for, how an answer is made."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

import jinja2
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response

from llmsec_agent.auditing import record
from llmsec_agent.console import figures, templates
from llmsec_agent.console.access import Access, Role, Sessions, name_of, user_of
from llmsec_agent.console.asking import Asking, BusyError
from llmsec_agent.console.attempts import Attempts
from llmsec_agent.console.triage import Triage
from llmsec_analyzer.stored import exchanges as listing
from llmsec_tap.errors import ConfigError, LLMSecError, StorageError
from llmsec_tap.journal import Journal
from llmsec_tap.storage.audit import append
from llmsec_tap.storage.store import Store

PAGE: Final = 50
FORM_S: Final = 10.0
_MAX_FORM: Final = 16 << 10
_MAX_FIELDS: Final = 32
_MINUTE_NS: Final = 60 * 1_000_000_000
_FIELDS: Final = (
    *("model", "provider", "api", "tenant", "status", "completeness", "since", "until", "text", "risk", "rule"),
    *("key", "end_user", "session", "process", "node"),
)


class NotAuditedError(StorageError):
    """Content was asked for, and the audit log cannot be written."""


@dataclass(frozen=True)
class Pages:
    """What handlers share."""

    asking: Asking
    access: Access
    journal: Journal
    templates: jinja2.Environment
    shown: str  # the store, as people call it
    is_secure: bool
    triage: Triage
    log: Store | None  # whose audit log has what was looked at and decided
    sessions: Sessions
    attempts: Attempts


def guarded(pages: Pages, handler: Callable[[Pages, Request], Response], role: Role | None) -> Callable[[Request], Response]:
    def answer(request: Request) -> Response:
        user = user_of(request)
        if role is not None and user is None:
            return RedirectResponse(
                f"/login?{urlencode({'next': request.url.path + ('?' + request.url.query if request.url.query else '')})}", 303
            )
        if role is not None and user is not None and not user.may(role):
            return page_of(
                pages,
                request,
                "fault.html",
                status=403,
                title="Not for your role",
                text=f"This needs the role {role}; you are {user.role}.",
            )
        try:
            return handler(pages, request)
        except BusyError as fault:
            return page_of(pages, request, "fault.html", status=503, title="Too much at once", text=_sentence(fault))
        except NotAuditedError as fault:
            return page_of(pages, request, "fault.html", status=503, title="Not without an entry in the audit log", text=_sentence(fault))
        except ConfigError as fault:
            return page_of(pages, request, "fault.html", status=400, title="That cannot be asked", text=_sentence(fault))
        except LLMSecError as fault:
            pages.journal.warning("console_fault", f"{request.url.path}: {fault}")
            return page_of(pages, request, "fault.html", status=503, title="The store does not answer", text=_sentence(fault))

    return answer


def _sentence(fault: LLMSecError) -> str:
    return f"{fault}; {fault.hint}." if fault.hint else f"{fault}."


def page_of(pages: Pages, request: Request, name: str, *, status: int = 200, **values: Any) -> HTMLResponse:
    user = user_of(request)
    session = request.scope.get("session", {})
    text = pages.templates.get_template(name).render(
        user=user,
        path=request.url.path,
        shown=pages.shown,
        csrf=session.get("csrf", ""),
        may_read=user is not None and user.may("analyst"),
        is_audited=pages.log is not None,
        **values,
    )
    return HTMLResponse(text, status)


async def form_of(request: Request) -> dict[str, str] | None:
    """The fields; None where they are too many, too long, or do not come."""
    body = b""
    try:
        async with asyncio.timeout(FORM_S):
            async for piece in request.stream():
                body += piece
                if len(body) > _MAX_FORM:
                    return None
        return dict(parse_qsl(body.decode(errors="replace"), max_num_fields=_MAX_FIELDS))
    except (TimeoutError, ClientDisconnect, ValueError):
        return None


def is_from_here(request: Request, access: Access) -> bool:
    """Browsers say where a form was sent from: by Sec-Fetch-Site, which a proxy that changes Host leaves right, or by Origin. Other programs say nothing."""
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is not None:
        return site == "same-origin"
    if origin is None:
        return True
    host = origin.split("://", 1)[-1]
    return host == request.headers.get("host") or (access.public is not None and name_of(host) == access.public)


async def own_form(request: Request, access: Access) -> dict[str, str] | None:
    """The fields of a form of this session's; None for another. Somebody logged in by a proxy's header has no session: there the browser speaks for the page."""
    form = await form_of(request)
    if form is None or not is_from_here(request, access):
        return None
    expected = request.session.get("csrf")
    if expected is None:
        return form if "origin" in request.headers or "sec-fetch-site" in request.headers else None
    return form if secrets.compare_digest(form.get("csrf", "").encode(), expected.encode()) else None


def posted(pages: Pages, handler: Callable[[Pages, Request, dict[str, str]], Response], role: Role) -> Callable[[Request], Any]:
    """What changes something: for whom may do it, from a form of this console's own."""

    async def answer(request: Request) -> Response:
        form = await own_form(request, pages.access)
        if form is None:
            return PlainTextResponse("This form did not come from the console.", 403)
        answered: Response = await in_thread(guarded(pages, lambda pages, request: handler(pages, request, form), role), request)
        return answered

    return answer


async def in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    from starlette.concurrency import run_in_threadpool

    return await run_in_threadpool(function, *arguments)


def span_of(request: Request) -> tuple[str, figures.Span]:
    """`since` as a page's address has it."""
    name = request.query_params.get("since", "")
    if name not in templates.SPANS:
        name = "24h"
    # A whole minute: who looks again within it asks the same.
    since = None if name == "all" else listing.parse_time(name, "since") // _MINUTE_NS * _MINUTE_NS
    return name, figures.Span(since_ns=since)


def filter_of(query: Mapping[str, str], limit: int = PAGE) -> listing.Filter:
    """Of an address. Raises ConfigError."""
    given = {name: value.strip() for name in _FIELDS if (value := query.get(name, "")).strip()}
    numbers: dict[str, int] = {}
    for name in ("status", "risk"):
        if name in given:
            text = given.pop(name)
            if not text.isdecimal() or len(text) > 9:
                raise ConfigError(f"{name} is a number, not {text!r}", "leave it empty for any")
            numbers[name] = int(text)
    since, until = given.pop("since", None), given.pop("until", None)
    before = None
    if "before" in query:
        started, _, exchange_id = query["before"].partition("-")
        if not started.isdecimal() or len(started) > 20:
            raise ConfigError("the address of this page is damaged", "begin with the first page")
        before = listing.Position(int(started), exchange_id)
    return listing.Filter(
        model=given.get("model"),
        provider=given.get("provider"),
        api=given.get("api"),
        tenant=given.get("tenant"),
        completeness=given.get("completeness"),
        text=given.get("text"),
        rule=given.get("rule"),
        key=given.get("key"),
        end_user=given.get("end_user"),
        session=given.get("session"),
        process=given.get("process"),
        node=given.get("node"),
        status=numbers.get("status"),
        risk=numbers.get("risk"),
        has_error=query.get("has_error") == "1",
        since_ns=listing.parse_time(since, "since") if since and since != "all" else None,
        until_ns=listing.parse_time(until, "until") if until else None,
        before=before,
        limit=limit,
    )


def audit(pages: Pages, request: Request, event: str, **facts: Any) -> None:
    """Raises NotAuditedError: what cannot be written there is not shown. Of a database without a folder for it, its server's own log has who asked."""
    user = user_of(request)
    if pages.log is None:
        return
    try:
        append(pages.log, [(event, {"command": "serve", "user": user.name if user else None, **facts})])
    except StorageError as fault:
        pages.journal.warning("not_audited", f"not in the audit log: {fault}")
        raise NotAuditedError(
            f"{fault}", "without an entry in the audit log nothing is shown; serve --audit FOLDER keeps it elsewhere"
        ) from None


def audit_login(pages: Pages, name: str, address: str, state: str) -> None:
    """Without a place to write to, people still log in: figures are no content."""
    if pages.log is not None:
        record(pages.log, pages.journal, "login", command="serve", user=name or "token", address=address, state=state)


def asked_of(query: Mapping[str, str]) -> list[str]:
    """Names of the fields that were asked by, for the audit log; never what an address has besides, which might be long."""
    return [name for name in (*_FIELDS, "has_error", "before") if query.get(name)]
