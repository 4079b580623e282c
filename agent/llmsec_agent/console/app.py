"""The console's pages. Handlers are plain functions: Starlette runs them on threads, where a question to the store may wait."""

from __future__ import annotations

import csv
import dataclasses
import io
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

import jinja2
import msgspec
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from llmsec_agent.auditing import record_reading
from llmsec_agent.console import charts, figures, live, templates
from llmsec_agent.console.access import SESSION_S, Access, Guard, Role, User, user_of
from llmsec_agent.console.asking import Asking, BusyError
from llmsec_agent.console.reading import passages
from llmsec_analyzer.risk import SEVERITIES
from llmsec_analyzer.stored import exchanges as listing
from llmsec_analyzer.stored.alerts import AlertFilter, stored_alerts
from llmsec_analyzer.stored.deviations import DeviationFilter, stored_deviations
from llmsec_analyzer.stored.findings import FindingFilter, stored_findings
from llmsec_analyzer.stored.stores import Session
from llmsec_tap.errors import ConfigError, LLMSecError
from llmsec_tap.journal import Journal
from llmsec_tap.model import Exchange, to_json

_HERE: Final = Path(__file__).parent
_PAGE: Final = 50
_MAX_EXPORT: Final = 100_000
_MAX_FORM: Final = 16 << 10
_MINUTE_NS: Final = 60 * 1_000_000_000
_LONGEST: Final = 200  # rows of a table without pages
Columns = tuple[tuple[str, str], ...]
_FIELDS: Final = ("model", "provider", "api", "tenant", "status", "completeness", "since", "until", "text", "risk", "rule")
# What is no content, and so may be asked for and exported by a viewer.
_COLUMNS: Final = (
    "exchange_id",
    "started",
    "ms",
    "provider",
    "model",
    "status",
    "in",
    "out",
    "note",
    "tenant",
    "risk_score",
    "findings",
    "cost_usd",
    "server",
)


@dataclass(frozen=True)
class Pages:
    """What handlers share."""

    asking: Asking
    access: Access
    journal: Journal
    templates: jinja2.Environment
    shown: str  # the store, as people call it
    is_secure: bool


def console(location: str, shown: str, access: Access, journal: Journal, *, is_secure: bool) -> Starlette:
    """The application over one store. `is_secure`: it is served over TLS."""
    pages = Pages(Asking(location, journal), access, journal, templates.made(), shown, is_secure)

    def route(
        path: str, handler: Callable[[Pages, Request], Response], *, role: Role | None = "viewer", methods: tuple[str, ...] = ("GET",)
    ) -> Route:
        return Route(path, _guarded(pages, handler, role), methods=list(methods))

    app = Starlette(
        routes=[
            route("/login", _login_page, role=None),
            Route("/login", _login(pages), methods=["POST"]),
            Route("/logout", _logout(pages), methods=["POST"]),
            route("/", _overview),
            route("/charts/{name}.svg", _chart),
            route("/exchanges", _exchanges),
            route("/exchanges.{kind:str}", _export),
            route("/exchanges/{exchange_id}", _exchange),
            route("/exchanges/{exchange_id}/record.json", _record, role="analyst"),
            route("/findings", _findings),
            route("/alerts", _alerts),
            route("/deviations", _deviations),
            route("/tenants", _tenants),
            route("/workloads", _workloads),
            route("/taps", _taps),
            route("/live", _live),
            route("/live/events", _live_events),
            Mount("/static", StaticFiles(directory=_HERE / "static")),
        ],
        middleware=[
            Middleware(
                SessionMiddleware,
                secret_key=secrets.token_hex(32),
                session_cookie="llmsec",
                max_age=SESSION_S,
                same_site="strict",
                https_only=is_secure,
            ),
            Middleware(Guard, access=access),
            Middleware(GZipMiddleware, minimum_size=1024),
        ],
        exception_handlers={404: _not_found(pages)},
    )
    app.state.pages = pages
    return app


# --- who asks ---------------------------------------------------------------------------------------------------------------


