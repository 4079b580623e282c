"""Logging in and out."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from llmsec_agent.console.access import User
from llmsec_agent.console.handling import Pages, form_of, in_thread, is_from_here, own_form, page_of


def login_page(pages: Pages, request: Request) -> Response:
    token = request.query_params.get("token")
    if token is not None:  # the address that the command prints; it leaves the address bar at once
        user = pages.access.check("", token)
        if user is not None:
            _begin(request, user)
            return RedirectResponse(_own(request.query_params.get("next")), 303)
    return page_of(
        pages,
        request,
        "login.html",
        failed=token is not None,
        next=_own(request.query_params.get("next")),
        has_names=bool(pages.access.passwords),
    )


def _own(target: str | None) -> str:
    """A path of this console, for after the login."""
    return target if target is not None and target.startswith("/") and not target.startswith(("//", "/\\")) else "/"


def _begin(request: Request, user: User) -> None:
    request.session.clear()
    request.session.update(name=user.name, role=user.role, csrf=secrets.token_hex(16))


def login(pages: Pages) -> Callable[[Request], Any]:
    async def answer(request: Request) -> Response:
        form = await form_of(request)
        if form is None or not is_from_here(request):
            return PlainTextResponse("This form did not come from the console.", 403)
        user = await in_thread(pages.access.check, form.get("name", ""), form.get("password", ""))
        if user is None:
            pages.journal.warning("console_login_failed", f"a login failed from {request.client.host if request.client else 'somewhere'}")
            return page_of(
                pages, request, "login.html", status=401, failed=True, next=_own(form.get("next")), has_names=bool(pages.access.passwords)
            )
        _begin(request, user)
        return RedirectResponse(_own(form.get("next")), 303)

    return answer


def logout(_pages: Pages) -> Callable[[Request], Any]:
    async def answer(request: Request) -> Response:
        if await own_form(request) is None:
            return PlainTextResponse("This form did not come from the console.", 403)
        request.session.clear()
        return RedirectResponse("/login", 303)

    return answer
