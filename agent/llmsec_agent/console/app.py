"""The console's application. Handlers are plain functions: Starlette runs them on threads, where a question to the store may wait."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from llmsec_agent.console import charts, figures, live, templates
from llmsec_agent.console.access import SESSION_S, Access, Guard, Role, Sessions, user_of
from llmsec_agent.console.asking import Asking
from llmsec_agent.console.attempts import Attempts
from llmsec_agent.console.connections import LiveResponse, Watching
from llmsec_agent.console.exchange_pages import decide, exchange_page, exchanges, export, record
from llmsec_agent.console.handling import Pages, guarded, page_of, posted, span_of
from llmsec_agent.console.login import login, login_page, logout
from llmsec_agent.console.table_pages import alerts, deviations, findings, taps, tenants, workloads
from llmsec_agent.console.triage import Triage
from llmsec_analyzer.stored.stores import Session
from llmsec_tap.errors import ConfigError
from llmsec_tap.journal import Journal
from llmsec_tap.storage import Store, open_store
from llmsec_tap.storage.clickhouse.address import is_clickhouse

_HERE: Final = Path(__file__).parent
_NO_TRIAGE: Final = Triage()


def console(
    location: str,
    shown: str,
    access: Access,
    journal: Journal,
    *,
    is_secure: bool,
    triage: Triage = _NO_TRIAGE,
    log: Store | None = None,
    cookie: str = "llmsec",
) -> Starlette:
    """The application over one store. `is_secure`: it is served over TLS. `log`: whose audit log is kept, for a database; a folder keeps its own by default."""
    if log is None and not is_clickhouse(location):
        log = open_store(location, journal)
    sessions = Sessions()
    pages = Pages(Asking(location, journal), access, journal, templates.made(), shown, is_secure, triage, log, sessions, Attempts())

    def route(
        path: str, handler: Callable[[Pages, Request], Response], *, role: Role | None = "viewer", methods: tuple[str, ...] = ("GET",)
    ) -> Route:
        return Route(path, guarded(pages, handler, role), methods=list(methods))

    app = Starlette(
        routes=[
            Route("/login", login_page(pages)),
            Route("/login", login(pages), methods=["POST"]),
            Route("/logout", logout(pages), methods=["POST"]),
            route("/", _overview),
            route("/charts/{name}.svg", _chart),
            route("/exchanges", exchanges),
            route("/exchanges.{kind:str}", export),
            route("/exchanges/{exchange_id}", exchange_page),
            route("/exchanges/{exchange_id}/record.json", record, role="analyst"),
            Route("/exchanges/{exchange_id}/findings/{finding_id}", posted(pages, decide, "analyst"), methods=["POST"]),
            route("/findings", findings),
            route("/alerts", alerts),
            route("/deviations", deviations),
            route("/tenants", tenants),
            route("/workloads", workloads),
            route("/taps", taps),
            route("/live", _live),
            route("/live/events", _live_events),
            Mount("/static", StaticFiles(directory=_HERE / "static")),
        ],
        middleware=[
            Middleware(
                SessionMiddleware,
                secret_key=secrets.token_hex(32),
                session_cookie=cookie,
                max_age=SESSION_S,
                same_site="strict",
                https_only=is_secure,
            ),
            Middleware(Guard, access=access, sessions=sessions),
            Middleware(GZipMiddleware, minimum_size=1024),
        ],
        exception_handlers={404: _not_found(pages)},
    )
    app.state.pages = pages
    app.state.watching = Watching()
    app.state.is_ending = False
    return app


def _not_found(pages: Pages) -> Callable[[Request, Exception], Response]:
    def answer(request: Request, _fault: Exception) -> Response:
        return page_of(
            pages,
            request,
            "fault.html",
            status=404,
            title="There is no such page",
            text="The address is wrong, or what it named was deleted.",
        )

    return answer


def _overview(pages: Pages, request: Request) -> Response:
    name, span = span_of(request)

    of_ns, totals, width, columns = pages.asking.known(("columns", span), lambda session: _over_time(session, span))

    def question(session: Session) -> dict[str, Any]:
        return {
            "models": figures.top(session, span, "model"),
            "tenants": figures.top(session, span, "tenant"),
            "workloads": figures.top(session, span, "process.comm"),
            "rules": figures.rules(session, span, 8),
            "losses": figures.losses(session, span),
            "lost": figures.lost_by_taps(session, span),
            "damaged": figures.damaged(session),
        }

    if "since" not in request.query_params and not totals.exchanges:
        return RedirectResponse("/?since=all", 303)
    return page_of(
        pages,
        request,
        "overview.html",
        since=name,
        charts=charts.NAMES,
        of_ns=of_ns,
        totals=totals,
        columns=columns,
        labels=[charts.moment(column.begin_ns, width) for column in columns],
        **pages.asking.known(("overview", span), question),
    )


def _over_time(session: Session, span: figures.Span) -> tuple[int, figures.Totals, int, list[figures.Column]]:
    of_ns = time.time_ns()
    totals = figures.totals(session, span)
    return of_ns, totals, *figures.columns(session, span, totals)


def _chart(pages: Pages, request: Request) -> Response:
    name = request.path_params["name"]
    if name not in charts.NAMES:
        raise ConfigError("there is no such chart", "the overview has them all")
    _, span = span_of(request)

    _, _, width, columns = pages.asking.known(("columns", span), lambda session: _over_time(session, span))
    theme: charts.Theme = "dark" if request.query_params.get("theme") == "dark" else "light"
    # A picture has no page around it whose style could be changed; its own must be allowed.
    headers = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'", "cache-control": "private, max-age=10"}
    return Response(charts.draw(name, columns, width, theme), media_type="image/svg+xml", headers=headers)


def _live(pages: Pages, request: Request) -> Response:
    return page_of(pages, request, "live.html")


def _live_events(pages: Pages, request: Request) -> Response:
    user, state = user_of(request), request.app.state
    assert user is not None
    start_ns = live.start_of(request.query_params.get("since", ""))
    events = live.events(pages.asking, start_ns, is_ending=lambda: state.is_ending)
    return LiveResponse(state.watching, user.name, events, media_type="text/event-stream")
