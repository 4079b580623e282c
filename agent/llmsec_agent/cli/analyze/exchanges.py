"""`llmsec-analyze exchanges`: list what is stored, show one conversation."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated

import typer

from llmsec_agent.cli.analyze.query import OwnStoreOption, StoreOption
from llmsec_tap.storage import DEFAULT_STORE


class ListFormat(StrEnum):
    TABLE = "table"
    JSON = "json"


class ShowFormat(StrEnum):
    TEXT = "text"
    JSON = "json"


class CompletenessChoice(StrEnum):
    COMPLETE = "complete"
    TRUNCATED = "truncated"
    GAPPED = "gapped"
    MIDSTREAM = "midstream"
    ABORTED = "aborted"
    UNREADABLE = "unreadable"


group = typer.Typer(invoke_without_command=True, rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]})


def register(app: typer.Typer) -> None:
    app.add_typer(group, name="exchanges")


@group.callback()
def list_exchanges(
    context: typer.Context,
    store: StoreOption = DEFAULT_STORE,
    model: Annotated[str | None, typer.Option(help="Requested or answering model; * and ? are wildcards.")] = None,
    provider: Annotated[str | None, typer.Option(help="openai, anthropic, vllm, …")] = None,
    api: Annotated[str | None, typer.Option(help="Wire dialect: openai.chat, anthropic.messages, …")] = None,
    tenant: Annotated[str | None, typer.Option(help="Tenant, as configured.")] = None,
    status: Annotated[int | None, typer.Option(help="HTTP status.")] = None,
    has_error: Annotated[bool, typer.Option("--has-error", help="Only failures: an error in the answer, or status 400 and above.")] = False,
    completeness: Annotated[CompletenessChoice | None, typer.Option(help="Only exchanges that were seen this way.")] = None,
    since: Annotated[
        str | None, typer.Option(help="Started at or after: 30m, 2h, 7d ago, or 2026-11-24T10:00 (UTC).", metavar="TIME")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Started before; as --since.", metavar="TIME")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 50,
    output: Annotated[ListFormat, typer.Option("--format", help="json: one whole record per line.")] = ListFormat.TABLE,
) -> None:
    """List exchanges, newest first; `exchanges show ID` prints one conversation.

    Example: llmsec-analyze exchanges --since 2h --model "gpt-4*" --has-error
    """
    context.obj = store
    if context.invoked_subcommand is not None:
        return
    import dataclasses

    from llmsec_agent.auditing import record_reading
    from llmsec_agent.cli.analyze.streams import results
    from llmsec_agent.journals import journal
    from llmsec_analyzer.show.results import write_lines, write_table
    from llmsec_analyzer.stored import exchanges as listing
    from llmsec_analyzer.stored.stores import open_session
    from llmsec_tap.model import to_json

    wanted = listing.Filter(
        model=model,
        provider=provider,
        api=api,
        tenant=tenant,
        status=status,
        has_error=has_error,
        completeness=completeness.value if completeness else None,
        since_ns=listing.parse_time(since, "--since") if since else None,
        until_ns=listing.parse_time(until, "--until") if until else None,
        limit=limit,
    )
    log = journal()
    with results(), open_session(store, log) as session:
        asked = {name: value for name, value in dataclasses.asdict(wanted).items() if value}
        event = "export" if output is ListFormat.JSON else "query"
        record_reading(session, log, event, command="exchanges", format=output.value, filter=asked)
        if output is ListFormat.JSON:
            write_lines((to_json(exchange).decode() for exchange in listing.records(session, wanted)), sys.stdout)
        else:
            write_table(listing.listed(session, wanted), sys.stdout, max_rows=wanted.limit)


@group.command()
def show(
    context: typer.Context,
    exchange_id: Annotated[str, typer.Argument(help="The id, or its beginning where that is unique.", metavar="ID")],
    store: OwnStoreOption = None,
    output: Annotated[ShowFormat, typer.Option("--format", help="json: the whole record on one line.")] = ShowFormat.TEXT,
) -> None:
    """Print one conversation: who said what, tool calls, times, tokens, anomalies.

    Characters of the content that could steer a terminal are written as escapes.

    Example: llmsec-analyze exchanges show 3fa9
    """
    from llmsec_agent.auditing import record_reading
    from llmsec_agent.cli.analyze.streams import results
    from llmsec_agent.journals import journal
    from llmsec_analyzer.show.conversation import render
    from llmsec_analyzer.show.results import write_lines
    from llmsec_analyzer.stored import exchanges as listing
    from llmsec_analyzer.stored.stores import open_session
    from llmsec_tap.model import to_json

    log = journal()
    with results(), open_session(store or context.obj, log) as session:
        exchange = listing.find(session, exchange_id)
        record_reading(session, log, "query", command="exchanges show", exchange_id=exchange.exchange_id)
    with results():
        if output is ShowFormat.JSON:
            write_lines([to_json(exchange).decode()], sys.stdout)
        else:
            sys.stdout.write(render(exchange))
