"""Exchanges: the list, its exports, one conversation, and what is decided about its findings."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final, TypeVar
from urllib.parse import urlencode

import msgspec
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse

from llmsec_agent.console.access import user_of
from llmsec_agent.console.asking import BusyError
from llmsec_agent.console.handling import PAGE, Pages, asked_of, audit, filter_of, page_of
from llmsec_agent.console.reading import passages
from llmsec_agent.console.triage import BY, acknowledge, acknowledged
from llmsec_agent.suppressing import marked
from llmsec_analyzer.risk import rank
from llmsec_analyzer.show.explanation import advice
from llmsec_analyzer.show.results import no_formula
from llmsec_analyzer.stored import exchanges as listing
from llmsec_analyzer.stored.session import QuerySession
from llmsec_analyzer.stored.stores import Session
from llmsec_tap.errors import ConfigError
from llmsec_tap.model import Exchange, to_json
from llmsec_tap.storage.clickhouse.address import is_clickhouse
from llmsec_tap.visible import visible

_MAX_EXPORT: Final = 100_000
# Exports under way; who wants another waits for none of them.
_exporting: Final = threading.BoundedSemaphore(4)
_T = TypeVar("_T")
# Of one exchange's findings, the gravest are shown.
_MAX_FINDINGS: Final = 200
# What is no content, and so may be asked for and exported by a viewer.
_COLUMNS: Final[dict[str, type]] = {
    "exchange_id": str,
    "started": str,
    "ms": int,
    "provider": str,
    "model": str,
    "status": int,
    "in": int,
    "out": int,
    "note": str,
    "tenant": str,
    "risk_score": int,
    "findings": int,
    "cost_usd": float,
    "server": str,
}


def exchanges(pages: Pages, request: Request) -> Response:
    query = {name: value for name, value in request.query_params.items() if value}
    wanted = filter_of(query)
    user = user_of(request)
    may_read = user is not None and user.may("analyst")
    if wanted.text is not None and not may_read:
        raise ConfigError("content is searched by analysts", "ask for the role analyst, or leave out the text")

    def question(session: Session) -> list[dict[str, Any]]:
        if may_read:
            audit(pages, request, "query", page="exchanges", filter=asked_of(query))
        return listing.page(session, dataclasses.replace(wanted, limit=PAGE + 1))

    rows = pages.asking.ask(question)
    if not may_read:
        rows = [{**row, "input": ""} for row in rows]
    more = rows[PAGE - 1] if len(rows) > PAGE else None
    query.pop("before", None)
    older = urlencode({**query, "before": f"{more['started_ns']}-{more['exchange_id']}"}) if more else None
    return page_of(
        pages,
        request,
        "exchanges.html",
        rows=rows[:PAGE],
        query=query,
        older=older,
        address=urlencode(query),
        is_first=wanted.before is None,
    )


def export(pages: Pages, request: Request) -> Response:
    """What is filtered, at most so many. A viewer gets what a list shows, without content; whole records are for analysts."""
    kind = request.path_params["kind"]
    user = user_of(request)
    assert user is not None
    wanted = dataclasses.replace(filter_of(request.query_params, _MAX_EXPORT), before=None)
    if kind not in ("jsonl", "csv", "parquet"):
        raise ConfigError(f"exports are jsonl, csv or parquet, not {kind}", "choose one on the list's page")
    if (kind == "jsonl" or wanted.text is not None) and not user.may("analyst"):
        raise ConfigError("whole records hold content, which your role does not see", "csv and parquet hold none")
    name = {"content-disposition": f'attachment; filename="exchanges.{kind}"'}
    if kind == "jsonl":
        records = _walk(
            pages, request, wanted, listing.records_page, 500, lambda one: listing.Position(one.started_ns or 0, one.exchange_id)
        )
        lines = (b"".join(to_json(exchange) + b"\n" for exchange in some) for some in _begun(records))
        return StreamingResponse(lines, media_type="application/jsonl", headers=name)
    rows = _walk(pages, request, wanted, listing.page, 2_000, lambda row: listing.Position(row["started_ns"], row["exchange_id"]))
    if kind == "parquet":
        return Response(_parquet(rows), media_type="application/vnd.apache.parquet", headers=name)
    return StreamingResponse(_csv(_begun(rows)), media_type="text/csv; charset=utf-8", headers=name)


def _walk(
    pages: Pages,
    request: Request,
    wanted: listing.Filter,
    look: Callable[[Session, listing.Filter], list[_T]],
    at_once: int,
    place_of: Callable[[_T], listing.Position],
) -> Iterator[list[_T]]:
    """Page by page, so that no question of an export is long, and little of it is held."""
    if not _exporting.acquire(blocking=False):
        raise BusyError("as many exports as may run at once are under way", "try again in a moment")
    try:
        left, is_first = wanted.limit, True
        while left > 0:
            page = dataclasses.replace(wanted, limit=min(left, at_once))

            def question(session: Session, page: listing.Filter = page, is_first: bool = is_first) -> list[_T]:
                if is_first:
                    kind = request.path_params["kind"]
                    audit(pages, request, "export", page=f"exchanges.{kind}", filter=asked_of(request.query_params))
                return look(session, page)

            found = pages.asking.ask(question)
            yield found
            if len(found) < page.limit:
                return
            left, is_first = left - len(found), False
            wanted = dataclasses.replace(wanted, before=place_of(found[-1]))
    finally:
        _exporting.release()


def _begun(walk: Iterator[list[_T]]) -> Iterator[list[_T]]:
    """The same, the first page asked for: what is wrong is said before anything is answered."""
    first = next(walk, [])
    return itertools.chain([first], walk)


def _csv(pages: Iterator[list[dict[str, Any]]]) -> Iterator[bytes]:
    """For spreadsheets, and people: nothing in it is a formula, or steers a terminal."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, extrasaction="ignore")
    writer.writeheader()
    for rows in pages:
        writer.writerows(
            {name: no_formula(visible(value)) if isinstance(value, str) else value for name, value in row.items()} for row in rows
        )
        yield text.getvalue().encode()
        text.seek(0)
        text.truncate()