def _guarded(pages: Pages, handler: Callable[[Pages, Request], Response], role: Role | None) -> Callable[[Request], Response]:
    def answer(request: Request) -> Response:
        user = user_of(request)
        if role is not None and user is None:
            return RedirectResponse(
                f"/login?{urlencode({'next': request.url.path + ('?' + request.url.query if request.url.query else '')})}", 303
            )
        if role is not None and user is not None and not user.may(role):
            return _page(
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
            return _page(pages, request, "fault.html", status=503, title="Too much at once", text=f"{fault}; {fault.hint}.")
        except ConfigError as fault:
            return _page(pages, request, "fault.html", status=400, title="That cannot be asked", text=f"{fault}; {fault.hint}.")
        except LLMSecError as fault:
            pages.journal.warning("console_fault", f"{request.url.path}: {fault}")
            return _page(pages, request, "fault.html", status=503, title="The store does not answer", text=f"{fault}; {fault.hint}.")

    return answer


def _page(pages: Pages, request: Request, name: str, *, status: int = 200, **values: Any) -> HTMLResponse:
    user = user_of(request)
    session = request.scope.get("session", {})
    text = pages.templates.get_template(name).render(
        user=user,
        path=request.url.path,
        shown=pages.shown,
        csrf=session.get("csrf", ""),
        may_read=user is not None and user.may("analyst"),
        **values,
    )
    return HTMLResponse(text, status)


def _not_found(pages: Pages) -> Callable[[Request, Exception], Response]:
    def answer(request: Request, _fault: Exception) -> Response:
        return _page(
            pages,
            request,
            "fault.html",
            status=404,
            title="There is no such page",
            text="The address is wrong, or what it named was deleted.",
        )

    return answer


def _login_page(pages: Pages, request: Request) -> Response:
    token = request.query_params.get("token")
    if token is not None:  # the address that the command prints; it leaves the address bar at once
        user = pages.access.check("", token)
        if user is not None:
            _begin(request, user)
            return RedirectResponse(_own(request.query_params.get("next")), 303)
    return _page(
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


async def _form(request: Request) -> dict[str, str] | None:
    """The fields; None where there are too many bytes of them."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > _MAX_FORM:
            return None
    return dict(parse_qsl(body.decode(errors="replace"), max_num_fields=32))


def _is_from_here(request: Request) -> bool:
    """Browsers say where a form was sent from."""
    origin = request.headers.get("origin")
    return origin is None or origin.split("://", 1)[-1] == request.headers.get("host")


def _login(pages: Pages) -> Callable[[Request], Any]:
    async def answer(request: Request) -> Response:
        form = await _form(request)
        if form is None or not _is_from_here(request):
            return PlainTextResponse("This form did not come from the console.", 403)
        user = await _in_thread(pages.access.check, form.get("name", ""), form.get("password", ""))
        if user is None:
            pages.journal.warning("console_login_failed", f"a login failed from {request.client.host if request.client else 'somewhere'}")
            return _page(
                pages, request, "login.html", status=401, failed=True, next=_own(form.get("next")), has_names=bool(pages.access.passwords)
            )
        _begin(request, user)
        return RedirectResponse(_own(form.get("next")), 303)

    return answer


def _logout(_pages: Pages) -> Callable[[Request], Any]:
    async def answer(request: Request) -> Response:
        form = await _form(request)
        if form is None or not secrets.compare_digest(form.get("csrf", ""), request.session.get("csrf", "-")) or not _is_from_here(request):
            return PlainTextResponse("This form did not come from the console.", 403)
        request.session.clear()
        return RedirectResponse("/login", 303)

    return answer


async def _in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    from starlette.concurrency import run_in_threadpool

    return await run_in_threadpool(function, *arguments)


# --- what is asked ----------------------------------------------------------------------------------------------------------


def _span(request: Request) -> tuple[str, figures.Span]:
    """`since` as a page's address has it."""
    name = request.query_params.get("since", "")
    if name not in templates.SPANS:
        name = "24h"
    # A whole minute: who looks again within it asks the same.
    since = None if name == "all" else listing.parse_time(name, "since") // _MINUTE_NS * _MINUTE_NS
    return name, figures.Span(since_ns=since)


def _filter(query: Mapping[str, str], limit: int = _PAGE) -> listing.Filter:
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
        status=numbers.get("status"),
        risk=numbers.get("risk"),
        has_error=query.get("has_error") == "1",
        since_ns=listing.parse_time(since, "since") if since and since != "all" else None,
        until_ns=listing.parse_time(until, "until") if until else None,
        before=before,
        limit=limit,
    )


def _audit(pages: Pages, request: Request, session: Session, event: str, **facts: Any) -> None:
    user = user_of(request)
    record_reading(session, pages.journal, event, command="serve", user=user.name if user else None, **facts)


# --- pages ------------------------------------------------------------------------------------------------------------------


def _overview(pages: Pages, request: Request) -> Response:
    name, span = _span(request)

    totals, width, columns = pages.asking.known(("columns", span), lambda session: _over_time(session, span))

    def question(session: Session) -> dict[str, Any]:
        return {
            "models": figures.top(session, span, "model"),
            "tenants": figures.top(session, span, "tenant"),
            "workloads": figures.top(session, span, "process.comm"),
            "rules": figures.rules(session, span, 8),
            "losses": figures.losses(session, span),
        }

    if "since" not in request.query_params and not totals.exchanges:
        return RedirectResponse("/?since=all", 303)
    return _page(
        pages,
        request,
        "overview.html",
        since=name,
        charts=charts.NAMES,
        now=time.time_ns(),
        totals=totals,
        columns=columns,
        labels=[charts.moment(column.begin_ns, width) for column in columns],
        **pages.asking.known(("overview", span), question),
    )


def _over_time(session: Session, span: figures.Span) -> tuple[figures.Totals, int, list[figures.Column]]:
    totals = figures.totals(session, span)
    return totals, *figures.columns(session, span, totals)


def _chart(pages: Pages, request: Request) -> Response:
    name = request.path_params["name"]
    if name not in charts.NAMES:
        raise ConfigError("there is no such chart", "the overview has them all")
    _, span = _span(request)

    _, width, columns = pages.asking.known(("columns", span), lambda session: _over_time(session, span))
    theme: charts.Theme = "dark" if request.query_params.get("theme") == "dark" else "light"
    # A picture has no page around it whose style could be changed; its own must be allowed.
    headers = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'", "cache-control": "private, max-age=10"}
    return Response(charts.draw(name, columns, width, theme), media_type="image/svg+xml", headers=headers)


def _exchanges(pages: Pages, request: Request) -> Response:
    query = {name: value for name, value in request.query_params.items() if value}
    wanted = _filter(query)
    user = user_of(request)
    may_read = user is not None and user.may("analyst")
    if wanted.text is not None and not may_read:
        raise ConfigError("content is searched by analysts", "ask for the role analyst, or leave out the text")

    def question(session: Session) -> list[dict[str, Any]]:
        if may_read:
            _audit(pages, request, session, "query", page="exchanges", filter=sorted(query))
        return listing.page(session, dataclasses.replace(wanted, limit=_PAGE + 1))

    rows = pages.asking.ask(question)
    if not may_read:
        rows = [{**row, "input": ""} for row in rows]
    more = rows[_PAGE - 1] if len(rows) > _PAGE else None
    query.pop("before", None)
    older = urlencode({**query, "before": f"{more['started_ns']}-{more['exchange_id']}"}) if more else None
    return _page(
        pages,
        request,
        "exchanges.html",
        rows=rows[:_PAGE],
        query=query,
        older=older,
        address=urlencode(query),
        is_first=wanted.before is None,
    )


def _export(pages: Pages, request: Request) -> Response:
    """What is filtered, at most so many. A viewer gets what a list shows, without content; whole records are for analysts."""
    kind = request.path_params["kind"]
    user = user_of(request)
    assert user is not None
    wanted = dataclasses.replace(_filter(request.query_params, _MAX_EXPORT), before=None)
    if kind not in ("jsonl", "csv", "parquet"):
        raise ConfigError(f"exports are jsonl, csv or parquet, not {kind}", "choose one on the list's page")
    if (kind == "jsonl" or wanted.text is not None) and not user.may("analyst"):
        raise ConfigError("whole records hold content, which your role does not see", "csv and parquet hold none")
    name = {"content-disposition": f'attachment; filename="exchanges.{kind}"'}
    if kind == "jsonl":
        return StreamingResponse(_records(pages, request, wanted), media_type="application/jsonl", headers=name)

    def question(session: Session) -> list[dict[str, Any]]:
        _audit(pages, request, session, "export", page=f"exchanges.{kind}", filter=sorted(request.query_params))
        return [{column: row[column] for column in _COLUMNS} for row in listing.page(session, wanted)]

    rows = pages.asking.ask(question)
    if kind == "parquet":
        import polars as pl

        made = io.BytesIO()
        pl.DataFrame(rows, infer_schema_length=None).write_parquet(made)
        return Response(made.getvalue(), media_type="application/vnd.apache.parquet", headers=name)
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS)
    writer.writeheader()
    # A spreadsheet takes a cell that begins so for a formula.
    writer.writerows(
        {key: f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t") else value for key, value in row.items()}
        for row in rows
    )
    return Response(text.getvalue(), media_type="text/csv; charset=utf-8", headers=name)


def _records(pages: Pages, request: Request, wanted: listing.Filter) -> Iterator[bytes]:
    """Page by page, so that no question of an export is long."""
    left = wanted.limit
    audited = False
    while left > 0:
        page = dataclasses.replace(wanted, limit=min(left, 500))

        def question(session: Session, page: listing.Filter = page, audited: bool = audited) -> list[Exchange]:
            if not audited:
                _audit(pages, request, session, "export", page="exchanges.jsonl", filter=sorted(request.query_params))
            return listing.records_page(session, page)

        found = pages.asking.ask(question)
        audited = True
        yield b"".join(to_json(exchange) + b"\n" for exchange in found)
        if len(found) < page.limit:
            return
        left -= len(found)
        wanted = dataclasses.replace(wanted, before=listing.Position(found[-1].started_ns or 0, found[-1].exchange_id))


def _exchange(pages: Pages, request: Request) -> Response:
    user = user_of(request)
    may_read = user is not None and user.may("analyst")

    def question(session: Session) -> Exchange:
        exchange = listing.find(session, request.path_params["exchange_id"])
        if may_read:
            _audit(pages, request, session, "query", page="exchange", exchange_id=exchange.exchange_id)
        return exchange

    exchange = pages.asking.ask(question)
    if not may_read:
        exchange = exchange.without_content()
    return _page(
        pages, request, "exchange.html", exchange=exchange, passages=passages(exchange) if may_read else [], timeline=_timeline(exchange), severities=SEVERITIES
    )  # fmt: skip


def _timeline(exchange: Exchange) -> list[tuple[str, float]]:
    """Events and the milliseconds from the beginning."""
    began = exchange.started_ns
    if began is None:
        return []
    marks = [("first byte of the answer", exchange.first_byte_ns), ("first token", exchange.first_token_ns), ("end", exchange.ended_ns)]
    return [("request", 0.0), *((name, (at - began) / 1e6) for name, at in marks if at is not None)]


def _record(pages: Pages, request: Request) -> Response:
    def question(session: Session) -> Exchange:
        exchange = listing.find(session, request.path_params["exchange_id"])
        _audit(pages, request, session, "export", page="record", exchange_id=exchange.exchange_id)
        return exchange

    return Response(msgspec.json.format(to_json(pages.asking.ask(question)), indent=2), media_type="application/json")


def _findings(pages: Pages, request: Request) -> Response:
    query = {
        name: value for name in ("severity", "category", "rule", "fingerprint") if (value := request.query_params.get(name, "").strip())
    }
    if query.get("severity", SEVERITIES[0]) not in SEVERITIES:
        raise ConfigError(f"there is no severity {query['severity']!r}", f"one of {', '.join(SEVERITIES)}")
    name, span = _span(request)
    wanted = FindingFilter(
        query.get("severity"), query.get("category"), query.get("rule"), None, query.get("fingerprint"), since_ns=span.since_ns, limit=200,
        suppressed=request.query_params.get("suppressed") == "1",
    )  # fmt: skip

    rules = pages.asking.known(("rules", span), lambda session: figures.rules(session, span))
    found = pages.asking.ask(lambda session: list(stored_findings(session, wanted)))
    return _page(
        pages,
        request,
        "findings.html",
        rules=rules,
        found=found,
        query=query,
        since=name,
        severities=SEVERITIES,
        suppressed=wanted.suppressed,
    )


def _taps(pages: Pages, request: Request) -> Response:
    return _page(pages, request, "taps.html", taps=pages.asking.ask(figures.taps), now=time.time_ns())


def _table(
    pages: Pages,
    request: Request,
    title: str,
    command: str,
    columns: Columns,
    question: Callable[[Session, figures.Span], list[Any]],
    empty: str,
) -> Response:
    name, span = _span(request)
    rows = pages.asking.known((command, span), lambda session: question(session, span))
    return _page(pages, request, "table.html", title=title, command=command, columns=columns, rows=rows, since=name, empty=empty)


def _alerts(pages: Pages, request: Request) -> Response:
    def question(session: Session, span: figures.Span) -> list[Any]:
        found = stored_alerts(session, AlertFilter(since_ns=span.since_ns, limit=_LONGEST))
        return [(row["started"], row["priority"], row["rule"], row["state"], row["dedup_key"], row["count"], row["ended"]) for row in found]

    columns = (
        ("began", "day"), ("priority", "severity"), ("rule", "text"), ("state", "text"), ("about", "text"), ("exchanges", "number"), ("last", "day"),
    )  # fmt: skip
    return _table(pages, request, "Alerts", "alerts", columns, question, "No rule of alerts was met in this time.")


def _deviations(pages: Pages, request: Request) -> Response:
    def question(session: Session, span: figures.Span) -> list[Any]:
        found = stored_deviations(session, DeviationFilter(since_ns=span.since_ns, limit=_LONGEST))
        return [
            (
                row["started"],
                row["severity"],
                row["kind"],
                f"{row['scope']} {row['subject']}",
                row["value"],
                row["usual"],
                row["explanation"],
                row["exchange_id"],
            )
            for row in found
        ]

    columns = (
        ("when", "day"), ("severity", "severity"), ("kind", "text"), ("of", "text"), ("value", "number"), ("usual", "number"), ("why", "text"), ("shown by", "exchange"),
    )  # fmt: skip
    return _table(
        pages,
        request,
        "Deviations",
        "deviations",
        columns,
        question,
        "Nothing deviated in this time, or too little is known of what is usual.",
    )


def _tenants(pages: Pages, request: Request) -> Response:
    columns = (
        ("tenant", "tenant"), ("requests", "number"), ("keys", "number"), ("tokens in", "number"), ("tokens out", "number"), ("cost, US dollars", "number"),
        ("errors", "number"), ("highest risk", "number"),
    )  # fmt: skip
    return _table(
        pages,
        request,
        "Tenants",
        "tenants list",
        columns,
        lambda session, span: figures.by_tenant(session, span, _LONGEST),
        "No tenant is known in this time.",
    )


def _workloads(pages: Pages, request: Request) -> Response:
    columns = (
        ("process", "text"), ("pod or container", "text"), ("namespace", "text"), ("node", "text"), ("talks to", "text"), ("model", "text"), ("requests", "number"),
        ("tokens", "number"), ("highest risk", "number"),
    )  # fmt: skip
    return _table(
        pages,
        request,
        "Workloads",
        "query",
        columns,
        lambda session, span: figures.by_workload(session, span, _LONGEST),
        "No process was captured live in this time.",
    )


def _live(pages: Pages, request: Request) -> Response:
    return _page(pages, request, "live.html")


def _live_events(pages: Pages, _request: Request) -> Response:
    return StreamingResponse(live.events(pages.asking), media_type="text/event-stream")
