"""Logging in and out."""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Callable
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from llmsec_agent.console import attempts
from llmsec_agent.console.handling import Pages, audit_login, form_of, in_thread, is_from_here, own_form, page_of

_WRONG: Final = "That name and password, or that token, are not known."


def login_page(pages: Pages) -> Callable[[Request], Any]:
    async def answer(request: Request) -> Response:
        token, target = request.query_params.get("token"), request.query_params.get("next")
        if token is None:
            return _page(pages, request, target)
        # The address that the command prints; it leaves the address bar at once.
        return await _tried(pages, request, "", token, target)

    return answer


def login(pages: Pages) -> Callable[[Request], Any]:
    async def answer(request: Request) -> Response:
        form = await form_of(request)
        if form is None or not is_from_here(request, pages.access):
            return PlainTextResponse("This form did not come from the console.", 403)
        return await _tried(pages, request, form.get("name", ""), form.get("password", ""), form.get("next"))

    return answer


async def _tried(pages: Pages, request: Request, name: str, password: str, target: str | None) -> Response:
    address = attempts.address_of(request.client.host if request.client else None)
    called = name[:128]  # what is kept of it
    with pages.attempts.of(address) as has_place:
        wait_s = math.ceil(pages.attempts.wait_s(address, called)) or (0 if has_place else 1)
        if wait_s:
            text = f"Too many wrong logins came from your address; try again in {wait_s} s."
            return _page(pages, request, target, status=429, fault=text)
        async with pages.attempts.places:
            user = await in_thread(pages.access.check, name, password)
            if user is None:
                pages.attempts.failed(address, called)
                pages.journal.warning(
                    "console_login_failed", f"a login failed from {address}: " + (f"as {called}" if called else "with a token")
                )
                await in_thread(audit_login, pages, called, address, "login failed")
                await asyncio.sleep(attempts.HELD_S)
                return _page(pages, request, target, status=401, fault=_WRONG)
        pages.attempts.passed(address, called)
    await in_thread(audit_login, pages, user.name, address, "logged in")
    pages.sessions.end(request.session.get("id"))
    request.session.clear()
    request.session.update(id=pages.sessions.begin(user), csrf=secrets.token_hex(16))
    return RedirectResponse(_own(target), 303)


def _page(pages: Pages, request: Request, target: str | None, *, status: int = 200, fault: str = "") -> Response:
    return page_of(pages, request, "login.html", status=status, fault=fault, next=_own(target), has_names=bool(pages.access.passwords))


def _own(target: str | None) -> str:
    """A path of this console, for after the login."""
    return target if target is not None and target.startswith("/") and not target.startswith(("//", "/\\")) else "/"


def logout(pages: Pages) -> Callable[[Request], Any]:
    async def answer(request: Request) -> Response:
        if await own_form(request, pages.access) is None:
            return PlainTextResponse("This form did not come from the console.", 403)
        pages.sessions.end(request.session.get("id"))
        request.session.clear()
        return RedirectResponse("/login", 303)

    return answer