def _parquet(pages: Iterator[list[dict[str, Any]]]) -> bytes:
    import pyarrow as pa  # type: ignore[import-untyped]
    from pyarrow import parquet

    types = {str: pa.string(), int: pa.int64(), float: pa.float64()}
    schema = pa.schema([(name, types[kind]) for name, kind in _COLUMNS.items()])
    made = io.BytesIO()
    with parquet.ParquetWriter(made, schema, compression="zstd") as writer:
        for rows in pages:
            writer.write_table(pa.Table.from_pylist([{name: row[name] for name in _COLUMNS} for row in rows], schema=schema))
    return made.getvalue()


def exchange_page(pages: Pages, request: Request) -> Response:
    user = user_of(request)
    may_read = user is not None and user.may("analyst")

    def question(session: Session) -> tuple[Exchange, dict[str, Any]]:
        exchange = listing.find(session, request.path_params["exchange_id"])
        if may_read:
            audit(pages, request, "query", page="exchange", exchange_id=exchange.exchange_id)
        return exchange, acknowledged(session.store) if isinstance(session, QuerySession) and exchange.findings else {}

    exchange, seen = pages.asking.ask(question)
    exchange = msgspec.structs.replace(exchange, findings=marked(exchange, pages.triage.entries()))
    read, left_out = passages(exchange) if may_read else ([], 0)
    if not may_read:
        exchange = exchange.without_content()
    findings = sorted(exchange.findings, key=lambda finding: -rank(finding.severity))[:_MAX_FINDINGS]
    return page_of(
        pages,
        request,
        "exchange.html",
        exchange=exchange,
        findings=findings,
        passages=read,
        left_out=left_out,
        timeline=_timeline(exchange),
        acknowledged=seen,
        advice=advice,
        may_acknowledge=may_read and not is_clickhouse(pages.asking.location),
        may_suppress=user is not None and user.may("admin") and pages.triage.suppressions is not None,
        by=BY,
    )


def decide(pages: Pages, request: Request, form: dict[str, str]) -> Response:
    """Acknowledge or suppress one finding."""
    user = user_of(request)
    assert user is not None
    exchange_id, finding_id = request.path_params["exchange_id"], request.path_params["finding_id"]

    def question(session: Session) -> None:
        exchange = listing.find(session, exchange_id)
        finding = next((one for one in exchange.findings if one.finding_id == finding_id), None)
        if finding is None:
            raise ConfigError("this exchange has no such finding", "open its page again")
        facts = {"page": "exchange", "rule_id": finding.rule_id, "finding_id": finding_id}
        match form.get("do"):
            case "acknowledge" if isinstance(session, QuerySession):
                said = partial(audit, pages, request, "configuration", state="finding acknowledged", **facts)
                acknowledge(session.store, finding, user.name, form.get("note", ""), said)
            case "suppress" if user.may("admin"):
                by = [name for name in BY if form.get(f"by_{name}")]
                said = partial(audit, pages, request, "configuration", state="suppression added", owner=user.name, **facts)
                words = {"reason": form.get("reason", ""), "owner": user.name, "until": form.get("until", "")}
                pages.triage.suppress(finding, exchange, **words, by=by, audit=lambda entry: said(until=entry.until))
            case _:
                raise ConfigError("this cannot be done here", "acknowledge needs a folder as the store, suppress the role admin")

    pages.asking.ask(question)
    return RedirectResponse(f"/exchanges/{exchange_id}#finding-{finding_id}", 303)


def _timeline(exchange: Exchange) -> list[tuple[str, float | None]]:
    """Events and the milliseconds from the beginning; None: its place is known, its time is not."""
    began = exchange.started_ns
    if began is None:
        return []
    marks = [("first byte of the answer", exchange.first_byte_ns), ("first token", exchange.first_token_ns), ("end", exchange.ended_ns)]
    known = [("request", 0.0), *((name, (at - began) / 1e6) for name, at in marks if at is not None)]
    early = sorted((finding.at_output_token, finding.rule_id) for finding in exchange.findings if finding.at_output_token is not None)
    found: list[tuple[str, float | None]] = [(f"{rule} found, at piece {token} of the answer", None) for token, rule in early]
    lost: list[tuple[str, float | None]] = [
        (f"{one.name}, {one.count} times", None) for one in exchange.anomalies if "gap" in one.name or "lost" in one.name
    ]
    end = known[-1:] if exchange.ended_ns is not None else []
    return [*known[: len(known) - len(end)], *found, *lost, *end]


def record(pages: Pages, request: Request) -> Response:
    def question(session: Session) -> Exchange:
        exchange = listing.find(session, request.path_params["exchange_id"])
        audit(pages, request, "export", page="record", exchange_id=exchange.exchange_id)
        return exchange

    return Response(msgspec.json.format(to_json(pages.asking.ask(question)), indent=2), media_type="application/json")
