"""`llmsec-tap size`: what a load will take."""

from __future__ import annotations

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    app.command()(size)


def size(
    requests_per_second: Annotated[float, typer.Option(help="Exchanges a second, of all nodes.")],
    tokens_per_second: Annotated[float, typer.Option(help="Tokens that are answered a second, of all nodes.")],
    request_kb: Annotated[float, typer.Option(help="Text of a request, thousands of bytes.")] = 2.0,
    streams: Annotated[int | None, typer.Option(help="Answers under way at once; by itself 50 tokens/s each.")] = None,
    days: Annotated[float, typer.Option(help="How long exchanges are kept.")] = 30.0,
    cores_per_node: Annotated[float, typer.Option(help="Cores that the tap may take of a node; the chart's limit is 2.")] = 2.0,
    clickhouse: Annotated[bool, typer.Option("--clickhouse/--no-clickhouse", help="With delivery to a ClickHouse database.")] = False,
    content: Annotated[bool, typer.Option("--content/--no-content", help="Whether texts are stored.")] = True,
    constants: Annotated[bool, typer.Option("--constants", help="Also each constant, and the command that measured it.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Tell what a load takes: cores, memory, disk, ClickHouse, and how many nodes where one is not enough.

    By constants that were measured on two shared CPUs (docs/performance.md); nothing is measured here, and nothing is read.

    Example: llmsec-tap size --requests-per-second 20 --tokens-per-second 5000 --clickhouse
    """
    from llmsec_agent.size import CONSTANTS, Load
    from llmsec_agent.size import size as size_of

    found = size_of(
        Load(
            requests_per_second=requests_per_second, tokens_per_second=tokens_per_second, request_kb=request_kb, streams=streams, days=days,
            cores_per_node=cores_per_node, clickhouse=clickhouse, content=content,
        )
    )  # fmt: skip
    if as_json:
        import msgspec

        whole = {"size": found, "constants": CONSTANTS} if constants else {"size": found}
        typer.echo(msgspec.json.format(msgspec.json.encode(whole), indent=1).decode())
        return
    gb = 1e9
    lines = [
        ("nodes", f"{found.nodes:,} of {cores_per_node:g} cores, {found.decoders_a_node} decoder(s) each"),
        ("cores", f"{found.cores.least:,.2f} to {found.cores.most:,.2f} in all"),
        (
            "",
            f"{found.cores_of_observed.least:,.2f} to {found.cores_of_observed.most:,.2f} more in the observed processes, for their probes",
        ),
        ("memory", f"{found.memory.least / gb:,.2f} to {found.memory.most / gb:,.2f} GB in all"),
        (
            "",
            f"limit of a node: {found.memory_limit_a_node / (1 << 20):,.0f} MiB, with capture.memory_cap: {found.memory_cap_a_node >> 20}MiB",
        ),
        ("disk", f"{found.disk_a_node / gb:,.2f} GB on each node for {days:g} days"),
    ]
    if found.clickhouse_bytes is not None:
        lines += [
            ("ClickHouse", f"{found.clickhouse_bytes / gb:,.1f} GB for {days:g} days, before replicas"),
            ("", f"{found.clickhouse_inserts_per_second:,.1f} inserts a second, of {requests_per_second:,.0f} rows together"),
            ("", f"a question that reads a day: some {found.clickhouse_core_s_for_a_day:,} core seconds"),
        ]
    lines += [("note", note) for note in found.notes]
    if constants:
        lines += [
            ("constant", f"{name}: {each.least:g} to {each.most:g} {each.unit}; {each.what}; {each.command}")
            for name, each in CONSTANTS.items()
        ]
    for name, text in lines:
        typer.echo(f"{name:<11} {text}")
