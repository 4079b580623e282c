"""`llmsec-analyze tenants`: who is which tenant, and what each of them did."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from llmsec_agent.cli.analyze.query import StoreOption
from llmsec_agent.cli.analyze.scan import ConfigOption
from llmsec_tap.storage import DEFAULT_STORE

group = typer.Typer(no_args_is_help=True, rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]})

_MAX_KEY = 64_000


def register(app: typer.Typer) -> None:
    app.add_typer(group, name="tenants", help="Who is which tenant, and what each of them did.")


@group.command()
def fingerprint() -> None:
    """Print the fingerprint of a key that stands on standard input, for `tenants.rules[].match.api_key_fingerprint`.

    It is made under this installation's key (LLMSEC_FINGERPRINT_KEY_FILE): taps that share that file agree on it. A key never belongs into
    arguments, which every process of the host can read.

    Example: llmsec-analyze tenants fingerprint < key.txt
    """
    from llmsec_agent.cli.analyze.streams import results

    with results():
        typer.echo(_fingerprint("fingerprint"))


def _fingerprint(command: str) -> str:
    """Of the key on standard input. Raises ConfigError where there is none."""
    from llmsec_agent.journals import journal
    from llmsec_tap.errors import ConfigError
    from llmsec_tap.identity.credentials import fingerprinter
    from llmsec_tap.install_key import install_key

    given = sys.stdin.buffer.read(_MAX_KEY + 1)
    key = given.decode("latin-1").strip()  # as header values are read
    if not key or len(given) > _MAX_KEY or "\n" in key:
        raise ConfigError("standard input has no key: it must be one line", f"for example `llmsec-analyze tenants {command} < key.txt`")
    return fingerprinter(install_key(journal()))(key)


@group.command()
def schema() -> None:
    """Print the tables of tenants and their keys that `storage.postgres` reads, as SQL.

    Example: llmsec-analyze tenants schema | psql llmsec_metadata
    """
    from importlib.resources import files

    from llmsec_agent.cli.analyze.streams import results

    with results():
        typer.echo((files("llmsec_agent") / "tenants" / "schema.sql").read_text(encoding="utf-8"), nl=False)


@group.command()
def lookup(config: ConfigOption = None) -> None:
    """Ask Redis and PostgreSQL whose the key on standard input is, and say what each of them knows.

    Only the key's fingerprint goes there. Exit 1: no tenant has it, or nobody could be asked.

    Example: llmsec-analyze tenants lookup < key.txt
    """
    import asyncio

    import msgspec

    from llmsec_agent.cli.analyze.streams import results
    from llmsec_agent.config import load_config
    from llmsec_agent.journals import journal
    from llmsec_agent.tenants.tiers import Tiers, tier_plan
    from llmsec_agent.text import report
    from llmsec_tap.errors import ConfigError
    from llmsec_tap.visible import visible

    storage = load_config(config, report).storage
    plan = tier_plan(storage.postgres, storage.redis)
    if plan is None:
        raise ConfigError("the configuration names no database of tenants", "set storage.postgres")
    fingerprint = _fingerprint("lookup")

    async def ask() -> tuple[bool, list[str]]:
        tiers = Tiers(plan, journal())
        try:
            cached = await tiers.cached([fingerprint])
            stored = await tiers.stored([fingerprint])
        finally:
            await tiers.close()
        lines = [f"fingerprint: {fingerprint}"]
        for name, found in ("Redis", cached if plan.redis is not None else None), ("PostgreSQL", stored):
            if found is not None:
                context = found.get(fingerprint)
                lines.append(f"{name}: {msgspec.json.encode(context).decode() if context is not None else 'no tenant has this key'}")
        return fingerprint in {**cached, **(stored or {})}, lines

    found, lines = asyncio.run(ask())
    with results():
        for line in lines:
            typer.echo(visible(line))
    if not found:
        raise typer.Exit(1)


@group.command("list")
def list_tenants(store: StoreOption = DEFAULT_STORE, config: ConfigOption = None) -> None:
    """List the tenants of a store with what they used, those of the configuration without traffic included.

    Tokens are those that servers stated and, where they stated none, estimates, as on the console's page of tenants.

    `key-…` is a key that no rule knows.

    Example: llmsec-analyze tenants list
    """
    from llmsec_agent.cli.analyze.streams import results
    from llmsec_agent.config import load_config
    from llmsec_agent.journals import journal
    from llmsec_agent.text import report
    from llmsec_analyzer.stored.exchanges import INPUT_TOKENS, OUTPUT_TOKENS
    from llmsec_analyzer.stored.session import QuerySession
    from llmsec_tap.visible import visible

    rules = load_config(config, report).tenants.rules
    plans = {rule.tenant: rule.plan or "" for rule in reversed(rules)}
    with results(), QuerySession.open(store, journal()) as session:
        rows = session.select(_LIST.format(tokens_in=INPUT_TOKENS, tokens_out=OUTPUT_TOKENS)).rows()
        typer.echo(f"{'tenant':<32} {'plan':<12} {'exchanges':>10} {'in':>12} {'out':>12} {'keys':>5} {'findings':>8}  last")
        seen = set()
        for name, exchanges, tokens_in, tokens_out, keys, findings, last in rows:
            seen.add(name)
            shown = name if name is not None else "-"
            plan = plans.get(name, "")
            typer.echo(
                visible(f"{shown:<32} {plan:<12} {exchanges:>10} {tokens_in:>12} {tokens_out:>12} {keys:>5} {findings:>8}  {last or '-'}")
            )
        for name, plan in sorted(plans.items()):
            if name not in seen:
                typer.echo(visible(f"{name:<32} {plan:<12} {0:>10} {0:>12} {0:>12} {0:>5} {0:>8}  -"))


@group.command()
def show(
    tenant: Annotated[str, typer.Argument(help="Name of the tenant.", metavar="TENANT")],
    store: StoreOption = DEFAULT_STORE,
    config: ConfigOption = None,
) -> None:
    """Show one tenant: the rules that name it, what is kept of it, and its keys, models and workloads in the store.

    Example: llmsec-analyze tenants show acme
    """
    import msgspec

    from llmsec_agent.cli.analyze.streams import results
    from llmsec_agent.config import load_config
    from llmsec_agent.journals import journal
    from llmsec_agent.text import report
    from llmsec_analyzer.stored.session import QuerySession
    from llmsec_tap.errors import ConfigError
    from llmsec_tap.visible import visible

    loaded = load_config(config, report)
    lines = []
    for number, rule in enumerate(loaded.tenants.rules):
        if rule.tenant == tenant:
            match = {name: value for name, value in msgspec.to_builtins(rule.match).items() if value}
            asks = ", ".join(f"{name}={value}" for name, value in match.items()) or "everything"
            holds = {name: getattr(rule, name) for name in ("content", "profile", "confidence_threshold", "alert_threshold", "plan")}
            lines.append(
                "; ".join([f"rule {number + 1}: {asks}", *(f"{name} {value}" for name, value in holds.items() if value is not None)])
            )
    kept = loaded.storage.retention.tenants.get(tenant)
    if kept is not None:
        days = {name: value["days"] for name, value in msgspec.to_builtins(kept).items() if value["days"] is not None}
        lines.append("kept: " + ", ".join(f"{name} {value:g} days" for name, value in days.items()))
    with results(), QuerySession.open(store, journal()) as session:
        for what, column in (
            ("key", "api_key_fingerprint"),
            ("model", "model"),
            ("workload", "coalesce(process.namespace || '/' || process.pod, process.exe, process.comm, client_agent)"),
        ):
            sql = f"SELECT {column} AS what, count(*) AS n, max(started) FROM exchanges WHERE tenant = ? GROUP BY 1 ORDER BY n DESC, 1 LIMIT 20"  # noqa: S608 - our own columns
            lines += [f"{what} {name or '-'}: {count} exchanges, last {last}" for name, count, last in session.select(sql, [tenant]).rows()]
        if not lines:
            raise ConfigError(f"no tenant {tenant!r} in the configuration or the store", "llmsec-analyze tenants list shows them")
        for line in lines:
            typer.echo(visible(line))


_LIST = """
SELECT tenant, count(*), coalesce(sum({tokens_in}), 0)::BIGINT,
  coalesce(sum({tokens_out}), 0)::BIGINT,
  count(DISTINCT api_key_fingerprint), coalesce(sum(len(findings)), 0)::BIGINT, max(started)
FROM exchanges WHERE provider IS NOT NULL GROUP BY tenant ORDER BY 2 DESC, 1
"""
